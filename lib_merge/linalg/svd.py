"""Singular values from Gram matrices: the one family of routines that everything calls, and their figures.

A symmetric eigen-decomposition costs half of LAPACK's SVD and needs only products:

    one side    M·Mᵀ = U·S²·Uᵀ                        U, S; Vᵀ = S⁻¹·UᵀM
    both sides  BᵀB = L·Lᵀ, Lᵀ·AAᵀ·L = V·S²·Vᵀ        ΔW = B·A without building it

It squares the condition number. What is wanted therefore decides how far down it is trusted (`tolerances`),
and where L does not exist (the same file twice, near-duplicates, zero factors) a clamped eigen-decomposition
takes the place of Cholesky's. Everything here is float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib_merge.linalg import tolerances

# U with orthonormal columns, S, Vᵀ with orthonormal rows: a sum of triplets
Triplets = tuple[Tensor, Tensor, Tensor]
# Shares of the energy for which the needed rank is told.
SHARES = (0.90, 0.95, 0.99, 0.999)


# ---------------------------------------------------------------- from Grams


def eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues Float64[k], descending, and eigenvectors Float64[k k] of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)


def gram_values(gram: Tensor) -> Tensor:
    """Return Float64[k], descending: the singular values of a matrix whose Gram this is, without vectors."""
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(0).clamp_min(0).sqrt()


def row_values(rows: Tensor) -> np.ndarray:
    """Return the singular values of Float[a in], a small: Float64[a], descending.

    What is below the rounding of the Gram matrix of the rows counts as none.
    """
    rows = rows.double()
    values = gram_values(rows @ rows.T)
    singular: np.ndarray = torch.where(
        values.square() > tolerances.ROUNDING * values[0].square(), values, 0.0
    ).numpy()
    return singular


def clamped_root(gram: Tensor) -> Tensor:
    """Return L with LLᵀ = gram, Float64[k k]; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root


def triangle(gram: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return (L, L⁻¹) with L triangular and LLᵀ = gram, Float64[k k]; None where the columns are too near to
    dependent.

    Columns are brought to length 1 first, which a gauge cannot disturb.
    """
    size = gram.diagonal().sqrt()
    if not float(size.min()) > 0:
        return None
    unit, info = torch.linalg.cholesky_ex(gram / (size[:, None] * size))
    if int(info):
        return None
    inverse = torch.linalg.solve_triangular(unit, torch.eye(len(unit), dtype=unit.dtype), upper=False)
    if not float(inverse.norm()) < tolerances.SKEW:
        return None
    return size[:, None] * unit, inverse / size


@dataclass(frozen=True, slots=True)
class GramSVD:
    """The singular value decomposition of ΔW = B·A in coordinates of its factors.

    U = B·(AAᵀ·L·V)·S⁻², Vᵀ = S⁻¹·(L·V)ᵀ·A.

    root     Float64[R R], L
    squares  Float64[R], S² descending; rounding may make them negative
    vectors  Float64[R R], V
    """

    root: Tensor
    squares: Tensor
    vectors: Tensor

    @property
    def singular(self) -> np.ndarray:
        """S, Float64[R]."""
        singular: np.ndarray = self.squares.clamp_min(0).sqrt().numpy()
        return singular

    def basis(self, rank: int) -> Tensor:
        """Return L·V of the first `rank` directions, Float64[R rank]."""
        return self.root @ self.vectors[:, :rank]


def from_grams(gram_up: Tensor, gram_down: Tensor, *, clamped: bool = True) -> GramSVD | None:
    """Decompose ΔW = B·A from its Grams; None where they hold NaN or infinity.

    Args:
        gram_up: Float64[R R], BᵀB.
        gram_down: Float64[R R], AAᵀ.
        clamped: where BᵀB has no Cholesky factor, take a clamped eigen-decomposition; otherwise None.
    """
    whitened = _whitened(gram_up, gram_down, clamped=clamped)
    if whitened is None:
        return None
    return GramSVD(whitened[0], *eigen(whitened[1]))


def values_from_grams(gram_up: Tensor, gram_down: Tensor) -> Tensor:
    """Return Float64[R], descending: the singular values of B·A, without vectors.

    Args:
        gram_up: Float64[R R], BᵀB, of finite numbers.
        gram_down: Float64[R R], AAᵀ.
    """
    whitened = _whitened(gram_up, gram_down, clamped=True)
    return gram_values(whitened[1]) if whitened is not None else torch.zeros(0, dtype=torch.float64)


def _whitened(gram_up: Tensor, gram_down: Tensor, *, clamped: bool) -> tuple[Tensor, Tensor] | None:
    """Return (L, LᵀG_D L) with LLᵀ = G_U."""
    root, info = torch.linalg.cholesky_ex(gram_up)
    if int(info) != 0:
        if not clamped:
            return None
        root = clamped_root(gram_up)
    core = root.T @ gram_down @ root
    return (root, core) if bool(torch.isfinite(core).all()) else None


# ---------------------------------------------------------------- of small matrices


def svd(matrix: Tensor, most: int | None = None) -> Triplets:
    """Return the thin SVD of Float64[a b] without its empty directions: U [a k], S [k] descending, Vᵀ [k b].

    Args:
        matrix: any shape.
        most: how many directions are wanted; all by default.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    side = matrix.T if tall else matrix
    values, vectors = eigen(side @ side.T)
    if not len(values) or not float(values[0]) > 0:
        return matrix[:, :0], values[:0], matrix[:0]
    keep = int((values > tolerances.SVD_TINY**2 * values[0]).sum())
    keep = keep if most is None else min(keep, most)
    if keep and not float(values[keep - 1]) > tolerances.SVD_NARROW**2 * float(values[0]):
        return _lapack(matrix, most)
    basis = vectors[:, :keep]
    rows = basis.T @ side
    size = torch.linalg.vector_norm(rows, dim=1)
    rows /= size[:, None]
    return (rows.T, size, basis.T) if tall else (basis, size, rows)


def _lapack(matrix: Tensor, most: int | None) -> Triplets:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    keep = int((values > tolerances.SVD_TINY * values[0]).sum())
    keep = keep if most is None else min(keep, most)
    return left[:, :keep], values[:keep], right[:keep]


def product_svd(first: Tensor, second: Tensor) -> Triplets:
    """Return the SVD of first [a r] · second [r b], r small, without its empty directions."""
    if first.shape[1] >= second.shape[1]:
        return svd(first @ second)
    basis, upper = torch.linalg.qr(second.T)
    left, values, right = svd(first @ upper.T)
    return left, values, right @ basis.T


def main_directions(gram: Tensor) -> Tensor:
    """Return the eigenvectors of a Gram matrix, strongest first, without the empty ones: Float64[a k]."""
    values, vectors = eigen(gram)
    keep = max(1, int((values > tolerances.BASIS_NOISE**2 * values[0]).sum()))
    return vectors[:, :keep]


def polar(stack: Tensor) -> Tensor:
    """Return the orthonormal matrix nearest to Float64[a k]: U·Vᵀ of its thin SVD, by X·(XᵀX)^(−½)."""
    values, vectors = eigen(stack.T @ stack)
    if len(values) and float(values[-1]) > tolerances.SVD_NARROW**2 * float(values[0]):
        return stack @ ((vectors * values.rsqrt()) @ vectors.T)
    left, _, right = torch.linalg.svd(stack, full_matrices=False)
    nearest: Tensor = left @ right
    return nearest


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return matrix⁻¹·right for a symmetric matrix [k k] that is positive; its pseudoinverse where it is not
    safely so.
    """
    lower, info = torch.linalg.cholesky_ex(matrix)
    steps = lower.diagonal()
    if not int(info) and float(steps.min()) > tolerances.SVD_NARROW * float(steps.max()):
        return torch.cholesky_solve(right, lower)
    solution: Tensor = torch.linalg.pinv(matrix, rtol=tolerances.PSEUDO, hermitian=True) @ right
    return solution


def block_diagonal(parts: Sequence[Tensor]) -> Tensor:
    """Return the matrices along the diagonal of one that is zero elsewhere."""
    whole: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return whole


# ---------------------------------------------------------------- figures of a spectrum


def numerical_rank(singular: np.ndarray) -> int:
    """Return how many of the singular values Float[k], descending, are more than rounding; at least 1."""
    if not singular[0] > 0:
        return 1
    return int(np.count_nonzero(singular > singular[0] * tolerances.NUMERICAL_RANK))


def effective_rank(singular: np.ndarray) -> float:
    """Return exp(−Σ p ln p) with p = S²/ΣS²: the number of equally strong directions with the same entropy.

    Args:
        singular: Float64[k], singular values.
    Returns:
        0 for a zero matrix, else 1…k.
    Source: Roy & Vetterli 2007, "The effective rank", with p from squared singular values.
    """
    energy = np.square(singular)
    total = float(energy.sum())
    if total <= 0:
        return 0.0
    shares = energy[energy > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(singular: np.ndarray) -> float:
    """Return ΣS²/S₀², how many directions as strong as the strongest would carry the energy; 0 for a zero
    matrix.

    Args:
        singular: Float64[k], descending.
    """
    top = float(singular[0]) if len(singular) else 0.0
    return float(np.square(singular).sum()) / top**2 if top > 0 else 0.0


def pooled(spectra: Iterable[np.ndarray]) -> np.ndarray:
    """Return Float64[k], the energy Σ Sₖ² over several modules that their k-th directions carry together."""
    energy = np.zeros(0)
    for singular in spectra:
        if len(singular) > len(energy):
            energy = np.concatenate([energy, np.zeros(len(singular) - len(energy))])
        energy[: len(singular)] += np.square(singular)
    return energy


def rank_for(energy: np.ndarray, share: float) -> int:
    """Return the smallest rank that keeps `share` of the energy when every module is cut at it; 0 for a zero
    matrix.

    Args:
        energy: Float64[k], as `pooled` returns it.
        share: 0…1.
    """
    tail = tails(energy)
    if not len(energy) or tail[0] <= 0:
        return 0
    return int(np.argmax(tail <= (1.0 - share) * tail[0] * (1 + tolerances.SHARE_SLACK)))


def ranks_for(energy: np.ndarray, shares: Sequence[float] = SHARES) -> dict[float, int]:
    """Return {share: rank} for several shares of the energy; see `rank_for`."""
    return {share: rank_for(energy, share) for share in shares}


def tails(energy: np.ndarray) -> np.ndarray:
    """Return Float64[k + 1], the energy left out at rank 0, 1, …, k, summed from the small end so that no
    digit is lost.
    """
    return np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])


# ---------------------------------------------------------------- order statistics
#
# Of more numbers than one wants to hold: in one pass with a good guess, in two without.

_BUCKETS = 1 << 16
# How far off a sample's quantile may be, as a share of all entries.
MARGIN = 0.015
# Numbers kept at most while an order statistic is looked for.
MOST = 1 << 22


def place_of(share: float, count: int) -> int:
    """Return ⌊share·count⌋; a share that is a whole number of entries but for its binary form stays one."""
    return math.floor(share * count + tolerances.COUNT_SLACK)


def smallest(values: Tensor, fraction: float) -> float:
    """Return the magnitude at or below which exactly ⌊fraction·N⌋ entries lie; −1 for none.

    numpy's partition takes a fifth of the time of `torch.kthvalue`.
    """
    count = place_of(fraction, values.numel())
    if not count:
        return -1.0
    sizes = values.abs().numpy().ravel()
    sizes.partition(count - 1)
    return float(sizes[count - 1])


def order_statistic(
    values: Callable[[], Iterable[Tensor]], count: int, near: tuple[float, float] | None = None
) -> float:
    """Return the `count`-th smallest of non-negative float32 numbers, exactly, in one pass or two and little
    memory.

    With a guess between which two numbers the answer lies, one pass counts what is below and keeps what is
    between. Where it lies elsewhere: the bits of such floats, read as integers, keep their order, so a
    histogram of the upper 16 bits finds the bucket, and its members alone are sorted.

    Args:
        values: called once for each pass; yields the numbers in pieces.
        count: 1 for the smallest.
        near: the guess; see `bracket`.
    """
    statistic = None if near is None else _between(values(), count, *near)
    if statistic is not None:
        return statistic
    bucket, place = locate(histogram_of(values()), count)
    return float(torch.kthvalue(members_of(values(), bucket), place).values)


def bracket(sample: Tensor, share: float) -> tuple[float, float]:
    """Return two numbers of a sample between which the `share`-quantile of all should lie."""
    flat = sample.flatten().to("cpu").numpy()
    low, high = int((share - MARGIN) * flat.size), math.ceil((share + MARGIN) * flat.size)
    places = [min(max(place, 0), flat.size - 1) for place in (low, high)]
    ordered = np.partition(flat, places)
    # 0 and the largest number there is: beyond the sample's ends anything may follow
    return (
        float(ordered[places[0]]) if low >= 0 else 0.0,
        float(ordered[places[1]]) if high < flat.size else float(np.finfo(np.float32).max),
    )


def _between(pieces: Iterable[Tensor], count: int, low: float, high: float) -> float | None:
    """Return the `count`-th smallest number if it lies in low…high."""
    below = total = 0
    inside = []
    for piece in pieces:
        less, between = _split(piece.flatten(), low, high)
        below += less
        inside.append(between)
        total += len(between)
        if total > MOST:  # a module of mostly one number, such as 0
            return None
    if not below < count <= below + total:
        return None
    return float(np.partition(np.concatenate(inside), count - below - 1)[count - below - 1])


def _split(flat: Tensor, low: float, high: float) -> tuple[int, np.ndarray]:
    """Return how many numbers lie below `low`, and those in low…high; from an accelerator only these come."""
    if flat.device.type != "cpu":
        less = flat < low
        return int(less.sum()), flat[(flat <= high) ^ less].to("cpu").numpy()
    numbers = flat.numpy()  # compares ten times as fast as torch
    below = numbers < low
    return int(np.count_nonzero(below)), numbers.compress((numbers <= high) ^ below)


def locate(histogram: Tensor, count: int) -> tuple[int, int]:
    """Return (bucket, place within the bucket) of the `count`-th smallest number."""
    below = torch.cumsum(histogram, 0)
    bucket = int(torch.searchsorted(below, count))
    return bucket, count - (int(below[bucket - 1]) if bucket else 0)


def histogram_of(values: Iterable[Tensor]) -> Tensor:
    """Return Int[65536], how many numbers fall into each bucket."""
    histogram = torch.zeros(_BUCKETS, dtype=torch.int64)
    for bits in _bits(values):
        histogram += torch.bincount(bits >> 15, minlength=_BUCKETS)
    return histogram


def members_of(values: Iterable[Tensor], bucket: int) -> Tensor:
    """Return Float[k], the numbers of one bucket."""
    parts = [bits[(bits >> 15) == bucket] for bits in _bits(values)]
    return torch.cat(parts).view(torch.float32) if parts else torch.empty(0)


def _bits(values: Iterable[Tensor]) -> Iterator[Tensor]:
    for piece in values:
        yield piece.flatten().to("cpu").view(torch.int32)
