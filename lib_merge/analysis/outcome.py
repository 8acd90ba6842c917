"""What a merge makes of every module, as numbers; for scalar methods read off Gram matrices alone.

With ΔW of source i at a module, wᵢ what the recipe asks and τ = Σ cᵢΔWᵢ what the method makes of it:
‖τ‖² = cᵀGc, ⟨τ, ΔWᵢ⟩ = (Gc)ᵢ, ‖(τ − wᵢΔWᵢ)Vᵢ‖² = dᵀ·talk[i]·d with d = c − wᵢeᵢ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lib_merge.analysis.bench import Bench
from lib_merge.analysis.model import Outcome
from lib_merge.analysis.weights import Leaf
from lib_merge.methods import Method, Reads, ScalarInput


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Figures of the merge at several modules, one row each.

    places   Int[module], of the modules on the bench
    asked    Float64[module source], ‖wᵢΔWᵢ‖²
    own      Float64[module source], ‖cᵢΔWᵢ‖², c the best fit τ ≈ Σ cᵢΔWᵢ
    square   Float64[module], ‖τ‖²
    pull     Float64[module source], ⟨τ, wᵢΔWᵢ⟩
    talk     Float64[module source], ‖(τ − wᵢΔWᵢ)Vᵢ‖²
    plain    Float64[module], ‖Σ wᵢΔWᵢ‖²
    toward   Float64[module], ⟨τ, Σ wᵢΔWᵢ⟩
    growth   Float64[module], S₀(τ) / max S₀(wᵢΔWᵢ); NaN where it is not known
    kept     Float64[module], share of ‖τ‖² that the rank policy keeps
    """

    places: np.ndarray
    asked: np.ndarray
    own: np.ndarray
    square: np.ndarray
    pull: np.ndarray
    talk: np.ndarray
    plain: np.ndarray
    toward: np.ndarray
    growth: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        """Return the number of modules."""
        return len(self.places)

    def at(self, places: Sequence[int]) -> Outcomes:
        """Return the rows of these modules."""
        rows = np.flatnonzero(np.isin(self.places, np.asarray(places, dtype=int)))
        return Outcomes(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Weighing:
    """The weights of a recipe on a bench.

    outer   Float64[module source], of the recipe's own source that holds the file
    inner   Float64[module source], of the file inside its group; 1 without groups
    groups  Int[source], which of the recipe's own sources holds the file
    ratios  of the recipe's own sources
    """

    outer: np.ndarray
    inner: np.ndarray
    groups: np.ndarray
    ratios: tuple[float, ...]

    @property
    def asked(self) -> np.ndarray:
        """Float64[module source], wᵢ."""
        return self.outer * self.inner


def weigh(bench: Bench, leaves: Sequence[Leaf], ratios: Sequence[float]) -> Weighing:
    """Return the weights of every source at every module of the bench."""
    rows = [
        [leaf.weights(m.task.name, m.task.block, m.task.encoder) for leaf in leaves] for m in bench.modules
    ]
    table = np.array(rows, dtype=float).reshape(len(bench.modules), len(leaves), 2)
    return Weighing(table[:, :, 0], table[:, :, 1], np.array([leaf.group for leaf in leaves]), tuple(ratios))


def by_block(
    bench: Bench, weighing: Weighing
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Return block -> wᵢ per source (mean over its modules by energy), and block -> ‖wᵢΔWᵢ‖ per source."""
    asked = weighing.asked
    energy = bench.products.diagonal(axis1=1, axis2=2).clip(0)
    weights, heard = {}, {}
    for block, places in bench.blocks().items():
        own, total = asked[places], energy[places].sum(0)
        mean = np.divide(
            (own * energy[places]).sum(0), total, out=np.full(len(total), math.nan), where=total > 0
        )
        weights[block] = tuple(float(value) for value in mean)
        heard[block] = tuple(float(value) for value in np.sqrt((np.square(own) * energy[places]).sum(0)))
    return weights, heard


def coefficients(bench: Bench, weighing: Weighing, method: Method, settings: Mapping[str, Any]) -> np.ndarray:
    """Return Float64[module source], the cᵢ of a scalar method at every module.

    Args:
        bench: measured modules.
        weighing: what the recipe asks for.
        method: in scalar space.
        settings: its knobs, resolved.
    """
    groups = np.arange(len(weighing.ratios))
    member = (weighing.groups[None, :] == groups[:, None]).astype(float)  # Float64[group source]
    first = member.argmax(1)
    grams = np.zeros((len(bench.modules), len(groups), len(groups)))
    if method.reads is not Reads.NOTHING:
        rows = member[None] * weighing.asked[:, None, :]
        grams = rows @ bench.products @ rows.transpose(0, 2, 1)  # ⟨wᵢΔWᵢ, wⱼΔWⱼ⟩ of the recipe's own sources
    whole = grams.sum(0)
    known: dict[tuple[float, ...], list[float]] = {}
    found = np.zeros_like(weighing.outer)
    for place, weights in enumerate(map(tuple, weighing.outer[:, first].tolist())):
        if method.reads is Reads.MODULE:
            each = method.function(ScalarInput(weights, weighing.ratios, _constant(grams[place])), **settings)
        else:
            if weights not in known:
                known[weights] = method.function(
                    ScalarInput(weights, weighing.ratios, _constant(whole)), **settings
                )
            each = known[weights]
        found[place] = np.asarray(each)[weighing.groups]
    return found * weighing.inner


def _constant(gram: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: gram


def direct(bench: Bench, weighing: Weighing, found: np.ndarray, peaks: np.ndarray | None = None) -> Outcomes:
    """Return the figures of τ = Σ cᵢΔWᵢ at every module.

    Args:
        bench: measured modules.
        weighing: what the recipe asks for.
        found: Float64[module source], cᵢ.
        peaks: Float64[module], S₀(τ), where it is known.
    """
    asked, gram = weighing.asked, bench.products
    energy = gram.diagonal(axis1=1, axis2=2)
    applied = np.einsum("mij,mj->mi", gram, found)
    away = found[:, None, :] - asked[:, :, None] * np.eye(bench.count)  # row i: d = c − wᵢeᵢ
    talk = np.einsum("mij,mijk,mik->mi", away, bench.talk, away)
    count = len(bench.modules)
    return Outcomes(
        np.arange(count),
        np.square(asked) * energy,
        np.square(found) * energy,
        (found * applied).sum(1).clip(0),
        applied * asked,
        talk.clip(0),
        np.einsum("mi,mij,mj->m", asked, gram, asked).clip(0),
        (applied * asked).sum(1),
        np.full(count, math.nan) if peaks is None else growth(bench, asked, peaks),
        np.ones(count),
    )


def growth(
    bench: Bench, asked: np.ndarray, peaks: np.ndarray, places: Sequence[int] | None = None
) -> np.ndarray:
    """Return Float64[module], S₀(τ) / max S₀(wᵢΔWᵢ); NaN where nothing is asked for.

    Args:
        bench: measured modules.
        asked: Float64[module source], wᵢ.
        peaks: Float64[module], S₀(τ).
        places: of these modules on the bench; all by default.
    """
    tops = bench.peaks if places is None else bench.peaks[np.asarray(places, dtype=int)]
    largest = (np.abs(asked) * tops).max(1, initial=0.0)
    return np.divide(peaks, largest, out=np.full(len(largest), math.nan), where=largest > 0)


def summed(bench: Bench, found: Outcomes) -> Outcome:
    """Return the figures of several modules together."""
    full = bench.products[found.places].diagonal(axis1=1, axis2=2).sum(0)
    asked, own, pull, talk = (getattr(found, name).sum(0) for name in ("asked", "own", "pull", "talk"))
    norm, apart = math.sqrt(float(found.square.sum())), math.sqrt(float(own.sum()))
    contributions = np.sqrt(own)
    total = float(contributions.sum())
    shares = contributions / total if total > 0 else contributions
    grown = found.growth[~np.isnan(found.growth)]
    return Outcome(
        len(found),
        norm,
        apart,
        norm / apart if apart > 0 else math.nan,
        tuple(norm / math.sqrt(value) if value > 0 else math.inf for value in full),
        tuple(float(share) for share in shares),
        _evenness(shares),
        tuple(float(p / a) if a > 0 else math.nan for p, a in zip(pull, asked)),
        tuple(math.sqrt(float(t / a)) if a > 0 else math.nan for t, a in zip(talk, asked)),
        float(grown.max()) if len(grown) else math.nan,
    )


def _evenness(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    if len(shares) < 2 or not len(positive):
        return 0.0
    return float(-(positive * np.log(positive)).sum() / math.log(len(shares)))
