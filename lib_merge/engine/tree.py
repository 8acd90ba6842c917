"""From a recipe to a tree that can be asked for the ΔW of any module.

A leaf is a file with its ratio; a node is a recipe: it asks its children and applies its method. A module
that a child does not have is a zero delta. Everything here comes from headers; tensors are read when a module
is evaluated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Union

import numpy as np

from lib_merge.adapters import LoraFile, ModulePart, open_lora, settle_family
from lib_merge.blocks.weights import ElementMatcher, resolve_blocks
from lib_merge.errors import FamilyError, ModuleError, RecipeError
from lib_merge.families import block_of, blocks_present, encoder_of, family_of
from lib_merge.loaders import Layout, Naming
from lib_merge.methods import Method, Reads, ScalarInput, Space
from lib_merge.ranks.policy import PolicyKind, RankPolicy
from lib_merge.recipe import Recipe, Source

OpenFile = Callable[[Path], LoraFile]
MISFIT = "modules have another size than"


@dataclass(frozen=True, slots=True)
class Target:
    """One module of the result.

    out, columns, kernel   its size; columns 0 when only vectors exist
    stacked                Σ of the sources' ranks
    one_axis               the weight has one axis, and ΔW is its column
    """

    name: str
    block: str
    out: int
    columns: int
    kernel: tuple[int, ...]
    stacked: int
    one_axis: bool = False

    @property
    def convolution(self) -> bool:
        """True for a kernel larger than 1×1."""
        return any(size > 1 for size in self.kernel)


@dataclass(slots=True)
class Leaf:
    """A file in the tree, its settings resolved to numbers.

    parts        module name -> where it comes from in the file
    """

    source: Source
    file: LoraFile
    parts: Mapping[str, ModulePart]
    block_weights: Mapping[str, float]
    elements: ElementMatcher

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.source.label

    def weight(self, name: str, block: str, encoder: int) -> float:
        """Return ratio × block weight (or element rule) at one module."""
        return _ratio(self.source, encoder) * _block_factor(self, name, block)


@dataclass(slots=True)
class Node:
    """A recipe in the tree.

    source   its settings as a group in another recipe; None for the whole merge
    targets  module name -> module of its result, in the order of names
    """

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
            *self.identities,
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
        return _ratio(self.source, encoder) * _block_factor(self, name, block)

    @property
    def uncut(self) -> bool:
        """True where all of what the method makes is kept, at every module."""
        return self.policy.exact and self.recipe.conv_rank is None and not self.recipe.prunes

    @property
    def identities(self) -> list[str]:
        """Names of the children for the key of their random masks; the second use of a child has another.

        What they are called depends on nothing outside the node, so that a group draws the same masks as a
        merge of its own.
        """
        seen: dict[str, int] = {}
        names = []
        for child in self.children:
            alike = str(child.file.path) if isinstance(child, Leaf) else child.identity
            number = seen[alike] = seen.get(alike, -1) + 1
            plain = f"#{number}" if isinstance(child, Leaf) or number else ""
            names.append((child.file.sha256 if isinstance(child, Leaf) else alike) + plain)
        return names

    def leaves(self) -> list[Leaf]:
        """Return every file below, left to right."""
        files: list[Leaf] = []
        for child in self.children:
            files.extend([child] if isinstance(child, Leaf) else child.leaves())
        return files

    def weights(self, target: Target) -> tuple[float, ...]:
        """Return every child's weight at one module."""
        encoder = encoder_of(target.name)
        return tuple(child.weight(target.name, target.block, encoder) for child in self.children)

    def coefficients(self, weights: Sequence[float], gram: Callable[[], np.ndarray]) -> list[float]:
        """Return a scalar method's cᵢ at one module, τ = Σ cᵢ·ΔWᵢ.

        Args:
            weights: wᵢ, per child.
            gram: () -> Float64[child child], ⟨wᵢΔWᵢ, wⱼΔWⱼ⟩ over what the method reads.
        """
        ratios = tuple(source.ratio for source in self.recipe.sources)
        return self.method.coefficients(ScalarInput(tuple(weights), ratios, gram), self.settings)

    def fixed_coefficients(self, weights: Sequence[float]) -> list[float] | None:
        """Return a scalar method's cᵢ where they follow from the weights alone; else None."""
        if self.method.space is not Space.SCALAR or self.method.reads is not Reads.NOTHING:
            return None
        return self.coefficients(weights, lambda: np.zeros((0, 0)))

    def policy_at(self, target: Target) -> RankPolicy:
        """Return the rank policy at one module.

        `conv_rank` replaces the recipe's for k×k kernels, and "Σ of the sources' ranks" becomes that number.
        """
        if target.convolution and self.recipe.conv_rank is not None:
            return RankPolicy(PolicyKind.RANK, self.recipe.conv_rank)
        if self.policy.kind is PolicyKind.SUM:
            return RankPolicy(PolicyKind.RANK, max(1, target.stacked))
        return self.policy

    def stamped(self, *, blank: bool = False) -> Recipe:
        """Return the recipe with every file's sha256 filled in, as it goes into the result's metadata.

        Args:
            blank: with zeros of the same length, so that no file need be read.
        """
        sources = []
        for child in self.children:
            if isinstance(child, Leaf):
                sha256 = "0" * 64 if blank else child.file.sha256
                # a size that was noted before may be of what the file was then
                size = child.file.size if child.source.size else 0
                sources.append(replace(child.source, sha256=sha256, size=size))
            elif child.source is not None:
                sources.append(replace(child.source, recipe=child.stamped(blank=blank)))
        return replace(self.recipe, sources=tuple(sources))

    def under(self, recipe: Recipe) -> Node:
        """Return the same sources merged as another recipe over them says: its method, ranks, seed."""
        return replace(
            self,
            recipe=replace(recipe, sources=self.recipe.sources, family=self.family),
            method=recipe.declared(),
            settings=recipe.declared().settings(recipe.knobs, len(recipe.sources)),
            policy=recipe.policy(),
        )


Child = Union[Leaf, Node]


@dataclass(slots=True)
class Tree:
    """A planned recipe and the files it reads, each opened once.

    root   the recipe itself
    files  in the order in which the recipe names them
    naming how modules are called in the result
    """

    root: Node
    files: list[LoraFile]
    naming: Naming

    @property
    def notes(self) -> list[str]:
        """Everything the plan has to tell the user."""
        return [*self.root.notes, *(note for file in self.files for note in file.notes)]

    def under(self, recipe: Recipe) -> Tree:
        """Return the tree of another recipe over the same sources; see `Node.under`."""
        return replace(self, root=self.root.under(recipe))

    def check_unchanged(self) -> None:
        """Raise FileFormatError where a file was written to since it was opened."""
        for file in self.files:
            file.file.check_unchanged()

    def close(self) -> None:
        """Close every file."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Tree:
        """Return the tree."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        self.close()


def open_tree(
    recipe: Recipe,
    open_file: OpenFile = open_lora,
    *,
    drop_unsupported: bool = False,
    look_only: bool = False,
) -> Tree:
    """Open a recipe's files, settle their family and resolve every setting.

    Args:
        recipe: with paths.
        open_file: opens one file.
        drop_unsupported: leave kinds out that need base weights, instead of refusing them.
        look_only: for a look at files that may not be mergeable: of several families that fit, the first
            names the blocks, and modules whose sizes differ between sources are left out with a note.
    Raises:
        FamilyError: families differ or cannot be told.
        ModuleError: a module has two shapes, or none is left.
        UnsupportedKindError: a kind that needs base weights, without `drop_unsupported`.
        RecipeError: anything wrong with the recipe itself.
        FileFormatError: a file is missing or damaged.
    """
    recipe.check()
    files: dict[Path, LoraFile] = {}
    try:
        for path in _paths(recipe):
            if path not in files:
                files[path] = open_file(path)
        family = _family(list(files.values()), recipe.family, look_only=look_only)
        for path, file in files.items():
            files[path] = file.settled(family, drop_unsupported=drop_unsupported)
        naming = _naming(recipe, family, list(files.values()))
        root = _Builder(files, naming, look_only=look_only).node(replace(recipe, family=family), None)
        if not root.targets:
            why = "; ".join(note for file in files.values() for note in file.notes)[:500]
            message = f"none of the sources has a module that can be merged{why and f': {why}'}."
            raise ModuleError(message)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return Tree(root, list(files.values()), naming)


def _family(files: Sequence[LoraFile], asked: str | None, *, look_only: bool) -> str:
    try:
        return settle_family(files, asked)
    except FamilyError:
        shared = [name for name in files[0].guess.candidates if all(name in f.guess.possible for f in files)]
        if asked is not None or not look_only or not shared:
            raise
        return shared[0]


def _naming(recipe: Recipe, family: str, files: Sequence[LoraFile]) -> Naming:
    """Return how the modules of a recipe's result are called."""
    size = next((file.model for file in files if file.model is not None), None)
    return Naming.of(recipe.names, family_of(family), size)


class _Builder:
    """Makes nodes and leaves of opened files."""

    def __init__(self, files: Mapping[Path, LoraFile], naming: Naming, *, look_only: bool) -> None:
        self._files = files
        self._family = naming.family.name
        self._look_only = look_only
        pieces = {name for file in files.values() for name in file.split_modules}
        wholes = {name for file in files.values() for name in file.modules}
        self._joined = {name for name in pieces if naming.layout(name) is Layout.FUSED}
        self._split = {name for name in pieces | wholes if naming.layout(name) is Layout.SPLIT}
        self._split |= {name for name in pieces if naming.layout(name) is Layout.KEPT}
        self._uses: dict[Path, int] = {}

    def node(self, recipe: Recipe, source: Source | None) -> Node:
        draw = random.Random(f"blocks {recipe.seed}")
        method = recipe.declared()
        node = Node(
            recipe=recipe,
            method=method,
            settings=method.settings(recipe.knobs, len(recipe.sources)),
            policy=recipe.policy(),
            children=[],
            family=self._family,
            source=source,
            notes=list(recipe.said),
        )
        for item in recipe.sources:
            # a group's own random weights are drawn before those that its outer source puts on it
            node.children.append(
                self._leaf(item, draw, node.notes)
                if item.recipe is None
                else self._group(item, item.recipe, draw, node.notes)
            )
        resolved = [child.source for child in node.children]
        node.recipe = replace(recipe, sources=tuple(one for one in resolved if one is not None))
        if self._look_only:
            _leave_misfits_out(node)
        _tell_of_others(node.children)
        node.targets = _targets(node)
        return node

    def _group(self, item: Source, recipe: Recipe, draw: random.Random, notes: list[str]) -> Node:
        group = self.node(replace(recipe, family=self._family), item)
        group.block_weights, group.elements = self._weights(item, group.targets, draw, notes)
        group.source = replace(item, recipe=group.recipe, blocks=group.block_weights or None)
        notes.extend(group.notes)
        return group

    def _leaf(self, item: Source, draw: random.Random, notes: list[str]) -> Leaf:
        path = _path_of(item)
        file = self._files[path]
        parts = file.parts(self._split, self._joined)
        weights, elements = self._weights(item, parts, draw, notes)
        occurrence = self._uses.get(path, 0)
        self._uses[path] = occurrence + 1
        if occurrence == 1:
            notes.append(f"{item.label} is in the recipe more than once; its deltas add up")
        return Leaf(
            source=replace(item, name=path.name, size=file.size, blocks=weights or None),
            file=file,
            parts=parts,
            block_weights=weights,
            elements=elements,
        )

    def _weights(
        self, item: Source, modules: Mapping[str, object], draw: random.Random, notes: list[str]
    ) -> tuple[dict[str, float], ElementMatcher]:
        """Return a source's weight per block, and its element rules."""
        present = blocks_present(modules, self._family)
        weights, told = resolve_blocks(item.blocks, self._family, present, draw, item.label)
        notes.extend(told)
        return weights, ElementMatcher(item.elements, family_of(self._family).blocks or present, item.label)


def _tell_of_others(children: Sequence[Child]) -> None:
    """Tell element rules that ask for it which modules the other sources have."""
    modules = [child.parts if isinstance(child, Leaf) else child.targets for child in children]
    for index, child in enumerate(children):
        if child.elements is not None and child.elements.scoped:
            child.elements.beside(own for place, own in enumerate(modules) if place != index)


def _block_factor(child: Child, name: str, block: str) -> float:
    """Return the block weight, or the element rule that replaces it."""
    replaced = child.elements.weight(name, block) if child.elements is not None else None
    return child.block_weights.get(block, 1.0) if replaced is None else replaced


def _ratio(source: Source, encoder: int) -> float:
    if not encoder or source.te_ratio is None:
        return source.ratio
    if isinstance(source.te_ratio, tuple):
        return source.te_ratio[min(encoder, len(source.te_ratio)) - 1]
    return source.te_ratio


def _paths(recipe: Recipe) -> Iterator[Path]:
    for source in recipe.sources:
        if source.recipe is not None:
            yield from _paths(source.recipe)
        else:
            yield _path_of(source)


def _path_of(source: Source) -> Path:
    if source.path is None:
        message = f"{source.name or 'a source'} is named in the recipe but its file was not found."
        raise RecipeError(message)
    return source.path


def _targets(node: Node) -> dict[str, Target]:
    """Return the union of the children's modules, sizes checked against each other."""
    targets: dict[str, Target] = {}
    owner: dict[str, str] = {}
    for child in node.children:
        for own in _modules(child, node.family):
            before = targets.get(own.name)
            if before is None:
                targets[own.name], owner[own.name] = own, child.label
                continue
            _same_size(before, (own.out, own.columns), owner[own.name], child.label)
            targets[own.name] = replace(
                before,
                out=before.out if before.columns else own.out,
                columns=before.columns or own.columns,
                kernel=before.kernel or own.kernel,
                stacked=before.stacked + own.stacked,
                one_axis=before.one_axis or own.one_axis,
            )
    return dict(sorted(targets.items()))


def _leave_misfits_out(node: Node) -> None:
    """Take modules whose size differs from that of the sources before from their source, and say so."""
    sizes: dict[str, tuple[int, int]] = {}
    for child in node.children:
        misfits = {
            own.name
            for own in _modules(child, node.family)
            if own.columns and sizes.setdefault(own.name, (own.out, own.columns)) != (own.out, own.columns)
        }
        if not misfits:
            continue
        node.notes.append(
            f"{child.label}: {len(misfits)} {MISFIT} in the other sources and cannot be merged with them"
        )
        if isinstance(child, Leaf):
            child.parts = {name: part for name, part in child.parts.items() if name not in misfits}
        else:
            child.targets = {name: target for name, target in child.targets.items() if name not in misfits}


def _modules(child: Child, family: str) -> Iterator[Target]:
    """Yield what a child has, as if it were merged alone."""
    if isinstance(child, Node):
        yield from child.targets.values()
        return
    for name, part in child.parts.items():
        yield Target(
            name=name,
            block=block_of(name, family),
            out=part.out,
            columns=part.columns,
            kernel=part.kernel,
            stacked=part.rank,
            one_axis=part.module.layout.one_axis,
        )


def _same_size(before: Target, size: tuple[int, int], owner: str, other: str) -> None:
    if before.columns and size[1] and (before.out, before.columns) != size:
        message = (
            f"{before.name} is {before.out} × {before.columns} in {owner} and {size[0]} × {size[1]} "
            f"in {other}: "
            "they were not trained for the same base model."
        )
        raise ModuleError(message)
