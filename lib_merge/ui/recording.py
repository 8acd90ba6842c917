"""A merge of the history as a record to copy: Sources, Method, Weights, Notes, Date."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from lib_merge.errors import legible
from lib_merge.kept.changes import method_title, rank_title, source_name, title_of, value_title
from lib_merge.kept.history import Entry
from lib_merge.methods import METHODS
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.protocol import About
from lib_merge.ui.understanding import EntryRequest

# what Markdown, or HTML inside it, would take for more than itself
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>&$:@])")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReply:
    """A merge as text for other places; names and notes are a stranger's and are escaped."""

    text: Annotated[str, About("plain, a line for each")]
    markdown: str


@operation("record")
def record(desk: Desk, request: EntryRequest) -> RecordReply:
    """Return what was merged as plain text and as Markdown, to be copied."""
    entry = desk.history.get(request.entry)
    lines = _lines(entry)
    name = legible(entry.name)
    plain = [name, *(f"{title}: {_indented(value)}" for title, value in lines)]
    marked = [f"**{_escaped(name)}**", "", *(f"- **{title}:** {_marked(value)}" for title, value in lines)]
    return RecordReply(text="\n".join(plain), markdown="\n".join(marked))


def _lines(entry: Entry) -> list[tuple[str, list[str]]]:
    recipe = entry.recipe
    sources = [one for one in recipe.get("sources") or entry.sources if isinstance(one, Mapping)]
    return [
        ("Sources", [", ".join(legible(source_name(one)) for one in sources) or "unknown"]),
        ("Method", [_method(entry, recipe)]),
        ("Weights", [_weight(one) for one in sources] or ["unknown"]),
        ("Notes", [legible(line) for line in entry.notes.splitlines() if line.strip()] or ["none"]),
        ("Date", [legible(entry.time) or "unknown"]),
    ]


def _method(entry: Entry, recipe: Mapping[str, Any]) -> str:
    """Return the method with the settings that are not its defaults, and the rank."""
    method = METHODS.get(entry.method)
    given = recipe.get("knobs") or {}
    changed = [
        f"{title_of(knob.name)} {value_title(given[knob.name])}"
        for knob in (method.knobs if method is not None else ())
        if given.get(knob.name, knob.default) != knob.default
    ]
    rank = [f"Rank: {rank_title(recipe['rank'])}"] if recipe.get("rank") else []
    return legible(", ".join([method_title(entry.method), *changed, *rank]))


def _weight(source: Mapping[str, Any]) -> str:
    """Return a source's weights in words; those inside a group in brackets behind it."""
    text = f"{source_name(source)} {value_title(source.get('ratio', 1.0))}"
    if source.get("te_ratio") is not None:
        text += f", text encoder {value_title(source['te_ratio'])}"
    blocks = source.get("blocks")
    if isinstance(blocks, Mapping):
        text += f", blocks {' '.join(f'{name}={value_title(value)}' for name, value in blocks.items())}"
    elif blocks:
        text += f", blocks {value_title(blocks)}"
    inner = source.get("recipe")
    if isinstance(inner, Mapping):
        inside = [_weight(one) for one in inner.get("sources") or () if isinstance(one, Mapping)]
        text += f" [{method_title(inner.get('method'))}: {'; '.join(inside)}]"
    return legible(text)


def _indented(lines: list[str]) -> str:
    return lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)


def _marked(lines: list[str]) -> str:
    return _escaped(lines[0]) if len(lines) == 1 else "".join(f"\n  - {_escaped(line)}" for line in lines)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
