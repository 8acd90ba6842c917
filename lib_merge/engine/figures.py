"""Figures of files that no ratio changes, kept with their headers: a slider that moves computes none twice.

They are found when they are first asked for, lie with the file as it was opened first and go with it, so that
a file that changed is looked at again (`engine.headers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lib_merge.engine.tree import Leaf
from lib_merge.files.reader import TensorFile
from lib_merge.linalg import Delta, inner

# Other files of which figures are kept with one, and single figures of a kind.
MOST_FILES, MOST = 64, 4096
# Numbers of the deltas that are kept with one file: 16 MB.
MOST_NUMBERS = 1 << 22
# First numbers of a tensor that are compared.
_FEW = 16
# What they may differ by, of the largest: it only decides what is looked at more closely.
_NEAR = 1e-3

Names = frozenset[str]


def alike(one: Leaf, other: Leaf) -> Names:
    """Return the modules of which a factor of one file begins as a multiple of the other's does.

    Raises:
        FileFormatError: a file was changed or cannot be read.
    """
    if one.file.file.origin is other.file.file.origin:
        return frozenset(name for name in one.parts if name in other.parts)
    kept = _with(one, other, "alike")
    key = one.file.family, tuple(one.parts), tuple(other.parts)
    if key not in kept:
        kept.clear()
        kept[key] = frozenset(
            name for name in one.parts if name in other.parts and _begin_alike(one, other, name)
        )
    found: Names = kept[key]
    return found


def products(leaves: Sequence[Leaf], name: str) -> np.ndarray:
    """Return Float64[leaf leaf], ⟨ΔWᵢ, ΔWⱼ⟩ of one module, which all of them have.

    Raises:
        FileFormatError: a file was changed or cannot be read.
    """
    loaded: dict[TensorFile, Delta] = {}

    def delta(leaf: Leaf) -> Delta:
        origin = leaf.file.file.origin
        if origin not in loaded:
            loaded[origin] = leaf.parts[name].load(leaf.file.file)
        return loaded[origin]

    count = len(leaves)
    gram = np.zeros((count, count))
    for i in range(count):
        for j in range(i, count):
            kept = _with(leaves[i], leaves[j], "products")
            key = _module(leaves[i], name)
            if key not in kept:
                _bound(kept, MOST)
                kept[key] = inner(delta(leaves[i]), delta(leaves[j]))
            gram[i, j] = gram[j, i] = kept[key]
    return gram


def share(leaves: Sequence[Leaf], name: str, asked: Sequence[float], find: Callable[[], float]) -> float:
    """Return what `find` finds of one module of these files at these weights, which is kept."""
    kept = leaves[0].file.file.origin.found.setdefault("shares", {})
    files = tuple(leaf.file.file.origin for leaf in leaves)
    key = (*_module(leaves[0], name), files, tuple(asked))
    if key not in kept:
        _bound(kept, MOST)
        kept[key] = find()
    return float(kept[key])


def delta_of(leaf: Leaf, name: str) -> Delta:
    """Return ΔW of one module, which is kept where there is room: of the few that stand for all.

    Raises:
        FileFormatError: the file was changed or cannot be read.
    """
    kept = leaf.file.file.origin.found.setdefault("deltas", {})
    key = _module(leaf, name)
    if key in kept:
        known: Delta = kept[key][1]
        return known
    delta = leaf.parts[name].load(leaf.file.file)
    keys = leaf.parts[name].module.roles.values()
    numbers = sum(math.prod(leaf.file.file.tensors[one].shape) for one in keys)
    if numbers <= MOST_NUMBERS:
        if sum(size for size, _ in kept.values()) + numbers > MOST_NUMBERS:
            kept.clear()
        kept[key] = numbers, delta
    return delta


def _module(leaf: Leaf, name: str) -> tuple[str | None, str, int, int]:
    """Name a module of a file: the family decides what is split, and the size tells the pieces."""
    part = leaf.parts[name]
    return leaf.file.family, name, part.out, part.columns


def _with(one: Leaf, other: Leaf, sort: str) -> dict[object, Any]:
    """Return where figures of two files are kept."""
    kept = one.file.file.origin.found.setdefault(sort, {})
    origin = other.file.file.origin
    if origin not in kept:
        _bound(kept, MOST_FILES)
    place: dict[object, Any] = kept.setdefault(origin, {})
    return place


def _bound(kept: dict[object, Any], most: int) -> None:
    if len(kept) >= most:
        kept.clear()


# ---------------------------------------------------------------- the same beginning


def _begin_alike(one: Leaf, other: Leaf, name: str) -> bool:
    begun: dict[str, list[tuple[float, ...]]] = {}
    for role, numbers in _beginnings(one, name):
        begun.setdefault(role, []).append(numbers)
    return any(
        _parallel(numbers, before)
        for role, numbers in _beginnings(other, name)
        for before in begun.get(role, ())
    )


def _beginnings(leaf: Leaf, name: str) -> list[tuple[str, tuple[float, ...]]]:
    """Return (role, first numbers) of the factors of a module."""
    file = leaf.file.file
    return [
        (role.rpartition(" ")[2], file.beginning(key, _FEW))
        for role, key in leaf.parts[name].module.roles.items()
        if len(file.tensors[key].shape) > 1
    ]


def _parallel(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Tell whether one is nearly a multiple of the other, as far as both go; one number tells nothing."""
    few = min(len(one), len(other))
    if few < 2:
        return False
    first = max(range(few), key=lambda place: abs(one[place]))
    if not one[first] or not other[first]:
        return False
    scale, allowed = other[first] / one[first], _NEAR * abs(other[first])
    return all(abs(other[place] - scale * one[place]) <= allowed for place in range(few))
