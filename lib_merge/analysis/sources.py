"""From modules to blocks and files: what each source is, and what two sources are to each other in
numbers.

What two sources are to each other: strangers, a copy, the same file resized, epochs of one run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lib_merge.analysis.measure import Bench, Measured, TensorSums
from lib_merge.analysis.model import PairPart, PairReport, Part, SourceReport, TensorStats
from lib_merge.linalg.svd import effective_rank, pooled, ranks_for, stable_rank

# ------------------------------------------------------------------------ gather

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
        name=info.name,
        label=info.label,
        bytes=info.bytes,
        modules=len(mine) + info.vectors,
        kinds=info.kinds,
        rank=(min(ranks, default=0), max(ranks, default=0)),
        whole=_part(mine, index, total, rank),
        blocks={block: part for block, part in blocks.items() if part.modules},
        encoder=encoder / total if total > 0 else 0.0,
        tensors=tensors,
        zero=tuple(tensor.key for tensor in tensors if tensor.zero),
        broken=tuple(tensor.key for tensor in tensors if not tensor.finite),
        largest=largest,
        headroom=FP16_MAX / largest if largest > 0 else math.inf,
        estimated=sum(module.estimated[index] for module in mine),
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
    effective, stable = (
        float(sum(w * rank[m.task.name][place] for w, m in zip(weights, modules))) for place in (0, 1)
    )
    return Part(
        modules=len(modules),
        entries=entries,
        norm=math.sqrt(max(energy, 0.0)),
        share=energy / total if total > 0 else 0.0,
        peak=max((float(singular[0]) for singular in spectra if len(singular)), default=0.0),
        effective_rank=effective,
        stable_rank=stable,
        ranks=ranks_for(pooled(spectra)),
        mean=mean,
        std=math.sqrt(max(energy / entries - mean**2, 0.0)) if entries else 0.0,
        low=min((float(module.low[index]) for module in modules), default=0.0),
        high=max((float(module.high[index]) for module in modules), default=0.0),
    )


def _tensors(everything: Iterable[TensorSums]) -> tuple[TensorStats, ...]:
    """Put the parts of every tensor together again; several modules may share one (Flux' fused q, k and
    v).
    """
    table: dict[str, list[TensorSums]] = {}
    for sums in everything:
        table.setdefault(sums.key, []).append(sums)
    return tuple(_stats(key, parts) for key, parts in sorted(table.items()))


def _stats(key: str, parts: Sequence[TensorSums]) -> TensorStats:
    count = sum(part.count for part in parts)
    if not all(part.finite for part in parts):
        return TensorStats(
            key=key, count=count, mean=math.nan, std=math.nan, low=math.nan, high=math.nan, finite=False
        )
    mean = sum(part.total for part in parts) / count
    square = sum(part.square for part in parts) / count
    std = math.sqrt(max(square - mean**2, 0.0))
    return TensorStats(
        key=key,
        count=count,
        mean=mean,
        std=std,
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
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
        modules=len(both),
        cosine=inner / size if size > 0 else math.nan,
        overlap_out=sum(float(m.out_overlap[a, b]) for m in both) / slots,
        chance_out=sum(count / m.task.out for count, m in zip(pairs, both)) / slots,
        overlap_in=sum(float(m.in_overlap[a, b]) for m in both) / slots,
        chance_in=sum(count / m.task.columns for count, m in zip(pairs, both)) / slots,
        conflict=conflict,
        expected=expected,
        excess=conflict - expected,
        error=error,
        samples=sum(m.samples for m in both),
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


# ------------------------------------------------------------------------ relations

# relation -> what it means, in a few words
RELATIONS: Mapping[str, str] = {
    "empty": "one of them changes nothing",
    "disjoint": "they change different modules",
    "copy": "the same LoRA twice",
    "scaled copy": "the same LoRA at another strength",
    "negated copy": "the same LoRA with the sign reversed",
    "resized": "the same LoRA at another rank",
    "near-duplicate": "almost the same LoRA",
    "epochs": "epochs of one training run",
    "same start": "trained from the same random start",
    "related": "they largely want the same",
    "opposed": "they pull in opposite directions",
    "unrelated": "they have nothing to do with each other",
}
# 1 − |cosine| of a copy: storing in bf16 costs 2e-6
COPY = 1e-5
# Relations of which one file is enough
SAME_LORA = ("copy", "scaled copy", "negated copy", "resized", "near-duplicate")
# 1 − cosine of a near-duplicate: √(1 − cosine²) = 0.31 of the norm is all they do not share
NEAR = 0.05
# Share of the energy by which a resized file may differ from the best cut.
RESIZED = 0.02
# Cosine of two runs' ΔW, and of their down projections, that only epochs of one run reach.
EPOCH_COSINE, EPOCH_START = 0.6, 0.5
NAMED_COSINE = 0.3
SAME_START = 0.3
RELATED = 0.2
_EPOCH = re.compile(r"[-_ .]?(?:epoch|ep|e|step|s)?[-_ ]?0*(\d{1,7})$", re.IGNORECASE)


def pair_report(bench: Bench, first: int, second: int) -> PairReport:
    """Return the figures of two sources and what they are to each other."""
    whole, blocks = pair_parts(bench, first, second)
    start = _start(bench.modules, first, second)
    relation, reason, scale = _relation(bench, (first, second), whole, start)
    return PairReport(
        first=first,
        second=second,
        relation=relation,
        reason=reason,
        whole=whole,
        blocks=blocks,
        start=start,
        scale=scale,
    )


def _start(modules: Sequence[Measured], a: int, b: int) -> float:
    cosines = [float(m.start[a, b]) for m in modules if not math.isnan(float(m.start[a, b]))]
    return float(np.median(cosines)) if cosines else math.nan


def _relation(bench: Bench, pair: tuple[int, int], whole: PairPart, start: float) -> tuple[str, str, float]:
    """Return (relation, reason, scale)."""
    a, b = pair
    one, two = bench.files[a].label, bench.files[b].label
    cosine = whole.cosine
    if math.isnan(cosine):
        return "empty", "one of the two has no weights that are not zero", 0.0
    if not whole.modules:
        return "disjoint", f"{one} and {two} have no module in common", 0.0
    gram = bench.whole
    if 1.0 - abs(cosine) < COPY:
        scale = float(gram[a, b] / gram[a, a])
        kind = "negated copy" if scale < 0 else "copy" if abs(scale - 1.0) < 0.01 else "scaled copy"
        times = "" if kind == "copy" else f"{scale:.3g} × "
        return kind, f"{two} is {times}{one} everywhere (cosine {cosine:.5f})", scale
    for large, small in ((a, b), (b, a)):
        if resized_from(bench, large, small):
            names = bench.files[small].label, bench.files[large].label
            return "resized", f"{names[0]} is what a rank cut leaves of {names[1]} (cosine {cosine:.3f})", 0.0
    if _one_run(bench, pair, cosine, start):
        return (
            "epochs",
            f"same start of the down projections (cosine {start:.2f}) and ΔW at cosine {cosine:.2f}",
            0.0,
        )
    if 1.0 - cosine < NEAR:
        scale = float(gram[a, b] / gram[a, a])
        apart = math.sqrt(max(0.0, 1.0 - cosine**2))
        return (
            "near-duplicate",
            f"{two} is {scale:.3g} × {one} but for {apart:.0%} (cosine {cosine:.3f})",
            scale,
        )
    if start >= SAME_START:
        return (
            "same start",
            f"the down projections began alike (cosine {start:.2f}), ΔW is at {cosine:.2f}",
            0.0,
        )
    if abs(cosine) >= RELATED:
        return "related" if cosine > 0 else "opposed", f"cosine {cosine:.2f}", 0.0
    return "unrelated", f"cosine {round(cosine, 3) + 0.0:.3f}", 0.0


def resized_from(bench: Bench, large: int, small: int) -> bool:
    """Tell whether `small` is `large` cut to fewer ranks.

    True when at every module ‖small‖² is the energy of large's leading singular values and ⟨large, small⟩ =
    ‖small‖², which holds for the Eckart-Young cut alone; differences are summed over the file and may be 2 %
    of its energy.
    """
    both = [m for m in bench.modules if m.ranks[large] or m.ranks[small]]
    if sum(m.ranks[small] for m in both) >= sum(m.ranks[large] for m in both):
        return False
    energy = sum(float(m.products[large, large]) for m in both)
    head = off = 0.0
    for module in both:
        own = float(module.products[small, small])
        kept = float(np.square(module.spectra[large][: module.ranks[small]]).sum())
        head += abs(kept - own)
        off += abs(float(module.products[large, small]) - own)
    return energy > 0 and head <= RESIZED * energy and off <= RESIZED * energy


def _one_run(bench: Bench, pair: tuple[int, int], cosine: float, start: float) -> bool:
    first, second = (bench.files[index] for index in pair)
    sessions = {file.metadata.get("ss_session_id") for file in (first, second)}
    if len(sessions) == 1 and None not in sessions:
        return True
    if cosine >= EPOCH_COSINE and start >= EPOCH_START:
        return True
    stems = [_EPOCH.sub("", file.label) for file in (first, second)]
    named = bool(stems[0]) and stems[0] == stems[1] and first.label != second.label
    named = named or _noted_run(first.metadata, second.metadata)
    return named and cosine >= NAMED_COSINE and (math.isnan(start) or start >= EPOCH_START)


def _noted_run(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Tell whether metadata has two files as different epochs or steps of one output name."""
    names = {meta.get("ss_output_name") for meta in (first, second)}
    ages = [(meta.get("ss_epoch"), meta.get("ss_steps")) for meta in (first, second)]
    return len(names) == 1 and not names & {None, ""} and ages[0] != ages[1]


def epoch_order(bench: Bench, members: Sequence[int]) -> list[int]:
    """Return sources of one run from the oldest on: by epoch, by steps, by the number in the name, by
    norm.
    """
    energies = bench.whole.diagonal()

    def age(index: int) -> tuple[float, float, float, float]:
        file = bench.files[index]
        named = _EPOCH.search(file.label)
        # the last file of a run carries no number
        number = float(named[1]) if named else math.inf
        return (
            _number(file.metadata.get("ss_epoch")),
            _number(file.metadata.get("ss_steps")),
            number,
            energies[index],
        )

    return sorted(members, key=age)


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else 0.0
    except ValueError:
        return 0.0


def runs(pairs: Sequence[PairReport], count: int) -> list[list[int]]:
    """Return groups of two and more sources that are epochs of one run."""
    group = list(range(count))
    for pair in pairs:
        if pair.relation == "epochs":
            old, new = group[pair.second], group[pair.first]
            group = [new if value == old else value for value in group]
    groups = [[index for index in range(count) if group[index] == value] for value in dict.fromkeys(group)]
    return [members for members in groups if len(members) > 1]
