"""What is known before the first module is merged: what must be measured, and what will be saved.

Some methods ask for norms, or for one threshold over everything; pruning and a budget decide how many ranks
each module keeps by comparing all of them. What a merge will save (ranks, whole matrices, bytes) is foreseen
from headers alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lib_merge.engine.evaluate import Evaluator, Memo, gram_matrix, over_modules
from lib_merge.engine.room import embeddings, fillers, room_for, wanted_together
from lib_merge.engine.threads import Job
from lib_merge.engine.tiles import DenseModule
from lib_merge.engine.tree import Child, Leaf, Node, Target, Tree
from lib_merge.files.header import first_byte
from lib_merge.linalg.svd import histogram_of, locate, members_of, numerical_rank, place_of
from lib_merge.linalg.truncate import singular_values
from lib_merge.methods import Gives, Reads, Space
from lib_merge.ranks.budget import allot
from lib_merge.ranks.policy import WIDTHS, PolicyKind, RankPolicy, SavedModule, SizeEstimate

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


# ---------------------------------------------------------------- what will be saved


@dataclass(frozen=True, slots=True)
class Form:
    """What headers tell of a ΔW.

    rank   Σ of its terms' ranks, or at most that many
    whole  it is a whole matrix
    exact  False where only the numbers can tell the rank
    cut    a rank policy inside may have taken something away
    """

    rank: int = 0
    whole: bool = False
    exact: bool = True
    cut: bool = False


def foresee(tree: Tree) -> SizeEstimate:
    """Return ranks and bytes of the file that a merge will save, or at most that much; no tensor is read.

    A lossless merge of sums is foreseen exactly. Where the numbers decide (a core method, a spectrum that
    ends before its rank does, pruning, a share of the energy), the file may be smaller and is never larger.
    """
    node, width = tree.root, WIDTHS[tree.root.recipe.precision]
    modules: dict[str, SavedModule] = {}
    fixed, emptied = 0, 0
    for target in node.targets.values():
        vectors = sum(_vectors(node, target.name).values())
        fixed += 1 + vectors
        module = _saved(node, target, vectors) if any(node.weights(target)) else None
        if module is None or not module.numbers:
            emptied += 1
        else:
            modules[target.name] = module
    for target in fillers(node):
        modules[target.name] = SavedModule(target.out, target.columns, 1, filler=True)
        fixed += 1 + target.out + target.columns
    places, _ = embeddings(tree.files)
    copied = sum(math.prod(file.file.tensors[key].shape) for file, key in places.values())
    room = room_for(tree, modules, {name: _vectors(node, name) for name in node.targets})
    return SizeEstimate(
        modules=modules,
        room=room,
        start=first_byte(room),
        copied=copied,
        width=width,
        fixed=room + 16 + (copied + fixed) * width,  # the header's length and its padding
        most=int(node.policy.value) if node.policy.kind is PolicyKind.BUDGET else None,
        emptied=emptied,
    )


def _saved(node: Node, target: Target, vectors: int) -> SavedModule:
    """Return how a module that weighs something is saved; without ranks where only its vectors are."""
    form, policy = _asked(node, target), node.policy_at(target)
    side, pruned = min(target.out, target.columns), node.recipe.prune > 0
    if not form.rank:
        gone = pruned and target.columns > 0  # a matrix of zeros takes its vectors along
        return SavedModule(target.out, target.columns, vectors=vectors, exact=not gone)
    if target.one_axis:
        return SavedModule(target.out, target.columns, whole=True, vectors=vectors, exact=not pruned)
    if not policy.exact:
        form = _truncated(form, policy, target)
    elif not form.whole and form.rank > side:  # more factors than a matrix of this size has: made anew
        form = replace(form, rank=side, exact=False)
    return SavedModule(
        out=target.out,
        columns=target.columns,
        rank=0 if form.whole and not pruned else form.rank,  # a pruned matrix is saved in factors
        whole=form.whole,
        vectors=vectors,
        exact=form.exact and not pruned,
        cut=form.cut or pruned,
    )


def _asked(node: Node, target: Target) -> Form:
    """Return what is known of the node's ΔW before its rank policy; see `Evaluator.asked`."""
    method, weights = node.method, node.weights(target)
    side = min(target.out, target.columns)
    forms = [_of(child, target) for child in node.children]
    cut = any(form.cut for form in forms)
    if method.space is Space.DENSE:
        return Form(side, whole=True, cut=cut)
    scalar = method.space is Space.SCALAR
    # numbers that are 0 where a child adds nothing: a delta of weight 0 has no terms in core space
    factors = node.fixed_coefficients(weights) if scalar else weights
    used = [form for form, factor in zip(forms, factors or [1.0] * len(forms)) if factor]
    rank = sum(form.rank for form in used)
    if not scalar and method.gives is not Gives.COLUMNS:
        return Form(min(rank, side), exact=not rank, cut=cut)
    if any(form.whole for form in forms):
        return Form(side, whole=True, cut=cut)
    return Form(rank, exact=factors is not None and all(form.exact for form in used), cut=cut)


def _of(child: Child, target: Target) -> Form:
    """Return what is known of a child's ΔW, as the evaluator takes it: a group's is cut as the group says."""
    if isinstance(child, Leaf):
        part = child.parts.get(target.name)
        if part is None or not part.columns:
            return Form()
        rank = part.module.layout.rank
        return Form(rank) if rank else Form(min(part.out, part.columns), whole=True)
    own = child.targets.get(target.name)
    if own is None or not own.columns:
        return Form()
    form, policy = _asked(child, own), child.policy_at(own)
    return form if policy.exact else _truncated(form, policy, own)


def _truncated(form: Form, policy: RankPolicy, target: Target) -> Form:
    """Return what is left under a policy that cuts: at least one rank, at most what the matrix can have."""
    most = max(1, min(form.rank, target.out, target.columns))
    rank = min(most, int(policy.value)) if policy.kind is PolicyKind.RANK else most
    return Form(rank, exact=False, cut=form.cut or policy.kind is not PolicyKind.RANK or rank < most)


def _vectors(node: Node, name: str) -> dict[str, int]:
    """Return role -> numbers of a module's biases and norm weights."""
    total: dict[str, int] = {}
    for child in node.children:
        if isinstance(child, Node):
            total |= _vectors(child, name)
        elif (part := child.parts.get(name)) is not None:
            total |= part.vector_sizes(child.file.file)
    return total
