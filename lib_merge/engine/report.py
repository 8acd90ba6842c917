"""What a finished merge says of itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


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


@dataclass(slots=True)
class Report:
    """The result of a merge; `to_json` is what `--json` prints."""

    output: str
    method: str
    family: str
    modules: list[ModuleReport] = field(default_factory=list)
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    warnings: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    pruned: dict[str, float] = field(default_factory=dict)
    tensor_hash: str = ""
    precision: str = "fp16"

    @property
    def relative_error(self) -> float:
        """‖saved − asked‖ / ‖asked‖ over the whole LoRA."""
        size = sum(module.size**2 for module in self.modules)
        error = sum(module.error**2 for module in self.modules)
        return (error / size) ** 0.5 if size > 0 else (0.0 if error == 0 else float("inf"))

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
        found: dict[str, list[ModuleReport]] = {}
        for module in self.modules:
            found.setdefault(module.block, []).append(module)
        return {block: _block(members, total) for block, members in sorted(found.items())}

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready objects."""
        worst = self.worst()
        return {
            "output": self.output,
            "method": self.method,
            "family": self.family,
            "modules": len(self.modules),
            "rank": self.ranks(),
            "relative_error": self.relative_error,
            "worst_module": {"name": worst.name, "error": worst.relative} if worst else None,
            "energy_kept": self.energy_kept,
            "bytes": self.bytes,
            "precision": self.precision,
            "tensor_hash": self.tensor_hash,
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
            "peak_rss_mb": round(self.peak_rss_mb, 1),
            "warnings": self.warnings,
            "copied": self.copied,
            "left_out": self.left_out,
            "pruned": self.pruned,
            "blocks": self.blocks(),
        }

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
    library: Mapping[str, Any] | Any = ctypes.WinDLL("psapi")  # type: ignore[attr-defined]
    handle = ctypes.WinDLL("kernel32").GetCurrentProcess()  # type: ignore[attr-defined]
    if not library.GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.cb):
        return 0.0
    return counters.PeakWorkingSetSize / 1e6
