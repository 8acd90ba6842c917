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
from lib_merge.methods import DEFAULT_METHOD, Space, get_method
from lib_merge.methods.words import FOREIGN, understood
from lib_merge.ranks.policy import PolicyKind, RankPolicy, parse_policy
from lib_merge.recipe import Blocks, Recipe, Source

Place = tuple[int, ...]  # of a source: its index among the recipe's, then among its group's, …
Handle = Union[str, int]  # "B", or the index of one of the recipe's own sources
Resolve = Callable[
    [Blocks, Union[str, None]], dict[str, float]
]  # (block weights of any form, family) -> each

# what an advice may change, one value per source -> the source's field
PER_SOURCE = {"ratios": "ratio", "te_ratios": "te_ratio", "blocks": "blocks", "roles": "role"}
_CHANGES = {*PER_SOURCE, "method", "knobs", "rank", "precision", "keep", "aside"}

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


def with_total(recipe: Recipe, total: float) -> Recipe:
    """Return the recipe with the ratios of its own sources scaled so that they add up to `total`.

    Raises:
        RecipeError: they add up to nothing that could be scaled.
    """
    now = math.fsum(source.ratio for source in recipe.sources)
    if not math.isfinite(total / now if now else math.inf):
        message = "the ratios add up to 0: there is no total to scale."
        raise RecipeError(message)
    for index, source in enumerate(recipe.sources):
        recipe = with_ratio(recipe, index, source.ratio * total / now)
    return recipe


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


def with_aside(recipe: Recipe, names: Sequence[Handle]) -> Recipe:
    """Return the recipe with some files outside the merge of the others: each is added at its own ratio.

    ΔW = merge of the others + Σ ratioᵢΔWᵢ. The others of a recipe of files become a group by its method; one
    that is left alone is added, too. Out of a group, a file goes into the recipe at ratio × the group's.

    Raises:
        RecipeError: nothing would be left to merge, or a file is in a group of a merge that is no sum.
    """
    places = sorted({place_of(recipe, name) for name in names})
    deep = [place for place in places if len(place) > 1]
    if not places:
        return recipe
    if len(deep) < len(places):
        return _top_aside(recipe, {place[0] for place in places if len(place) == 1})
    if any(len(place) > 2 for place in deep) or not recipe.declared().stacks:
        message = "a source can be taken out of a group only where the merge adds its groups up."
        raise RecipeError(message)
    sources: list[Source] = []
    for index, source in enumerate(recipe.sources):
        inside = {place[1] for place in deep if place[0] == index}
        sources.extend(_opened(source, inside) if inside else [source])
    return replace(recipe, sources=tuple(sources))


def _top_aside(recipe: Recipe, out: set[int]) -> Recipe:
    """Return a sum of the merge of the others and of the recipe's own sources at these places."""
    inside = [source for index, source in enumerate(recipe.sources) if index not in out]
    if not inside:
        message = "nothing would be left to merge: a source can stay outside the merge of the others only."
        raise RecipeError(message)
    merged = _one(Recipe(tuple(inside), recipe.method, _without(recipe.knobs, out)), 1.0)
    outside = [replace(source, role=None) for index, source in enumerate(recipe.sources) if index in out]
    changed = replace(recipe, sources=(merged, *outside), method=DEFAULT_METHOD, knobs={})
    return replace(changed, rank=_possible(changed))


def _opened(group: Source, out: set[int]) -> list[Source]:
    """Return a group without some of its files, and these files beside it at the strength they had in it."""
    assert group.recipe is not None
    inside = [source for index, source in enumerate(group.recipe.sources) if index not in out]
    outside = [
        replace(_stronger(source, group.ratio), role=None)
        for index, source in enumerate(group.recipe.sources)
        if index in out
    ]
    if not inside:
        return outside
    knobs = _without(group.recipe.knobs, out)
    rest = _one(replace(group.recipe, sources=tuple(inside), knobs=knobs), group.ratio)
    return [rest if rest.recipe is None else replace(group, recipe=rest.recipe), *outside]


def _one(merged: Recipe, ratio: float) -> Source:
    """Return a merge as one source; one file alone goes in as it is."""
    if len(merged.sources) > 1:
        return Source(recipe=merged, ratio=ratio)
    return replace(_stronger(merged.sources[0], ratio), role=None)


def _without(knobs: Mapping[str, Any], out: set[int]) -> dict[str, Any]:
    """Return settings without the values of sources that are left out, where there is one for each."""
    return {
        name: [one for index, one in enumerate(value) if index not in out]
        if isinstance(value, (list, tuple))
        else value
        for name, value in knobs.items()
    }


def _stronger(source: Source, factor: float) -> Source:
    te = source.te_ratio
    if te is not None:
        te = tuple(value * factor for value in te) if isinstance(te, tuple) else te * factor
    return replace(source, ratio=source.ratio * factor, te_ratio=te)


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
    method, name = get_method(recipe.method), name.strip()
    if name in FOREIGN:
        mine = understood(method, {name: value})
        below = recipe.prune_below if mine.threshold is None else mine.threshold
        return replace(recipe, knobs={**recipe.knobs, **mine.knobs}, prune_below=below)
    knob = method.knob(name)
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
            aside: handles of files that stay outside the merge of the others, see `with_aside`
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
    if "aside" in given:
        recipe = with_aside(recipe, given["aside"])
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
