"""The command line: `python -m lib_merge …`."""

from __future__ import annotations

from lib_merge.cli.commands import main

__all__ = ["main"]
