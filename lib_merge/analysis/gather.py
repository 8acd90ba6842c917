"""From modules to blocks and files: what each source is, and what two sources are to each other in
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lib_merge.analysis.bench import Bench
from lib_merge.analysis.figures import PairPart, Part, SourceReport, TensorStats
from lib_merge.analysis.measure import Measured
from lib_merge.analysis.reading import TensorSums
from lib_merge.linalg.svd import effective_rank, pooled, ranks_for, stable_rank

FP16_MAX = 65504.0


def source_report(bench: Bench, index: int) -> SourceReport:
    """Return the figures of one source."""
    mine = [module for module in bench.modules if module.ranks[index]]
    total = sum(float(module.products[index, index]) for module in mine)
    rank = {module.task.name: _ranks(module.spectra[index]) for module in mine}
    blocks = {
        block: _part([bench.modules[p] for p in places if bench.modules[p].ranks[index]], index, total, rank)
        for block, places in bench.blocks().items()
    }
    encoder = sum(float(module.products[index, index]) for module in mine if module.task.encoder)
    tensors = _tensors(sums for module in bench.modules for sums in module.tensors[index])
    largest = max((max(abs(t.low), abs(t.high)) for t in tensors if t.finite), default=0.0)
    ranks = [module.ranks[index] for module in mine]
    info = bench.files[index]
    return SourceReport(
        info.name,
        info.label,
        info.bytes,
        len(mine) + info.vectors,
        info.kinds,
        (min(ranks, default=0), max(ranks, default=0)),
        _part(mine, index, total, rank),
        {block: part for block, part in blocks.items() if part.modules},
        encoder / total if total > 0 else 0.0,
        tensors,
        tuple(tensor.key for tensor in tensors if tensor.zero),
        tuple(tensor.key for tensor in tensors if not tensor.finite),
        largest,
        FP16_MAX / largest if largest > 0 else math.inf,
        sum(module.estimated[index] for module in mine),
    )


def _ranks(singular: np.ndarray) -> tuple[float, float]:
    return effective_rank(singular), stable_rank(singular)


def _part(
    modules: Sequence[Measured], index: int, total: float, rank: Mapping[str, tuple[float, float]]
) -> Part:
    energies = np.array([float(module.products[index, index]) for module in modules])
    energy = float(energies.sum())
    entries = sum(module.task.out * module.task.columns for module in modules)
    weights = energies / energy if energy > 0 else energies
    spectra = [module.spectra[index] for module in modules]
    mean = sum(float(module.sums[index]) for module in modules) / entries if entries else 0.0
    return Part(
        len(modules),
        entries,
        math.sqrt(max(energy, 0.0)),
        energy / total if total > 0 else 0.0,
        max((float(singular[0]) for singular in spectra if len(singular)), default=0.0),
        *(float(sum(w * rank[m.task.name][place] for w, m in zip(weights, modules))) for place in (0, 1)),
        ranks_for(pooled(spectra)),
        mean,
        math.sqrt(max(energy / entries - mean**2, 0.0)) if entries else 0.0,
        min((float(module.low[index]) for module in modules), default=0.0),
        max((float(module.high[index]) for module in modules), default=0.0),
    )


def _tensors(found: Iterable[TensorSums]) -> tuple[TensorStats, ...]:
    """Put the parts of every tensor together again; several modules may share one (Flux' fused q, k and
    v).
    """
    table: dict[str, list[TensorSums]] = {}
    for sums in found:
        table.setdefault(sums.key, []).append(sums)
    return tuple(_stats(key, parts) for key, parts in sorted(table.items()))


def _stats(key: str, parts: Sequence[TensorSums]) -> TensorStats:
    count = sum(part.count for part in parts)
    if not all(part.finite for part in parts):
        return TensorStats(key, count, math.nan, math.nan, math.nan, math.nan, finite=False)
    mean = sum(part.total for part in parts) / count
    square = sum(part.square for part in parts) / count
    std = math.sqrt(max(square - mean**2, 0.0))
    return TensorStats(
        key, count, mean, std, min(part.low for part in parts), max(part.high for part in parts)
    )


def pair_parts(bench: Bench, first: int, second: int) -> tuple[PairPart, Mapping[str, PairPart]]:
    """Return the figures of two sources, over everything and by block (blocks that one of them has)."""
    either = [m for m in bench.modules if m.ranks[first] or m.ranks[second]]
    blocks = {}
    for block, places in bench.blocks().items():
        members = [bench.modules[place] for place in places]
        part = _pair_part([m for m in members if m.ranks[first] or m.ranks[second]], first, second)
        if any(m.ranks[first] for m in members) or any(m.ranks[second] for m in members):
            blocks[block] = part
    return _pair_part(either, first, second), blocks


def _pair_part(modules: Sequence[Measured], a: int, b: int) -> PairPart:
    both = [m for m in modules if m.counts[a] and m.counts[b]]
    inner = sum(float(m.products[a, b]) for m in modules)
    sizes = [sum(float(m.products[i, i]) for m in modules) for i in (a, b)]
    size = math.sqrt(sizes[0] * sizes[1])
    slots = sum(min(m.counts[a], m.counts[b]) for m in both) or 1
    pairs = [m.counts[a] * m.counts[b] for m in both]
    conflict, expected, error = _conflict(both, a, b)
    return PairPart(
        len(both),
        inner / size if size > 0 else math.nan,
        sum(float(m.out_overlap[a, b]) for m in both) / slots,
        sum(count / m.task.out for count, m in zip(pairs, both)) / slots,
        sum(float(m.in_overlap[a, b]) for m in both) / slots,
        sum(count / m.task.columns for count, m in zip(pairs, both)) / slots,
        conflict,
        expected,
        conflict - expected,
        error,
        sum(m.samples for m in both),
    )


def _conflict(both: Sequence[Measured], a: int, b: int) -> tuple[float, float, float]:
    """Return (share of entries with opposite signs, what the cosines bring by themselves, standard error).

    Modules are strata: each is sampled by itself and weighs by its number of entries.
    """
    entries = np.array([float(m.task.out * m.task.columns) for m in both])
    if not len(entries):
        return math.nan, math.nan, math.nan
    weights = entries / entries.sum()
    rates = np.array([float(m.differ[a, b]) / m.samples for m in both])
    cosines = np.array([cosine(m.products, a, b) for m in both])
    expected = np.arccos(cosines.clip(-1.0, 1.0)) / math.pi
    counts = np.array([float(m.samples) for m in both])
    variance = float((np.square(weights) * rates * (1.0 - rates) / counts).sum())
    return float(weights @ rates), float(weights @ expected), math.sqrt(variance)


def cosine(products: np.ndarray, a: int, b: int) -> float:
    """Return ⟨A, B⟩/(‖A‖·‖B‖) from Gram matrix entries; 0 where one is zero."""
    size = math.sqrt(max(float(products[a, a]) * float(products[b, b]), 0.0))
    return float(products[a, b]) / size if size > 0 else 0.0
