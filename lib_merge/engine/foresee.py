"""What a merge will save, from headers alone: ranks, whole matrices, bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lib_merge.adapters import LoraFile
from lib_merge.engine.encode import embeddings
from lib_merge.engine.tree import Child, Leaf, Node, Target, Tree, fillers
from lib_merge.files.header import header_bytes
from lib_merge.files.writer import first_byte, header_room
from lib_merge.methods import Gives, Space
from lib_merge.ranks.policy import PolicyKind, RankPolicy
from lib_merge.ranks.size import WIDTHS, SavedModule, SizeEstimate

# Everything that a module may be saved under.
ROLES = ("alpha", "diff", "diff_b", "lora_down.weight", "lora_up.weight", "w_norm", "b_norm")
# Room in the header for our own metadata, and for what each source adds to it.
OWN, PER_SOURCE = 64 << 10, 4096


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
    room = _header_room(tree)
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


def _header_room(tree: Tree) -> int:
    """Return an upper bound of the header's length: every key a module could be saved under, and metadata.

    The metadata's JSON is at most everything copied from the sources, plus our own, escaped.
    """
    room = 0
    names = sum(len(role) for role in ROLES) + len(ROLES) * (len(".") + 96 + 2 * len("1,"))
    for target in (*tree.root.targets.values(), *fillers(tree.root)):
        shape = len(f"{target.out},{max(target.columns, 1)},")
        room += names + len(ROLES) * (len(target.name.encode()) + shape)
    copied = sum(len(header_bytes({}, file.metadata, 0)) for file in tree.files)
    metadata = 2 * copied + OWN + PER_SOURCE * len(tree.files)
    return room + header_room(_embedding_keys(tree.files), metadata)


def _embedding_keys(files: Sequence[LoraFile]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return keys at least as long as those of copied embeddings."""
    return [
        (f"bundle_emb.{key}.string_to_param.*.{file.path.stem}", "F32", file.file.tensors[key].shape)
        for file in files
        for keys in file.parsed.embeddings.values()
        for key in keys
    ]
