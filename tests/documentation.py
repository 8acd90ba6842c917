"""README and .docs as data: their fenced blocks with the comment before each, their links and pictures.

A comment says what a block is for, where it is not simply run:

    <!-- shown: why -->       shown, not run
    <!-- file: NAME -->       the file NAME of the commands that follow
    <!-- body: plan merge --> a request of these REST routes (tests/test_rest.py)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / ".docs").glob("*.md")))
_FENCE = re.compile(
    r"(?:^<!-- (?P<sort>\w+): (?P<about>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One fenced block: its language and text; `sort` and `about` of the comment before it, or ""."""

    language: str
    text: str
    sort: str
    about: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["language"], m["text"], m["sort"] or "", m["about"] or "") for m in found]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks and comments."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures, but those into the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Return what can stand behind # in a link to a page, as GitHub makes it of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> list[str]:
    """Return the command lines of a block; a backslash at the end of a line joins it with the next."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
