"""Labels of history entries for menus: short, and no two alike."""

from __future__ import annotations

from collections.abc import Sequence

from lib_merge.kept.changes import rank_title, title_of, value_title
from lib_merge.kept.history import Entry

LONGEST = 48  # characters of a name in a label


def labels(entries: Sequence[Entry]) -> dict[str, str]:
    """Return id -> a label for menus, short and unlike every other.

    A name is shortened in its middle; entries that would read alike are told apart by their ratios, then by
    what else their recipes say, then by their number.
    """
    said = {entry.id: _short(entry.name) for entry in entries}
    for tell in (_ratios, _settings, _number):
        counts: dict[str, int] = {}
        for label in said.values():
            counts[label] = counts.get(label, 0) + 1
        for entry in entries:
            if counts[said[entry.id]] > 1 and (told := tell(entry)):
                said[entry.id] = f"{told} · {said[entry.id]}"
    return said


def _short(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 20]}…{name[-19:]}"


def _ratios(entry: Entry) -> str:
    return " / ".join(value_title(source.get("ratio")) for source in entry.sources if "ratio" in source)


def _settings(entry: Entry) -> str:
    knobs = entry.recipe.get("knobs")
    told = [f"{title_of(name)} {value_title(value)}" for name, value in knobs.items()] if knobs else []
    rank = entry.recipe.get("rank")
    return ", ".join([*([f"rank {rank_title(rank)}"] if rank else []), *told])


def _number(entry: Entry) -> str:
    return f"№ {entry.id.partition('-')[0].lstrip('0')}"
