"""LoHa: ΔW = (alpha/rank) · (W1a·W1b) ∘ (W2a·W2b), the elementwise product of two low-rank matrices.

The product of two rank-r matrices is exactly a matrix of rank ≤ r²: with the row-wise Khatri-Rao products
`U[p, (i,j)] = W1a[p,i]·W2a[p,j]` and `V[(i,j), q] = W1b[i,q]·W2b[j,q]`, ΔW = scale · U·V. The Tucker form
(`hada_t1`, `hada_t2`) folds its cores into the b factors first.

Source: FedPara (Hyeon-Woo et al. 2021), arXiv:2108.06098; LyCORIS, arXiv:2309.14859.
"""

from __future__ import annotations

import math
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
    alpha_scale,
    at_least_2d,
    bounded,
    flat,
    need,
    side,
)
from lib_merge.linalg import Delta, Dense, LowRank, Term

FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_TILE = 1 << 22  # numbers of ΔW at a time
ROLES = (*FACTORS, "hada_t1", "hada_t2")
ENDINGS = {role: Ending(role, "LyCORIS") for role in ROLES}


class LoHa(MergeableKind):
    """Two pairs of factors, each with a core in the Tucker form."""

    name = "LoHa"
    marks = frozenset(ROLES)
    endings = ENDINGS

    def sides(self, shapes: Shapes) -> tuple[int, int]:
        """Return (rows, columns) of the first pair."""
        return side(shapes, "hada_w1_a", 1 if "hada_t1" in shapes else 0), side(shapes, "hada_w1_b", 1)

    def layout(self, shapes: Shapes) -> Layout:
        """Read kind and size from shapes.

        Raises:
            LayoutError: a factor is missing or the two halves differ in size.
        """
        need(shapes, *FACTORS)
        at_least_2d(shapes, *FACTORS)
        halves = [_half(shapes, number) for number in ("1", "2")]
        if halves[0][:2] != halves[1][:2]:
            message = f"its two halves make {list(halves[0][:2])} and {list(halves[1][:2])}"
            raise LayoutError(message)
        out, columns, first, kernel = halves[0]
        rank = first * halves[1][2]
        return bounded(Layout("LoHa", out, columns, kernel, rank if rank < min(out, columns) else 0))

    def load(self, tensors: Mapping[str, Tensor], scale: float | None, base: BaseWeight | None) -> Delta:
        """Build ΔW; low-rank while r² stays below both sides, else the multiplied-out matrix.

        Args:
            tensors: hada_w1_a Float[out r], hada_w1_b Float[r in], the same for w2; with hada_t* the a
                factors are Float[r out].
            scale: overrides alpha/rank.
            base: not needed.
        """
        del base
        if scale is None:
            scale = alpha_scale(tensors, tensors["hada_w1_b"].shape[0])
        up1, down1 = _factors(tensors, "1")
        up2, down2 = _factors(tensors, "2")
        out, columns = up1.shape[0], down1.shape[1]
        if up1.shape[1] * up2.shape[1] >= min(out, columns):
            return Dense(scale, (up1 @ down1) * (up2 @ down2))
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
        down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
        return LowRank(out, columns, (Term(scale, up, down),))

    def norm(self, tensors: Mapping[str, Tensor], scale: float | None) -> float | None:
        """Return ‖ΔW‖, a few rows of ΔW at a time: it may be hundreds of times larger than its factors."""
        if scale is None:
            scale = alpha_scale(tensors, tensors["hada_w1_b"].shape[0])
        (up1, down1), (up2, down2) = _factors(tensors, "1"), _factors(tensors, "2")
        rows = max(1, _TILE // down1.shape[1])
        square = 0.0
        for at in range(0, up1.shape[0], rows):
            part = (up1[at : at + rows] @ down1) * (up2[at : at + rows] @ down2)
            square += float(part.double().square().sum())
        return abs(scale) * math.sqrt(square)


def _half(shapes: Shapes, number: str) -> tuple[int, int, int, tuple[int, ...]]:
    """Return (out, columns, rank, kernel) of one W = a·b."""
    a, b = shapes[f"hada_w{number}_a"], shapes[f"hada_w{number}_b"]
    core = shapes.get(f"hada_t{number}")
    if flat(a)[1] != a[1]:
        message = f"hada_w{number}_a {list(a)} carries a kernel"
        raise LayoutError(message)
    if core is None:
        if a[1] != b[0]:
            message = f"hada_w{number}_a {list(a)} and hada_w{number}_b {list(b)} do not multiply"
            raise LayoutError(message)
        return a[0], flat(b)[1], a[1], tuple(b[2:])
    if len(core) < 3 or core[0] != a[0] or core[1] != b[0] or 0 in core or flat(b)[1] != b[1]:
        message = f"hada_t{number} {list(core)} does not fit {list(a)} and {list(b)}"
        raise LayoutError(message)
    return a[1], b[1] * flat(core[1:])[1], a[0], tuple(core[2:])


def _factors(tensors: Mapping[str, Tensor], number: str) -> tuple[Tensor, Tensor]:
    a, b = tensors[f"hada_w{number}_a"].float().flatten(1), tensors[f"hada_w{number}_b"].float()
    if f"hada_t{number}" not in tensors:
        return a, b.flatten(1)
    core = tensors[f"hada_t{number}"].float()
    return a.T, torch.einsum("ij...,jq->iq...", core, b.flatten(1)).flatten(1)
