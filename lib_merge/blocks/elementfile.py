"""`elempresets.txt`: `NAME:blocks:elements:ratio,blocks:elements:ratio`, over one or several lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lib_merge.blocks.elements import parse_rule, rule_blocks
from lib_merge.blocks.model import ANY, Preset, same_table, shown
from lib_merge.blocks.report import Collector, sentence
from lib_merge.errors import RecipeError
from lib_merge.families.blocks import BLOCKS
from lib_merge.recipe import ElementRule

_TABLES = ("SD1", "SDXL", "Flux")


@dataclass(slots=True)
class _Entry:
    number: int
    name: str
    rules: list[ElementRule] = field(default_factory=list)
    bad: bool = False


def read_elements(lines: Sequence[str], family: str | None, out: Collector) -> None:
    """Read a whole file; a blank line, or a rule with a name before it, begins a new entry.

    An entry with one rule that cannot be read is refused as a whole: half of it would be another preset.

    Args:
        lines: of the file.
        family: what the user takes the file to be for.
        out: where presets and sentences go.
    """
    entry: _Entry | None = None
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            _finish(entry, family, out)
            entry = None
            continue
        if text.startswith("#"):
            out.skip(number, "A comment.")
            continue
        items = text.split(",")
        if entry is None or items[0].count(":") == 3:
            _finish(entry, family, out)
            name, colon, items[0] = items[0].partition(":")
            entry = _Entry(number, name.strip())
            if not colon or not entry.name:
                entry.bad = True
                out.refuse(number, "There is no name with a ':' before the rules.")
                continue
        for item in items:
            _rule(entry, number, item, out)
    _finish(entry, family, out)


def _rule(entry: _Entry, number: int, item: str, out: Collector) -> None:
    if not item.strip():
        return
    try:
        entry.rules.append(parse_rule(item))
    except RecipeError as error:
        if not entry.bad:
            out.refuse(number, f"{sentence(str(error))} The preset {shown(entry.name)} is left out.")
        entry.bad = True


def _finish(entry: _Entry | None, family: str | None, out: Collector) -> None:
    if entry is None or entry.bad:
        return
    if not entry.rules:
        out.refuse(entry.number, f"{shown(entry.name)} has no rules.")
        return
    blocks = {block for rule in entry.rules for block in rule_blocks(rule.blocks)}
    tables = [table for table in _TABLES if blocks <= set(BLOCKS[table])]
    if not tables:
        unknown = next((b for b in sorted(blocks) if not any(b in BLOCKS[table] for table in _TABLES)), "")
        why = (
            f"no family has a block {shown(unknown)}"
            if unknown
            else "its blocks belong to different families"
        )
        out.refuse(entry.number, f"{shown(entry.name)} is left out: {why}.")
        return
    fitting = next((table for table in tables if family is not None and same_table(table, family)), None)
    notes = [f"Its blocks do not fit {family}."] if family in BLOCKS and fitting is None else []
    # rules that several families can follow are kept once, for all of them
    kept = tables[0] if len(tables) == 1 else ANY
    out.keep(entry.number, Preset(entry.name, kept, {}, tuple(entry.rules)), *notes)
