"""Pruning: ranks and modules that carry next to nothing are left out, and what that cost is said.

A threshold x is relative, since real deltas differ by orders of magnitude: ranks whose singular value is below x times
the module's largest go, and modules whose norm is below x times the largest module's norm go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lib_merge.compress import RankPolicy, singular_values
from lib_merge.engine.evaluate import Evaluator, module_policy
from lib_merge.engine.plan import Node, Target

BYTES = {"fp16": 2, "bf16": 2, "float": 4}


@dataclass(slots=True)
class PrunePlan:
    """Ranks to keep per module, and modules to drop.

    norms   ‖ΔW‖ per module
    saved   bytes that are not written
    error   ‖what was pruned‖ ÷ ‖ΔW‖
    """

    ranks: dict[str, int] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    norms: dict[str, float] = field(default_factory=dict)
    saved: int = 0
    error: float = 0.0

    def policy(self, target: Target, policy: RankPolicy) -> RankPolicy:
        """Return the rank policy of a module after pruning."""
        return RankPolicy("rank", self.ranks[target.name]) if target.name in self.ranks else policy

    def summary(self) -> dict[str, float]:
        """Return what the report says."""
        return {
            "modules": len(self.dropped),
            "ranks": sum(self.ranks.values()),
            "bytes_saved": self.saved,
            "relative_error": self.error,
        }


def plan_prune(
    node: Node, evaluator: Evaluator, each: Callable[[Callable[[Target], None], Sequence[Target]], None]
) -> PrunePlan:
    """Look at every module's singular values and decide what goes.

    Args:
        node: the tree; its recipe holds the threshold.
        evaluator: evaluates modules.
        each: runs a function over targets, on any thread.
    """
    spectra: dict[str, np.ndarray] = {}

    def look(target: Target) -> None:
        if target.columns and any(node.weights(target)):
            spectra[target.name] = singular_values(evaluator.asked(node, target), evaluator.device)

    each(look, list(node.targets.values()))
    norms = {name: float(np.linalg.norm(values)) for name, values in spectra.items()}
    largest = max(norms.values(), default=0.0)
    plan = PrunePlan(norms=norms)
    lost = 0.0
    for name in sorted(spectra):
        target, values = node.targets[name], spectra[name]
        before = max(1, module_policy(node, target).choose(values, target.stacked))
        if module_policy(node, target).exact:
            before = min(target.stacked, target.out, target.columns)
        if norms[name] < node.recipe.prune * largest:
            plan.dropped.add(name)
            plan.saved += before * (target.out + target.columns)
            lost += norms[name] ** 2
            continue
        kept = min(before, max(1, int(np.count_nonzero(values >= node.recipe.prune * values[0]))))
        if kept < before:
            plan.ranks[name] = kept
            plan.saved += (before - kept) * (target.out + target.columns)
            lost += float(np.square(values[kept:before]).sum())
    plan.saved *= BYTES[node.recipe.precision]
    total = sum(norm**2 for norm in norms.values())
    plan.error = math.sqrt(lost / total) if total else 0.0
    return plan
