"""Entry of `python -m lib_merge`."""

from __future__ import annotations

import sys

from lib_merge.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
