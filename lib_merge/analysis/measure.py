"""Reading one source at one module: its ΔW, and what its tensors look like.

Everything that is measured at one module: read once, stacked once, kept as a few small numbers.

What was measured, ready to be asked again when only ratios, blocks or the method change.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib_merge.adapters import LoraFile, ModulePart
from lib_merge.engine.threads import gainful, in_order
from lib_merge.engine.tree import Leaf, Node, Target
from lib_merge.families import blocks_present, encoder_of
from lib_merge.linalg import LowRank
from lib_merge.linalg.stack import Basis, Stack, block_sums, low_rank, stack

# ------------------------------------------------------------------------ reading

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
    """What was read of one source: ΔW, None where it is absent or broken; its tensors, or their extremes."""

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
    if not all(math.isfinite(term.scale) for term in delta.terms):
        return Read(tensors=tensors, broken=True)
    return Read(delta, tensors, estimated=cut)


def _read_plain(file: LoraFile, place: ModulePart) -> Read:
    """Read a factor pair; sums and squares of its tensors come out of the stack, only the extremes are
    looked for.
    """
    delta = place.load(file.file)
    term, roles = delta.terms[0], place.module.roles  # type: ignore[union-attr]
    extremes = tuple(
        (roles[role], value.numel(), *_extremes(value))
        for role, value in (("lora_up", term.up), ("lora_down", term.down))
    )
    sound = all(math.isfinite(low) and math.isfinite(high) for _, _, low, high in extremes)
    if sound and math.isfinite(term.scale):
        return Read(delta, extremes=extremes)  # type: ignore[arg-type]
    tensors = tuple(_tensor_sums(item[:2], item[2:], math.nan, math.nan) for item in extremes)
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


# ------------------------------------------------------------------------ measure


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
        task=task,
        ranks=tuple(part.stop - part.start for part in stacked.parts),
        products=stacked.products,
        spectra=tuple(base.singular for base in bases),
        counts=tuple(base.left.shape[1] for base in bases),
        out_overlap=out_overlap,
        in_overlap=in_overlap,
        start=start,
        talk=talk(stacked, bases),
        sums=sums(stacked, lines),
        low=np.where(present, entries.min(1), 0.0),
        high=np.where(present, entries.max(1), 0.0),
        differ=(negative.astype(np.int64) @ positive.T.astype(np.int64))
        + (positive.astype(np.int64) @ negative.T.astype(np.int64)),
        samples=entries.shape[1],
        tensors=tuple(tensor_sums(item, stacked, part, lines) for item, part in zip(read, stacked.parts)),
        broken=tuple(item.broken for item in read),
        estimated=tuple(item.estimated for item in read),
        grams=(stacked.gram_up, stacked.gram_down, stacked.parts),
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
    overlaps = np.zeros((count, count, count))
    for i, (part, base) in enumerate(zip(stacked.parts, bases)):
        if base.right.shape[1]:
            seen = stacked.gram_down[:, part] @ base.right  # Float64[R k]: Dⱼ·Vᵢ for all sources j
            overlaps[i] = block_sums(stacked.gram_up * (seen @ seen.T), stacked.owner)
    return overlaps


def sums(stacked: Stack, lines: Lines) -> np.ndarray:
    """Return Float64[source], Σ of all entries of each ΔW: (1ᵀU)·s·(D1).

    Args:
        stacked: the sources' factors.
        lines: Float64[R], Float64[R]: 1ᵀU and D1, without scales.
    """
    totals: np.ndarray = (lines[0] * stacked.scales * lines[1]) @ stacked.owner
    return totals


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
    entries: np.ndarray = (parts @ scaled).T.astype(np.float64)
    return entries


# ------------------------------------------------------------------------ bench

# Entries of ΔW sampled over the whole file, and the least and most at one module.
SAMPLES = 200_000
FEWEST, MOST = 128, 4096
# Bytes of Gram matrices kept so that a new ratio needs no reading.
KEPT = 160 << 20
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is known of a file without its tensors; `stamp` is its time of change in nanoseconds."""

    path: Path
    name: str
    label: str
    bytes: int
    stamp: int
    metadata: Mapping[str, str]
    base: str
    kinds: Mapping[str, int]
    vectors: int


@dataclass(slots=True)
class Bench:
    """Measured modules of several sources.

    family    of all sources
    files     per source
    modules   in the order of their names
    """

    family: str
    files: tuple[FileInfo, ...]
    modules: list[Measured] = field(default_factory=list)
    _tables: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of sources."""
        return len(self.files)

    @property
    def products(self) -> np.ndarray:
        """Float64[module source source], ⟨ΔWᵢ, ΔWⱼ⟩; taken together once, when every module has been
        measured.
        """
        return self._table("products", (self.count,) * 2)

    @property
    def talk(self) -> np.ndarray:
        """Float64[module source source source], see `Measured`."""
        return self._table("talk", (self.count,) * 3)

    @property
    def peaks(self) -> np.ndarray:
        """Float64[module source], the largest singular value."""
        if "peaks" not in self._tables:
            rows = [[float(s[0]) if len(s) else 0.0 for s in module.spectra] for module in self.modules]
            self._tables["peaks"] = np.array(rows).reshape(len(self.modules), self.count)
        return self._tables["peaks"]

    @property
    def whole(self) -> np.ndarray:
        """Float64[source source], ⟨ΔWᵢ, ΔWⱼ⟩ over everything."""
        total: np.ndarray = self.products.sum(0)
        return total

    def _table(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self._tables:
            rows = [getattr(module, name) for module in self.modules]
            self._tables[name] = np.stack(rows) if rows else np.zeros((0, *shape))
        return self._tables[name]

    @property
    def holds_grams(self) -> bool:
        """True when Gram matrices were kept, so that spectra of new weights need no reading."""
        return all(len(module.grams[0]) == sum(module.ranks) for module in self.modules)

    def fits(self, leaves: Sequence[Leaf]) -> bool:
        """Tell whether these are the files that were measured, unchanged and in the same order."""
        return [
            (leaf.file.path, leaf.file.size, _stamp(leaf.file.path), leaf.file.family) for leaf in leaves
        ] == [(file.path, file.bytes, file.stamp, self.family) for file in self.files]

    def blocks(self) -> dict[str, list[int]]:
        """Return block -> places of its modules, blocks in the order of the family."""
        names = [module.task.name for module in self.modules]
        places: dict[str, list[int]] = {block: [] for block in blocks_present(names, self.family)}
        for place, module in enumerate(self.modules):
            places[module.task.block].append(place)
        return places


def file_info(leaf: Leaf, label: str) -> FileInfo:
    """Return what a file says without its tensors being read."""
    file = leaf.file
    kinds: dict[str, int] = {}
    for part in leaf.parts.values():
        kinds[part.module.layout.kind] = kinds.get(part.module.layout.kind, 0) + 1
    base = file.config.base if file.config is not None else ""
    vectors = sum(1 for part in leaf.parts.values() if part.columns == 0)
    stamp = _stamp(file.path)
    return FileInfo(
        path=file.path,
        name=file.name,
        label=label,
        bytes=file.size,
        stamp=stamp,
        metadata=dict(file.metadata),
        base=base,
        kinds=kinds,
        vectors=vectors,
    )


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def labels(leaves: Sequence[Leaf]) -> list[str]:
    """Return a name for every source; a name used twice is numbered."""
    names = [leaf.source.label for leaf in leaves]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if names.count(name) == 1 else f"{name} ({seen[name]})")
    return unique


def tasks(root: Node, seed: int) -> list[Task]:
    """Return every module of a tree that has a matrix, as one task each.

    Args:
        root: the tree; see `open_tree`'s `look_only`.
        seed: of the sampled entries.
    """
    leaves = root.leaves()
    targets = [target for target in root.targets.values() if target.columns]
    samples = min(MOST, max(FEWEST, SAMPLES // max(1, len(targets))))
    return [
        Task(
            name=target.name,
            block=target.block,
            encoder=encoder_of(target.name),
            out=target.out,
            columns=target.columns,
            parts=tuple(_part_of(leaf, target) for leaf in leaves),
            samples=samples,
            seed=seed,
        )
        for target in targets
    ]


def _part_of(leaf: Leaf, target: Target) -> tuple[LoraFile, ModulePart] | None:
    part = leaf.parts.get(target.name)
    if part is None or (part.out, part.columns) != (target.out, target.columns):
        return None  # absent, or in another size inside a group
    return leaf.file, part


def run(listed: Sequence[Task], cancelled: Callable[[], bool]) -> Iterator[Measured]:
    """Measure modules on several threads, in order; Gram matrices are kept while there is room.

    Args:
        listed: the modules.
        cancelled: asked between modules.
    Raises:
        Cancelled: `cancelled()` became true.
    """
    room = KEPT
    most = gainful([(sum(p[1].rank for p in task.parts if p), task.out + task.columns) for task in listed])
    for measured in in_order(measure, listed, CPU, cancelled, most):
        room -= 2 * measured.grams[0].nbytes
        yield measured if room >= 0 else measured.without_grams()
