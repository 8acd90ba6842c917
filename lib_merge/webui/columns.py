"""What a comparison shows: columns from what is set up in the Merge tab, rows from prompts and seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib_merge.adapters.source import open_lora
from lib_merge.errors import RecipeError
from lib_merge.metadata import trigger_words
from lib_merge.methods import METHODS
from lib_merge.recipe import Recipe, Source

CHOICES = ("No LoRA", "Each source alone", "Stack", "Merge")
MOST = 400
PROMPTS = (
    "{trigger}, portrait, looking at viewer, plain background",
    "{trigger}, full body, standing in a street, daylight",
    "{trigger}, sitting at a table, indoors, warm light",
    "{trigger}, close-up of the face, smiling",
    "{trigger}, from behind, walking in a forest",
    "{trigger}, action pose, dynamic angle",
    "{trigger}, night, city lights, rain",
    "{trigger}, wide shot, landscape, small figure",
    "a cat on a windowsill",
    "an empty room with a wooden floor",
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the grid.

    label    as it is written above
    recipes  merged live, each used as `<lora:…:1>`; none for plain prompts
    """

    label: str
    recipes: tuple[Recipe, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the grid."""

    label: str
    prompt: str
    seed: int


def plan_columns(recipe: Recipe, chosen: Sequence[str], variants: str, strengths: str) -> list[Column]:
    """Return the columns asked for.

    Args:
        recipe: what is set up, with paths.
        chosen: some of `CHOICES`.
        variants: other methods, and ratios as `0.3/0.7`, separated by commas.
        strengths: of the merge, separated by commas; 1 is the merge itself.
    Raises:
        RecipeError: a variant that is none; said before the first picture.
    """
    found = [Column("no LoRA")] if CHOICES[0] in chosen else []
    alone = [replace(recipe, sources=(source,), **_PLAIN) for source in recipe.sources]
    if CHOICES[1] in chosen:
        found += [Column(f"{source.label} {source.ratio:g}", (one,)) for source, one in zip(recipe.sources, alone)]
    if CHOICES[2] in chosen:
        found.append(Column("stack", tuple(alone)))
    if CHOICES[3] in chosen:
        found.append(Column(f"merge: {METHODS[recipe.method].title}", (recipe,)))
    for word in _words(variants):
        found.append(_variant(recipe, word))
    for word in _words(strengths):
        strength = _number(word)
        if strength != 1:
            sources = tuple(_stronger(source, strength) for source in recipe.sources)
            found.append(Column(f"merge × {strength:g}", (replace(recipe, sources=sources),)))
    if not found:
        message = "choose at least one column."
        raise RecipeError(message)
    for column in found:
        for one in column.recipes:
            one.check()
    return found


_PLAIN: Mapping[str, Any] = {"method": "weighted_sum", "knobs": {}, "rank": None, "conv_rank": None, "prune": 0.0}


def _variant(recipe: Recipe, word: str) -> Column:
    if "/" in word:
        ratios = [_number(part) for part in word.split("/")]
        if len(ratios) != len(recipe.sources):
            message = f"the ratios {word} are {len(ratios)} for {len(recipe.sources)} sources."
            raise RecipeError(message)
        sources = tuple(replace(source, ratio=ratio) for source, ratio in zip(recipe.sources, ratios))
        return Column(word, (replace(recipe, sources=sources),))
    if word not in METHODS:
        message = f"{word!r} is neither a method nor ratios such as 0.3/0.7."
        raise RecipeError(message)
    rank = recipe.rank if recipe.rank is None or not recipe.rank.exact or METHODS[word].space != "dense" else None
    return Column(METHODS[word].title, (replace(recipe, method=word, knobs={}, rank=rank),))


def _stronger(source: Source, strength: float) -> Source:
    te = source.te_ratio
    te = tuple(value * strength for value in te) if isinstance(te, tuple) else None if te is None else te * strength
    return replace(source, ratio=source.ratio * strength, te_ratio=te)


def plan_rows(prompts: str, seeds: str, recipe: Recipe, fallback: str, seed: int) -> list[Row]:
    """Return prompts × seeds.

    Args:
        prompts: one per line; `{trigger}` becomes the sources' trigger words; none = `fallback`.
        seeds: numbers separated by commas; none = `seed`.
        recipe: for the trigger words.
        fallback: the prompt of the tab.
        seed: the seed of the tab, never −1.
    Raises:
        RecipeError: a seed that is no whole number.
    """
    lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [fallback]
    numbers = [int(_number(word)) for word in _words(seeds)] or [seed]
    words = ", ".join(_triggers(recipe)) if any("{trigger}" in line for line in lines) else ""
    texts = [re.sub(r"^[\s,]+|[\s,]+$", "", line.replace("{trigger}", words)) for line in lines]
    if len(texts) * len(numbers) > MOST:
        message = f"{len(texts)} prompts and {len(numbers)} seeds are too many rows."
        raise RecipeError(message)
    return [
        Row(f"{text[:60]} · {number}" if len(numbers) > 1 else text[:60], text, number)
        for text in texts
        for number in numbers
    ]


def _triggers(recipe: Recipe) -> list[str]:
    found = []
    for source in recipe.sources:
        if source.path is not None:
            with open_lora(source.path) as file:
                found.append((source, file.metadata))
    return trigger_words(found)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        message = f"{word!r} is not a number."
        raise RecipeError(message) from error


Picture = Callable[[str, int], Any]
