"""The weight of every file at every module, from a recipe: ratio × block weight, through groups of plain
sums.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from lib_merge.adapters import LoraFile, ModulePart, open_lora, settle_family
from lib_merge.blocks.weights import ElementMatcher, resolve_blocks
from lib_merge.errors import FamilyError, RecipeError
from lib_merge.families import blocks_present, family_of
from lib_merge.recipe import Recipe, Source

Given = Union[Recipe, Sequence[Union[str, Path, Source]]]
Parts = dict[str, ModulePart]


@dataclass(frozen=True, slots=True)
class Level:
    """Settings of one source on the way from the merge down to a file."""

    source: Source
    blocks: dict[str, float]
    elements: ElementMatcher

    def weight(self, name: str, block: str, encoder: int) -> float:
        """Return ratio × block weight (or element rule) at one module."""
        replaced = self.elements.weight(name, block)
        return _ratio(self.source, encoder) * (self.blocks.get(block, 1.0) if replaced is None else replaced)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One use of a file.

    levels  its settings, from the recipe's own source (`group` is its place) down to the file
    file    the opened file
    parts   its modules
    """

    levels: tuple[Level, ...]
    file: LoraFile
    parts: Parts
    group: int

    @property
    def source(self) -> Source:
        """The innermost settings."""
        return self.levels[-1].source

    @property
    def ratio(self) -> float:
        """Product of the ratios of all levels."""
        total = 1.0
        for level in self.levels:
            total *= level.source.ratio
        return total

    def weights(self, name: str, block: str, encoder: int) -> tuple[float, float]:
        """Return the weight of the recipe's own source at one module, and the file's weight inside of it."""
        inner = 1.0
        for level in self.levels[1:]:
            inner *= level.weight(name, block, encoder)
        return self.levels[0].weight(name, block, encoder), inner


def as_recipe(given: Given, family: str | None = None) -> Recipe:
    """Return a recipe as it is, or a weighted sum of the given files at ratio 1.

    Raises:
        RecipeError: no source at all.
    """
    if isinstance(given, Recipe):
        return given
    sources = tuple(
        item if isinstance(item, Source) else Source(path=Path(item), name=Path(item).name) for item in given
    )
    if not sources:
        message = "there is nothing to look at: give at least one LoRA."
        raise RecipeError(message)
    return Recipe(sources, family=family)


def plain(recipe: Recipe) -> bool:
    """Tell whether every group inside is an uncut weighted sum, so that files carry one weight each."""
    return all(
        source.recipe is None
        or (source.recipe.declared().stacks and source.recipe.policy().exact and plain(source.recipe))
        for source in recipe.sources
    )


def flat(recipe: Recipe) -> bool:
    """Tell whether the recipe has no groups."""
    return all(source.recipe is None for source in recipe.sources)


def open_files(recipe: Recipe, open_file: Callable[[Path], LoraFile] = open_lora) -> dict[Path, LoraFile]:
    """Open every file of a recipe once and settle one family for all.

    Raises:
        MergeError: a file is missing, damaged, or of another family.
    """
    files: dict[Path, LoraFile] = {}
    try:
        for path in _paths(recipe):
            if path not in files:
                files[path] = open_file(path)
        family = _family(list(files.values()), recipe.family)
        return {path: file.settled(family, drop_unsupported=True) for path, file in files.items()}
    except BaseException:
        for file in files.values():
            file.close()
        raise


def _family(files: Sequence[LoraFile], asked: str | None) -> str:
    """Return the one family; where shapes leave several open, the first: blocks are then named as that
    family's.
    """
    try:
        return settle_family(files, asked)
    except FamilyError:
        shared = [
            name for name in files[0].guess.candidates if all(name in file.guess.candidates for file in files)
        ]
        if asked is not None or not shared:
            raise
        return shared[0]


def _paths(recipe: Recipe) -> list[Path]:
    found: list[Path] = []
    for source in recipe.sources:
        if source.recipe is not None:
            found.extend(_paths(source.recipe))
        elif source.path is not None:
            found.append(source.path)
        else:
            message = f"{source.name or 'a source'} is named in the recipe but its file was not found."
            raise RecipeError(message)
    return found


def leaves(recipe: Recipe, files: dict[Path, LoraFile]) -> list[Leaf]:
    """Return every use of a file, left to right, with its weights resolved.

    Random block weights are drawn as the merge itself will draw them.
    """
    split = {name for file in files.values() for name in file.split_modules}
    draw = random.Random(f"blocks {recipe.seed}")
    found: list[Leaf] = []
    for place, source in enumerate(recipe.sources):
        if source.recipe is None:
            file = files[source.path]  # type: ignore[index]
            parts = file.parts(split)
            found.append(Leaf((_level(source, list(parts), file.family or "", draw),), file, parts, place))
            continue
        # a group's own random weights are drawn before those that its outer source puts on it
        inner = leaves(source.recipe, files)
        family = inner[0].file.family or ""
        level = _level(source, [name for leaf in inner for name in leaf.parts], family, draw)
        found.extend(Leaf((level, *leaf.levels), leaf.file, leaf.parts, place) for leaf in inner)
    return found


def _level(source: Source, names: Sequence[str], family: str, draw: random.Random) -> Level:
    present = blocks_present(names, family)
    weights, _ = resolve_blocks(source.blocks, family, present, draw, source.label)
    matcher = ElementMatcher(source.elements, family_of(family).blocks or present, source.label)
    return Level(source, weights, matcher)


def _ratio(source: Source, encoder: int) -> float:
    if not encoder or source.te_ratio is None:
        return source.ratio
    if isinstance(source.te_ratio, tuple):
        return source.te_ratio[min(encoder, len(source.te_ratio)) - 1]
    return source.te_ratio
