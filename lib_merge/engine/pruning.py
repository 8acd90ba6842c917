"""Ranks that are decided by comparing all modules: what is pruned, and how a budget is shared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lib_merge.engine.room import wanted_together
from lib_merge.engine.tree import Node, Target
from lib_merge.linalg.svd import numerical_rank
from lib_merge.ranks.budget import allot
from lib_merge.ranks.policy import WIDTHS, PolicyKind, RankPolicy

Spectra = Mapping[str, np.ndarray]
PRUNED = "pruned"


@dataclass(slots=True)
class RankPlan:
    """Ranks to keep per module, and modules to drop, where that was decided over the whole LoRA.

    ranks   of modules that keep fewer than their policy alone would let them
    dropped modules that are left out, and why
    norms   ‖ΔW‖ per module, what a whole matrix has beyond the ranks that are looked at included
    saved   bytes that pruning saves
    error   ‖what was pruned‖ ÷ ‖ΔW‖
    pruned  there was a threshold
    """

    ranks: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    saved: int = 0
    error: float = 0.0
    pruned: bool = False

    def policy_at(self, node: Node, target: Target) -> RankPolicy:
        """Return the rank policy of a module of the result."""
        rank = self.ranks.get(target.name)
        return node.policy_at(target) if rank is None else RankPolicy(PolicyKind.RANK, rank)

    def summary(self) -> dict[str, float]:
        """Return what the report says."""
        return {
            "modules": sum(why == PRUNED for why in self.dropped.values()),
            "ranks": sum(self.ranks.values()),
            "bytes_saved": self.saved,
            "relative_error": self.error,
        }


def plan_ranks(
    node: Node, spectra: Spectra, fixed_bytes: int, sizes: Mapping[str, float] | None = None
) -> RankPlan:
    """Decide from every module's singular values what is pruned and how a budget is shared.

    A threshold x of relative pruning goes by the largest, since real deltas differ by orders of magnitude:
    ranks whose singular value is below x times the module's largest go, and modules whose norm is below x
    times the largest module's norm go. An absolute one is a number: ranks whose singular value is below it
    go, and modules that have no other.

    Args:
        node: the tree; its recipe holds the thresholds and the policy.
        spectra: module name -> Float64[k], descending.
        fixed_bytes: what the file holds beside its factors; part of a budget.
        sizes: ‖ΔW‖ per module, where the spectra do not hold all of it.
    Raises:
        RecipeError: the budget is too small.
    """
    needed = wanted_together(node)
    plan = RankPlan(norms={name: float(np.linalg.norm(values)) for name, values in spectra.items()})
    if node.recipe.prunes:
        _prune(plan, node, spectra, needed)
    if node.policy.kind is PolicyKind.BUDGET:
        _share(plan, node, spectra, needed, int(node.policy.value) - fixed_bytes)
    plan.norms |= sizes or {}
    return plan


def _prune(plan: RankPlan, node: Node, spectra: Spectra, needed: set[str]) -> None:
    recipe, largest = node.recipe, max(plan.norms.values(), default=0.0)
    lost = 0.0
    for name in sorted(spectra):
        target, values = node.targets[name], spectra[name]
        policy = node.policy_at(target)
        before = max(1, policy.choose(values, target.stacked))
        if policy.exact:
            before = min(target.stacked, target.out, target.columns)
        small = plan.norms[name] < recipe.prune * largest or values[0] < recipe.prune_below
        if small and name not in needed:
            plan.dropped[name] = PRUNED
            plan.saved += before * (target.out + target.columns)
            lost += plan.norms[name] ** 2
            continue
        least = max(recipe.prune * float(values[0]), recipe.prune_below)
        kept = min(before, max(1, int(np.count_nonzero(values >= least))))
        if kept < before:
            plan.ranks[name] = kept
            plan.saved += (before - kept) * (target.out + target.columns)
            lost += float(np.square(values[kept:before]).sum())
    plan.saved *= WIDTHS[recipe.precision]
    total = sum(norm**2 for norm in plan.norms.values())
    plan.error = math.sqrt(lost / total) if total else 0.0
    plan.pruned = True


def _share(plan: RankPlan, node: Node, spectra: Spectra, needed: set[str], budget: int) -> None:
    open_to_choice = {}
    for name, values in spectra.items():
        if name in plan.dropped:
            continue
        if plan.norms[name] == 0 and name not in needed:
            plan.dropped[name] = "zero"
            continue
        target = node.targets[name]
        most = min(plan.ranks.get(name, target.stacked), target.stacked)
        if target.convolution and node.recipe.conv_rank is not None:
            most = min(most, node.recipe.conv_rank)
        open_to_choice[name] = values[: min(most, numerical_rank(values))]
    width = WIDTHS[node.recipe.precision]
    price = {name: (node.targets[name].out + node.targets[name].columns) * width for name in open_to_choice}
    least = dict.fromkeys(needed & set(open_to_choice), 1)
    for name, rank in allot(open_to_choice, price, budget, least).items():
        if rank:
            plan.ranks[name] = rank
        else:
            plan.ranks.pop(name, None)
            plan.dropped[name] = "not worth its bytes in this budget"
