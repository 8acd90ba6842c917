"""The columns of a comparison: sources, stack, merge and variants of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib_merge import recipe_edits
from lib_merge.errors import MergeError, RecipeError
from lib_merge.families import in_order
from lib_merge.methods import METHODS
from lib_merge.recipe import Recipe, Source
from lib_merge.webui.live.prompts import Part

NONE, ALONE, AT_ONE, AT_USUAL, STACK, STACK_USUAL, MERGE = CHOICES = (
    "No LoRA",
    "Each source at its ratio",
    "Each source at 1",
    "Each source at its usual strength",
    "Stack at these ratios",
    "Stack at usual strengths",
    "Merge",
)
TICKED = (NONE, ALONE, STACK, MERGE)
MOST = 200


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    kind    none, source, stack, merge or variant
    parts   what is added to the prompt
    recipe  what the pictures' infotext carries
    """

    label: str
    kind: str = "none"
    parts: tuple[Part, ...] = ()
    recipe: Recipe | None = None


@dataclass(frozen=True, slots=True)
class ColumnChoices:
    """What the script's controls say; see `plan_columns`."""

    columns: Sequence[str] = TICKED
    methods: Sequence[str] = ()
    ratios: str = ""
    ranks: str = ""
    presets: str = ""
    knob: str = ""
    strengths: str = ""
    knockout: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What columns need to know of the place they are made in.

    usual    the strength a source is usually used at
    tag      name for `<lora:NAME:1>` of a source, "" where that would not name this very file
    weights  block weights of any form as {block: weight}
    blocks   blocks a file has modules in, and its family
    """

    usual: Callable[[Path], float]
    tag: Callable[[Path], str]
    weights: Callable[[Any, str | None], dict[str, float]]
    blocks: Callable[[Path], tuple[Sequence[str], str]]


def plan_columns(recipe: Recipe, asked: ColumnChoices, place: Place) -> list[Column]:
    """Return the columns asked for, in the order no LoRA, sources, stack, merge, variants, strengths, blocks.

    Args:
        recipe: the merge, with paths.
        asked: `columns` some of `CHOICES`; `methods` names; `ratios` as `0.3/0.7, 0.5/0.5`; `ranks` as `8,
            energy:0.99`;
            `presets` as `A:OUTALL, A:STYLE+B:CHARACTER`; `knob` as `drop_rate=0.1/0.5`; `strengths` as `0.6,
            1.2`; `knockout` one column per block switched off.
        place: names and presets of the WebUI.
    Raises:
        RecipeError: something of it is wrong; said before the first picture.
    """
    columns = [Column("no LoRA")] if NONE in asked.columns else []
    for choice, strength in ((ALONE, None), (AT_ONE, 1.0), (AT_USUAL, "usual")):
        if choice in asked.columns:
            columns += [_alone(source, strength, place) for source in recipe.sources]
    for choice, strength, label in ((STACK, None, "stack"), (STACK_USUAL, "usual", "stack, usual strengths")):
        if choice in asked.columns:
            singles = [_alone(source, strength, place) for source in recipe.sources]
            sources = tuple(single.recipe.sources[0] for single in singles if single.recipe is not None)
            parts = tuple(part for single in singles for part in single.parts)
            columns.append(Column(label, "stack", parts, Recipe(sources, family=recipe.family)))
    if MERGE in asked.columns:
        columns.append(_merge(f"merge: {METHODS[recipe.method].title}", recipe, "merge"))
    columns += _variants(recipe, asked, place)
    if not columns:
        message = "choose at least one column."
        raise RecipeError(message)
    if len(columns) > MOST:
        message = f"{len(columns)} columns are too many; {MOST} is the limit."
        raise RecipeError(message)
    for column in columns:
        for part in column.parts:
            if part.recipe is not None:
                part.recipe.check()
    return columns


def _merge(label: str, recipe: Recipe, kind: str = "variant", strength: float = 1.0) -> Column:
    return Column(label, kind, (Part(recipe=recipe, strength=strength),), recipe)


def _alone(source: Source, strength: float | str | None, place: Place) -> Column:
    if strength is not None:
        usual = place.usual(source.path) if strength == "usual" and source.path is not None else 1.0
        source = replace(source, ratio=usual, te_ratio=None)
    recipe = recipe_edits.alone(source)
    return Column(f"{source.label} {source.ratio:g}", "source", (_part(source, recipe, place),), recipe)


def _part(source: Source, recipe: Recipe, place: Place) -> Part:
    """Return the source's own tag where a tag can say all of it, else the source baked live."""
    simple = not source.blocks and not source.elements and not isinstance(source.te_ratio, tuple)
    if source.path is not None and simple:
        name = place.tag(source.path)
        if name:
            te = "" if source.te_ratio is None else f"{source.te_ratio:g}:"
            return Part(tag=f"<lora:{name}:{te}{source.ratio:g}>", bytes=source.size)
    return Part(recipe=recipe)


def _variants(recipe: Recipe, asked: ColumnChoices, place: Place) -> list[Column]:
    columns = [
        _merge(METHODS[name].title, _checked(METHODS[name].title, recipe_edits.with_method, recipe, name))
        for name in _method_names(asked.methods)
    ]
    columns += [
        _merge(f"ratios {text}", recipe_edits.with_ratios(recipe, text)) for text in words(asked.ratios)
    ]
    columns += [
        _merge(_rank_label(text), recipe_edits.with_rank(recipe, text)) for text in words(asked.ranks)
    ]
    columns += [_merge(text, _presets(recipe, text, place)) for text in words(asked.presets)]
    columns += _knobs(recipe, asked.knob)
    for text in words(asked.strengths):
        strength = recipe_edits.number(text)
        if strength != 1 or MERGE not in asked.columns:
            columns.append(_merge(f"merge × {strength:g}", recipe, strength=strength))
    if asked.knockout:
        columns += _knockouts(recipe, place)
    return columns


def _method_names(names: Sequence[str]) -> list[str]:
    given = [name.strip() for name in names if name.strip()]
    for name in given:
        if name not in METHODS:
            message = f"there is no merge method {name!r}."
            raise RecipeError(message)
    return given


def _checked(what: str, work: Callable[..., Recipe], *given: Any) -> Recipe:  # noqa: ANN401
    """Do it and check it, so that a refusal names the column."""
    try:
        changed = work(*given)
        changed.check()
    except MergeError as error:
        message = f"the column {what}: {error}"
        raise RecipeError(message) from error
    return changed


def _rank_label(text: str) -> str:
    return f"rank {text}" if text.isdigit() else text


def _presets(recipe: Recipe, text: str, place: Place) -> Recipe:
    for one in text.split("+"):
        letter, colon, name = one.partition(":")
        if not colon or not name.strip():
            message = f"the block preset {one.strip()!r} is not written as A:NAME, A being a source."
            raise RecipeError(message)
        recipe = recipe_edits.with_blocks(recipe, letter, name, place.weights)
    return recipe


def _knobs(recipe: Recipe, text: str) -> list[Column]:
    if not text.strip():
        return []
    name, equals, values = text.partition("=")
    if not equals or not values.strip():
        message = f"the knob {text.strip()!r} is not written as drop_rate=0.1/0.3/0.5."
        raise RecipeError(message)
    return [
        _merge(f"{name.strip()} {value.strip()}", recipe_edits.with_knob(recipe, name, value))
        for value in values.split("/")
    ]


def _knockouts(recipe: Recipe, place: Place) -> list[Column]:
    blocks: list[str] = []
    family = recipe.family or ""
    for source in recipe.leaves():
        if source.path is not None:
            present, family_of = place.blocks(source.path)
            blocks += present
            family = family or family_of
    return [
        _merge(f"without {block}", recipe_edits.without_block(recipe, block, place.weights))
        for block in in_order(blocks, family)
    ]


def words(text: str) -> list[str]:
    """Return what commas separate."""
    return [word.strip() for word in text.split(",") if word.strip()]
