"""What a change of a recipe would do, found out before it is advised.

A method on the same sources and ratios is foreseen as its line in the table of methods is. Other ratios,
fewer sources and another order are read off the Gram matrices wherever the method is a sum of the sources:
with τ = Σ cᵢΔWᵢ now and τ' = Σ c'ᵢΔWᵢ after the change, ‖τ'‖² = c'ᵀGc' and ⟨τ, τ'⟩ = cᵀGc'.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from lib_merge.analysis.measure import Bench
from lib_merge.analysis.model import Outcome
from lib_merge.analysis.outcome import (
    LINE_SAMPLE,
    Outcomes,
    Prospect,
    direct,
    modules_for,
    outcomes_of,
    stacks,
    summed,
    weigh,
)
from lib_merge.blocks.weights import resolve_blocks
from lib_merge.engine.tree import Leaf, Node
from lib_merge.families import blocks_present
from lib_merge.linalg import tolerances
from lib_merge.methods import Reads, Space, get_method
from lib_merge.recipe import Recipe
from lib_merge.recipe_edits import with_changes


@dataclass(frozen=True, slots=True)
class Trial:
    """What a merge would be after a change, beside what it is now.

    outcome   its figures over the modules looked at; what it keeps of a source is of what is asked for now
    outcomes  the same module by module
    size      ‖τ'‖ / ‖τ‖ over these modules; NaN where nothing is there now
    cosine    of τ' and τ; NaN where it is not known, as between two methods that are no sums
    to_sum, sum_cosine  the same two beside the weighted sum at the ratios of now
    """

    outcome: Outcome
    outcomes: Outcomes
    size: float
    cosine: float
    to_sum: float
    sum_cosine: float

    @property
    def nothing_new(self) -> bool:
        """Whether the merge would be what it is now: in direction, and in size."""
        return self.rescales and abs(self.size - 1.0) <= tolerances.SAME_SIZE

    @property
    def rescales(self) -> bool:
        """Whether the merge would only be stronger or weaker: its direction is the one of now."""
        return self.cosine >= tolerances.SAME_DIRECTION


def tried(prospect: Prospect, change: Mapping[str, Any], *, carry_out: bool = False) -> Trial | None:
    """Return what a change would make; None where that cannot be told.

    Args:
        prospect: the recipe as it is, with its outcomes.
        change: as `with_changes` takes it.
        carry_out: other ratios of a core method, too, at some modules.
    Raises:
        RecipeError: the change does not fit the recipe.
    """
    if prospect.outcomes is None:
        return None
    recipe = with_changes(prospect.recipe, change)
    if set(change) <= {"method"}:
        outcomes = outcomes_of(prospect, get_method(recipe.method))
        factors = _scalar(prospect.bench, prospect.tree.root.under(recipe), range(prospect.bench.count))
    else:
        node = _changed(prospect, recipe, change)
        if node is None:
            return None
        factors = _scalar(prospect.bench, node, change.get("keep") or range(prospect.bench.count))
        if factors is None:
            return _carried_out(prospect, node, change) if carry_out else None
        outcomes = direct(prospect.bench, prospect.weighing, factors)
    return None if outcomes is None else _trial(prospect, outcomes, factors)


def _carried_out(prospect: Prospect, node: Node, change: Mapping[str, Any]) -> Trial | None:
    """Return what a core method makes at other ratios, at some modules; None for other methods."""
    if prospect.foresee is None or node.method.space is not Space.CORE or change.get("keep"):
        return None
    bench = prospect.bench
    places = modules_for(bench, node.method, LINE_SAMPLE)
    outcomes = prospect.foresee(node, bench, weigh(bench, node), places).outcomes
    # its figures are beside what is asked for after the change, and not beside the merge of now
    return replace(_trial(prospect, outcomes, None), cosine=math.nan, to_sum=math.nan, sum_cosine=math.nan)


def sum_at(prospect: Prospect, trial: Trial) -> Outcome:
    """Return the figures of the weighted sum of now over the same modules, brought to the trial's strength.

    What a method does beyond making the sum stronger or weaker is the difference from this.
    """
    factors = prospect.weighing.asked * trial.to_sum
    plain = direct(prospect.bench, prospect.weighing, factors)
    return summed(prospect.bench, plain.at(trial.outcomes.places.tolist()))


def _trial(prospect: Prospect, outcomes: Outcomes, factors: np.ndarray | None) -> Trial:
    assert prospect.outcomes is not None
    places = sorted(set(outcomes.places.tolist()) & set(prospect.outcomes.places.tolist()))
    after, now = outcomes.at(places), prospect.outcomes.at(places)
    square, before, plain = (float(part.sum()) for part in (after.square, now.square, after.plain))
    return Trial(
        outcome=summed(prospect.bench, outcomes),
        outcomes=outcomes,
        size=math.sqrt(square / before) if before > 0 else math.nan,
        cosine=_cosine(prospect, after, factors),
        to_sum=math.sqrt(square / plain) if plain > 0 else math.nan,
        sum_cosine=_ratio(float(after.toward.sum()), math.sqrt(square * plain)),
    )


def _cosine(prospect: Prospect, after: Outcomes, factors: np.ndarray | None) -> float:
    """Return the cosine of what would be and what is."""
    node = prospect.tree.root
    if node.method.stacks and stacks(node):
        plain = math.sqrt(float(after.square.sum() * after.plain.sum()))
        return _ratio(float(after.toward.sum()), plain)
    now = _scalar(prospect.bench, node, range(prospect.bench.count))
    if now is None or factors is None:
        return math.nan
    gram = prospect.bench.products
    both, old, new = (
        float(np.einsum("mi,mij,mj->", one, gram, other))
        for one, other in ((now, factors), (now, now), (factors, factors))
    )
    return _ratio(both, math.sqrt(max(old * new, 0.0)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _changed(prospect: Prospect, recipe: Recipe, change: Mapping[str, Any]) -> Node | None:
    """Return a changed recipe of files in its tree; None for recipes with groups."""
    if not (prospect.recipe.flat and recipe.flat):
        return None
    order = change.get("keep") or range(prospect.bench.count)
    root = prospect.tree.root
    children: list[Leaf | Node] = []
    for place, source in zip(order, recipe.sources):
        child = root.children[place]
        assert isinstance(child, Leaf)
        own = replace(child, source=replace(child.source, ratio=source.ratio, te_ratio=source.te_ratio))
        if change.get("blocks") is not None:
            present = blocks_present(child.parts, root.family)
            own.block_weights = resolve_blocks(source.blocks, root.family, present, Random(0), source.label)[
                0
            ]
        children.append(own)
    node = replace(root.under(recipe), children=children)
    node.recipe = replace(recipe, sources=tuple(child.source for child in children if child.source))
    return node


def _scalar(bench: Bench, node: Node, order: Sequence[int]) -> np.ndarray | None:
    """Return Float64[module source], the cᵢ of a scalar method over files; 0 for sources it has not.

    Args:
        bench: measured modules.
        node: a recipe of files.
        order: places of its sources on the bench.
    """
    if node.method.space is not Space.SCALAR or not node.recipe.flat:
        return None
    modules = [module.task for module in bench.modules]
    rows = np.array([[c.weight(m.name, m.block, m.encoder) for c in node.children] for m in modules])
    places = list(order)
    grams = rows[:, :, None] * bench.products[:, places][:, :, places] * rows[:, None, :]
    whole = grams.sum(0)
    factors = np.zeros((len(modules), bench.count))
    for place, weights in enumerate(rows.tolist()):
        of_module = node.method.reads is Reads.MODULE
        read = functools.partial(grams.__getitem__, place) if of_module else (lambda: whole)
        factors[place, places] = node.coefficients(weights, read)
    return factors
