"""What was measured, ready to be asked again when only ratios, blocks or the method change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib_merge.adapters import LoraFile, ModulePart
from lib_merge.analysis.measure import Measured, Task, measure
from lib_merge.analysis.weights import Leaf
from lib_merge.analysis.workers import side_by_side
from lib_merge.families import block_of, blocks_present, encoder_of

# Entries of ΔW sampled over the whole file, and the least and most at one module.
SAMPLES = 200_000
FEWEST, MOST = 128, 4096
# Bytes of Gram matrices kept so that a new ratio needs no reading.
KEPT = 160 << 20


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
        return self.products.sum(0)

    def _table(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self._tables:
            rows = [getattr(module, name) for module in self.modules]
            self._tables[name] = np.stack(rows) if rows else np.zeros((0, *shape))
        return self._tables[name]

    @property
    def holds_grams(self) -> bool:
        """True when Gram matrices were kept, so that spectra of new weights need no reading."""
        return all(len(module.grams[0]) == sum(module.ranks) for module in self.modules)

    def fits(self, found: Sequence[Leaf]) -> bool:
        """Tell whether these are the files that were measured, unchanged and in the same order."""
        return [
            (leaf.file.path, leaf.file.size, _stamp(leaf.file.path), leaf.file.family) for leaf in found
        ] == [(file.path, file.bytes, file.stamp, self.family) for file in self.files]

    def blocks(self) -> dict[str, list[int]]:
        """Return block -> places of its modules, blocks in the order of the family."""
        names = [module.task.name for module in self.modules]
        found: dict[str, list[int]] = {block: [] for block in blocks_present(names, self.family)}
        for place, module in enumerate(self.modules):
            found[module.task.block].append(place)
        return found


def file_info(leaf: Leaf, label: str) -> FileInfo:
    """Return what a file says without its tensors being read."""
    file = leaf.file
    kinds: dict[str, int] = {}
    for part in leaf.parts.values():
        kinds[part.module.layout.kind] = kinds.get(part.module.layout.kind, 0) + 1
    base = file.config.base if file.config is not None else ""
    vectors = sum(1 for part in leaf.parts.values() if part.columns == 0)
    stamp = _stamp(file.path)
    return FileInfo(file.path, file.name, label, file.size, stamp, dict(file.metadata), base, kinds, vectors)


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def labels(found: Sequence[Leaf]) -> list[str]:
    """Return a name for every source; a name used twice is numbered."""
    names = [leaf.source.label for leaf in found]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if names.count(name) == 1 else f"{name} ({seen[name]})")
    return unique


def tasks(found: Sequence[Leaf], family: str, seed: int) -> list[Task]:
    """Return every module that a source changes, sizes checked against each other.

    Modules that one source has in another size than the first are left to the merge itself to refuse.
    """
    everything: dict[str, list[tuple[LoraFile, ModulePart] | None]] = {}
    for place, leaf in enumerate(found):
        for name, part in leaf.parts.items():
            if part.columns:
                everything.setdefault(name, [None] * len(found))[place] = (leaf.file, part)
    samples = min(MOST, max(FEWEST, SAMPLES // max(1, len(everything))))
    listed = []
    for name, parts in sorted(everything.items()):
        first = next(part[1] for part in parts if part is not None)
        size = (first.out, first.columns)
        fitting = tuple(
            part if part is not None and (part[1].out, part[1].columns) == size else None for part in parts
        )
        listed.append(Task(name, block_of(name, family), encoder_of(name), *size, fitting, samples, seed))
    return listed


def misfits(found: Sequence[Leaf]) -> list[str]:
    """Return a sentence for every source that has modules in another size than the sources before it."""
    sizes: dict[str, tuple[int, int]] = {}
    said = []
    for leaf in found:
        wrong = 0
        for name, part in leaf.parts.items():
            if part.columns and sizes.setdefault(name, (part.out, part.columns)) != (part.out, part.columns):
                wrong += 1
        if wrong:
            said.append(
                f"{leaf.file.name}: {wrong} modules have another size than in the other sources and "
                "cannot be merged with them"
            )
    return said


def run(listed: Sequence[Task], cancelled: Callable[[], bool] | None = None) -> Iterator[Measured]:
    """Measure modules on several threads, in order; Gram matrices are kept while there is room."""
    room = KEPT
    for found in side_by_side(measure, listed, cancelled):
        room -= 2 * found.grams[0].nbytes
        yield found if room >= 0 else found.without_grams()
