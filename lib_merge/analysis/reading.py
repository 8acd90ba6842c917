"""Reading one source at one module: its ΔW, and what its tensors look like."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lib_merge.adapters import LoraFile, ModulePart
from lib_merge.linalg import LowRank
from lib_merge.linalg.stack import Stack, low_rank

Lines = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class TensorSums:
    """Sums over one tensor, or over the part of it that belongs to one module."""

    key: str
    count: int
    total: float
    square: float
    low: float
    high: float
    finite: bool


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of one source: ΔW, or None where it is absent or broken; its tensors, or their extremes
    alone.
    """

    delta: LowRank | None = None
    tensors: tuple[TensorSums, ...] = ()
    extremes: tuple[tuple[str, int, float, float], ...] = ()
    estimated: bool = False
    broken: bool = False


def read_part(part: tuple[LoraFile, ModulePart] | None) -> Read:
    """Read one source at one module."""
    if part is None:
        return Read()
    file, place = part
    if place.module.layout.own_factors:
        return _read_plain(file, place)
    keys = [
        key
        for role, key in place.module.roles.items()
        if role != "alpha" and role not in place.module.vectors
    ]
    tensors = tuple(_sums(key, value) for key, value in file.file.read_many(keys).items())
    if not all(tensor.finite for tensor in tensors):
        return Read(tensors=tensors, broken=True)
    delta, cut = low_rank(place.load(file.file))
    return Read(delta, tensors, estimated=cut)


def _read_plain(file: LoraFile, place: ModulePart) -> Read:
    """Read a factor pair; sums and squares of its tensors come out of the stack, only the extremes are
    looked for.
    """
    delta = place.load(file.file)
    term, roles = delta.terms[0], place.module.roles  # type: ignore[union-attr]
    found = tuple(
        (roles[role], value.numel(), *_extremes(value))
        for role, value in (("lora_up", term.up), ("lora_down", term.down))
    )
    if all(math.isfinite(low) and math.isfinite(high) for _, _, low, high in found):
        return Read(delta, extremes=found)  # type: ignore[arg-type]
    tensors = tuple(_tensor_sums(item[:2], item[2:], math.nan, math.nan) for item in found)
    return Read(tensors=tensors, broken=True)


def _extremes(value: Tensor) -> tuple[float, float]:
    exact = value if value.element_size() >= 2 else value.float()
    low, high = exact.aminmax()
    return float(low), float(high)


def _tensor_sums(
    name: tuple[str, int], extremes: tuple[float, float], total: float, square: float
) -> TensorSums:
    finite = all(math.isfinite(value) for value in extremes)
    return TensorSums(*name, *((total, square, *extremes) if finite else (math.nan,) * 4), finite=finite)


def _sums(key: str, value: Tensor) -> TensorSums:
    exact = value.double()
    return _tensor_sums(
        (key, value.numel()), _extremes(value), float(exact.sum()), float(exact.square().sum())
    )


def tensor_sums(read: Read, stacked: Stack, part: slice, lines: Lines) -> tuple[TensorSums, ...]:
    """Return the figures of the tensors that were read.

    Args:
        read: one source at one module.
        stacked: all sources; sums and squares of plain factors come out of it.
        part: the source's slice of it.
        lines: Float64[R], Float64[R]: 1ᵀU and D1, without scales.
    """
    if not read.extremes:
        return read.tensors
    columns, rows = lines
    up, down = read.extremes
    squares = stacked.gram_down.diagonal()[part]
    return (
        _tensor_sums(up[:2], up[2:], float(columns[part].sum()), float(stacked.squares[part].sum())),
        _tensor_sums(down[:2], down[2:], float(rows[part].sum()), float(squares.sum())),
    )
