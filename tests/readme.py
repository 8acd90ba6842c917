"""`python -m tests.readme`: write the generated tables into the README."""

from __future__ import annotations

import re
from pathlib import Path

from lib_merge.cli.text import methods_markdown

README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    block = f"<!-- methods:begin -->\n{methods_markdown()}\n<!-- methods:end -->"
    text = re.sub(r"<!-- methods:begin -->.*?<!-- methods:end -->", lambda _: block, text, flags=re.DOTALL)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
