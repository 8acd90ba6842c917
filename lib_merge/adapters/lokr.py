"""LoKr: ΔW = scale · kron(W1, W2), each half full or itself low-rank.

`kron(P₁Q₁, P₂Q₂) = kron(P₁,P₂) · kron(Q₁,Q₂)`, so ΔW has the exact low-rank form of rank r₁·r₂. A
convolution is the Kronecker product of the flattened halves: today's layout keeps the kernel in W2
`[c, d, kh, kw]`, the one of early 2023 factorises the flattened `[out, in·kh·kw]` matrix; in both,
`kron(W1, W2.flatten(1))` is ΔW as `[out, in·kh·kw]`. scale = alpha/rank with the rank of whichever half is
factorised; 1 when both halves are full, whatever alpha says.

Source: LyCORIS, arXiv:2309.14859; conventions as the WebUIs load them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lib_merge.adapters.kind import (
    BaseWeight,
    Ending,
    Layout,
    LayoutError,
    MergeableKind,
    Shapes,
    at_least_2d,
    bounded,
    flat,
    side,
)
from lib_merge.linalg import Delta, Dense, LowRank, Term

ROLES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
ENDINGS = {role: Ending(role, "LyCORIS") for role in ROLES}


class LoKr(MergeableKind):
    """Two halves, each whole or a pair of factors."""

    name = "LoKr"
    marks = frozenset(ROLES)
    endings = ENDINGS

    def sides(self, shapes: Shapes) -> tuple[int, int]:
        """Return (rows, columns) of both halves multiplied."""
        rows = columns = 1
        for number in ("1", "2"):
            half = f"lokr_w{number}"
            rows *= side(shapes, f"{half}_a", 1 if f"lokr_t{number}" in shapes else 0) or side(
                shapes, half, 0
            )
            columns *= side(shapes, f"{half}_b", 1) or side(shapes, half, 1)
        return rows, columns

    def layout(self, shapes: Shapes) -> Layout:
        """Read kind and size from shapes.

        Raises:
            LayoutError: a half is missing or does not multiply.
        """
        out1, in1, rank1, kernel1 = _half(shapes, "1")
        out2, in2, rank2, kernel2 = _half(shapes, "2")
        if any(size > 1 for size in kernel1):
            message = f"lokr_w1 carries a kernel {list(kernel1)}"
            raise LayoutError(message)
        out, columns, rank = out1 * out2, in1 * in2, rank1 * rank2
        return bounded(Layout("LoKr", out, columns, kernel2, rank if rank < min(out, columns) else 0))

    def load(self, tensors: Mapping[str, Tensor], scale: float | None, base: BaseWeight | None) -> Delta:
        """Build ΔW; low-rank while r₁·r₂ stays below both sides, else the multiplied-out Kronecker product.

        Args:
            tensors: lokr_w1 Float[a b] or lokr_w1_a Float[a r], lokr_w1_b Float[r b]; lokr_w2 Float[c d …] or
                its pair, with lokr_t2 Float[r r kh kw] the pair is Float[r c], Float[r d].
            scale: overrides alpha/rank.
            base: not needed.
        """
        del base
        if scale is None:
            scale = _scale(tensors)
        up1, down1 = _factors(tensors, "1")
        up2, down2 = _factors(tensors, "2")
        out, columns = up1.shape[0] * up2.shape[0], down1.shape[1] * down2.shape[1]
        if up1.shape[1] * up2.shape[1] >= min(out, columns):
            return Dense(scale, torch.kron(up1 @ down1, up2 @ down2))
        return LowRank(out, columns, (Term(scale, torch.kron(up1, up2), torch.kron(down1, down2)),))

    def norm(self, tensors: Mapping[str, Tensor], scale: float | None) -> float | None:
        """Return ‖ΔW‖ = |scale|·‖W1‖·‖W2‖, without multiplying out."""
        scale = _scale(tensors) if scale is None else scale
        return abs(scale) * _norm(tensors, "1") * _norm(tensors, "2")


def _norm(tensors: Mapping[str, Tensor], number: str) -> float:
    """Return ‖W‖ of one half."""
    if f"lokr_w{number}" in tensors:
        return float(tensors[f"lokr_w{number}"].double().norm())
    up, down = (factor.double() for factor in _factors(tensors, number))
    return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt())


def _half(shapes: Shapes, number: str) -> tuple[int, int, int, tuple[int, ...]]:
    """Return (out, columns, rank, kernel) of one half."""
    whole = shapes.get(f"lokr_w{number}")
    if whole is not None:
        at_least_2d(shapes, f"lokr_w{number}")
        rows, columns = flat(whole)
        return rows, columns, min(rows, columns), tuple(whole[2:])
    a, b, core = f"lokr_w{number}_a", f"lokr_w{number}_b", f"lokr_t{number}"
    if a not in shapes or b not in shapes:
        message = f"lokr_w{number} is missing, whole or as a pair"
        raise LayoutError(message)
    at_least_2d(shapes, a, b)
    if flat(shapes[a])[1] != shapes[a][1]:
        message = f"{a} {list(shapes[a])} carries a kernel"
        raise LayoutError(message)
    if core in shapes:
        at_least_2d(shapes, core)
        left, right, mid = shapes[a], shapes[b], shapes[core]
        if len(mid) < 3 or mid[0] != left[0] or mid[1] != right[0]:
            message = f"{core} {list(mid)} does not fit {list(left)} and {list(right)}"
            raise LayoutError(message)
        if flat(right)[1] != right[1]:
            message = f"{b} {list(right)} carries a kernel beside {core}"
            raise LayoutError(message)
        return left[1], right[1] * flat(mid[1:])[1], left[0], tuple(mid[2:])
    if shapes[a][1] != shapes[b][0]:
        message = f"{a} {list(shapes[a])} and {b} {list(shapes[b])} do not multiply"
        raise LayoutError(message)
    return shapes[a][0], flat(shapes[b])[1], shapes[b][0], tuple(shapes[b][2:])


def _scale(tensors: Mapping[str, Tensor]) -> float:
    if "alpha" not in tensors:
        return 1.0
    for role in ("lokr_w2_b", "lokr_w1_b"):
        if role in tensors:
            return float(tensors["alpha"]) / tensors[role].shape[0]
    return 1.0


def _factors(tensors: Mapping[str, Tensor], number: str) -> tuple[Tensor, Tensor]:
    """Return one half as a factor pair of the smallest exact rank that needs no decomposition."""
    if f"lokr_w{number}" in tensors:
        whole = tensors[f"lokr_w{number}"].float().flatten(1)
        rows, columns = whole.shape
        if rows <= columns:
            return torch.eye(rows), whole
        return whole, torch.eye(columns)
    a, b = tensors[f"lokr_w{number}_a"].float().flatten(1), tensors[f"lokr_w{number}_b"].float().flatten(1)
    core = tensors.get(f"lokr_t{number}")
    if core is None:
        return a, b
    return a.T.contiguous(), torch.einsum("ij...,jq->iq...", core.float(), b).flatten(1)
