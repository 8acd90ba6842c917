"""The forms a weight change takes: a sum of scaled factor pairs, one dense matrix, or its SVD in a span.

    LowRank   ΔW = Σ scaleᵢ·upᵢ·downᵢ
    Dense     ΔW = scale·matrix
    Spanned   ΔW = B·X·diag(S)·Y·A, B·X and (Y·A)ᵀ orthonormal, S descending: what core methods give. A
              truncation is a slice of S, and the distance to a saved file needs two thin Gram products.

A convolution is handled as its flattened matrix `[out, in·kh·kw]`; the caller remembers the kernel. Tensors
stay in the dtype of their file until arithmetic needs more, so that a lossless merge can write them as they
were read.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from lib_merge.linalg import tolerances


@dataclass(frozen=True, slots=True)
class Term:
    """One scaled factor pair: ΔW = scale · up · down."""

    scale: float
    up: Tensor  # Float[out rank]
    down: Tensor  # Float[rank in]

    @property
    def rank(self) -> int:
        """Inner dimension."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = Σ scaleᵢ · upᵢ · downᵢ; no term at all is the zero matrix."""

    out: int
    columns: int  # in·kh·kw
    terms: tuple[Term, ...] = ()

    @property
    def rank(self) -> int:
        """Σ of the terms' ranks: an upper bound of the true rank."""
        return sum(term.rank for term in self.terms)

    def factors(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, scratch: str = ""
    ) -> tuple[Tensor, Tensor]:
        """Stack the terms: `B = [s₁U₁ | s₂U₂ | …]`, `A = [D₁; D₂; …]`, so that ΔW = B·A.

        Args:
            device: where the factors are wanted.
            dtype: of the factors.
            scratch: names scratch memory of this thread to stack into; the factors are then valid until its
                next use.
        Returns:
            (Float[out R], Float[R in]) of `dtype` on `device`. The scale goes into B alone: once, on one
            side.
        """
        if scratch and torch.device(device).type == "cpu":
            up = borrow(f"{scratch} up", (self.out, self.rank), dtype)
            down = borrow(f"{scratch} down", (self.rank, self.columns), dtype)
        else:
            up = torch.empty((self.out, self.rank), dtype=dtype, device=device)
            down = torch.empty((self.rank, self.columns), dtype=dtype, device=device)
        at = 0
        for term in self.terms:
            stop = at + term.rank
            up[:, at:stop] = term.up
            if term.scale != 1.0:
                up[:, at:stop] *= term.scale
            down[at:stop] = term.down
            at = stop
        return up, down

    def dense(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        rows: slice | None = None,
    ) -> Tensor:
        """Multiply out, all rows or a slice of them: Float[rows in]."""
        part = self if rows is None else _rows(self, *rows.indices(self.out)[:2])
        up, down = part.factors(device, dtype)
        return up @ down


@dataclass(frozen=True, slots=True)
class Dense:
    """ΔW = scale · matrix, for kinds that carry the whole matrix (`.diff`) or that outgrow their factors."""

    scale: float
    matrix: Tensor  # Float[out in]
    hint: LowRank | None = None  # a low-rank matrix that is near to it, where one is known

    @property
    def out(self) -> int:
        """Rows of ΔW."""
        return self.matrix.shape[0]

    @property
    def columns(self) -> int:
        """Columns of ΔW, in·kh·kw."""
        return self.matrix.shape[1]

    @property
    def rank(self) -> int:
        """Upper bound of the rank."""
        return min(self.matrix.shape)

    def dense(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        rows: slice | None = None,
    ) -> Tensor:
        """All rows, or a slice of them: Float[rows in]; may be the matrix itself, so it is only read."""
        part = self.matrix if rows is None else self.matrix[rows]
        part = part.to(device=device, dtype=dtype)
        return part if self.scale == 1.0 else part * self.scale


Delta = Union[LowRank, Dense]


def zero(out: int, columns: int) -> LowRank:
    """Return the zero delta of that shape."""
    return LowRank(out, columns)


def scaled(delta: Delta, factor: float) -> Delta:
    """Return factor · ΔW; the tensors are shared, only the scale changes."""
    if isinstance(delta, Dense):
        return Dense(delta.scale * factor, delta.matrix)
    if factor == 0.0:
        return zero(delta.out, delta.columns)
    return LowRank(
        delta.out, delta.columns, tuple(Term(term.scale * factor, term.up, term.down) for term in delta.terms)
    )


def add(deltas: Sequence[Delta]) -> Delta:
    """Return Σ ΔWᵢ: the terms side by side, or one dense float32 matrix as soon as one summand is dense."""
    if all(isinstance(delta, LowRank) for delta in deltas):
        return LowRank(deltas[0].out, deltas[0].columns, tuple(_terms(deltas)))
    total = deltas[0].dense()
    for delta in deltas[1:]:
        total = total + delta.dense()
    return Dense(1.0, total)


def _terms(deltas: Iterable[Delta]) -> Iterable[Term]:
    for delta in deltas:
        if isinstance(delta, LowRank):
            yield from delta.terms


def rows_of(delta: Delta, start: int, stop: int) -> Delta:
    """Return the rows start…stop of ΔW: a cut of `up` alone, `down` is shared."""
    if isinstance(delta, Dense):
        return Dense(delta.scale, delta.matrix[start:stop])
    return _rows(delta, start, stop)


def among_rows(delta: Delta, start: int, out: int) -> Delta:
    """Return a ΔW of `out` rows that has this one from row `start` on, and zeros elsewhere."""

    def padded(matrix: Tensor) -> Tensor:
        whole = matrix.new_zeros((out, *matrix.shape[1:]))
        whole[start : start + matrix.shape[0]] = matrix
        return whole

    if isinstance(delta, Dense):
        return Dense(delta.scale, padded(delta.matrix))
    terms = tuple(Term(term.scale, padded(term.up), term.down) for term in delta.terms)
    return LowRank(out, delta.columns, terms)


def _rows(delta: LowRank, start: int, stop: int) -> LowRank:
    return LowRank(
        stop - start,
        delta.columns,
        tuple(Term(term.scale, term.up[start:stop], term.down) for term in delta.terms),
    )


# ---------------------------------------------------------------- a delta known by its SVD


@dataclass(frozen=True, slots=True)
class Columns:
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
        columns = whole.T if lying else whole
        at = 0
        for scale, part in self.parts:
            place = columns[:, at : at + part.shape[1]]
            place.copy_(part)
            if scale != 1.0:
                place *= scale
            at += part.shape[1]
        return columns

    def gram(self) -> Tensor:
        """Return Float64[R R], the products of all columns; computed in float64 on the CPU."""
        whole = Columns(tuple((1.0, part) for _, part in self.parts)).matrix("cpu", torch.float64, "gram")
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
    up: Columns
    down: Columns
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
        return float(sizes @ (factors.square() @ values)) > tolerances.SPANNED_STEEP**2 * float(
            values @ values
        )

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
        for dtype, epsilon in precisions():
            up, down = saved.factors(dtype=dtype, scratch="saved")
            gram, other = (up.T @ up).double(), (down @ down.T).double()
            cross_up = (up.T @ self.up.matrix("cpu", dtype, "asked")).double()
            cross_down = (down @ self.down.matrix("cpu", dtype, "asked")).double()
            reach, back = cross_up @ core, cross_down @ core.T
            square = float((gram * other).sum()) - 2.0 * float((reach * cross_down).sum()) + own
            noise = float(gram.norm() * other.norm())
            noise += math.sqrt(float(gram.trace() * self.up_sizes.sum())) * float(back.norm())
            noise += math.sqrt(float(other.trace() * self.down_sizes.sum())) * float(reach.norm())
            if not square <= tolerances.DROWNED * epsilon * noise:
                return math.sqrt(square) if math.isfinite(square) else math.nan
        return None


def _times(columns: Columns, factors: Tensor, steep: bool, device: torch.device | str) -> Tensor:
    """Return columns·factors, Float32[n k], as rows or as the transposed view of rows like the columns."""
    if steep:
        return (columns.matrix("cpu", torch.float64) @ factors).to(device=device, dtype=torch.float32)
    whole = columns.matrix(device, torch.float32, "times")
    factors = factors.to(whole)
    return (factors.T @ whole.T).T if whole.stride(0) == 1 else whole @ factors


def precisions() -> tuple[tuple[torch.dtype, float], tuple[torch.dtype, float]]:
    """Return the types that Gram products are tried in, each with its rounding."""
    return (torch.float32, tolerances.FLOAT32_NOISE), (torch.float64, tolerances.FLOAT64_NOISE)


# ---------------------------------------------------------------- scratch memory
#
# A worker thread uses it again for every module: fresh buffers of a few hundred kilobytes go back to the
# system when they are freed, and come back as pages that must be faulted in one by one, under a lock that all
# threads share; with two workers that costs a sixth of a truncated merge.

_local = threading.local()
# Scratch larger than this is not kept.
MOST = 6 << 20


def borrow(tag: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised CPU tensor; the next `borrow` of the same tag in this thread takes its memory
    back.

    Args:
        tag: names the use; two tensors in use at the same time need two tags.
        shape: wanted shape.
        dtype: wanted type.
    """
    count = math.prod(shape)
    if count * torch.finfo(dtype).bits > 8 * MOST:  # dtype.itemsize is newer than the torch of an older WebUI
        return torch.empty(tuple(shape), dtype=dtype)
    kept: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("kept", {})
    flat = kept.get((tag, dtype))
    if flat is None or flat.numel() < count:
        flat = kept[tag, dtype] = torch.empty(count, dtype=dtype)
    return flat[:count].view(tuple(shape))


def like(tag: str, value: Tensor) -> Tensor:
    """Return an uninitialised tensor like `value`: borrowed on the CPU, fresh elsewhere, where allocators
    keep memory.
    """
    return borrow(tag, value.shape, value.dtype) if value.device.type == "cpu" else torch.empty_like(value)
