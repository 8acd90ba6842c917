"""What an analysis says of the sources, as plain values: each by itself, its training, and every two of them.

Norms are Frobenius norms of ΔW and have no unit; shares, cosines and conflicts are numbers from −1 or 0 to 1.

What an analysis says of a merge, as plain values, and the report that holds everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lib_merge.analysis.recognition import Mark
from lib_merge.recipe_edits import letter

# ------------------------------------------------------------------------ figures


@dataclass(frozen=True, slots=True)
class Part:
    """One source in one block, or in all of them.

    modules         modules that the source has here
    entries         entries of ΔW, Σ out·in·kh·kw
    norm            ‖ΔW‖
    share           of the source's energy ‖ΔW‖², 0…1
    peak            largest singular value
    effective_rank  exp(−Σ p ln p) with p = S²/ΣS², mean over modules weighted by energy
    stable_rank     ΣS²/S₀², likewise
    ranks           share of the energy -> the one rank for all these modules that keeps it
    mean, std       of all entries of ΔW, exact
    low, high       smallest and largest entry of ΔW among those sampled
    """

    modules: int
    entries: int
    norm: float
    share: float
    peak: float
    effective_rank: float
    stable_rank: float
    ranks: Mapping[float, int]
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TensorStats:
    """One tensor of a file: its key and the exact figures of its numbers; NaN where it holds NaN or
    infinity.
    """

    key: str
    count: int
    mean: float
    std: float
    low: float
    high: float
    finite: bool = True

    @property
    def zero(self) -> bool:
        """True when every number is 0."""
        return self.finite and self.low == 0.0 == self.high


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source file.

    name       file name, without its folder
    label      what it is called in the report
    kinds      kind of adapter -> modules
    rank       (least, greatest)
    whole      all blocks together
    blocks     block -> figures
    encoder    share of the energy in the text encoders, 0…1
    tensors    exact figures of every tensor
    zero       keys of tensors that are zero throughout
    broken     keys of tensors that hold NaN or infinity; their modules are left out of everything else
    largest    largest magnitude in any tensor
    headroom   65504 / largest: by how much the tensors may grow in fp16; infinite for an all-zero file
    estimated  modules stored as large whole matrices, whose weakest directions are estimated
    marks      what it is besides a LoRA of its family: a speed LoRA, a slider, an epoch …
    """

    name: str
    label: str
    bytes: int
    modules: int
    kinds: Mapping[str, int]
    rank: tuple[int, int]
    whole: Part
    blocks: Mapping[str, Part]
    encoder: float
    tensors: tuple[TensorStats, ...]
    zero: tuple[str, ...]
    broken: tuple[str, ...]
    largest: float
    headroom: float
    estimated: int
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One fact of the training, per source; None where the file does not tell."""

    field: str
    title: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        """True when two sources tell different things."""
        return len({value for value in self.values if value is not None}) > 1


@dataclass(frozen=True, slots=True)
class Training:
    """What the files say of their training, and warnings where they should not be mixed unseen."""

    rows: tuple[TrainingRow, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PairPart:
    """Two sources in one block, or in all of them.

    modules     modules that both have
    cosine      ⟨A, B⟩/(‖A‖·‖B‖); modules that only one has count in its norm; NaN where one has nothing
    overlap_out Σ‖UᵃᵀUᵇ‖²/Σ min(kᵃ, kᵇ) of the column spaces (what they write), chance_out what random ones
    would have
    overlap_in  the same of the row spaces (what they read)
    conflict    share of the sampled entries whose signs differ
    expected    arccos(cosine)/π, what that cosine brings by itself
    excess      conflict − expected
    error       one standard error of `conflict`
    samples     entries looked at
    """

    modules: int
    cosine: float
    overlap_out: float
    chance_out: float
    overlap_in: float
    chance_in: float
    conflict: float
    expected: float
    excess: float
    error: float
    samples: int


@dataclass(frozen=True, slots=True)
class PairReport:
    """Two sources, by their place in the list.

    relation  what they are to each other, one of `relations.RELATIONS`
    reason    the numbers behind it, in one sentence
    start     median cosine of the stored down projections, near 0 unless both began from the same random
              numbers
    scale     c of B ≈ c·A where one is a copy of the other, else 0
    """

    first: int
    second: int
    relation: str
    reason: str
    whole: PairPart
    blocks: Mapping[str, PairPart]
    start: float
    scale: float = 0.0


# ------------------------------------------------------------------------ model

if TYPE_CHECKING:
    from lib_merge.analysis.measure import Bench

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
class Pruned:
    """What one kind of pruning alone would do to the merge.

    field      of the recipe: `prune`, a share of the largest, or `prune_below`, a number
    threshold  the one that is set, or a usual one
    chosen     it is set
    modules    left out
    saved      bytes
    error      ‖what is pruned‖ ÷ ‖ΔW‖
    """

    field: str
    threshold: float
    chosen: bool
    modules: int
    saved: int
    error: float

    @property
    def said(self) -> str:
        """The same in a sentence's part."""
        kind = "of the largest" if self.field == "prune" else "absolute"
        return (
            f"pruning at {self.threshold:g} {kind}{' (set)' if self.chosen else ''} saves "
            f"{self.saved / 1e6:.2f} MB, error {self.error:.2%}"
        )


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
    pruning    what either kind of pruning would save and cost; empty where not every module was looked at
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
    pruning: tuple[Pruned, ...] = ()


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
