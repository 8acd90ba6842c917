"""Which modules of a sum will cancel, told before it is merged.

Whether numbers cancel, headers cannot tell, and to read every tensor for it would take as long as the merge.
But what cancels to the last digit has the same factors somewhere: a LoRA and its negative, two epochs with
one frozen text encoder, a lossless merge and what it was made of. So the first numbers of every factor are
compared, and only modules of which some are parallel are added up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lib_merge.engine.evaluate import Evaluator
from lib_merge.engine.figures import alike, products, share
from lib_merge.engine.tree import Child, Leaf, Node, Target
from lib_merge.families import encoder_of
from lib_merge.linalg import norm
from lib_merge.methods import Reads, Space


class Gone(dict[int, frozenset[str]]):
    """id of a node that was looked at -> its modules that cancel.

    alike  id of a node -> modules that several sources have alike, and that do not cancel: what is left may
           be so little beside them that a copy of their factors rounds too much, and they are made anew
    """

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()
        self.alike: dict[int, set[str]] = {}

    def none(self) -> Gone:
        """Return the same without what cancels."""
        other = Gone()
        other.update(dict.fromkeys(self, frozenset[str]()))
        other.alike = self.alike
        return other


# Of what leaves more than this of its sources, a copy rounds as little as of any.
_MOST = 0.7
# Of what leaves less than this, Gram matrices hold too few digits.
_LEAST = 1e-3


def cancelled_modules(root: Node) -> Gone:
    """Return the modules that cancel in a sum and in sums inside it, found by reading as little as can be.

    Nodes of methods whose coefficients depend on the numbers are not looked at: what is foreseen of them is
    a bound anyway.

    Raises:
        FileFormatError: a file was changed or cannot be read.
    """
    gone = Gone()
    evaluator = Evaluator(torch.device("cpu"))
    with torch.no_grad():
        for node in _inner_first(root):
            if adds_up(node):
                left = {target.name: _left(node, target, evaluator, gone) for target in _alike_targets(node)}
                gone[id(node)] = frozenset(name for name, share in left.items() if share == 0)
                gone.alike[id(node)] = {name for name, share in left.items() if 0 < share < _MOST}
    return gone


def adds_up(node: Node) -> bool:
    """Tell whether a node is a sum, with known coefficients, of files and of uncut groups that are sums."""
    known = node.method.space is Space.SCALAR and node.method.reads is Reads.NOTHING
    return known and all(
        isinstance(child, Leaf) or (child.uncut and adds_up(child)) for child in node.children
    )


def _inner_first(node: Node) -> Iterator[Node]:
    for child in node.children:
        if isinstance(child, Node):
            yield from _inner_first(child)
    yield node


def _alike_targets(node: Node) -> list[Target]:
    """Return the modules that two files which weigh something there have alike."""
    leaves = node.leaves()
    pairs = {
        (a, b): alike(leaves[a], leaves[b]) for a in range(len(leaves)) for b in range(a + 1, len(leaves))
    }
    place = {id(leaf): index for index, leaf in enumerate(leaves)}
    found = []
    for name in sorted(frozenset[str]().union(*pairs.values())):
        target = node.targets.get(name)
        if target is not None and target.columns:
            heard = [place[id(leaf)] for leaf in _heard(node, target) if leaf.parts[name].columns]
            if any(name in pairs[a, b] for a in heard for b in heard if a < b):
                found.append(target)
    return found


def _left(node: Node, target: Target, evaluator: Evaluator, gone: Gone) -> float:
    """Return ‖ΔW‖ / √Σ‖wᵢΔWᵢ‖² of a module; 0 where it cancels.

    Told by Gram matrices, which no ratio changes; where next to nothing is left, by the factors themselves.
    """
    leaves = [leaf for leaf in node.leaves() if _has(leaf, target.name)]
    weights = np.array(node.weights(target))
    factors = node.fixed_coefficients(weights.tolist())
    assert factors is not None  # of a sum
    children = np.array([_of_leaves(child, target, leaves, gone) for child in node.children])
    asked = np.array(factors) @ children
    once = list({leaf.file.file.origin: leaf for leaf in leaves}.values())
    if len(once) == 1:  # one file several times: whatever is in it
        size, parts = abs(float(asked.sum())), weights * children.sum(1)
        together = float(np.linalg.norm(parts))
    else:
        gram = products(leaves, target.name)
        size = math.sqrt(max(float(asked @ gram @ asked), 0.0))
        each = np.einsum("ci,ij,cj->c", children, gram, children)
        together = math.sqrt(max(float(np.square(weights) @ each), 0.0))
    if size > _LEAST * together:
        return size / together if together > 0 else 1.0
    at = [*weights.tolist(), *factors, *children.ravel().tolist()]
    return share(leaves, target.name, at, functools.partial(_measured, node, target, evaluator))


def _measured(node: Node, target: Target, evaluator: Evaluator) -> float:
    asked = evaluator.asked(node, target)
    if evaluator.cancels(node, target, asked):
        return 0.0
    together = evaluator.together(node, target)
    return norm(asked) / together if together > 0 else 1.0


def _has(leaf: Leaf, name: str) -> bool:
    return name in leaf.parts and bool(leaf.parts[name].columns)


def _of_leaves(child: Child, target: Target, leaves: Sequence[Leaf], gone: Gone) -> np.ndarray:
    """Return Float64[leaf], c of ΔW = Σ cᵢΔWᵢ, what a child is of the files."""
    if isinstance(child, Leaf):
        return np.array([float(child is leaf) for leaf in leaves])
    own, nothing = child.targets.get(target.name), np.zeros(len(leaves))
    if own is None or own.name in gone.get(id(child), ()):
        return nothing
    factors = child.fixed_coefficients(child.weights(own)) or []
    parts = (_of_leaves(inner, own, leaves, gone) for inner in child.children)
    return sum((factor * part for factor, part in zip(factors, parts)), nothing)


def _heard(node: Child, target: Target) -> Iterator[Leaf]:
    """Yield the files below that have the module and weigh something in it."""
    if isinstance(node, Leaf):
        if target.name in node.parts:
            yield node
        return
    encoder = encoder_of(target.name)
    for child in node.children:
        if child.weight(target.name, target.block, encoder):
            yield from _heard(child, target)
