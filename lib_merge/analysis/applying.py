"""Carrying out advice: changes of a recipe as plain data, so that one click, a test and a script do the same.

ratios, te_ratios, blocks, roles   a list, one value per source; null leaves a source as it is
method, knobs                      the method and its settings; settings of another method are dropped
rank                               a rank policy as it is typed
precision                          fp16, bf16 or float
keep                               the sources that stay, in their new order, by their old places
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe import Recipe, Source

_PER_SOURCE = {"ratios": "ratio", "te_ratios": "te_ratio", "blocks": "blocks", "roles": "role"}
_KNOWN = {*_PER_SOURCE, "method", "knobs", "rank", "precision", "keep"}


def apply_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with an advice's `apply` carried out.

    Args:
        recipe: the recipe that was analysed.
        changes: as described above; an empty mapping changes nothing.
    Raises:
        RecipeError: an unknown change, or a list that does not fit the sources.
    """
    unknown = sorted(set(changes) - _KNOWN)
    if unknown:
        message = f"there is no change {unknown[0]!r}; known are {', '.join(sorted(_KNOWN))}."
        raise RecipeError(message)
    sources = list(recipe.sources)
    for name, field in _PER_SOURCE.items():
        if changes.get(name) is not None:
            sources = _spread(sources, name, field, changes[name])
    if changes.get("keep") is not None:
        sources = _kept(sources, changes["keep"])
    found = replace(recipe, sources=tuple(sources))
    if changes.get("method") is not None:
        found = _method(found, str(changes["method"]), changes.get("knobs") or {})
    elif changes.get("knobs") is not None:
        found = replace(found, knobs={**found.knobs, **changes["knobs"]})
    if changes.get("rank") is not None:
        found = replace(found, rank=parse_policy(changes["rank"]))
    if changes.get("precision") is not None:
        found = replace(found, precision=str(changes["precision"]))
    found.check()
    return found


def _spread(sources: Sequence[Source], name: str, field: str, values: Sequence[Any]) -> list[Source]:
    if len(values) != len(sources):
        message = f"{len(values)} {name} for {len(sources)} sources: the advice belongs to another recipe."
        raise RecipeError(message)
    changed = []
    for source, value in zip(sources, values):
        given = tuple(value) if field == "te_ratio" and isinstance(value, list) else value
        changed.append(source if value is None else replace(source, **{field: given}))
    return changed


def _kept(sources: Sequence[Source], places: Sequence[int]) -> list[Source]:
    if not places or len(set(places)) != len(places) or not set(places) <= set(range(len(sources))):
        message = f"the sources to keep, {list(places)}, do not fit a recipe of {len(sources)}."
        raise RecipeError(message)
    return [sources[place] for place in places]


def _method(recipe: Recipe, name: str, knobs: Mapping[str, Any]) -> Recipe:
    """Change the method; a rank that the new one cannot have becomes its default."""
    changed = replace(recipe, method=name, knobs=dict(knobs))
    if changed.declared().space == "dense" and changed.rank is not None and changed.rank.exact:
        return replace(changed, rank=None)
    if changed.declared().space != "dense" and changed.rank is not None and changed.rank.kind == "sum":
        return replace(changed, rank=None)
    return changed
