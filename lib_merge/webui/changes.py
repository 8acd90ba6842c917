"""A recipe with one thing changed: what the columns of a comparison and the axes of a plot are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.families.blocks import BLOCKS
from lib_merge.methods import METHODS, get_method
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe import Recipe, Source

Weights = Callable[[Any, "str | None"], dict[str, float]]
MOST_SOURCES = 26


def letter_of(index: int) -> str:
    """Return how the tab calls a source: A, B, C, …"""
    return chr(ord("A") + index % MOST_SOURCES)


def index_of(letter: str, recipe: Recipe) -> int:
    """Return the place of a source by its letter.

    Raises:
        RecipeError: the recipe has no such source.
    """
    letter = letter.strip().upper()
    letters = [letter_of(index) for index in range(min(len(recipe.sources), MOST_SOURCES))]
    if letter not in letters:
        message = f"there is no source {letter or '?'}: this merge has {', '.join(letters)}."
        raise RecipeError(message)
    return letters.index(letter)


def number(text: object) -> float:
    """Return a number, or say in one sentence that it is none."""
    try:
        value = float(str(text).strip())
    except ValueError:
        value = float("nan")
    if not math.isfinite(value):
        message = f"{str(text).strip()[:40]!r} is not a number."
        raise RecipeError(message)
    return value


def with_source(recipe: Recipe, index: int, **fields: Any) -> Recipe:  # noqa: ANN401
    """Return the recipe with one source changed."""
    sources = list(recipe.sources)
    sources[index] = replace(sources[index], **fields)
    return replace(recipe, sources=tuple(sources))


def with_method(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe by another method, with its default knobs.

    A lossless rank becomes the method's own default where it has no lossless form; roles are given in the
    order of the sources where the method wants some and none are set.
    """
    method = get_method(name.strip())
    rank = None if method.space == "dense" and recipe.rank is not None and recipe.rank.exact else recipe.rank
    roles = [source.role for source in recipe.sources]
    if method.roles and sorted(filter(None, roles)) != sorted(method.roles):
        given = dict(enumerate(method.roles))
        roles = [given.get(index) for index in range(len(roles))]
    sources = tuple(
        replace(one, role=role if method.roles else None) for one, role in zip(recipe.sources, roles)
    )
    return replace(recipe, sources=sources, method=method.name, knobs={}, rank=rank)


def with_ratios(recipe: Recipe, text: str) -> Recipe:
    """Return the recipe at other ratios, written `0.3/0.7`; text encoders follow in proportion."""
    ratios = [number(part) for part in text.split("/")]
    if len(ratios) != len(recipe.sources):
        message = f"the ratios {text.strip()} are {len(ratios)} for {len(recipe.sources)} sources."
        raise RecipeError(message)
    for index, ratio in enumerate(ratios):
        recipe = with_ratio(recipe, index, ratio)
    return recipe


def with_ratio(recipe: Recipe, index: int, ratio: float) -> Recipe:
    """Return the recipe with one source at another ratio; its own text-encoder ratio follows in
    proportion.
    """
    source = recipe.sources[index]
    te = source.te_ratio
    if te is not None and source.ratio:
        factor = ratio / source.ratio
        te = tuple(value * factor for value in te) if isinstance(te, tuple) else te * factor
    return with_source(recipe, index, ratio=ratio, te_ratio=te)


def with_balance(recipe: Recipe, first: int, second: int, share: float) -> Recipe:
    """Return the recipe with `share` of two sources' total on the first and the rest on the second."""
    if first == second:
        message = "a balance is between two different sources."
        raise RecipeError(message)
    total = recipe.sources[first].ratio + recipe.sources[second].ratio or 1.0
    return with_ratio(with_ratio(recipe, first, share * total), second, (1 - share) * total)


def with_rank(recipe: Recipe, text: str) -> Recipe:
    """Return the recipe cut to another rank: a number, lossless, energy:0.99, error:0.01, budget:50MB."""
    changed = replace(recipe, rank=parse_policy(str(text).strip()))
    changed.policy()
    return changed


def with_knob(recipe: Recipe, name: str, value: object) -> Recipe:
    """Return the recipe with one knob of its method at another value."""
    knob = get_method(recipe.method).knob(name.strip())
    return replace(recipe, knobs={**recipe.knobs, knob.name: knob.check(str(value).strip(), recipe.method)})


def with_te(recipe: Recipe, index: int, ratio: float) -> Recipe:
    """Return the recipe with one source's text encoders at another ratio."""
    return with_source(recipe, index, te_ratio=ratio)


def with_blocks(recipe: Recipe, index: int, text: str, weights: Weights) -> Recipe:
    """Return the recipe with block weights of a preset, a list or `OUT00-OUT05=0.5` on one source."""
    return with_source(recipe, index, blocks=weights(text.strip(), recipe.family) or None)


def without_block(recipe: Recipe, block: str, weights: Weights) -> Recipe:
    """Return the recipe with one block of every source, in groups too, switched off."""
    sources = []
    for source in recipe.sources:
        if source.recipe is not None:
            sources.append(replace(source, recipe=without_block(source.recipe, block, weights)))
        else:
            known = weights(source.blocks, recipe.family) if source.blocks else {}
            sources.append(replace(source, blocks={**known, block: 0.0}))
    return replace(recipe, sources=tuple(sources))


def blocks_in_order(found: Sequence[str], family: str) -> list[str]:
    """Return blocks as the family orders them."""
    order: Mapping[str, int] = {name: place for place, name in enumerate(BLOCKS.get(family, ()))}
    return sorted(dict.fromkeys(found), key=lambda name: (order.get(name, len(order)), name))


def plain(source: Source) -> Recipe:
    """Return a recipe of one source alone, exact, as the stack has it."""
    return Recipe((replace(source, role=None),))


def method_names() -> list[str]:
    """Return every method's name, in the order the tab lists them."""
    return list(METHODS)
