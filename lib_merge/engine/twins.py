"""Which modules of a sum will cancel, told before it is merged.

Whether numbers cancel, headers cannot tell, and to read every tensor for it would take as long as the merge.
But what cancels to the last digit has the same factors somewhere: a LoRA and its negative, two epochs with
one frozen text encoder, a lossless merge and what it was made of. So the first numbers of every factor are
compared, and only modules of which some are parallel are added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lib_merge.engine.evaluate import Evaluator
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


# First numbers of a tensor that are compared.
_FEW = 16
# What they may differ by, of the largest: it only decides what is looked at more closely.
_NEAR = 1e-3
# Of what leaves more than this of its sources, a copy rounds as little as of any.
_MOST = 0.7


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
                left = {
                    name: _left(node, target, evaluator)
                    for name, target in node.targets.items()
                    if _is_alike(node, target)
                }
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


def _is_alike(node: Node, target: Target) -> bool:
    leaves = [leaf for leaf in _heard(node, target) if leaf.parts[target.name].columns]
    return len(leaves) > 1 and _alike(leaves, target.name)


def _left(node: Node, target: Target, evaluator: Evaluator) -> float:
    """Return ‖ΔW‖ / √Σ‖wᵢΔWᵢ‖² of a module; 0 where it cancels."""
    asked = evaluator.asked(node, target)
    if evaluator.cancels(node, target, asked):
        return 0.0
    together = evaluator.together(node, target)
    return norm(asked) / together if together > 0 else 1.0


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


def _alike(leaves: Sequence[Leaf], name: str) -> bool:
    """Tell whether a factor of one file begins as a multiple of another's does."""
    roles: dict[str, list[tuple[float, ...]]] = {}
    for leaf in leaves:
        file = leaf.file.file
        for role, key in leaf.parts[name].module.roles.items():
            if len(file.tensors[key].shape) > 1:
                begun = roles.setdefault(role.rpartition(" ")[2], [])
                numbers = file.beginning(key, _FEW)
                if any(_parallel(numbers, other) for other in begun):
                    return True
                begun.append(numbers)
    return False


def _parallel(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Tell whether one is nearly a multiple of the other, as far as both go; one number tells nothing."""
    few = min(len(one), len(other))
    if few < 2:
        return False
    first = max(range(few), key=lambda place: abs(one[place]))
    if not one[first] or not other[first]:
        return False
    scale, allowed = other[first] / one[first], _NEAR * abs(other[first])
    return all(abs(other[place] - scale * one[place]) <= allowed for place in range(few))
