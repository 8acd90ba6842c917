"""The numbers that advice is drawn from, gathered once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib_merge.analysis.figures import PairReport
from lib_merge.analysis.model import AnalysisReport, RecipeReport
from lib_merge.analysis.prospect import Prospect
from lib_merge.analysis.weights import flat
from lib_merge.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a merge when advice is drawn.

    heard     Float64[source], ‖wᵢΔWᵢ‖ over everything
    each      Float64[source], the same at ratio 1
    encoders  Float64[source source], ⟨ΔWᵢ, ΔWⱼ⟩ over the text encoders
    flat      the recipe has no groups, so that ratios belong to files
    """

    report: AnalysisReport
    prospect: Prospect
    heard: np.ndarray
    each: np.ndarray
    encoders: np.ndarray
    flat: bool

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
        return [leaf.ratio for leaf in self.prospect.leaves]

    @property
    def strength(self) -> float:
        """‖Σ wᵢΔWᵢ‖, exact; what a weighted sum would be."""
        return math.sqrt(self.plain_square)

    @property
    def plain_square(self) -> float:
        """‖Σ wᵢΔWᵢ‖²."""
        asked = self.prospect.weighing.asked
        return max(float(np.einsum("mi,mij,mj->", asked, self.prospect.bench.products, asked)), 0.0)

    def pairs(self, *relations: str) -> list[PairReport]:
        """Return the pairs with one of these relations."""
        return [pair for pair in self.report.pairs if pair.relation in relations]

    def te_ratios(self, factors: Sequence[float], *, always: bool = False) -> list[Any] | None:
        """Return text-encoder ratios times factors; None where no source has its own (unless `always`)."""
        sources = self.recipe.sources
        if not always and all(source.te_ratio is None for source in sources):
            return None
        found: list[Any] = []
        for source, factor in zip(sources, factors):
            own = source.te_ratio
            if own is None:
                found.append(tidy(source.ratio * factor) if always else None)
            else:
                found.append(
                    [tidy(x * factor) for x in own] if isinstance(own, tuple) else tidy(own * factor)
                )
        return found


def evidence(report: AnalysisReport, prospect: Prospect) -> Evidence:
    """Gather what advice needs."""
    bench, asked = prospect.bench, prospect.weighing.asked
    heard = np.sqrt((np.square(asked) * bench.products.diagonal(axis1=1, axis2=2)).sum(0).clip(0))
    ratios = np.array([abs(leaf.ratio) for leaf in prospect.leaves])
    each = np.divide(heard, ratios, out=np.sqrt(bench.whole.diagonal().clip(0)), where=ratios > 0)
    encoders = bench.products[[bool(module.task.encoder) for module in bench.modules]].sum(0)
    return Evidence(report, prospect, heard, each, encoders, flat(prospect.recipe))


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
