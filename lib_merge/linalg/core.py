"""The common space of several deltas: τᵢ = P·Mᵢ·Qᵀ with orthonormal bases P of [τ₁ | τ₂ | …] and Q of [τ₁;
τ₂; …].

With stacked factors τᵢ = BᵢAᵢ everything follows from two R × R Gram matrices in float64; see `corebases`.
Methods that act on single numbers of Mᵢ ask for singular bases: they depend on the deltas alone, not on how
these are factored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Union

import torch
from torch import Tensor

from lib_merge.linalg import Delta, Spanned, Stack
from lib_merge.linalg.bases import (
    Pair,
    blocks_of,
    canonical,
    check_finite,
    left_singular,
    main_directions,
    orthonormal,
    pair_of,
    side_of,
    spread,
    stacked,
)
from lib_merge.linalg.factoring import Triplets, product_svd
from lib_merge.linalg.order import smallest

# ‖K_B‖‖K_A‖ / ‖τ‖² of a source beyond which its Grams are not trusted: float64 keeps four digits of that
ILL = 1e8
# the same for one source, beyond which float32 products are not used
STEEP = 1e3
# directions of a merge below this share of its largest are rounding of the Grams
FAINT = 1e-7
# squares of rows' singular values above this share of the largest keep three digits in a float32 Gram
PLAIN = 1e-4

Merged = Union[Tensor, Triplets]


@dataclass(frozen=True, slots=True)
class CoreSpace:
    """P = B·to_left and Qᵀ = to_right·A, kept as products: nothing of the deltas' size is made before it is
    needed.

    sources     per source (Bᵢ, Aᵢᵀ)
    thin        per source (PᵀBᵢ, Float64[a rᵢ]; AᵢQ, Float64[rᵢ b]), whose product is Mᵢ
    up, down    B and Aᵀ, all sources side by side
    up_sizes, down_sizes  Float64[R], squared lengths of B's columns and A's rows
    to_left     Float64[R a]
    to_right    Float64[b R]
    steep       sources whose factors are so much larger than they are that float32 products would show it
    rewritten   a source's own factors could not be used and were replaced
    bounds      order statistics of the rows already found, by (source, share)
    found       Qᵀ, once it was asked for
    """

    sources: tuple[Pair, ...]
    thin: tuple[tuple[Tensor, Tensor], ...]
    up: Stack
    down: Stack
    up_sizes: Tensor
    down_sizes: Tensor
    to_left: Tensor
    to_right: Tensor
    steep: frozenset[int] = frozenset()
    rewritten: bool = False
    bounds: dict[tuple[int, float], float] = field(default_factory=dict)
    found: dict[str, Tensor] = field(default_factory=dict)

    @property
    def cores(self) -> Tensor:
        """Return Float64[source a b], Mᵢ."""
        return torch.stack([first @ second for first, second in self.thin])

    def svd(self, source: int) -> Triplets:
        """Return the SVD of Mᵢ without its empty directions."""
        return product_svd(*self.thin[source])

    def rows(self, source: int) -> Tensor:
        """Return Pᵀτᵢ, Float32[a in]; in float64 first where the summands are much larger than what they
        give.
        """
        down, left = self.sources[source][1], self.thin[source][0]
        if not down.parts:
            return torch.zeros(left.shape[0], self.down.parts[0][1].shape[0])
        if source in self.steep:
            return (left @ down.matrix("cpu", torch.float64).T).float()
        return left.float() @ down.matrix("cpu", torch.float32, "rows").T

    def bound(self, source: int, rows: Tensor, share: float) -> float:
        """Return the magnitude at or below which exactly that share of a source's rows lies; −1 for none."""
        key = (source, share)
        if key not in self.bounds:
            self.bounds[key] = smallest(rows, share)
        return self.bounds[key]

    def basis_rows(self) -> Tensor:
        """Return Qᵀ, Float32[b in]; kept once it was asked for."""
        if "rows" not in self.found:
            self.found["rows"] = (self.to_right @ self.down.matrix("cpu", torch.float64).T).float()
        return self.found["rows"]

    def columns(self) -> Tensor:
        """Return Float64[source source in], ⟨τᵢeⱼ, τₖeⱼ⟩."""
        rows = [self.rows(source) for source in range(len(self.sources))]
        return torch.stack([torch.stack([(one * two).sum(0).double() for two in rows]) for one in rows])

    def spanned(self, merged: Merged) -> Spanned:
        """Return P·merged·Qᵀ by its SVD.

        Args:
            merged: Float64[a b], or a sum of triplets (U, S, Vᵀ) with orthonormal U and V.
        """
        left, values, right = _triplets(merged)
        sides = (self.up, self.down, self.to_left @ left, values, right @ self.to_right)
        return Spanned(*self._shape, *sides, self.up_sizes, self.down_sizes)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.up.parts[0][1].shape[0], self.down.parts[0][1].shape[0]

    def spanned_rows(self, merged: Tensor, *, ordered: bool = True) -> Spanned:
        """Return P·merged.

        Args:
            merged: Float32[a in].
            ordered: by its SVD; otherwise row by row, which is all that a distance to it needs.
        """
        stack = Stack(((1.0, merged.T),))
        if not ordered:
            values = torch.linalg.vector_norm(merged, dim=1, dtype=torch.float64)
            right = torch.where(values > 0, 1.0 / values, 0.0).diag()
            sides = (self.up, stack, self.to_left, values, right)
            return Spanned(*self._shape, *sides, self.up_sizes, values.square())
        gram = (merged @ merged.T).double()
        squares, vectors = torch.linalg.eigh(gram)
        if not float(squares[0]) > PLAIN * float(squares[-1]):
            wide = merged.double()
            gram = wide @ wide.T
            squares, vectors = torch.linalg.eigh(gram)
        squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
        keep = max(1, int((squares > FAINT**2 * squares[0]).sum()))
        values, vectors = squares[:keep].sqrt(), vectors[:, :keep]
        right = vectors.T / torch.where(values > 0, values, 1.0)[:, None]
        sides = (self.up, stack, self.to_left @ vectors, values, right)
        return Spanned(*self._shape, *sides, self.up_sizes, gram.diagonal().clone())


def core_space(deltas: Sequence[Delta], bases: str = "singular") -> CoreSpace | None:
    """Return the common space of deltas that already carry their weights; None where all of them are zero.

    Args:
        deltas: τᵢ, each out × in.
        bases: "any" orthonormal ones; the "singular" ones, unique up to signs; "left", P alone singular.
    Raises:
        NumericsError: a delta holds NaN or infinity.
    """
    pairs = [pair_of(delta) for delta in deltas]
    grams = stacked(pairs, crossed=bases != "left")
    if grams is None:
        return None
    size = [spread(grams[0][part, part], grams[1][part, part]) for part in blocks_of(pairs)]
    if max(size) > ILL:
        pairs = [canonical(pair) if much > ILL else pair for pair, much in zip(pairs, size)]
        grams = stacked(pairs, crossed=bases != "left")
    find = left_singular if bases == "left" else orthonormal
    found = find(*grams, blocks_of(pairs)) if grams is not None else None
    if grams is None or found is None:
        return None
    thin, to_left, to_right = found
    # views would keep the Grams alive with what is kept of a module
    sizes = grams[0].diagonal().clone(), grams[1].diagonal().clone()
    steep = frozenset(place for place, much in enumerate(size) if STEEP < much <= ILL)
    sides = side_of(pairs, 0), side_of(pairs, 1)
    space = CoreSpace(tuple(pairs), thin, *sides, *sizes, to_left, to_right, steep, max(size) > ILL)
    return _singular(space) if bases == "singular" else space


def _singular(space: CoreSpace) -> CoreSpace:
    """Turn any orthonormal bases into the singular ones: eigenvectors of Σ MᵢMᵢᵀ and Σ MᵢᵀMᵢ."""
    cores = space.cores
    left = main_directions(sum(core @ core.T for core in cores))
    right = main_directions(sum(core.T @ core for core in cores))
    thin = tuple((left.T @ first, second @ right) for first, second in space.thin)
    return replace(space, thin=thin, to_left=space.to_left @ left, to_right=right.T @ space.to_right)


def _triplets(merged: Merged) -> Triplets:
    """Return the SVD of a core, values descending, at least one; directions that are rounding are left
    out.
    """
    if isinstance(merged, tuple):
        left, values, right = merged
        if left.shape[1] > left.shape[0] or right.shape[0] > right.shape[1]:
            # more triplets than directions, as of a file merged with itself: not orthonormal
            return _triplets((left * values) @ right)
        order = values.argsort(descending=True, stable=True)
        left, values, right = left[:, order], values[order], right[order]
    else:
        # left vectors by the eigen-decomposition; what they leave of the core is exact whatever its condition
        _, vectors = torch.linalg.eigh(merged @ merged.T)
        left = vectors.flip(1)
        right = left.T @ merged
        values = torch.linalg.vector_norm(right, dim=1)
        order = values.argsort(descending=True, stable=True)
        left, values, right = left[:, order], values[order], right[order]
        right = right / torch.where(values > 0, values, 1.0)[:, None]
    keep = max(1, int((values > FAINT * values.max()).sum())) if len(values) else 0
    if not keep:
        return (
            merged[0].new_zeros(merged[0].shape[0], 1),
            merged[1].new_zeros(1),
            merged[2].new_zeros(1, merged[2].shape[1]),
        )
    return left[:, :keep], values[:keep], right[:keep]


def column_products(deltas: Sequence[Delta]) -> Tensor:
    """Return Float64[source source in], ⟨τᵢeⱼ, τₖeⱼ⟩ = (Aᵢᵀ·BᵢᵀBₖ·Aₖ)ⱼⱼ: how the deltas agree on every input.

    Raises:
        NumericsError: a delta holds NaN or infinity.
    """
    pairs = [pair_of(delta) for delta in deltas]
    found = torch.zeros(len(pairs), len(pairs), deltas[0].columns, dtype=torch.float64)
    up = side_of(pairs, 0)
    if not up.parts:
        return found
    gram, blocks = up.gram(), blocks_of(pairs)
    downs = [pair[1].matrix("cpu", torch.float64).T if pair[1].parts else None for pair in pairs]
    for i, first in enumerate(downs):
        for k, second in enumerate(downs[: i + 1]):
            if first is not None and second is not None:
                found[i, k] = found[k, i] = ((gram[blocks[k], blocks[i]] @ first) * second).sum(0)
    check_finite(float(found.sum()))
    return found
