"""The families that are known, by name, in the order that people see."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

from lib_merge.families.record import Family

OTHER = "other"
# what is taken where nobody says a family and nothing tells it
USUAL = "SD1"
FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family.

    Raises:
        ValueError: its name is taken.
    """
    if family.name in FAMILIES:
        message = f"there are two records of the family {family.name}"
        raise ValueError(message)
    records = sorted([*FAMILIES.values(), family], key=lambda record: record.order)
    FAMILIES.clear()
    FAMILIES.update((record.name, record) for record in records)


def unregister(name: str) -> None:
    """Take a family out again."""
    del FAMILIES[name]


def family_of(name: str) -> Family:
    """Return a family by name; of a name that is not known, what holds for every other model."""
    return FAMILIES.get(name) or _nameless(name)


@functools.lru_cache(maxsize=64)
def _nameless(name: str) -> Family:
    return replace(FAMILIES[OTHER], name=name, base_version="", architecture="")


def with_blocks() -> Iterator[Family]:
    """Yield the families that have a table of blocks."""
    return (family for family in FAMILIES.values() if family.blocks)


def tables() -> list[Family]:
    """Return one family for every table of blocks: the first that has it."""
    first: dict[tuple[str, ...], Family] = {}
    for family in with_blocks():
        first.setdefault(family.blocks, family)
    return list(first.values())
