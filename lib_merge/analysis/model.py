"""What an analysis says of a merge, as plain values, and the report that holds everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lib_merge.analysis.figures import PairReport, SourceReport, Training
from lib_merge.recipe_edits import letter

if TYPE_CHECKING:
    from lib_merge.analysis.bench import Bench

STAGES = ("files", "sources", "pairs", "recipe", "methods", "advice")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The merge in one block, or in all of them.

    norm       ‖τ‖
    apart      √Σ‖wᵢΔWᵢ‖², the norm that unrelated sources would have together
    cancel     ‖τ‖/apart: below 1 they cancel, above 1 they add up
    to_source  ‖τ‖/‖ΔWᵢ‖, the merge beside each source at ratio 1; infinite where the source has nothing
    shares     |cᵢ|‖ΔWᵢ‖/Σ|cⱼ|‖ΔWⱼ‖ with c the best fit τ ≈ Σ cᵢΔWᵢ; who dominates
    evenness   entropy of the shares, 0 (one alone) … 1 (all alike)
    retention  ⟨τ, wᵢΔWᵢ⟩/‖wᵢΔWᵢ‖²: 1 = all of it is in, 2 = twice; NaN where a source has no part
    crosstalk  ‖(τ − wᵢΔWᵢ)Vᵢ‖/‖wᵢΔWᵢ‖ on the inputs Vᵢ that source i reads: what the others add to its own
               work
    growth     S₀(τ) / max S₀(wᵢΔWᵢ), the worst module
    """

    modules: int
    norm: float
    apart: float
    cancel: float
    to_source: tuple[float, ...]
    shares: tuple[float, ...]
    evenness: float
    retention: tuple[float, ...]
    crosstalk: tuple[float, ...]
    growth: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What one rank for all modules costs: relative Frobenius error, share of the energy kept, bytes of the
    factors.
    """

    rank: int
    error: float
    energy: float
    bytes: int


@dataclass(frozen=True, slots=True)
class RecipeReport:
    """What the recipe will make.

    ratios     of the sources, as asked
    total      Σ of the ratios
    policy     the rank policy in force, as it is typed
    rank       (least, greatest) rank that it keeps
    error      relative Frobenius error of that cut
    bytes      of the saved file, estimated to a few per cent
    curve      error and size against one rank for all modules
    weights    block -> per source, the weight asked for there, mean over modules by energy; NaN where it has
               nothing
    heard      block -> per source, ‖wᵢΔWᵢ‖
    seen       (modules looked at, modules of the merge); equal when nothing is estimated
    direct     True when every figure comes from Gram matrices of all modules
    """

    method: str
    title: str
    labels: tuple[str, ...]
    ratios: tuple[float, ...]
    total: float
    whole: Outcome
    blocks: Mapping[str, Outcome]
    policy: str
    rank: tuple[int, int]
    error: float
    bytes: int
    curve: tuple[CurvePoint, ...]
    weights: Mapping[str, tuple[float, ...]]
    heard: Mapping[str, tuple[float, ...]]
    seen: tuple[int, int]
    direct: bool


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method on the same sources and ratios.

    to_sum   ‖τ‖ beside the weighted sum's
    cosine   of τ and the weighted sum
    kept     share of the energy that a LoRA of the sources' ranks can hold; 1 for scalar and core methods
    seen     modules looked at, the same for all rows
    """

    name: str
    title: str
    space: str
    to_sum: float
    cosine: float
    shares: tuple[float, ...]
    retention: tuple[float, ...]
    crosstalk: tuple[float, ...]
    kept: float
    seen: int
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do.

    id       stable name
    title    what to do, a few words
    reason   why, one sentence with its numbers
    numbers  the numbers by name, JSON-ready
    apply    changes of the recipe for `recipe_edits.with_changes`; empty where only the user can act
    """

    id: str
    title: str
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    apply: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Symptom:
    """A complaint, what the numbers of this merge say to it, and what to try."""

    id: str
    title: str
    says: tuple[str, ...]
    tries: tuple[Advice, ...]


@dataclass(frozen=True, slots=True)
class AnalysisReport:
    """Everything known so far; `stage` is the last of `STAGES` that is complete.

    advice    what evidence speaks for; empty for an unremarkable merge
    starts    starting points by role, always there
    symptoms  the "What is wrong?" table, filled in for this merge
    handles   what the tab calls the sources, where it has called them something
    bench     what was measured, so that `reweigh` need not read the files again
    """

    stage: str
    family: str
    sources: tuple[SourceReport, ...] = ()
    training: Training = field(default_factory=Training)
    pairs: tuple[PairReport, ...] = ()
    recipe: RecipeReport | None = None
    methods: tuple[MethodRow, ...] = ()
    advice: tuple[Advice, ...] = ()
    starts: tuple[Advice, ...] = ()
    symptoms: tuple[Symptom, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    handles: tuple[str, ...] = ()
    bench: Bench | None = field(default=None, repr=False, compare=False)

    def handle(self, index: int) -> str:
        """Return what a source is called where there is little room: as the tab does, else A, B, …"""
        return self.handles[index] if index < len(self.handles) else letter(index)
