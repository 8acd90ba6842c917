"""A delta known by its own SVD in the span of stacked factors: nothing of ΔW's size is made before it is
needed.

    ΔW = B·X·diag(S)·Y·A        B·X and (Y·A)ᵀ orthonormal, S descending

Core methods end here: a truncation is a slice of S, and the distance to a saved file needs two thin Gram
    products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_merge.linalg.delta import LowRank, Term
from lib_merge.linalg.workspace import borrow

# How much larger than a result the summands of its float32 products may be; beyond it they are float64.
STEEP = 30.0


@dataclass(frozen=True, slots=True)
class Stack:
    """Columns side by side, [s₁X₁ | s₂X₂ | …], Float[n R], kept in the types of their files.

    parts  (sᵢ, Float[n rᵢ]); a part may be the transposed view of rows, and then all of them are
    """

    parts: tuple[tuple[float, Tensor], ...]

    @property
    def width(self) -> int:
        """R."""
        return sum(part.shape[1] for _, part in self.parts)

    def matrix(self, device: torch.device | str, dtype: torch.dtype, scratch: str = "") -> Tensor:
        """Return Float[n R]; with `scratch`, in memory that is valid until its next use in this thread."""
        lying = self.parts[0][1].stride(0) == 1 and self.parts[0][1].shape[1] > 1
        count = self.parts[0][1].shape[0]
        shape = (self.width, count) if lying else (count, self.width)
        here = scratch and torch.device(device).type == "cpu"
        whole = (
            borrow(f"{scratch} stack", shape, dtype)
            if here
            else torch.empty(shape, dtype=dtype, device=device)
        )
        found = whole.T if lying else whole
        at = 0
        for scale, part in self.parts:
            place = found[:, at : at + part.shape[1]]
            place.copy_(part)
            if scale != 1.0:
                place *= scale
            at += part.shape[1]
        return found

    def gram(self) -> Tensor:
        """Return Float64[R R], the products of all columns; computed in float64 on the CPU."""
        whole = Stack(tuple((1.0, part) for _, part in self.parts)).matrix("cpu", torch.float64, "gram")
        scales = torch.cat(
            [torch.full((part.shape[1],), scale, dtype=torch.float64) for scale, part in self.parts]
        )
        return (whole.T @ whole) * (scales[:, None] * scales)


@dataclass(frozen=True, slots=True)
class Spanned:
    """ΔW = B·left·diag(values)·right·A.

    out, columns        shape of ΔW
    up, down            B as a stack of columns; Aᵀ likewise
    left, right         Float64[R k], Float64[k R'], X and Y above
    values              Float64[k], the singular values of ΔW, descending, at least one; row norms, in any
                        order, where only a distance is wanted
    up_sizes, down_sizes  Float64[R], squared lengths of B's columns; Float64[R'], of A's rows
    """

    out: int
    columns: int
    up: Stack
    down: Stack
    left: Tensor
    values: Tensor
    right: Tensor
    up_sizes: Tensor
    down_sizes: Tensor

    @property
    def rank(self) -> int:
        """Number of singular values that count."""
        return len(self.values)

    def cut(self, rank: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the first `rank` singular triplets as factors: Float[out rank], Float[rank in], √S on
        either side.
        """
        root = self.values[:rank].clamp_min(0).sqrt()
        first, second = self.left[:, :rank] * root, self.right[:rank].T * root
        up = _times(self.up, first, self._steep(self.up_sizes, first), device)
        down = _times(self.down, second, self._steep(self.down_sizes, second), device)
        return up.contiguous(), down.T.contiguous()

    def _steep(self, sizes: Tensor, factors: Tensor) -> bool:
        """Tell whether summands of the product are much larger than what it gives, weighed by what each
        direction adds.
        """
        values = self.values[: factors.shape[1]]
        return float(sizes @ (factors.square() @ values)) > STEEP**2 * float(values @ values)

    def low_rank(self) -> LowRank:
        """Return the same ΔW as one term, all directions."""
        up, down = self.cut(self.rank)
        return LowRank(self.out, self.columns, (Term(1.0, up, down),))

    def distance(self, saved: LowRank) -> float | None:
        """Return ‖saved − ΔW‖; None where it drowns in the rounding of Gram products.

        ‖B'A' − BCA‖² = Σ G∘H − 2·tr(B'ᵀB·C·AA'ᵀ) + ΣS², first in float32, then in float64.
        """
        core = (self.left * self.values) @ self.right
        own = float(self.values.square().sum())
        for dtype, epsilon in ((torch.float32, 1e-7), (torch.float64, 1e-15)):
            up, down = saved.factors(dtype=dtype, scratch="saved")
            gram, other = (up.T @ up).double(), (down @ down.T).double()
            cross_up = (up.T @ self.up.matrix("cpu", dtype, "asked")).double()
            cross_down = (down @ self.down.matrix("cpu", dtype, "asked")).double()
            reach, back = cross_up @ core, cross_down @ core.T
            square = float((gram * other).sum()) - 2.0 * float((reach * cross_down).sum()) + own
            noise = float(gram.norm() * other.norm())
            noise += math.sqrt(float(gram.trace() * self.up_sizes.sum())) * float(back.norm())
            noise += math.sqrt(float(other.trace() * self.down_sizes.sum())) * float(reach.norm())
            if not square <= 2000 * epsilon * noise:
                return math.sqrt(square) if math.isfinite(square) else math.nan
        return None


def _times(stack: Stack, factors: Tensor, steep: bool, device: torch.device | str) -> Tensor:
    """Return stack·factors, Float32[n k], as rows or as the transposed view of rows like the stack itself."""
    if steep:
        return (stack.matrix("cpu", torch.float64) @ factors).to(device=device, dtype=torch.float32)
    whole = stack.matrix(device, torch.float32, "times")
    factors = factors.to(whole)
    return (factors.T @ whole.T).T if whole.stride(0) == 1 else whole @ factors
