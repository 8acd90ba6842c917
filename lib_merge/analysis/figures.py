"""What an analysis says of the sources, as plain values: each by itself, its training, and every two of them.

Norms are Frobenius norms of ΔW and have no unit; shares, cosines and conflicts are numbers from −1 or 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
