"""From a recipe to a tree that can be asked for the ΔW of any module.

A leaf is a file with its ratio; a node is a recipe: it asks its children and applies its method. A module
that a child does not have is a zero delta. Everything here comes from headers; tensors are read when a module
is evaluated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Union

from lib_merge.adapters import LoraFile, ModulePart, settle_family
from lib_merge.blocks.weights import ElementMatcher, resolve_blocks
from lib_merge.errors import ModuleError, RecipeError
from lib_merge.families import block_of, blocks_present, encoder_of, family_of
from lib_merge.methods import Method
from lib_merge.ranks.policy import RankPolicy
from lib_merge.recipe import Recipe, Source


@dataclass(frozen=True, slots=True)
class Target:
    """One module of the result.

    out, columns, kernel   its size; columns 0 when only vectors exist
    stacked                Σ of the sources' ranks
    """

    name: str
    block: str
    out: int
    columns: int
    kernel: tuple[int, ...]
    stacked: int

    @property
    def convolution(self) -> bool:
        """True for a kernel larger than 1×1."""
        return any(size > 1 for size in self.kernel)


@dataclass(slots=True)
class Leaf:
    """A file in the tree, its settings resolved to numbers.

    occurrence   0 for the first use of this file in the whole tree, 1 for the second, …
    parts        module name -> where it comes from in the file
    """

    source: Source
    file: LoraFile
    occurrence: int
    parts: Mapping[str, ModulePart]
    block_weights: Mapping[str, float]
    elements: ElementMatcher

    @property
    def identity(self) -> str:
        """Names this use of this file: part of the key of its random masks."""
        return f"{self.file.sha256}#{self.occurrence}"

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.source.label

    def weight(self, name: str, block: str, encoder: int) -> float:
        """Return ratio × block weight (or element rule) at one module."""
        return _ratio(self.source, encoder) * block_factor(self, name, block)


@dataclass(slots=True)
class Node:
    """A recipe in the tree."""

    recipe: Recipe
    method: Method
    settings: Mapping[str, object]
    policy: RankPolicy
    children: list[Leaf | Node]
    family: str
    source: Source | None = None
    targets: dict[str, Target] = field(default_factory=dict)
    block_weights: Mapping[str, float] = field(default_factory=dict)
    elements: ElementMatcher | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """Names this group: what it merges and how."""
        parts = [
            self.method.name,
            str(sorted(self.settings.items())),
            *(child.identity for child in self.children),
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.source.label if self.source is not None else "the merge"

    def weight(self, name: str, block: str, encoder: int) -> float:
        """Return the group's outer ratio × its block weight at one module."""
        if self.source is None:
            return 1.0
        return _ratio(self.source, encoder) * block_factor(self, name, block)

    def leaves(self) -> list[Leaf]:
        """Return every file below, left to right."""
        found: list[Leaf] = []
        for child in self.children:
            found.extend([child] if isinstance(child, Leaf) else child.leaves())
        return found

    def weights(self, target: Target) -> tuple[float, ...]:
        """Return every child's weight at one module."""
        encoder = encoder_of(target.name)
        return tuple(child.weight(target.name, target.block, encoder) for child in self.children)


Child = Union[Leaf, Node]


def block_factor(child: Child, name: str, block: str) -> float:
    """Return the block weight, or the element rule that replaces it."""
    replaced = child.elements.weight(name, block) if child.elements is not None else None
    return child.block_weights.get(block, 1.0) if replaced is None else replaced


def _ratio(source: Source, encoder: int) -> float:
    if not encoder or source.te_ratio is None:
        return source.ratio
    if isinstance(source.te_ratio, tuple):
        return source.te_ratio[min(encoder, len(source.te_ratio)) - 1]
    return source.te_ratio


class Planner:
    """Builds the tree: opens files, settles the family, resolves settings, lists the modules of the
    result.
    """

    def __init__(self, open_file: Callable[[Path], LoraFile], *, drop_unsupported: bool) -> None:
        """Take a function that opens a file (once per path) and whether refused kinds may be left out."""
        self._open = open_file
        self._drop = drop_unsupported
        self._seen: dict[Path, int] = {}
        self._files: dict[Path, LoraFile] = {}

    @property
    def files(self) -> list[LoraFile]:
        """Every file opened."""
        return list(self._files.values())

    def build(self, recipe: Recipe) -> Node:
        """Return the tree of `recipe`.

        Raises:
            FamilyError: families differ or cannot be told.
            ModuleError: a module has two shapes.
            UnsupportedKindError: a kind that needs base weights, without `drop_unsupported`.
            RecipeError: anything wrong with the recipe itself.
        """
        recipe.check()
        for path in _paths(recipe):
            if path not in self._files:
                self._files[path] = self._open(path)
        family = settle_family(list(self._files.values()), recipe.family)
        for path, file in self._files.items():
            self._files[path] = file.settled(family, drop_unsupported=self._drop)
        split = {name for file in self._files.values() for name in file.split_modules}
        node = self._node(replace(recipe, family=family), family, split, None)
        if not node.targets:
            message = "none of the sources has a module that can be merged."
            raise ModuleError(message)
        return node

    def _node(self, recipe: Recipe, family: str, split: set[str], source: Source | None) -> Node:
        draw = random.Random(f"blocks {recipe.seed}")
        node = Node(
            recipe,
            recipe.declared(),
            recipe.declared().settings(recipe.knobs, len(recipe.sources)),
            recipe.policy(),
            [],
            family,
            source,
        )
        resolved = []
        for item in recipe.sources:
            child = self._child(item, family, split, draw, node.notes)
            node.children.append(child)
            resolved.append(child.source)
        node.recipe = replace(recipe, sources=tuple(s for s in resolved if s is not None))
        node.targets = _targets(node)
        return node

    def _child(
        self, item: Source, family: str, split: set[str], draw: random.Random, notes: list[str]
    ) -> Child:
        if item.recipe is not None:
            inner = replace(item.recipe, family=family)
            group = self._node(inner, family, split, item)
            present = blocks_present(group.targets, family)
            weights, said = resolve_blocks(item.blocks, family, present, draw, item.label)
            group.block_weights, group.elements = (
                weights,
                ElementMatcher(item.elements, family_of(family).blocks or present, item.label),
            )
            group.source = replace(item, recipe=group.recipe, blocks=weights or None)
            notes.extend(said)
            notes.extend(group.notes)
            return group
        if item.path is None:
            message = f"{item.name or 'a source'} is named in the recipe but its file was not found."
            raise RecipeError(message)
        file = self._files[item.path]
        parts = file.parts(split)
        present = blocks_present(parts, family)
        weights, said = resolve_blocks(item.blocks, family, present, draw, item.label)
        notes.extend(said)
        occurrence = self._seen.get(item.path, 0)
        self._seen[item.path] = occurrence + 1
        if occurrence == 1:
            notes.append(f"{item.label} is in the recipe more than once; its deltas add up")
        known = replace(item, name=item.path.name, size=file.size, blocks=weights or None)
        matcher = ElementMatcher(item.elements, family_of(family).blocks or present, item.label)
        return Leaf(known, file, occurrence, parts, weights, matcher)


def stamped(node: Node) -> Recipe:
    """Return the node's recipe with every file's sha256 filled in, as it goes into the result's metadata."""
    sources = []
    for child in node.children:
        if isinstance(child, Leaf):
            sources.append(replace(child.source, sha256=child.file.sha256))
        elif child.source is not None:
            sources.append(replace(child.source, recipe=stamped(child)))
    return replace(node.recipe, sources=tuple(sources))


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


def _targets(node: Node) -> dict[str, Target]:
    """Return the union of the children's modules, sizes checked against each other."""
    found: dict[str, Target] = {}
    owner: dict[str, str] = {}
    for child in node.children:
        for name, (out, columns, kernel, rank) in _sizes(child).items():
            before = found.get(name)
            if before is None:
                found[name] = Target(name, block_of(name, node.family), out, columns, kernel, rank)
                owner[name] = child.label
                continue
            _same_size(before, (out, columns), owner[name], child.label)
            found[name] = replace(
                before,
                out=before.out if before.columns else out,
                columns=before.columns or columns,
                kernel=before.kernel or kernel,
                stacked=before.stacked + rank,
            )
    return dict(sorted(found.items()))


def _sizes(child: Child) -> Mapping[str, tuple[int, int, tuple[int, ...], int]]:
    if isinstance(child, Leaf):
        return {name: (part.out, part.columns, part.kernel, part.rank) for name, part in child.parts.items()}
    return {t.name: (t.out, t.columns, t.kernel, t.stacked) for t in child.targets.values()}


def _same_size(before: Target, size: tuple[int, int], owner: str, other: str) -> None:
    if before.columns and size[1] and (before.out, before.columns) != size:
        message = (
            f"{before.name} is {before.out} × {before.columns} in {owner} and {size[0]} × {size[1]} "
            f"in {other}: "
            "they were not trained for the same base model."
        )
        raise ModuleError(message)


def all_notes(node: Node, files: Sequence[LoraFile]) -> list[str]:
    """Return everything the plan has to tell the user."""
    return [*node.notes, *(note for file in files for note in file.notes)]
