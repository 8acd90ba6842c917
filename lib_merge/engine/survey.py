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
from lib_merge.engine.pruning import RankPlan, plan_ranks
from lib_merge.engine.room import embeddings, fillers, room_for, wanted_together
from lib_merge.engine.threads import Job
from lib_merge.engine.tiles import DenseModule
from lib_merge.engine.tree import Child, Leaf, Node, Target, Tree
from lib_merge.engine.twins import Gone, cancelled_modules
from lib_merge.files.header import first_byte
from lib_merge.linalg import Dense, norm
from lib_merge.linalg.svd import histogram_of, locate, members_of, place_of
from lib_merge.linalg.truncate import singular_values
from lib_merge.methods import Gives, Reads, Space
from lib_merge.ranks.policy import WIDTHS, PolicyKind, RankPolicy, SavedModule, SizeEstimate

Spectra = Mapping[str, np.ndarray]


@dataclass(slots=True)
class Plan:
    """How a tree is carried out: what must be known of the whole first, and what writing adds for the proof.

    size       what was foreseen of the file, or at most that much
    read       what cancels was looked for in it; else writing tells
    evaluator  with whole-recipe figures
    kept       ranks that were decided over all modules
    cuts       per module, ‖asked − best of its rank‖
    spectra    singular values of modules that were cut
    anew       modules whose factors are made anew where they would be copied
    """

    size: SizeEstimate
    read: bool
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
    # one sum of files needs no look at its numbers: writing finds what cancels, and a budget counts it anyway
    read = tree.root.recipe.prunes or any(isinstance(child, Node) for child in tree.root.children)
    size = foresee(tree) if read else _estimate(tree, Gone())
    plan = Plan(size=size, read=read, evaluator=Evaluator(device, memo=Memo()))
    measure_whole(tree.root, plan.evaluator, job)
    plan.kept = decide_ranks(tree.root, plan.evaluator, job, plan.size.fixed)
    return plan


def measure_whole(node: Node, evaluator: Evaluator, job: Job) -> None:
    """Fill the evaluator's whole-recipe figures for every node that needs them, inner groups first, and what
    groups prune.

    Args:
        node: the tree.
        evaluator: receives Gram matrices and thresholds.
        job: progress and cancel.
    """
    for child in node.children:
        if isinstance(child, Node):
            measure_whole(child, evaluator, job)
            if child.recipe.prunes:
                evaluator.kept[id(child)] = decide_ranks(child, evaluator, job)
    if node.method.reads is Reads.RECIPE:
        evaluator.grams[id(node)] = _whole_gram(node, evaluator, job)
    fractions = node.method.global_trim(node.settings)
    if fractions is not None:
        evaluator.bounds[id(node)] = _global_bounds(node, evaluator, job, fractions)


def decide_ranks(node: Node, evaluator: Evaluator, job: Job, fixed_bytes: int = 0) -> RankPlan:
    """Return the ranks of a node that are decided by comparing all its modules, where there are any.

    Args:
        node: the merge, or a group in it.
        evaluator: with whole-recipe figures.
        job: progress and cancel.
        fixed_bytes: see `plan_ranks`.
    Raises:
        RecipeError: a budget is too small.
    """
    if not node.recipe.prunes and node.policy.kind is not PolicyKind.BUDGET:
        return RankPlan()
    spectra: dict[str, np.ndarray] = {}
    sizes: dict[str, float] = {}
    needed = wanted_together(node)

    def measure(target: Target) -> None:
        if not target.columns or not any(node.weights(target)):
            return
        delta = evaluator.asked(node, target)
        if evaluator.cancels(node, target, delta) and target.name not in needed:
            return
        # of a whole matrix up to the sources' ranks
        spectra[target.name] = singular_values(delta, evaluator.device, target.stacked)
        if isinstance(delta, Dense):
            sizes[target.name] = norm(delta)

    _each(measure, list(node.targets.values()), node, evaluator.device, job)
    return plan_ranks(node, spectra, fixed_bytes, sizes)


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


# ---------------------------------------------------------------- what will be saved


@dataclass(frozen=True, slots=True)
class Form:
    """What headers tell of a ΔW.

    rank   Σ of its terms' ranks, or at most that many
    whole  it is a whole matrix
    exact  False where only the numbers can tell the rank
    cut    a rank policy inside may have taken something away
    sure   False where what makes it a whole matrix may cancel, so that factors are left
    """

    rank: int = 0
    whole: bool = False
    exact: bool = True
    cut: bool = False
    sure: bool = True


def foresee(tree: Tree) -> SizeEstimate:
    """Return ranks and bytes of the file that a merge will save, or at most that much.

    A lossless merge of sums is foreseen exactly: of modules that may cancel each other as much is read as
    that takes. Where the numbers decide (a core method, a spectrum that ends before its rank does, pruning, a
    share of the energy), the file may be smaller and is never larger.

    Raises:
        FileFormatError: a file was changed or cannot be read.
    """
    gone = cancelled_modules(tree.root)
    size = _estimate(tree, gone)
    if any(gone.values()):  # a budget is shared before anybody knows what cancels
        size = replace(size, fixed=_estimate(tree, gone.none()).fixed)
    return size


def room_kept(tree: Tree, plan: Plan, *, cancelled: bool) -> int:
    """Return the bytes that `foresee` would keep for the header.

    Args:
        tree: the merge.
        plan: of it.
        cancelled: a module was found to cancel when it was written.
    """
    return foresee(tree).room if cancelled and not plan.read else plan.size.room


def _estimate(tree: Tree, gone: Gone) -> SizeEstimate:
    node, width = tree.root, WIDTHS[tree.root.recipe.precision]
    modules: dict[str, SavedModule] = {}
    vectors = {target.name: _vectors_of(node, target, gone) for target in node.targets.values()}
    fixed, emptied, cancelled = 0, 0, []
    for target in node.targets.values():
        own = sum(vectors[target.name].values())
        fixed += 1 + own
        module = _saved(node, target, own, gone) if any(node.weights(target)) else None
        if target.columns and _gone(node, target, gone):
            cancelled.append(target.name)
        elif module is None or not module.numbers:
            emptied += 1
        if module is not None and module.numbers:
            modules[target.name] = module
    for target in fillers(node):
        modules[target.name] = SavedModule(target.out, target.columns, 1, filler=True)
        fixed += 1 + target.out + target.columns
    places, _ = embeddings(tree.files)
    copied = sum(math.prod(file.file.tensors[key].shape) for file, key in places.values())
    room = room_for(tree, modules, vectors)
    return SizeEstimate(
        modules=modules,
        room=room,
        start=first_byte(room),
        copied=copied,
        width=width,
        fixed=room + 16 + (copied + fixed) * width,  # the header's length and its padding
        most=int(node.policy.value) if node.policy.kind is PolicyKind.BUDGET else None,
        emptied=emptied,
        cancelled=tuple(cancelled),
    )


def _vectors_of(node: Node, target: Target, gone: Gone) -> dict[str, int]:
    """Return role -> numbers of the biases and norm weights that are saved; those that cancel are read."""
    sizes = _vectors(node, target.name)
    alone = not target.columns or _gone(node, target, gone)
    if not sizes or not any(node.weights(target)) or not alone:
        return sizes
    left = Evaluator(torch.device("cpu")).remaining_vectors(node, target)
    return {role: size for role, size in sizes.items() if role in left}


def _gone(node: Node, target: Target, gone: Gone) -> bool:
    """Tell whether nothing is left of a module's matrix because its sources cancel, here or in groups."""
    if target.name in gone.get(id(node), ()):
        return True
    inside = any(target.name in names for names in gone.values())
    return inside and any(node.weights(target)) and not _asked(node, target, gone).rank


def _saved(node: Node, target: Target, vectors: int, gone: Gone) -> SavedModule:
    """Return how a module that weighs something is saved; without ranks where only its vectors are."""
    if target.columns and _gone(node, target, gone):
        return _instead(node, target, vectors)
    form, policy = _asked(node, target, gone), node.policy_at(target)
    side, pruned = min(target.out, target.columns), node.recipe.prunes
    if not form.rank:
        gone_too = pruned and target.columns > 0  # a matrix of zeros takes its vectors along
        return SavedModule(target.out, target.columns, vectors=vectors, exact=not gone_too)
    if target.one_axis:
        return SavedModule(
            target.out, target.columns, whole=True, vectors=vectors, exact=form.exact and not pruned
        )
    if not policy.exact:
        form = _truncated(form, policy, target)
    elif not form.whole and form.rank > side:  # more factors than a matrix of this size has: made anew
        form = replace(form, rank=side, exact=False)
    return SavedModule(
        out=target.out,
        columns=target.columns,
        # a pruned matrix is saved in factors
        rank=0 if form.whole and form.sure and not pruned else form.rank,
        whole=form.whole,
        vectors=vectors,
        exact=form.exact and not pruned,
        cut=form.cut or pruned,
    )


def _instead(node: Node, target: Target, vectors: int) -> SavedModule:
    """Return what is saved of a module that cancels: its vectors, or zeros where a loader wants it."""
    filler = not vectors and target.name in wanted_together(node)
    return SavedModule(
        target.out, target.columns, rank=int(filler), vectors=vectors, exact=True, filler=filler
    )


def _asked(node: Node, target: Target, gone: Gone) -> Form:
    """Return what is known of the node's ΔW before its rank policy; see `Evaluator.asked`."""
    method, weights = node.method, node.weights(target)
    side = min(target.out, target.columns)
    forms = [_of(child, target, gone) for child in node.children]
    cut = any(form.cut for form in forms)
    if method.space is Space.DENSE:
        return Form(side, whole=True, exact=False, cut=cut)
    scalar = method.space is Space.SCALAR
    # numbers that are 0 where a child adds nothing: a delta of weight 0 has no terms in core space
    factors = node.fixed_coefficients(weights) if scalar else weights
    used = [form for form, factor in zip(forms, factors or [1.0] * len(forms)) if factor]
    rank = sum(form.rank for form in used)
    if not scalar and method.gives is not Gives.COLUMNS:
        return Form(min(rank, side), exact=not rank, cut=cut)
    # what has not been looked at may cancel
    known = id(node) in gone or sum(bool(form.rank) for form in used) < 2
    known = known and target.name not in gone.alike.get(id(node), ())
    exact = factors is not None and known and all(form.exact for form in used)
    if any(form.whole for form in forms):
        sure = any(form.whole and form.sure for form in forms)
        return Form(side, whole=True, exact=exact and sure, cut=cut, sure=sure)
    return Form(rank, exact=exact, cut=cut)


def _of(child: Child, target: Target, gone: Gone) -> Form:
    """Return what is known of a child's ΔW, as the evaluator takes it: a group's is cut as the group says."""
    if isinstance(child, Leaf):
        part = child.parts.get(target.name)
        if part is None or not part.columns:
            return Form()
        rank = part.module.layout.rank
        return Form(rank) if rank else Form(min(part.out, part.columns), whole=True)
    own = child.targets.get(target.name)
    if own is None or not own.columns or own.name in gone.get(id(child), ()):
        return Form()
    form, policy = _asked(child, own, gone), child.policy_at(own)
    form = replace(form, sure=form.exact) if policy.exact else _truncated(form, policy, own)
    if not child.recipe.prunes or not form.rank:
        return form
    return replace(form, exact=False, cut=True)


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
