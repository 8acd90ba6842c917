"""What must be known of the whole LoRA before the first module is merged.

Some methods ask for norms, or for one threshold over everything; pruning and a budget decide how many ranks
each module keeps by comparing all of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lib_merge.engine.evaluate import Evaluator, Memo, gram_matrix, over_modules
from lib_merge.engine.foresee import foresee
from lib_merge.engine.job import Job
from lib_merge.engine.tiles import DenseModule
from lib_merge.engine.tree import Node, Target, Tree, wanted_together
from lib_merge.linalg.order import histogram_of, locate, members_of, place_of
from lib_merge.linalg.svd import numerical_rank
from lib_merge.linalg.truncate import singular_values
from lib_merge.methods import Reads
from lib_merge.ranks.budget import allot
from lib_merge.ranks.policy import PolicyKind, RankPolicy
from lib_merge.ranks.size import WIDTHS, SizeEstimate

Spectra = Mapping[str, np.ndarray]


@dataclass(slots=True)
class RankPlan:
    """Ranks to keep per module, and modules to drop, where that was decided over the whole LoRA.

    ranks   of modules that keep fewer than their policy alone would let them
    dropped modules that are left out, and why
    norms   ‖ΔW‖ per module
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
            "modules": sum(why == "pruned" for why in self.dropped.values()),
            "ranks": sum(self.ranks.values()),
            "bytes_saved": self.saved,
            "relative_error": self.error,
        }


@dataclass(slots=True)
class Plan:
    """How a tree is carried out: what must be known of the whole first, and what writing adds for the proof.

    size       what was foreseen of the file
    evaluator  with whole-recipe figures
    kept       ranks that were decided over all modules
    cuts       per module, ‖asked − best of its rank‖
    spectra    singular values of modules that were cut
    anew       modules whose factors are made anew where they would be copied
    """

    size: SizeEstimate
    evaluator: Evaluator
    kept: RankPlan = field(default_factory=RankPlan)
    cuts: dict[str, float] = field(default_factory=dict)
    spectra: dict[str, np.ndarray] = field(default_factory=dict)
    anew: set[str] = field(default_factory=set)


def survey(tree: Tree, device: torch.device, job: Job) -> Plan:
    """Return what must be known of the whole LoRA before its first module is merged.

    Raises:
        RecipeError: a budget is too small.
    """
    node = tree.root
    plan = Plan(foresee(tree), Evaluator(device, memo=Memo()))
    measure_whole(node, plan.evaluator, job)
    if node.recipe.prune > 0 or node.policy.kind is PolicyKind.BUDGET:
        spectra = measure_spectra(node, plan.evaluator, job)
        plan.kept = plan_ranks(node, spectra, plan.size.fixed)
    return plan


def measure_whole(node: Node, evaluator: Evaluator, job: Job) -> None:
    """Fill the evaluator's whole-recipe figures for every node that needs them, inner groups first.

    Args:
        node: the tree.
        evaluator: receives Gram matrices and thresholds.
        job: progress and cancel.
    """
    for child in node.children:
        if isinstance(child, Node):
            measure_whole(child, evaluator, job)
    if node.method.reads is Reads.RECIPE:
        evaluator.grams[id(node)] = _whole_gram(node, evaluator, job)
    fractions = node.method.global_trim(node.settings)
    if fractions is not None:
        evaluator.bounds[id(node)] = _global_bounds(node, evaluator, job, fractions)


def _each(
    work: Callable[[Target], None], modules: Sequence[Target], node: Node, device: torch.device, job: Job
) -> None:
    deque(over_modules(work, modules, node, device, job, stage="survey"), maxlen=0)


def _matrices(node: Node) -> list[Target]:
    return [target for target in node.targets.values() if target.columns]


def _whole_gram(node: Node, evaluator: Evaluator, job: Job) -> np.ndarray:
    grams: dict[str, np.ndarray] = {}

    def measure(target: Target) -> None:
        grams[target.name] = gram_matrix(evaluator.children(node, target), node.weights(target))

    _each(measure, _matrices(node), node, evaluator.device, job)
    # summed in a fixed order: threads must not decide the last digit
    return sum((grams[name] for name in sorted(grams)), np.zeros((len(node.children), len(node.children))))


def _global_bounds(node: Node, evaluator: Evaluator, job: Job, fractions: Sequence[float]) -> list[float]:
    """Return per source the exact magnitude under which its fraction of all entries lies; −1 for none.

    Two passes over the files: a histogram of every entry, then the members of the one bucket that holds the
    threshold. Entries of modules that a source lacks are zeros and count like any other.
    """
    targets = _matrices(node)
    sources = range(len(node.children))
    histograms: dict[str, list[Tensor]] = {}

    def count(target: Target) -> None:
        module = DenseModule(node.weights(target), evaluator.children(node, target), evaluator.device)
        histograms[target.name] = [histogram_of(module.magnitudes(source)) for source in sources]

    _each(count, targets, node, evaluator.device, job)
    entries = sum(target.out * target.columns for target in targets)
    trimmed = [place_of(fraction, entries) for fraction in fractions]
    if not any(trimmed):
        return [-1.0 for _ in sources]
    nothing = torch.zeros((), dtype=torch.int64)
    # a source that keeps everything is looked up like the others, and its bound then forgotten
    places = [
        locate(sum((module[source] for module in histograms.values()), nothing), max(trimmed[source], 1))
        for source in sources
    ]
    members: dict[str, list[Tensor]] = {}

    def collect(target: Target) -> None:
        module = DenseModule(node.weights(target), evaluator.children(node, target), evaluator.device)
        members[target.name] = [
            members_of(module.magnitudes(source), places[source][0]) for source in sources
        ]

    _each(collect, targets, node, evaluator.device, job)
    return [
        float(
            torch.kthvalue(
                torch.cat([module[source] for module in members.values()]), places[source][1]
            ).values
        )
        if trimmed[source]
        else -1.0
        for source in sources
    ]


# ---------------------------------------------------------------- ranks decided over everything


def measure_spectra(node: Node, evaluator: Evaluator, job: Job) -> dict[str, np.ndarray]:
    """Return Float64[k] per module, singular values, descending; of dense ones up to the sources' ranks."""
    spectra: dict[str, np.ndarray] = {}

    def measure(target: Target) -> None:
        if target.columns and any(node.weights(target)):
            delta = evaluator.asked(node, target)
            spectra[target.name] = singular_values(delta, evaluator.device, target.stacked)

    _each(measure, list(node.targets.values()), node, evaluator.device, job)
    return spectra


def plan_ranks(node: Node, spectra: Spectra, fixed_bytes: int) -> RankPlan:
    """Decide from every module's singular values what is pruned and how a budget is shared.

    A threshold x of pruning is relative, since real deltas differ by orders of magnitude: ranks whose
    singular value is below x times the module's largest go, and modules whose norm is below x times the
    largest module's norm go.

    Args:
        node: the tree; its recipe holds the threshold and the policy.
        spectra: module name -> Float64[k], descending.
        fixed_bytes: what the file holds beside its factors; part of a budget.
    Raises:
        RecipeError: the budget is too small.
    """
    needed = wanted_together(node)
    plan = RankPlan(norms={name: float(np.linalg.norm(values)) for name, values in spectra.items()})
    if node.recipe.prune > 0:
        _prune(plan, node, spectra, needed)
    if node.policy.kind is PolicyKind.BUDGET:
        _share(plan, node, spectra, needed, int(node.policy.value) - fixed_bytes)
    return plan


def _prune(plan: RankPlan, node: Node, spectra: Spectra, needed: set[str]) -> None:
    largest = max(plan.norms.values(), default=0.0)
    lost = 0.0
    for name in sorted(spectra):
        target, values = node.targets[name], spectra[name]
        policy = node.policy_at(target)
        before = max(1, policy.choose(values, target.stacked))
        if policy.exact:
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
    plan.saved *= WIDTHS[node.recipe.precision]
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
