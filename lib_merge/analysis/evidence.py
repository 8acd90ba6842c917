"""The numbers that advice is drawn from, gathered once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lib_merge.analysis.model import AnalysisReport, PairReport, RecipeReport
from lib_merge.analysis.outcome import Prospect, uses
from lib_merge.analysis.recognition import held
from lib_merge.analysis.sources import SAME_LORA
from lib_merge.analysis.trial import Trial, tried
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe import Recipe

# Cosine from which two sources want so much of the same that a sum counts it twice.
SAME = 0.5


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a merge when advice is drawn.

    heard     Float64[source], ‖wᵢΔWᵢ‖ over everything
    each      Float64[source], the same at ratio 1
    encoders  Float64[source source], ⟨ΔWᵢ, ΔWⱼ⟩ over the text encoders
    flat      the recipe has no groups, so that ratios belong to files
    held      places of sources that keep their ratio, as speed LoRAs do
    trials    what changes would make, as far as it was asked
    """

    report: AnalysisReport
    prospect: Prospect
    heard: np.ndarray
    each: np.ndarray
    encoders: np.ndarray
    flat: bool
    held: frozenset[int] = frozenset()
    trials: dict[str, Trial | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def recipe(self) -> Recipe:
        """The recipe that was looked at."""
        return self.prospect.recipe

    @property
    def outcome(self) -> RecipeReport | None:
        """What it will make, where that is known."""
        return self.report.recipe

    @property
    def names(self) -> list[str]:
        """What the sources are called."""
        return [source.label for source in self.report.sources]

    @property
    def ratios(self) -> list[float]:
        """Ratio per file."""
        return [use.ratio for use in uses(self.prospect.tree.root)]

    @property
    def strength(self) -> float:
        """‖Σ wᵢΔWᵢ‖, exact; what a weighted sum would be, without the sources that keep their ratio."""
        asked = np.array(self.prospect.weighing.asked)
        asked[:, sorted(self.held)] = 0.0
        return math.sqrt(
            max(float(np.einsum("mi,mij,mj->", asked, self.prospect.bench.products, asked)), 0.0)
        )

    @property
    def free(self) -> np.ndarray:
        """Bool[source], those whose ratio may be changed."""
        return np.array([index not in self.held for index in range(len(self.names))])

    def keeping(self, ratios: Sequence[float]) -> list[float]:
        """Return ratios in which sources that keep theirs have it."""
        return [
            old if index in self.held else new for index, (old, new) in enumerate(zip(self.ratios, ratios))
        ]

    @property
    def kept(self) -> str:
        """Say which sources keep their ratio, and why, as the end of a sentence; "" where none does."""
        marks = {index: held(self.report.sources[index].marks) for index in sorted(self.held)}
        named = [f"{self.names[index]} keeps its ratio: {mark.said}" for index, mark in marks.items() if mark]
        return f" ({'; '.join(named)})" if named else ""

    def tried(self, change: Mapping[str, Any], *, carry_out: bool = False) -> Trial | None:
        """Return what a change would make, see `trial.tried`; what was tried once is remembered."""
        key = repr((sorted(change.items()), carry_out))
        if key not in self.trials:
            self.trials[key] = tried(self.prospect, change, carry_out=carry_out)
        return self.trials[key]

    def worthwhile(self, change: Mapping[str, Any], *, known: bool = True) -> bool:
        """Tell whether a change makes another merge than the one there is.

        Args:
            change: as `with_changes` takes it.
            known: what is answered where it cannot be told.
        """
        trial = self.tried(change)
        return known if trial is None else not trial.nothing_new

    def pairs(self, *relations: str) -> list[PairReport]:
        """Return the pairs with one of these relations."""
        return [pair for pair in self.report.pairs if pair.relation in relations]

    def free_pairs(self, *relations: str) -> list[PairReport]:
        """Return the pairs with one of these relations of which neither keeps its ratio."""
        return [pair for pair in self.pairs(*relations) if self.held.isdisjoint((pair.first, pair.second))]

    @property
    def copies(self) -> bool:
        """Whether two sources are one LoRA."""
        return bool(self.pairs(*SAME_LORA))

    @property
    def all_related(self) -> bool:
        """Whether every pair of sources largely wants the same."""
        pairs = self.free_pairs("related", "same start")
        count = len(self.names)
        close = [pair for pair in pairs if pair.whole.cosine >= SAME]
        return count > 1 and len(close) == count * (count - 1) // 2

    def te_ratios(self, factors: Sequence[float]) -> list[Any] | None:
        """Return text-encoder ratios times factors; None where no source has its own."""
        sources = self.recipe.sources
        if all(source.te_ratio is None for source in sources):
            return None
        ratios: list[Any] = []
        for source, factor in zip(sources, factors):
            own = source.te_ratio
            if own is None:
                ratios.append(None)
            else:
                ratios.append(
                    [tidy(x * factor) for x in own] if isinstance(own, tuple) else tidy(own * factor)
                )
        return ratios


def evidence(report: AnalysisReport, prospect: Prospect) -> Evidence:
    """Gather what advice needs."""
    bench, asked = prospect.bench, prospect.weighing.asked
    heard = np.sqrt((np.square(asked) * bench.products.diagonal(axis1=1, axis2=2)).sum(0).clip(0))
    ratios = np.array([abs(use.ratio) for use in uses(prospect.tree.root)])
    each = np.divide(heard, ratios, out=np.sqrt(bench.whole.diagonal().clip(0)), where=ratios > 0)
    encoders = bench.products[[bool(module.task.encoder) for module in bench.modules]].sum(0)
    return Evidence(
        report=report,
        prospect=prospect,
        heard=heard,
        each=each,
        encoders=encoders,
        flat=prospect.recipe.flat,
        held=held_places(report),
    )


def held_places(report: AnalysisReport) -> frozenset[int]:
    """Return the places of sources that keep their ratio, as speed LoRAs do."""
    return frozenset(index for index, source in enumerate(report.sources) if held(source.marks))


def policy_words(text: str) -> str:
    """Return a rank policy in words: `rank 8`."""
    return parse_policy(text).words


def megabytes(size: float) -> str:
    """Return bytes as people read them."""
    return f"{size / 1e6:.1f} MB"


def tidy(value: float) -> float:
    """Return a number as a person would type it: two decimals, or two digits where it is small."""
    if abs(value) >= 0.1 or value == 0:
        return round(value, 2)
    return float(f"{value:.2g}")


def percent(value: float, digits: int = 0) -> str:
    """Return a share as text; a share that is not known as a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}%}"


def plus(value: float, digits: int = 3) -> str:
    """Return a number with fixed decimals and without a minus before nothing."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def both(ratios: Sequence[float]) -> str:
    """Return ratios side by side: `0.83 / 0.17`."""
    return " / ".join(f"{ratio:g}" for ratio in ratios)
