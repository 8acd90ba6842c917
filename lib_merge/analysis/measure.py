"""Everything that is measured at one module: read once, stacked once, kept as a few small numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lib_merge.adapters import LoraFile, ModulePart
from lib_merge.analysis.reading import Lines, TensorSums, read_part, tensor_sums
from lib_merge.linalg.stack import Basis, Stack, block_sums, stack


@dataclass(frozen=True, slots=True)
class Task:
    """One module to measure: its size, and where it lies in every source."""

    name: str
    block: str
    encoder: int
    out: int
    columns: int
    parts: tuple[tuple[LoraFile, ModulePart] | None, ...]
    samples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one module.

    ranks     per source, 0 where it lacks the module
    products  Float64[source source], ⟨ΔWᵢ, ΔWⱼ⟩
    spectra   per source, its singular values, descending
    counts    per source, directions that count in subspaces
    out_, in_overlap  Float64[source source], ‖UᵢᵀUⱼ‖² and ‖VᵢᵀVⱼ‖²
    start     Float64[source source], cosine of the stored down projections; NaN where they cannot be compared
    talk      Float64[source source source], talk[i, j, k] = ⟨ΔWⱼVᵢ, ΔWₖVᵢ⟩ on the inputs Vᵢ that source i
              reads
    sums      per source, Σ of all entries of ΔW
    low, high per source, extremes of the sampled entries
    differ    Int[source source], sampled entries with opposite signs
    samples   entries sampled
    tensors   per source
    broken    per source: NaN or infinity, so it counts as absent
    estimated per source: weak directions of a large whole matrix are missing
    grams     (G_U, G_D, parts), kept while there is room for them
    """

    task: Task
    ranks: tuple[int, ...]
    products: np.ndarray
    spectra: tuple[np.ndarray, ...]
    counts: tuple[int, ...]
    out_overlap: np.ndarray
    in_overlap: np.ndarray
    start: np.ndarray
    talk: np.ndarray
    sums: np.ndarray
    low: np.ndarray
    high: np.ndarray
    differ: np.ndarray
    samples: int
    tensors: tuple[tuple[TensorSums, ...], ...]
    broken: tuple[bool, ...]
    estimated: tuple[bool, ...]
    grams: tuple[np.ndarray, np.ndarray, tuple[slice, ...]]

    def without_grams(self) -> Measured:
        """Return the same without Gram matrices, for files that are too large to keep them."""
        return replace(self, grams=(np.zeros((0, 0)), np.zeros((0, 0)), self.grams[2]))


def measure(task: Task) -> Measured:
    """Read one module of every source and measure it."""
    read = [read_part(part) for part in task.parts]
    stacked, bases = stack([item.delta for item in read], task.out, task.columns)
    lines = stacked.up.sum(0).double().numpy(), stacked.down.sum(1).double().numpy()
    count = len(read)
    out_overlap, in_overlap, start = (
        np.zeros((count, count)),
        np.zeros((count, count)),
        np.full((count, count), np.nan),
    )
    for i in range(count):
        for j in range(i + 1, count):
            out_overlap[i, j] = out_overlap[j, i] = _shared(stacked.gram_up, stacked, bases, (i, j), "left")
            in_overlap[i, j] = in_overlap[j, i] = _shared(stacked.gram_down, stacked, bases, (i, j), "right")
            start[i, j] = start[j, i] = _start(task, stacked, (i, j))
    entries = sample(task, stacked)
    present = [part.stop > part.start for part in stacked.parts]
    negative = entries < 0
    positive = entries > 0
    return Measured(
        task,
        tuple(part.stop - part.start for part in stacked.parts),
        stacked.products,
        tuple(found.singular for found in bases),
        tuple(found.left.shape[1] for found in bases),
        out_overlap,
        in_overlap,
        start,
        talk(stacked, bases),
        sums(stacked, lines),
        np.where(present, entries.min(1), 0.0),
        np.where(present, entries.max(1), 0.0),
        (negative.astype(np.int64) @ positive.T.astype(np.int64))
        + (positive.astype(np.int64) @ negative.T.astype(np.int64)),
        entries.shape[1],
        tuple(tensor_sums(item, stacked, part, lines) for item, part in zip(read, stacked.parts)),
        tuple(item.broken for item in read),
        tuple(item.estimated for item in read),
        (stacked.gram_up, stacked.gram_down, stacked.parts),
    )


def grams_of(measured: Measured) -> tuple[np.ndarray, np.ndarray, tuple[slice, ...]]:
    """Return (G_U, G_D, parts) of a module, read again where they were not kept."""
    if len(measured.grams[0]) == sum(measured.ranks):
        return measured.grams
    stacked, _ = stack(
        [read_part(part).delta for part in measured.task.parts], measured.task.out, measured.task.columns
    )
    return stacked.gram_up, stacked.gram_down, stacked.parts


def _shared(
    gram: np.ndarray, stacked: Stack, bases: Sequence[Basis], pair: tuple[int, int], side: str
) -> float:
    """Return ‖QᵢᵀQⱼ‖² of two sources' orthonormal bases on one side."""
    first, second = (getattr(bases[index], side) for index in pair)
    if not first.shape[1] or not second.shape[1]:
        return 0.0
    cosines = first.T @ gram[stacked.parts[pair[0]], stacked.parts[pair[1]]] @ second
    return float(np.square(cosines).sum())


def _start(task: Task, stacked: Stack, pair: tuple[int, int]) -> float:
    """Return the cosine of the down projections as stored; NaN for other kinds, ranks or an all-zero one."""
    parts = [task.parts[index] for index in pair]
    if any(part is None or not part[1].module.layout.own_factors for part in parts):
        return math.nan
    i, j = (stacked.parts[index] for index in pair)
    if i.stop - i.start != j.stop - j.start or i.stop == i.start:
        return math.nan
    size = math.sqrt(np.trace(stacked.gram_down[i, i]) * np.trace(stacked.gram_down[j, j]))
    return float(np.trace(stacked.gram_down[i, j])) / size if size > 0 else math.nan


def talk(stacked: Stack, bases: Sequence[Basis]) -> np.ndarray:
    """Return talk[i, j, k] = ⟨ΔWⱼVᵢ, ΔWₖVᵢ⟩, so that ‖(Σ cⱼΔWⱼ)Vᵢ‖² = Σ cⱼcₖ talk[i, j, k].

    Args:
        stacked: the sources' Grams.
        bases: per source; Vᵢᵀ = rightᵢᵀ·Dᵢ is orthonormal.
    Returns:
        Float64[source source source].
    """
    count = len(bases)
    found = np.zeros((count, count, count))
    for i, (part, base) in enumerate(zip(stacked.parts, bases)):
        if base.right.shape[1]:
            seen = stacked.gram_down[:, part] @ base.right  # Float64[R k]: Dⱼ·Vᵢ for all sources j
            found[i] = block_sums(stacked.gram_up * (seen @ seen.T), stacked.owner)
    return found


def sums(stacked: Stack, lines: Lines) -> np.ndarray:
    """Return Float64[source], Σ of all entries of each ΔW: (1ᵀU)·s·(D1).

    Args:
        stacked: the sources' factors.
        lines: Float64[R], Float64[R]: 1ᵀU and D1, without scales.
    """
    return (lines[0] * stacked.scales * lines[1]) @ stacked.owner


def sample(task: Task, stacked: Stack) -> np.ndarray:
    """Return Float64[source samples], entries of every ΔW at the same random places; zeros where one is
    absent.

    The places depend on the seed and the module's name alone.
    """
    draw = np.random.default_rng([task.seed & 0xFFFFFFFF, zlib.crc32(task.name.encode())])
    places = draw.random((2, task.samples))
    places *= [[task.out], [task.columns]]
    rows, columns = places.astype(np.int64)
    # single entries are picked faster by numpy, which need not hand over to other threads for it
    parts = stacked.up.numpy().take(rows, 0) * stacked.down.numpy().take(columns, 1).T
    scaled = (stacked.owner * stacked.scales[:, None]).astype(parts.dtype)
    return (parts @ scaled).T.astype(np.float64)
