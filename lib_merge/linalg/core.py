"""The common space of several deltas: τᵢ = P·Mᵢ·Qᵀ with orthonormal bases P of [τ₁ | τ₂ | …] and Q of [τ₁;
τ₂; …].

With stacked factors τᵢ = BᵢAᵢ everything follows from two R × R Gram matrices in float64. Where Cholesky
factors exist, BᵀB = LLᵀ and AAᵀ = NNᵀ, the bases are P = B·L⁻ᵀ, Q = Aᵀ·N⁻ᵀ, and Mᵢ = Lᵀ[:, i]·N[i, :], blocks
of triangles: no decomposition at all. Otherwise (the same file twice, near-duplicates, zero factors) the left
Gram of [τ₁ | τ₂ | …] is B·D·Bᵀ with D = blockdiag(AᵢAᵢᵀ) = C·Cᵀ, so the eigenvectors W, Λ of Cᵀ·BᵀB·C give
P = B·C·W·Λ^(−½); the right side likewise. A source whose factors are so ill-conditioned that Grams would lose
it is brought to its SVD first.

Methods that act on single numbers of Mᵢ ask for singular bases: they depend on the deltas alone, not on how
these are factored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Union

import torch
from torch import Tensor

from lib_merge.errors import NumericsError
from lib_merge.linalg import tolerances
from lib_merge.linalg.delta import Columns, Delta, Dense, Spanned
from lib_merge.linalg.svd import (
    Triplets,
    block_diagonal,
    clamped_root,
    eigen,
    main_directions,
    product_svd,
    smallest,
    triangle,
)

Merged = Union[Tensor, Triplets]
Pair = tuple[Columns, Columns]  # (B, Aᵀ) of one source; without parts where it is zero
Thin = tuple[tuple[Tensor, Tensor], ...]  # per source PᵀBᵢ and AᵢQ


class Bases(str, Enum):
    """Which orthonormal bases P, Q are wanted."""

    ANY = "any"
    SINGULAR = "singular"  # unique up to signs: for methods that act on single numbers of Mᵢ
    LEFT = "left"  # P alone, singular: for methods that give rows

    def __str__(self) -> str:
        """Return the word, in every version of Python."""
        return str(self.value)


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
    cached      Qᵀ, once it was asked for
    """

    sources: tuple[Pair, ...]
    thin: tuple[tuple[Tensor, Tensor], ...]
    up: Columns
    down: Columns
    up_sizes: Tensor
    down_sizes: Tensor
    to_left: Tensor
    to_right: Tensor
    steep: frozenset[int] = frozenset()
    rewritten: bool = False
    bounds: dict[tuple[int, float], float] = field(default_factory=dict)
    cached: dict[str, Tensor] = field(default_factory=dict)

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
        if "rows" not in self.cached:
            self.cached["rows"] = (self.to_right @ self.down.matrix("cpu", torch.float64).T).float()
        return self.cached["rows"]

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
        return self._spanned(
            down=self.down,
            left=self.to_left @ left,
            values=values,
            right=right @ self.to_right,
            down_sizes=self.down_sizes,
        )

    def _spanned(
        self, *, down: Columns, left: Tensor, values: Tensor, right: Tensor, down_sizes: Tensor
    ) -> Spanned:
        return Spanned(
            out=self.up.parts[0][1].shape[0],
            columns=self.down.parts[0][1].shape[0],
            up=self.up,
            down=down,
            left=left,
            values=values,
            right=right,
            up_sizes=self.up_sizes,
            down_sizes=down_sizes,
        )

    def spanned_rows(self, merged: Tensor, *, ordered: bool = True) -> Spanned:
        """Return P·merged.

        Args:
            merged: Float32[a in].
            ordered: by its SVD; otherwise row by row, which is all that a distance to it needs.
        """
        down = Columns(((1.0, merged.T),))
        if not ordered:
            values = torch.linalg.vector_norm(merged, dim=1, dtype=torch.float64)
            right = torch.where(values > 0, 1.0 / values, 0.0).diag()
            return self._spanned(
                down=down, left=self.to_left, values=values, right=right, down_sizes=values.square()
            )
        gram = (merged @ merged.T).double()
        squares, vectors = eigen(gram)
        if not float(squares[-1]) > tolerances.ROWS_PLAIN * float(squares[0]):
            wide = merged.double()
            gram = wide @ wide.T
            squares, vectors = eigen(gram)
        squares = squares.clamp_min(0)
        keep = max(1, int((squares > tolerances.CORE_FAINT**2 * squares[0]).sum()))
        values, vectors = squares[:keep].sqrt(), vectors[:, :keep]
        right = vectors.T / torch.where(values > 0, values, 1.0)[:, None]
        return self._spanned(
            down=down,
            left=self.to_left @ vectors,
            values=values,
            right=right,
            down_sizes=gram.diagonal().clone(),
        )


def core_space(deltas: Sequence[Delta], bases: Bases = Bases.SINGULAR) -> CoreSpace | None:
    """Return the common space of deltas that already carry their weights; None where all of them are zero.

    Args:
        deltas: τᵢ, each out × in.
        bases: which orthonormal ones.
    Raises:
        NumericsError: a delta holds NaN or infinity.
    """
    pairs = [pair_of(delta) for delta in deltas]
    grams = stacked(pairs, crossed=bases is not Bases.LEFT)
    if grams is None:
        return None
    spreads = [spread(grams[0][part, part], grams[1][part, part]) for part in blocks_of(pairs)]
    if max(spreads) > tolerances.CORE_ILL:
        pairs = [
            canonical(pair) if times > tolerances.CORE_ILL else pair for pair, times in zip(pairs, spreads)
        ]
        grams = stacked(pairs, crossed=bases is not Bases.LEFT)
    find = left_singular if bases is Bases.LEFT else orthonormal
    common = find(*grams, blocks_of(pairs)) if grams is not None else None
    if grams is None or common is None:
        return None
    thin, to_left, to_right = common
    # views would keep the Grams alive with what is kept of a module
    sizes = grams[0].diagonal().clone(), grams[1].diagonal().clone()
    steep = frozenset(
        place for place, times in enumerate(spreads) if tolerances.CORE_STEEP < times <= tolerances.CORE_ILL
    )
    space = CoreSpace(
        sources=tuple(pairs),
        thin=thin,
        up=side_of(pairs, 0),
        down=side_of(pairs, 1),
        up_sizes=sizes[0],
        down_sizes=sizes[1],
        to_left=to_left,
        to_right=to_right,
        steep=steep,
        rewritten=max(spreads) > tolerances.CORE_ILL,
    )
    return _singular(space) if bases is Bases.SINGULAR else space


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
        left = eigen(merged @ merged.T)[1]
        right = left.T @ merged
        values = torch.linalg.vector_norm(right, dim=1)
        order = values.argsort(descending=True, stable=True)
        left, values, right = left[:, order], values[order], right[order]
        right = right / torch.where(values > 0, values, 1.0)[:, None]
    keep = max(1, int((values > tolerances.CORE_FAINT * values.max()).sum())) if len(values) else 0
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
    products = torch.zeros(len(pairs), len(pairs), deltas[0].columns, dtype=torch.float64)
    up = side_of(pairs, 0)
    if not up.parts:
        return products
    gram, blocks = up.gram(), blocks_of(pairs)
    downs = [pair[1].matrix("cpu", torch.float64).T if pair[1].parts else None for pair in pairs]
    for i, first in enumerate(downs):
        for k, second in enumerate(downs[: i + 1]):
            if first is not None and second is not None:
                products[i, k] = products[k, i] = ((gram[blocks[k], blocks[i]] @ first) * second).sum(0)
    check_finite(float(products.sum()))
    return products


# ---------------------------------------------------------------- bases


def orthonormal(
    gram_up: Tensor, gram_down: Tensor, blocks: Sequence[slice]
) -> tuple[Thin, Tensor, Tensor] | None:
    """Return (thin, to_left, to_right) of `CoreSpace`; None where everything is zero."""
    lower, upper = triangle(gram_up), triangle(gram_down)
    if lower is not None and upper is not None:
        return tuple((lower[0][part].T, upper[0][part]) for part in blocks), lower[1].T, upper[1]
    left, right = _basis(gram_up, gram_down, blocks), _basis(gram_down, gram_up, blocks)
    if left is None or right is None:
        return None
    return tuple((left.T @ gram_up[:, part], gram_down[part] @ right) for part in blocks), left, right.T


def left_singular(
    gram_up: Tensor, gram_down: Tensor, blocks: Sequence[slice]
) -> tuple[Thin, Tensor, Tensor] | None:
    """Return the same with P singular and nothing of Q: eigenvectors of PᵀΣτᵢτᵢᵀP = Lᵀ·blockdiag(AᵢAᵢᵀ)·L."""
    nothing = torch.empty(0, 0, dtype=torch.float64)
    lower = triangle(gram_up)
    if lower is None:
        left = _basis(gram_up, gram_down, blocks)
        if left is None:
            return None
        return tuple((left.T @ gram_up[:, part], nothing) for part in blocks), left, nothing
    own = block_diagonal([gram_down[part, part] for part in blocks])
    main = main_directions(lower[0].T @ own @ lower[0])
    return tuple((main.T @ lower[0][part].T, nothing) for part in blocks), lower[1].T @ main, nothing


def pair_of(delta: Delta | Spanned) -> Pair:
    """Return (B, Aᵀ) of one delta; a dense one by its SVD."""
    if isinstance(delta, Spanned):
        delta = delta.low_rank()
    if isinstance(delta, Dense):
        matrix = delta.dense(dtype=torch.float64)
        check_finite(float(matrix.square().sum()))
        return _halves(*torch.linalg.svd(matrix, full_matrices=False))
    terms = [term for term in delta.terms if term.rank]
    up = tuple((term.scale, term.up) for term in terms)
    return Columns(up), Columns(tuple((1.0, term.down.T) for term in terms))


def _halves(left: Tensor, values: Tensor, right: Tensor) -> Pair:
    keep = int((values > tolerances.BASIS_NOISE * values[0]).sum()) if float(values[0]) > 0 else 0
    if not keep:
        return Columns(()), Columns(())
    root = values[:keep].sqrt()
    up, down = left[:, :keep] * root, right[:keep] * root[:, None]
    return Columns(((1.0, up),)), Columns(((1.0, down.T),))


def side_of(pairs: Sequence[Pair], side: int) -> Columns:
    """Return B (0) or Aᵀ (1) of all sources side by side."""
    return Columns(tuple(part for pair in pairs for part in pair[side].parts))


def stacked(pairs: Sequence[Pair], *, crossed: bool = True) -> tuple[Tensor, Tensor] | None:
    """Return the Gram matrices BᵀB and AAᵀ of all sources, Float64[R R]; None where all are zero.

    Args:
        pairs: per source.
        crossed: AAᵀ with what different sources have to do with each other; otherwise only its blocks.
    Raises:
        NumericsError: a source holds NaN or infinity.
    """
    if not any(pair[0].parts for pair in pairs):
        return None
    gram_up = side_of(pairs, 0).gram()
    down = [side_of(pairs, 1)] if crossed else [pair[1] for pair in pairs if pair[1].parts]
    gram_down = block_diagonal([side.gram() for side in down])
    check_finite(float(gram_up.sum() + gram_down.sum()))
    return gram_up, gram_down


def blocks_of(pairs: Sequence[Pair]) -> list[slice]:
    """Return the place of each source's columns among all."""
    edges = itertools.accumulate((pair[0].width for pair in pairs), initial=0)
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def check_finite(size: float) -> None:
    """Raise `NumericsError` where a sum over everything is no number."""
    if not math.isfinite(size):
        message = "a delta holds NaN or infinity"
        raise NumericsError(message)


def spread(gram_up: Tensor, gram_down: Tensor) -> float:
    """Return ‖K_B‖‖K_A‖ / ‖τ‖²: how much larger than a delta its factors are; 1 of a zero source."""
    size = float((gram_up * gram_down).sum())
    factors = float(gram_up.norm()) * float(gram_down.norm())
    return factors / size if size > 0 else math.inf if factors > 0 else 1.0


def canonical(pair: Pair) -> Pair:
    """Return the same delta in the factors of its SVD, √S on either side, whatever the factors' condition."""
    up, down = (side.matrix("cpu", torch.float64) for side in pair)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return _halves(q_up @ left, values, right @ q_down.T)


def _basis(own: Tensor, other: Tensor, blocks: Sequence[slice]) -> Tensor | None:
    """Return T [R a] such that B·T is the singular basis of the concatenation; None where everything is
    zero.
    """
    root = torch.zeros_like(other)
    for part in blocks:
        if part.stop > part.start:
            root[part, part] = clamped_root(other[part, part])
    values, vectors = eigen(root.T @ own @ root)
    if not values.numel() or not float(values[0]) > 0:
        return None
    keep = int((values > tolerances.BASIS_NOISE**2 * values[0]).sum())
    basis: Tensor = root @ (vectors[:, :keep] * values[:keep].rsqrt())
    return basis
