"""Inner products, norms and distances of deltas from small Gram matrices; no m × n matrix is built.

⟨ΔW₁, ΔW₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ). A distance computed as ‖X‖² + ‖Y‖² − 2⟨X,Y⟩ loses half the digits, so
distances are taken from subtracted factors where both sides have the same layout, and from float64 Grams
elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lib_merge.linalg import tolerances
from lib_merge.linalg.delta import Delta, Dense, LowRank, Spanned, precisions

# Entries of a band of rows, so that it stays in the cache.
BAND = 1 << 17


def inner(left: Delta, right: Delta, dtype: torch.dtype = torch.float64) -> float:
    """Return ⟨ΔW₁, ΔW₂⟩ = Σᵢⱼ ΔW₁ᵢⱼ·ΔW₂ᵢⱼ (unitless), computed in `dtype` on the CPU."""
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        if not left.terms or not right.terms:
            return 0.0
        up1, down1 = left.factors(dtype=dtype)
        up2, down2 = (up1, down1) if left is right else right.factors(dtype=dtype)
        return _trace(up1.T @ up2, down1 @ down2.T)
    if isinstance(left, LowRank):
        left, right = right, left
    if isinstance(right, LowRank):
        if not right.terms:
            return 0.0
        up, down = right.factors(dtype=dtype)
        return _trace(left.dense(dtype=dtype) @ down.T, up)
    return _trace(left.dense(dtype=dtype), right.dense(dtype=dtype))


def norm(delta: Delta | Spanned) -> float:
    """Return the Frobenius norm ‖ΔW‖."""
    if isinstance(delta, Spanned):
        return float(delta.values.norm())
    return math.sqrt(max(inner(delta, delta), 0.0))


def difference_norm(saved: Delta, asked: Delta | Spanned) -> tuple[float, float]:
    """Return (‖saved − asked‖, ‖asked‖), accurate down to rounding whatever the gauge of the two.

    Four routes, the cheapest that is accurate:
      * same term layout (a lossless merge): `B_sA_s − B_aA_a = (B_s − B_a)A_s + B_a(A_s − A_a)`, float32
        Grams of the stacked differences;
      * other factors: float32 Grams of `[B_s | B_a]·[A_s; −A_a]` where the distance is large, float64 ones
        where not;
      * a dense side: both multiplied out in bands of rows, in float32 unless they nearly agree;
      * asked for by its SVD: `Spanned.distance`, and the first two where that cannot tell.
    """
    if isinstance(asked, Spanned):
        if isinstance(saved, LowRank) and saved.terms and saved.rank != asked.rank:
            distance = asked.distance(saved)
            if distance is not None:
                return distance, float(asked.values.norm())
        asked = asked.low_rank()
    if isinstance(saved, Dense) or isinstance(asked, Dense):
        return _dense_difference(saved, asked)
    if not asked.terms or not saved.terms:
        return norm(saved) if saved.terms else norm(asked), norm(asked)
    if saved.rank == asked.rank:
        near = _factor_difference(saved, asked)
        if near is not None:
            return near
    return _gram_difference(saved, asked)


def _factor_difference(saved: LowRank, asked: LowRank) -> tuple[float, float] | None:
    """The first route; None where the factors are not the same up to rounding (balanced, or recomputed)."""
    up_s, down_s = saved.factors(scratch="saved")
    up_a, down_a = asked.factors(scratch="asked")
    square, noise = _square32(up_a, down_a)
    if not square > tolerances.FACTOR_NOISE * noise:
        return None
    limit = tolerances.SAME_FACTORS * float(torch.linalg.vector_norm(up_a))
    up_s -= up_a
    down_d = down_s - down_a
    if not float(torch.linalg.vector_norm(up_s)) <= limit:
        return None
    if bool(down_d.any()):
        if not float(torch.linalg.vector_norm(down_d)) <= tolerances.SAME_FACTORS * float(
            torch.linalg.vector_norm(down_a)
        ):
            return None
        up_s, down_s = torch.cat([up_s, up_a], 1), torch.cat([down_s, down_d], 0)
    # else `down` was copied: only `up` was rounded
    return math.sqrt(max(_square32(up_s, down_s)[0], 0.0)), math.sqrt(square)


def _gram_difference(saved: LowRank, asked: LowRank) -> tuple[float, float]:
    joined = LowRank(asked.out, asked.columns, saved.terms + asked.terms)
    cut = saved.rank
    for dtype, epsilon in precisions():
        up, down = joined.factors(dtype=dtype, scratch="joined")
        gram_up, gram_down = (up.T @ up).double(), (down @ down.T).double()
        gram = gram_up * gram_down
        size = float(gram[cut:, cut:].sum())
        square = float(gram[:cut, :cut].sum()) + size - 2.0 * float(gram[:cut, cut:].sum())
        if not square <= tolerances.DROWNED * _noise(gram_up, gram_down, epsilon):
            return (math.sqrt(square) if math.isfinite(square) else math.nan), math.sqrt(max(size, 0.0))
    # nearly equal, in factors so large that even float64 Grams drown the rest: triangles do not square
    # anything
    up, down = joined.factors(dtype=torch.float64)
    first, second = torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.T, mode="r").R
    signs = torch.ones(joined.rank, dtype=torch.float64)
    signs[cut:] = -1.0
    distance = float(torch.linalg.matrix_norm((first * signs) @ second.T))
    return distance, float(torch.linalg.matrix_norm(first[:, cut:] @ second[:, cut:].T))


def _noise(gram_up: Tensor, gram_down: Tensor, epsilon: float) -> float:
    """Rounding of ⟨·,·⟩ from Grams: relative to the factors' size, which may exceed ΔW's own by far."""
    return epsilon * float(torch.linalg.matrix_norm(gram_up) * torch.linalg.matrix_norm(gram_down))


def _dense_difference(saved: Delta, asked: Delta) -> tuple[float, float]:
    for dtype in (torch.float32, torch.float64):
        rows = max(1, BAND // max(asked.columns, 1))
        distance = size = 0.0
        for start in range(0, asked.out, rows):
            part = slice(start, min(start + rows, asked.out))
            target = asked.dense(dtype=dtype, rows=part).flatten()
            size += float(torch.dot(target, target))
            target = target - saved.dense(dtype=dtype, rows=part).flatten()
            distance += float(torch.dot(target, target))
        if not distance < tolerances.NEAR_DENSE**2 * size:
            break
    return math.sqrt(distance), math.sqrt(size)


def _square32(up: Tensor, down: Tensor) -> tuple[float, float]:
    """Return ‖up·down‖² from float32 Grams and the rounding it carries; NaN where the factors hold one."""
    gram_up, gram_down = (up.T @ up).double(), (down @ down.T).double()
    return _trace(gram_up, gram_down), _noise(gram_up, gram_down, tolerances.FLOAT32_NOISE)


def _trace(left: Tensor, right: Tensor) -> float:
    return float((left.double() * right.double()).sum())
