"""Ranks decided over the whole LoRA: pruning of what carries next to nothing, and a budget shared by all
modules.

A threshold x is relative, since real deltas differ by orders of magnitude: ranks whose singular value is
    below x times
the module's largest go, and modules whose norm is below x times the largest module's norm go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lib_merge.engine.evaluate import Evaluator, module_policy
from lib_merge.engine.fillers import wanted_together
from lib_merge.engine.plan import Node, Target
from lib_merge.linalg.svd import numerical_rank
from lib_merge.linalg.truncate import singular_values
from lib_merge.ranks.budget import allot
from lib_merge.ranks.policy import PolicyKind, RankPolicy

BYTES = {"fp16": 2, "bf16": 2, "float": 4}


@dataclass(slots=True)
class PrunePlan:
    """Ranks to keep per module, and modules to drop.

    dropped modules that are left out, and why
    norms   ‖ΔW‖ per module
    saved   bytes that are not written
    error   ‖what was pruned‖ ÷ ‖ΔW‖
    """

    ranks: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    saved: int = 0
    error: float = 0.0
    pruned: bool = False

    def policy(self, target: Target, policy: RankPolicy) -> RankPolicy:
        """Return the rank policy of a module after pruning."""
        return RankPolicy(PolicyKind.RANK, self.ranks[target.name]) if target.name in self.ranks else policy

    def summary(self) -> dict[str, float]:
        """Return what the report says."""
        return {
            "modules": sum(why == "pruned" for why in self.dropped.values()),
            "ranks": sum(self.ranks.values()),
            "bytes_saved": self.saved,
            "relative_error": self.error,
        }


Each = Callable[[Callable[[Target], None], Sequence[Target]], None]


def measure_spectra(node: Node, evaluator: Evaluator, each: Each) -> dict[str, np.ndarray]:
    """Return every module's singular values, Float64[k] descending; dense results up to the sources' ranks.

    Args:
        node: the tree.
        evaluator: evaluates modules.
        each: runs a function over targets, on any thread.
    """
    spectra: dict[str, np.ndarray] = {}

    def look(target: Target) -> None:
        if target.columns and any(node.weights(target)):
            delta = evaluator.asked(node, target)
            spectra[target.name] = singular_values(delta, evaluator.device, target.stacked)

    each(look, list(node.targets.values()))
    return spectra


def plan_ranks(node: Node, evaluator: Evaluator, each: Each, fixed_bytes: int) -> PrunePlan:
    """Decide from every module's singular values what is pruned and how a budget is shared.

    Args:
        node: the tree; its recipe holds the threshold and the policy.
        evaluator: evaluates modules.
        each: runs a function over targets, on any thread.
        fixed_bytes: what the file holds beside its factors; part of a budget.
    Raises:
        RecipeError: the budget is too small.
    """
    spectra = measure_spectra(node, evaluator, each)
    needed = wanted_together(node)
    plan = PrunePlan(norms={name: float(np.linalg.norm(values)) for name, values in spectra.items()})
    if node.recipe.prune > 0:
        _prune(plan, node, spectra, needed)
    if node.policy.kind is PolicyKind.BUDGET:
        _share(plan, node, spectra, needed, int(node.policy.value) - fixed_bytes)
    return plan


def _prune(plan: PrunePlan, node: Node, spectra: dict[str, np.ndarray], needed: set[str]) -> None:
    largest = max(plan.norms.values(), default=0.0)
    lost = 0.0
    for name in sorted(spectra):
        target, values = node.targets[name], spectra[name]
        before = max(1, module_policy(node, target).choose(values, target.stacked))
        if module_policy(node, target).exact:
            before = min(target.stacked, target.out, target.columns)
        if plan.norms[name] < node.recipe.prune * largest and name not in needed:
            plan.dropped[name] = "pruned"
            plan.saved += before * (target.out + target.columns)
            lost += plan.norms[name] ** 2
            continue
        kept = min(before, max(1, int(np.count_nonzero(values >= node.recipe.prune * values[0]))))
        if kept < before:
            plan.ranks[name] = kept
            plan.saved += (before - kept) * (target.out + target.columns)
            lost += float(np.square(values[kept:before]).sum())
    plan.saved *= BYTES[node.recipe.precision]
    total = sum(norm**2 for norm in plan.norms.values())
    plan.error = math.sqrt(lost / total) if total else 0.0
    plan.pruned = True


def _share(
    plan: PrunePlan, node: Node, spectra: dict[str, np.ndarray], needed: set[str], budget: int
) -> None:
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
        held = numerical_rank(values)
        open_to_choice[name] = values[: min(most, held)]
    width = BYTES[node.recipe.precision]
    price = {name: (node.targets[name].out + node.targets[name].columns) * width for name in open_to_choice}
    least = dict.fromkeys(needed & set(open_to_choice), 1)
    for name, rank in allot(open_to_choice, price, budget, least).items():
        if rank:
            plan.ranks[name] = rank
        else:
            plan.ranks.pop(name, None)
            plan.dropped[name] = "not worth its bytes in this budget"
