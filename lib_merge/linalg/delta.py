"""The two forms a weight change takes: a sum of scaled factor pairs, or one dense matrix.

A convolution is handled as its flattened matrix `[out, in·kh·kw]`; the caller remembers the kernel. Tensors
stay in the dtype of their file until arithmetic needs more, so that a lossless merge can write them as they
were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from lib_merge.linalg.workspace import borrow


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
        part = self if rows is None else rows_of(self, *rows.indices(self.out)[:2])
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
    return LowRank(
        stop - start,
        delta.columns,
        tuple(Term(term.scale, term.up[start:stop], term.down) for term in delta.terms),
    )
