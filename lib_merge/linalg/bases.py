"""Orthonormal bases of stacked factors, from their Gram matrices alone.

Where Cholesky factors exist, BᵀB = LLᵀ and AAᵀ = NNᵀ, the bases are P = B·L⁻ᵀ, Q = Aᵀ·N⁻ᵀ, and Mᵢ = Lᵀ[:,
i]·N[i, :], blocks of
triangles: no decomposition at all. Columns are brought to length 1 first, which a gauge cannot disturb.
    Otherwise (the same file
twice, near-duplicates, zero factors): the left Gram of [τ₁ | τ₂ | …] is B·D·Bᵀ with D = blockdiag(AᵢAᵢᵀ) =
C·Cᵀ, so the eigenvectors W, Λ of Cᵀ·BᵀB·C give P = B·C·W·Λ^(−½); the right side likewise. A source whose
factors are so ill-conditioned that Grams would lose it is brought to its SVD first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lib_merge.errors import NumericsError
from lib_merge.linalg import Delta, Dense, Spanned, Stack

# Directions below this share of the largest singular value are rounding, not signal.
NOISE = 1e-6
# ‖L⁻¹‖ of unit columns beyond which a basis made with it is not orthonormal to 1e-8
SKEW = 1e4

Pair = tuple[Stack, Stack]  # (B, Aᵀ) of one source; without parts where it is zero


Thin = tuple[tuple[Tensor, Tensor], ...]  # per source PᵀBᵢ and AᵢQ


def orthonormal(
    gram_up: Tensor, gram_down: Tensor, blocks: Sequence[slice]
) -> tuple[Thin, Tensor, Tensor] | None:
    """Return (thin, to_left, to_right) of `CoreSpace`; None where everything is zero."""
    lower, upper = _triangle(gram_up), _triangle(gram_down)
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
    lower = _triangle(gram_up)
    if lower is None:
        left = _basis(gram_up, gram_down, blocks)
        if left is None:
            return None
        return tuple((left.T @ gram_up[:, part], nothing) for part in blocks), left, nothing
    own = torch.block_diag(*[gram_down[part, part] for part in blocks])
    main = main_directions(lower[0].T @ own @ lower[0])
    return tuple((main.T @ lower[0][part].T, nothing) for part in blocks), lower[1].T @ main, nothing


def main_directions(gram: Tensor) -> Tensor:
    """Return the eigenvectors of a Gram matrix, strongest first, without the empty ones: Float64[a k]."""
    values, vectors = torch.linalg.eigh(gram)
    keep = max(1, int((values > NOISE**2 * values[-1]).sum()))
    return vectors.flip(1)[:, :keep]


def pair_of(delta: Delta) -> Pair:
    """Return (B, Aᵀ) of one delta; a dense one by its SVD."""
    if isinstance(delta, Spanned):
        delta = delta.low_rank()
    if isinstance(delta, Dense):
        matrix = delta.dense(dtype=torch.float64)
        check_finite(float(matrix.square().sum()))
        return _halves(*torch.linalg.svd(matrix, full_matrices=False))
    terms = [term for term in delta.terms if term.rank]
    up = tuple((term.scale, term.up) for term in terms)
    return Stack(up), Stack(tuple((1.0, term.down.T) for term in terms))


def _halves(left: Tensor, values: Tensor, right: Tensor) -> Pair:
    keep = int((values > NOISE * values[0]).sum()) if float(values[0]) > 0 else 0
    if not keep:
        return Stack(()), Stack(())
    root = values[:keep].sqrt()
    up, down = left[:, :keep] * root, right[:keep] * root[:, None]
    return Stack(((1.0, up),)), Stack(((1.0, down.T),))


def side_of(pairs: Sequence[Pair], side: int) -> Stack:
    """Return B (0) or Aᵀ (1) of all sources side by side."""
    return Stack(tuple(part for pair in pairs for part in pair[side].parts))


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
    gram_down = torch.block_diag(*[side.gram() for side in down])
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


def _triangle(gram: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return (L, L⁻¹) with LLᵀ = gram, Float64[R R]; None where the columns are too near to dependent."""
    size = gram.diagonal().sqrt()
    if not float(size.min()) > 0:
        return None
    unit, info = torch.linalg.cholesky_ex(gram / (size[:, None] * size))
    if int(info):
        return None
    inverse = torch.linalg.solve_triangular(unit, torch.eye(len(unit), dtype=unit.dtype), upper=False)
    if not float(inverse.norm()) < SKEW:
        return None
    return size[:, None] * unit, inverse / size


def _basis(own: Tensor, other: Tensor, blocks: Sequence[slice]) -> Tensor | None:
    """Return T [R a] such that B·T is the singular basis of the concatenation; None where everything is
    zero.
    """
    root = torch.zeros_like(other)
    for part in blocks:
        if part.stop > part.start:
            values, vectors = torch.linalg.eigh(other[part, part])
            root[part, part] = vectors * values.clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(root.T @ own @ root)
    values, vectors = values.flip(0), vectors.flip(1)
    if not values.numel() or not float(values[0]) > 0:
        return None
    keep = int((values > NOISE**2 * values[0]).sum())
    return root @ (vectors[:, :keep] * values[:keep].rsqrt())
