"""What a recipe will make, and what other methods would make of the same sources and ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from lib_merge.analysis.bench import Bench
from lib_merge.analysis.cut import curve, lost, overhead, prices, ranks_under, spectra
from lib_merge.analysis.model import MethodRow, Outcome, RecipeReport
from lib_merge.analysis.outcome import Outcomes, Weighing, by_block, coefficients, direct, summed, weigh
from lib_merge.analysis.weights import Leaf, plain
from lib_merge.methods import METHODS, Method, Space
from lib_merge.ranks.policy import PolicyKind
from lib_merge.recipe import Recipe


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
