"""A recipe with one thing changed: for the axes of a plot, the columns of a comparison, advice and presets.

Every function returns a new recipe and leaves the given one as it is. A source is named by its handle, as the
tab shows it: A, B, C, … for files, 1, 2, … for groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Union

from lib_merge.errors import RecipeError
from lib_merge.methods import Space, get_method
from lib_merge.ranks.policy import PolicyKind, RankPolicy, parse_policy
from lib_merge.recipe import Blocks, Recipe, Source

Place = tuple[int, ...]  # of a source: its index among the recipe's, then among its group's, …
Handle = Union[str, int]  # "B", or the index of one of the recipe's own sources
Resolve = Callable[
    [Blocks, Union[str, None]], dict[str, float]
]  # (block weights of any form, family) -> each

# what an advice may change, one value per source -> the source's field
PER_SOURCE = {"ratios": "ratio", "te_ratios": "te_ratio", "blocks": "blocks", "roles": "role"}
_CHANGES = {*PER_SOURCE, "method", "knobs", "rank", "precision", "keep"}

# ------------------------------------------------------------------------------------------------ handles


def letter(index: int) -> str:
    """Return the handle of the file in row `index`, from 0: A … Z, AA, AB, …"""
    text = ""
    index += 1
    while index:
        index, place = divmod(index - 1, 26)
        text = chr(ord("A") + place) + text
    return text


def handles(recipe: Recipe) -> dict[str, Place]:
    """Return handle -> place of every source, those inside groups too, in the order of the recipe.

    A source that the tab has given a handle keeps it, so that a row that is switched off moves nobody's
    letter. In a recipe that no tab has set up, files are lettered and groups numbered from left to right, as
    the tab will show them once it is opened there.
    """
    result: dict[str, Place] = {}
    groups = files = 0

    def walk(sources: Sequence[Source], above: Place) -> None:
        nonlocal groups, files
        for index, source in enumerate(sources):
            if source.recipe is None:
                result[source.handle or letter(files)] = (*above, index)
                files += 1
            else:
                groups += 1
                result[source.handle or str(groups)] = (*above, index)
                walk(source.recipe.sources, (*above, index))

    walk(recipe.sources, ())
    return result


def place_of(recipe: Recipe, handle: Handle) -> Place:
    """Return the place of a source.

    Raises:
        RecipeError: the recipe has no such source.
    """
    if isinstance(handle, int):
        return (handle,)
    places = handles(recipe)
    name = handle.strip().upper()
    if name not in places:
        message = f"there is no source {name or '?'}: this merge has {', '.join(places)}."
        raise RecipeError(message)
    return places[name]


def source_at(recipe: Recipe, place: Place) -> Source:
    """Return the source at a place."""
    source = recipe.sources[place[0]]
    for index in place[1:]:
        assert source.recipe is not None
        source = source.recipe.sources[index]
    return source


# ------------------------------------------------------------------------------------------------ one source


def with_source(recipe: Recipe, handle: Handle, **fields: Any) -> Recipe:  # noqa: ANN401
    """Return the recipe with fields of one source changed."""
    return _at(recipe, place_of(recipe, handle), fields)


def _at(recipe: Recipe, place: Place, fields: Mapping[str, Any]) -> Recipe:
    sources = list(recipe.sources)
    source = sources[place[0]]
    if len(place) > 1:
        assert source.recipe is not None
        sources[place[0]] = replace(source, recipe=_at(source.recipe, place[1:], fields))
    else:
        sources[place[0]] = replace(source, **fields)
    return replace(recipe, sources=tuple(sources))


def with_ratio(recipe: Recipe, handle: Handle, ratio: float) -> Recipe:
    """Return the recipe with one source at another ratio; its text-encoder ratio follows in proportion."""
    source = source_at(recipe, place_of(recipe, handle))
    te = source.te_ratio
    if te is not None and source.ratio:
        factor = ratio / source.ratio
        te = tuple(value * factor for value in te) if isinstance(te, tuple) else te * factor
    return with_source(recipe, handle, ratio=ratio, te_ratio=te)


def with_ratios(recipe: Recipe, text: str) -> Recipe:
    """Return the recipe with its own sources at other ratios, written `0.3/0.7`; see `with_ratio`."""
    ratios = [number(part) for part in text.split("/")]
    if len(ratios) != len(recipe.sources):
        message = f"the ratios {text.strip()} are {len(ratios)} for {len(recipe.sources)} sources."
        raise RecipeError(message)
    for index, ratio in enumerate(ratios):
        recipe = with_ratio(recipe, index, ratio)
    return recipe


def with_balance(recipe: Recipe, first: Handle, second: Handle, share: float) -> Recipe:
    """Return the recipe with `share` of two sources' total on the first and the rest on the second."""
    places = place_of(recipe, first), place_of(recipe, second)
    if places[0] == places[1]:
        message = "a balance is between two different sources."
        raise RecipeError(message)
    total = sum(source_at(recipe, place).ratio for place in places) or 1.0
    return with_ratio(with_ratio(recipe, first, share * total), second, (1 - share) * total)


def with_te(recipe: Recipe, handle: Handle, ratio: float) -> Recipe:
    """Return the recipe with one source's text encoders at another ratio."""
    return with_source(recipe, handle, te_ratio=ratio)


def with_blocks(recipe: Recipe, handle: Handle, text: str, resolve: Resolve) -> Recipe:
    """Return the recipe with the block weights of a preset, a list or `OUT00-OUT05=0.5` on one source."""
    return with_source(recipe, handle, blocks=resolve(text.strip(), recipe.family) or None)


def alone(source: Source) -> Recipe:
    """Return a recipe of one source alone, exact, as the stack of tags has it."""
    return Recipe((replace(source, role=None),))


# ------------------------------------------------------------------------------------------------ the whole


def without_block(recipe: Recipe, block: str, resolve: Resolve) -> Recipe:
    """Return the recipe with one block of every source, in groups too, switched off."""
    sources = []
    for source in recipe.sources:
        if source.recipe is not None:
            sources.append(replace(source, recipe=without_block(source.recipe, block, resolve)))
        else:
            weights = resolve(source.blocks, recipe.family) if source.blocks else {}
            sources.append(replace(source, blocks={**weights, block: 0.0}))
    return replace(recipe, sources=tuple(sources))


def with_method(recipe: Recipe, name: str, knobs: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe by another method.

    A rank that the new method cannot have becomes its default. Where it wants roles and the sources have
    others, they are given in the order of the sources; where it wants none, there are none.

    Args:
        recipe: to be changed.
        name: of the method.
        knobs: its settings; by default its defaults.
    """
    method = get_method(name.strip())
    roles = [source.role for source in recipe.sources]
    if sorted(filter(None, roles)) != sorted(method.roles):
        given = dict(enumerate(method.roles))
        roles = [given.get(index) for index in range(len(roles))]
    sources = tuple(replace(source, role=role) for source, role in zip(recipe.sources, roles))
    changed = replace(recipe, sources=sources, method=method.name, knobs=dict(knobs or {}))
    return replace(changed, rank=_possible(changed))


def _possible(recipe: Recipe) -> RankPolicy | None:
    """Return the recipe's rank policy, None where its method cannot have it."""
    rank = recipe.rank
    if rank is None:
        return None
    dense = recipe.declared().space is Space.DENSE
    return None if (rank.exact if dense else rank.kind is PolicyKind.SUM) else rank


def with_rank(recipe: Recipe, text: str) -> Recipe:
    """Return the recipe cut to another rank: a number, lossless, energy:0.99, error:0.01, budget:50MB."""
    changed = replace(recipe, rank=parse_policy(str(text).strip()))
    changed.policy()
    return changed


def with_knob(recipe: Recipe, name: str, value: object) -> Recipe:
    """Return the recipe with one knob of its method at another value."""
    knob = get_method(recipe.method).knob(name.strip())
    return replace(recipe, knobs={**recipe.knobs, knob.name: knob.check(str(value).strip(), recipe.method)})


def number(text: object) -> float:
    """Return a finite number.

    Raises:
        RecipeError: the text is none.
    """
    try:
        value = float(str(text).strip())
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        message = f"{str(text).strip()[:40]!r} is not a number."
        raise RecipeError(message)
    return value


# ------------------------------------------------------------------------------------------------ advice


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with an advice carried out, which is plain data: a click and a script do the same.

    Args:
        recipe: the recipe that was analysed.
        changes: nothing, or some of
            ratios, te_ratios, blocks, roles: a list, one value per source; null leaves a source as it is
            method, knobs: the method and its settings; settings of another method are dropped
            rank: a rank policy as it is typed
            precision: fp16, bf16 or float
            keep: the sources that stay, in their new order, by their old places
    Raises:
        RecipeError: an unknown change, or a list that does not fit the sources.
    """
    unknown = sorted(set(changes) - _CHANGES)
    if unknown:
        message = f"there is no change {unknown[0]!r}; known are {', '.join(sorted(_CHANGES))}."
        raise RecipeError(message)
    given = {name: value for name, value in changes.items() if value is not None}
    for name, field in PER_SOURCE.items():
        if name in given:
            recipe = _spread(recipe, name, field, given[name])
    if "keep" in given:
        recipe = _kept(recipe, given["keep"])
    if "method" in given:
        recipe = with_method(recipe, str(given["method"]), given.get("knobs"))
    elif "knobs" in given:
        recipe = replace(recipe, knobs={**recipe.knobs, **given["knobs"]})
    if "rank" in given:
        recipe = replace(recipe, rank=parse_policy(given["rank"]))
    if "precision" in given:
        recipe = replace(recipe, precision=str(given["precision"]))
    recipe.check()
    return recipe


def _spread(recipe: Recipe, name: str, field: str, values: Sequence[Any]) -> Recipe:
    if len(values) != len(recipe.sources):
        message = (
            f"{len(values)} {name} for {len(recipe.sources)} sources: the advice belongs to another recipe."
        )
        raise RecipeError(message)
    for index, value in enumerate(values):
        if value is not None:
            given = tuple(value) if field == "te_ratio" and isinstance(value, list) else value
            recipe = with_source(recipe, index, **{field: given})
    return recipe


def _kept(recipe: Recipe, places: Sequence[int]) -> Recipe:
    count = len(recipe.sources)
    if not places or len(set(places)) != len(places) or not set(places) <= set(range(count)):
        message = f"the sources to keep, {list(places)}, do not fit a recipe of {count}."
        raise RecipeError(message)
    return replace(recipe, sources=tuple(recipe.sources[place] for place in places))
