"""What a finished merge says of itself, and what a person should be told about it before it is used."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib_merge.engine.evaluate import Evaluator, gram_matrix
from lib_merge.engine.tree import Leaf, Node, Target
from lib_merge.linalg import tolerances
from lib_merge.loaders import Verdict
from lib_merge.methods import get_method

# Norms of the sources are taken at this many modules, evenly spaced: enough for a factor of two, free beside
# the merge.
SAMPLE = 12


@dataclass(slots=True)
class ModuleReport:
    """One module of the result.

    rank      ranks saved (0 = whole matrix or vectors only)
    error     ‖saved − asked‖ (unitless), measured from the file
    cut       ‖asked − best of this rank‖, what the rank policy took
    size      ‖asked‖
    """

    name: str
    block: str
    rank: int = 0
    error: float = 0.0
    cut: float = 0.0
    size: float = 0.0

    @property
    def relative(self) -> float:
        """Error ÷ size; 0 for an empty module that was saved empty."""
        if self.size == 0:
            return 0.0 if self.error == 0 else float("inf")
        return self.error / self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelReport:
    """A group whose ranks are cut before it enters the merge, as its own file would be.

    name         what people call it
    rank         (least, greatest) of its modules
    error        ‖cut‖ / ‖ΔW‖ over all its modules
    energy_kept  1 − error²
    """

    name: str
    rank: tuple[int, int]
    error: float
    energy_kept: float


@dataclass(slots=True)
class MergeReport:
    """The result of a merge; `to_json` is what `--json` prints.

    kept  of the warnings those on what lay there before
    """

    output: str
    method: str
    family: str
    modules: list[ModuleReport] = field(default_factory=list)
    loads_in: list[Verdict] = field(default_factory=list)
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    warnings: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    pruned: dict[str, float] = field(default_factory=dict)
    levels: list[LevelReport] = field(default_factory=list)
    tensor_hash: str = ""
    precision: str = "fp16"
    kept: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, node: Node, output: Path) -> MergeReport:
        """Return the empty report of a merge."""
        return cls(str(output), node.method.name, node.family, precision=node.recipe.precision)

    @property
    def relative_error(self) -> float:
        """‖saved − asked‖ / ‖asked‖ over the whole LoRA."""
        size = sum(module.size**2 for module in self.modules)
        error = sum(module.error**2 for module in self.modules)
        return (error / size) ** 0.5 if size > 0 else (0.0 if error == 0 else float("inf"))

    @property
    def cast_error(self) -> float:
        """√Σ max(0, error² − cut²) / √Σ size²: what is off beside the cut, the rounding of the numbers."""
        size = sum(module.size**2 for module in self.modules)
        beside = sum(max(0.0, module.error**2 - module.cut**2) for module in self.modules)
        return (beside / size) ** 0.5 if size > 0 else 0.0

    @property
    def energy_kept(self) -> float:
        """1 − Σ cut² / Σ size²: what the rank policy left, of 1."""
        size = sum(module.size**2 for module in self.modules)
        return 1.0 - sum(module.cut**2 for module in self.modules) / size if size > 0 else 1.0

    def ranks(self) -> dict[str, float]:
        """min, max and mean rank over modules that have one."""
        ranks = [module.rank for module in self.modules if module.rank]
        if not ranks:
            return {"min": 0, "max": 0, "mean": 0.0}
        return {"min": min(ranks), "max": max(ranks), "mean": round(sum(ranks) / len(ranks), 2)}

    def worst(self) -> ModuleReport | None:
        """The module with the largest relative error."""
        return max(self.modules, key=lambda module: module.relative, default=None)

    def blocks(self) -> dict[str, dict[str, float]]:
        """Per block: modules, relative error, energy kept, share of the result's energy."""
        total = sum(module.size**2 for module in self.modules) or 1.0
        by_block: dict[str, list[ModuleReport]] = {}
        for module in self.modules:
            by_block.setdefault(module.block, []).append(module)
        return {block: _block(members, total) for block, members in sorted(by_block.items())}

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready objects."""
        worst = self.worst()
        figures = {
            "output": self.output,
            "method": self.method,
            "family": self.family,
            "modules": len(self.modules),
            "rank": self.ranks(),
            "relative_error": self.relative_error,
            "worst_module": {"name": worst.name, "error": worst.relative} if worst else None,
            "energy_kept": self.energy_kept,
            "cast_error": self.cast_error,
            "bytes": self.bytes,
            "precision": self.precision,
            "tensor_hash": self.tensor_hash,
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
            "peak_rss_mb": round(self.peak_rss_mb, 1),
            "warnings": self.warnings,
            "copied": self.copied,
            "left_out": self.left_out,
            "pruned": self.pruned,
            "levels": [asdict(level) for level in self.levels],
            "blocks": self.blocks(),
            "loads_in": {one.host: one.to_json() for one in self.loads_in},
        }
        return {**figures, "proof": proof_words(figures), "choice": choice_words(figures)}

    def words(self) -> list[str]:
        """Return the proof, and the choice where there was one: two sentences that are never one number."""
        figures = self.to_json()
        return [figures[name] for name in ("proof", "choice") if figures[name]]

    def per_module(self) -> list[dict[str, Any]]:
        """Return every module's figures."""
        return [asdict(module) for module in self.modules]


def _block(members: list[ModuleReport], total: float) -> dict[str, float]:
    size = sum(module.size**2 for module in members)
    error = sum(module.error**2 for module in members)
    cut = sum(module.cut**2 for module in members)
    return {
        "modules": len(members),
        "relative_error": (error / size) ** 0.5 if size else 0.0,
        "energy_kept": 1.0 - cut / size if size else 1.0,
        "energy_share": size / total,
    }


# ---------------------------------------------------------------- proof and choice, in words


def proof_words(figures: Mapping[str, Any]) -> str:
    """Return the proof as a sentence: the file holds what was decided, and how far its numbers are rounded.

    A cut is no error of the file, so it is not in this number: see `choice_words`.

    Args:
        figures: of `MergeReport.to_json`, or of the history; "" where they hold no proof.
    """
    error, cast = _share(figures, "relative_error"), _share(figures, "cast_error")
    if error is None:
        return ""
    if not _is_cut(figures):
        return f"asked = saved to {error:.3%}"
    held = f"saved exactly what {_ranks(figures)} can hold"
    if cast is None:
        return held
    return f"{held}, to {f'{cast:.3%}' if cast >= _TINY else f'less than {_TINY:.3%}'}"


def choice_words(figures: Mapping[str, Any]) -> str:
    """Return what the rank that was chosen keeps of the merge, as a sentence; "" where nothing is cut.

    The share is one of the energy, Σ S² kept / Σ S².

    Args:
        figures: of `MergeReport.to_json`, or of the history.
    """
    kept = _share(figures, "energy_kept")
    if kept is None or not _is_cut(figures):
        return ""
    return f"{part_words(kept)} of the merge is kept"


def part_words(part: float) -> str:
    """Return a share of what is not whole: never "100 %"."""
    return f"{part:.1%}" if part < 0.9995 else "more than 99.9%"


# The smallest rounding that is shown as a number, and the smallest cut that is spoken of as one.
_TINY, _WHOLE = 1e-5, 1.0 - 1e-9


def _is_cut(figures: Mapping[str, Any]) -> bool:
    kept = _share(figures, "energy_kept")
    return kept is not None and kept < _WHOLE


def _share(figures: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a report, which may come from a file that a person has edited."""
    value = figures.get(name)
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None  # type: ignore[arg-type]


def _ranks(figures: Mapping[str, Any]) -> str:
    ranks = figures.get("rank")
    found = [_share(ranks, name) for name in ("min", "max")] if isinstance(ranks, Mapping) else []
    least, most = found if len(found) == 2 else (None, None)
    if least is None or most is None or not most:
        return "the chosen size"
    return f"rank {most:.0f}" if least == most else f"ranks {least:.0f} to {most:.0f}"


def peak_rss_mb() -> float:
    """Return the largest resident size of this process so far, in MB; 0 where the system does not tell."""
    if sys.platform == "win32":
        return _peak_windows()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _peak_windows() -> float:
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            *[
                (name, ctypes.c_size_t)
                for name in (
                    "PeakWorkingSetSize",
                    "WorkingSetSize",
                    "QuotaPeakPagedPoolUsage",
                    "QuotaPagedPoolUsage",
                    "QuotaPeakNonPagedPoolUsage",
                    "QuotaNonPagedPoolUsage",
                    "PagefileUsage",
                    "PeakPagefileUsage",
                )
            ],
        ]

    counters = Counters()
    counters.cb = ctypes.sizeof(Counters)
    library: Any = ctypes.WinDLL("psapi")  # type: ignore[attr-defined]
    handle = ctypes.WinDLL("kernel32").GetCurrentProcess()  # type: ignore[attr-defined]
    if not library.GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.cb):
        return 0.0
    return float(counters.PeakWorkingSetSize) / 1e6


# ---------------------------------------------------------------- remarks


def remarks(
    node: Node, evaluator: Evaluator, report: MergeReport, spectra: Mapping[str, np.ndarray]
) -> list[str]:
    """Return sentences about a finished result; none for an unremarkable one.

    Args:
        node: the tree.
        evaluator: evaluates modules of the sources.
        report: measured modules.
        spectra: the known singular values of modules that were cut.
    """
    return [*_cut(node, report, spectra), *_levels(report), *_size(node, evaluator, report)]


def levels_of(node: Node, evaluator: Evaluator) -> Iterator[LevelReport]:
    """Yield what was cut of every group in a merge that was carried out, outer groups first.

    Args:
        node: the tree.
        evaluator: that carried it out.
    """
    for child in node.children:
        if isinstance(child, Leaf):
            continue
        cuts = [cut for (owner, _), cut in sorted(evaluator.cuts.items()) if owner == id(child)]
        ranks = [cut.rank for cut in cuts if cut.rank]
        size = sum(cut.size**2 for cut in cuts)
        lost = min(1.0, sum(cut.cut**2 for cut in cuts) / size) if size > 0 else 0.0
        if cuts:
            rank = min(ranks, default=0), max(ranks, default=0)
            yield LevelReport(name=child.label, rank=rank, error=lost**0.5, energy_kept=1.0 - lost)
        yield from levels_of(child, evaluator)


def _levels(report: MergeReport) -> Iterator[str]:
    for level in report.levels:
        if 1.0 - level.energy_kept > tolerances.CUT_LIMIT:
            low, high = level.rank
            yield (
                f"{level.name} was cut to rank {low if low == high else f'{low} to {high}'} like a merge of "
                f"its own, which threw away {1 - level.energy_kept:.1%} of its energy; a rank of its own "
                "keeps more"
            )


def _cut(node: Node, report: MergeReport, spectra: Mapping[str, np.ndarray]) -> list[str]:
    lost = 1.0 - report.energy_kept
    if lost <= tolerances.CUT_LIMIT:
        return []
    advice = []
    rank = _rank_for(report, spectra, 1.0 - tolerances.CUT_LIMIT)
    if rank:
        advice.append(f"rank {rank} would keep {1 - tolerances.CUT_LIMIT:.0%}")
    if node.method.core_variant:
        variant = get_method(node.method.core_variant)
        advice.append(
            f"{variant.title} needs no cut: it works in the LoRAs' shared directions and makes another merge"
        )
    hint = f": {', and '.join(advice)}" if advice else "; a higher rank keeps more"
    return [f"the rank limit threw away {lost:.1%} of this merge's energy{hint}"]


def _rank_for(report: MergeReport, spectra: Mapping[str, np.ndarray], share: float) -> int:
    """Return the one rank that would keep `share` of the energy, 0 where too little of the spectra is
    known.
    """
    total = sum(module.size**2 for module in report.modules)
    known = [np.square(values) for _, values in sorted(spectra.items())]
    sure = total - sum(module.size**2 for module in report.modules if module.name in spectra)
    longest = max((len(values) for values in known), default=0)
    gained = np.zeros(longest)
    for values in known:
        gained[: len(values)] += values
    kept = sure + np.cumsum(gained)
    enough = np.flatnonzero(kept >= share * total)
    return int(enough[0]) + 1 if len(enough) else 0


def _size(node: Node, evaluator: Evaluator, report: MergeReport) -> list[str]:
    if len(node.children) < 2 and node.method.stacks:
        return []
    sizes = {module.name: module.size for module in report.modules}
    names = [
        name for name, target in sorted(node.targets.items()) if target.columns and any(node.weights(target))
    ]
    chosen = names[:: max(1, len(names) // SAMPLE)]
    result = sum(sizes.get(name, 0.0) ** 2 for name in chosen) ** 0.5
    each, opposite = np.zeros(len(node.children)), 0
    for name in chosen:
        gram = _gram(node, evaluator, node.targets[name])
        norms = np.sqrt(np.diag(gram).clip(0))
        each += norms**2
        cosines = gram / np.maximum(np.outer(norms, norms), 1e-300)
        opposite += bool((cosines < tolerances.OPPOSITE).any())
    each = np.sqrt(each)
    together = float(np.sqrt(np.square(each).sum()))
    sentences = []
    if together > 0 and result < tolerances.EMPTY_RESULT * together:
        sentences.append(
            f"next to nothing is left: the result has {result / together:.1%} of its sources' strength"
            + (", since unrelated LoRAs have no stock in common" if node.method.kin_only else "")
        )
    if result > tolerances.INFLATED * float(each.sum()) > 0:
        sentences.append(
            f"the result is inflated: {result / float(each.sum()):.1f} times as strong as its "
            "sources together; "
            "use it at a lower strength"
        )
    if opposite and node.method.spherical:
        sentences.append(
            f"two sources point in opposite directions in {opposite} of {len(chosen)} modules "
            "looked at: no way between "
            "them is better than another, so the straight line was taken there"
        )
    return sentences


def _gram(node: Node, evaluator: Evaluator, target: Target) -> np.ndarray:
    # a factor of two is what is asked for: three digits would do
    return gram_matrix(evaluator.children(node, target), node.weights(target), torch.float32)
