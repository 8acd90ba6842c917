"""What a merge makes of every module, as numbers; for scalar methods read off Gram matrices alone.

With ΔW of source i at a module, wᵢ what the recipe asks and τ = Σ cᵢΔWᵢ what the method makes of it:
‖τ‖² = cᵀGc, ⟨τ, ΔWᵢ⟩ = (Gc)ᵢ, ‖(τ − wᵢΔWᵢ)Vᵢ‖² = dᵀ·talk[i]·d with d = c − wᵢeᵢ.

What a recipe will make, and what other methods would make of the same sources and ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from lib_merge.analysis.cut import curve, lost, overhead, prices, ranks_under, spectra
from lib_merge.analysis.measure import Bench
from lib_merge.analysis.model import MethodRow, Outcome, RecipeReport
from lib_merge.analysis.weights import Leaf, plain
from lib_merge.methods import METHODS, Method, Reads, ScalarInput, Space
from lib_merge.ranks.policy import PolicyKind
from lib_merge.recipe import Recipe

# ------------------------------------------------------------------------ outcome


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


# ------------------------------------------------------------------------ prospect


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Outcomes of a method that Gram matrices alone cannot tell, at some modules of the bench.

    outcomes  of the modules that were looked at
    spectra   per such module, all singular values; () where they are not known
    """

    outcomes: Outcomes
    spectra: tuple[np.ndarray, ...] = ()


class Forecast(Protocol):
    """Evaluates a recipe for real at some of its modules; the engine has one."""

    def __call__(self, recipe: Recipe, bench: Bench, weighing: Weighing, modules: Sequence[int]) -> Foreseen:
        """Return the outcomes of `recipe` at the given places of the bench."""
        ...


@dataclass(slots=True)
class Prospect:
    """One recipe over one bench.

    spectra, stacked  singular values of τ and ranks before the cut per module of the bench; empty where only
                      the engine could tell
    """

    bench: Bench
    recipe: Recipe
    leaves: Sequence[Leaf]
    weighing: Weighing
    spectra: list[np.ndarray]
    stacked: np.ndarray
    outcomes: Outcomes | None = None
    report: RecipeReport | None = None


def look_ahead(
    bench: Bench,
    recipe: Recipe,
    leaves: Sequence[Leaf],
    forecast: Forecast | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Prospect:
    """Return what `recipe` will make of the measured sources.

    Scalar methods over files or plain groups are exact, from Gram matrices of every module. Others need
    `forecast`; without one the report stays empty. Inside a group with a method of its own, wᵢ is the product
    of the ratios on the way.

    Raises:
        RecipeError: the recipe itself is wrong.
        Cancelled: `cancelled()` became true.
    """
    recipe.check()
    weighing = weigh(bench, leaves, [source.ratio for source in recipe.sources])
    found = Prospect(bench, recipe, leaves, weighing, [], np.zeros(0, dtype=int))
    method = recipe.declared()
    if method.space is Space.SCALAR and plain(recipe):
        settings = method.settings(recipe.knobs, len(recipe.sources))
        factors = coefficients(bench, weighing, method, settings)
        found.spectra, found.stacked = spectra(bench, factors, cancelled)
        peaks = np.array([float(singular[0]) if len(singular) else 0.0 for singular in found.spectra])
        found.outcomes = direct(bench, weighing, factors, peaks)
        found.report = _report(found, found.outcomes, exact=True)
    elif forecast is not None:
        places = modules_for(bench, method)
        seen = forecast(recipe, bench, weighing, places)
        if len(seen.spectra) == len(bench.modules):
            found.spectra = list(seen.spectra)
            found.stacked = np.array(
                [int(np.count_nonzero(s > 1e-12 * s[0])) if len(s) else 0 for s in seen.spectra]
            )
        found.outcomes = seen.outcomes
        found.report = _report(found, seen.outcomes, exact=False)
    return found


# Modules looked at where a method must be carried out to be known; for a line of a table fewer will do.
CORE_SAMPLE, DENSE_SAMPLE, LINE_SAMPLE = 48, 16, 8


def modules_for(bench: Bench, method: Method, most: int | None = None) -> list[int]:
    """Return the modules that stand for all of them: evenly spaced in the order of names, so that every
    block is met.
    """
    count = len(bench.modules)
    wanted = most or (DENSE_SAMPLE if method.space is Space.DENSE else CORE_SAMPLE)
    if count <= wanted:
        return list(range(count))
    return sorted({int(step * count / wanted) for step in range(wanted)})


def _report(found: Prospect, outcomes: Outcomes, *, exact: bool) -> RecipeReport:
    bench, recipe = found.bench, found.recipe
    method = recipe.declared()
    blocks = {block: summed(bench, outcomes.at(places)) for block, places in bench.blocks().items()}
    rank, error, size, points = _cut(found, outcomes)
    return RecipeReport(
        method.name,
        method.title,
        tuple(file.label for file in bench.files),
        tuple(leaf.ratio for leaf in found.leaves),
        sum(source.ratio for source in recipe.sources),
        _whole(found, outcomes),
        {block: part for block, part in blocks.items() if part.modules},
        recipe.policy().text,
        rank,
        error,
        size,
        points,
        *by_block(bench, found.weighing),
        (len(outcomes), len(bench.modules)),
        exact,
    )


def _whole(found: Prospect, outcomes: Outcomes) -> Outcome:
    """Return the figures of the whole merge; where only some modules were seen, norms grow as the plain
    sum's does.
    """
    part = summed(found.bench, outcomes)
    if len(outcomes) == len(found.bench.modules) or not outcomes.plain.sum() > 0:
        return part
    asked, products = found.weighing.asked, found.bench.products
    plain = float(np.einsum("mi,mij,mj->", asked, products, asked))
    scale = math.sqrt(max(plain, 0.0) / float(outcomes.plain.sum()))
    full = found.bench.whole.diagonal()
    norm = part.norm * scale
    to_source = tuple(norm / math.sqrt(value) if value > 0 else math.inf for value in full)
    return replace(part, norm=norm, apart=part.apart * scale, to_source=to_source)


def _cut(found: Prospect, outcomes: Outcomes) -> tuple[tuple[int, int], float, int, Any]:
    """Return ((least, greatest) rank, error, bytes, curve)."""
    bench, recipe = found.bench, found.recipe
    if found.spectra:
        ranks = ranks_under(bench, recipe, found.spectra, found.stacked)
        size = int(ranks @ prices(bench, recipe)) + overhead(bench, recipe, ranks)
        kept = ranks[ranks > 0]
        error = 0.0 if recipe.policy().exact and recipe.conv_rank is None else lost(found.spectra, ranks)
        points = curve(bench, recipe, found.spectra, found.stacked)
        return (int(kept.min()) if len(kept) else 0, int(ranks.max(initial=0))), error, size, points
    stacked = np.array([min(sum(m.ranks), m.task.out, m.task.columns) for m in bench.modules], dtype=int)
    policy = recipe.policy()
    if policy.kind is PolicyKind.RANK:
        stacked = np.minimum(stacked, int(policy.value))
    size = int(stacked @ prices(bench, recipe)) + overhead(bench, recipe, stacked)
    if policy.kind is PolicyKind.BUDGET:
        size = int(policy.value)
    square = float(outcomes.square.sum())
    left = float((outcomes.square * (1.0 - outcomes.kept)).sum())
    error = math.sqrt(max(left, 0.0) / square) if square > 0 else 0.0
    return (int(stacked.min()) if len(stacked) else 0, int(stacked.max(initial=0))), error, size, ()


def fitting(recipe: Recipe) -> list[Method]:
    """Return the methods that could merge the recipe's sources as they are: right number, roles given,
    nothing taken away.
    """
    roles = sorted(source.role for source in recipe.sources if source.role)
    count = len(recipe.sources)
    found = []
    for method in METHODS.values():
        if count < 2 or not method.takes(count):
            continue
        if (method.roles and sorted(method.roles) != roles) or (
            method.removes and method.name != recipe.method
        ):
            continue
        found.append(method)
    return found


def compared(
    found: Prospect, forecast: Forecast | None = None, only: Sequence[str] | None = None
) -> tuple[MethodRow, ...]:
    """Return one row per method on the same sources and ratios.

    Args:
        found: the recipe looked at.
        forecast: for methods that Gram matrices alone cannot tell; without it they are left out.
        only: names of methods to compare; by default all that fit, but dense ones, which take seconds each.
    """
    rows = []
    for method in fitting(found.recipe):
        wanted = method.space is not Space.DENSE if only is None else method.name in only
        if not wanted and method.name != found.recipe.method:
            continue
        outcomes = _outcomes(found, method, forecast)
        if outcomes is not None:
            rows.append(_row(found, method, outcomes))
    return tuple(rows)


def _outcomes(found: Prospect, method: Method, forecast: Forecast | None) -> Outcomes | None:
    bench, recipe = found.bench, found.recipe
    if method.name == recipe.method:
        return found.outcomes
    if method.space is Space.SCALAR and plain(recipe):
        factors = coefficients(bench, found.weighing, method, method.settings({}, len(recipe.sources)))
        return direct(bench, found.weighing, factors)
    if forecast is None:
        return None
    rank = None if method.space is Space.DENSE and (recipe.rank is None or recipe.rank.exact) else recipe.rank
    other = replace(recipe, method=method.name, knobs={}, rank=rank)
    return forecast(other, bench, found.weighing, modules_for(bench, method, LINE_SAMPLE)).outcomes


def _row(found: Prospect, method: Method, outcomes: Outcomes) -> MethodRow:
    whole = summed(found.bench, outcomes)
    plain_square, square, toward = (
        float(getattr(outcomes, name).sum()) for name in ("plain", "square", "toward")
    )
    both = math.sqrt(plain_square * square)
    return MethodRow(
        method.name,
        method.title,
        method.space,
        math.sqrt(square / plain_square) if plain_square > 0 else math.nan,
        toward / both if both > 0 else math.nan,
        whole.shares,
        whole.retention,
        whole.crosstalk,
        float(outcomes.square @ outcomes.kept) / square if square > 0 else 1.0,
        len(outcomes),
        method.name == found.recipe.method,
    )
