"""The base family of a file, from key names and shapes alone: metadata is free text and often wrong.

Each fact shown narrows the set of families that could have it; what is left is the answer. A text encoder of
CLIP-L's width alone fits several and is left open.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from lib_merge.families.record import Fact, Family, ModuleFacts
from lib_merge.families.registry import FAMILIES, OTHER


@dataclass(frozen=True, slots=True)
class FamilyGuess:
    """The families that fit, and the fact that decided."""

    candidates: tuple[str, ...]
    reason: str


def tell_family(modules: Iterable[ModuleFacts]) -> FamilyGuess:
    """Return the families that a file's modules fit."""
    modules = tuple(modules)
    shown = _shown(modules)
    if not shown:
        return FamilyGuess((OTHER,), "its module names are of no family known here")
    allowed = set.intersection(*(set(families) for _, families in shown))
    if not allowed:
        return FamilyGuess((OTHER,), "its modules belong to different families")
    allowed -= {name for name in allowed if FAMILIES[name].gives_way_to in allowed}
    if len(allowed) > 1:
        components = {module.component for module in modules}
        allowed -= {name for name in allowed if not components.isdisjoint(FAMILIES[name].improbable)}
    # the most telling fact is the one people are told
    reason = min(shown, key=lambda item: len(item[1]))[0].reason
    return FamilyGuess(tuple(name for name in FAMILIES if name in allowed), reason)


def _shown(modules: Iterable[ModuleFacts]) -> list[tuple[Fact, frozenset[str]]]:
    """Return every fact that some module shows, in the order of first appearance, and who can have it."""
    hidden = list(_facts(tuple(FAMILIES.values())))
    shown = []
    for module in modules:
        new = [item for item in hidden if item[0].shown_by(module)]
        if new:
            shown.extend(new)
            hidden = [item for item in hidden if item not in new]
    return shown


@functools.lru_cache(maxsize=8)
def _facts(families: tuple[Family, ...]) -> tuple[tuple[Fact, frozenset[str]], ...]:
    """Return every fact with the families that can have it; what names say comes before what sizes say."""
    owners: dict[Fact, set[str]] = {}
    for family in families:
        for fact in family.facts:
            owners.setdefault(fact, set()).add(family.name)
    return tuple((fact, frozenset(owners[fact])) for fact in sorted(owners, key=lambda fact: fact.of_size))


def family_in_name(base: str) -> str | None:
    """Return the family that the name of a base model in a PEFT configuration tells, where it is plain."""
    for family in sorted(FAMILIES.values(), key=lambda family: family.config_names.order):
        name = family.config_names.read(base)
        if name is not None:
            return name
    return None


def line_in_name(base: str) -> str | None:
    """Return the line of models (Pony, Illustrious, …) that the name of a base model tells, or None."""
    for family in sorted(FAMILIES.values(), key=lambda family: family.lines.order):
        line = family.lines.read(base)
        if line is not None:
            return line
    return None
