"""Merges that divide the ratios' total out: what that means for the ratios, and how strong they will be."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from lib_merge.analysis.model import Advice
from lib_merge.engine.evaluate import Evaluator
from lib_merge.engine.figures import delta_of, products
from lib_merge.engine.tree import Leaf, Node, Target, Tree
from lib_merge.linalg import Delta, norm, tolerances
from lib_merge.methods import Reads, Space
from lib_merge.methods.registry import NORMALIZE

# Modules that are merged to see how strong the whole will be: enough for a factor of two.
SAMPLE = 3


def normalised(tree: Tree) -> Iterator[Advice]:
    """Say of the merge, and of groups in it, that only the proportion of their ratios counts, and what is
    inflated by that.

    The strength is ‖τ‖ / Σ‖wᵢΔWᵢ‖ over a few modules, which are read and merged for it.

    Raises:
        MergeError: a source cannot be read.
    """
    for node in _nodes(tree.root):
        if len(node.children) > 1 and node.method.normalised(node.settings):
            yield _advice(node, root=node is tree.root)


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        if isinstance(child, Node):
            yield from _nodes(child)


def _advice(node: Node, *, root: bool) -> Advice:
    ratios = [source.ratio for source in node.recipe.sources]
    title, knob = node.method.title, any(knob.name == NORMALIZE for knob in node.method.knobs)
    where = title if root else f"{title} of {node.label}"
    total = sum(map(abs, ratios))
    shares = " : ".join(f"{ratio:g}" for ratio in ratios)
    reason = (
        f"{where}{' with normalize' if knob else ''}: only the proportion of the ratios counts ({shares}), "
        f"their total {total:g} is ignored"
    )
    factor = strength(node)
    if not factor > tolerances.INFLATED:
        return Advice("normalised", "", f"{reason}.", {"strength": factor}, {})
    reason += (
        f", so the result will be about {factor:.1f} times as strong as its sources together. "
        + (
            "With normalize off the ratios are what they say"
            if knob
            else f"A strength of {1 / factor:.2g} evens that"
        )
        + "."
    )
    change: dict[str, object] = {"knobs": {NORMALIZE: False}} if knob and root else {}
    return Advice("normalised", "Turn normalize off", reason, {"strength": factor}, change)


def strength(node: Node) -> float:
    """Return ‖τ‖ / Σ‖wᵢΔWᵢ‖ over a few modules of a node; NaN where all of them must be known for it."""
    if node.method.reads is Reads.RECIPE:
        return math.nan
    evaluator = _Sampler(torch.device("cpu"))
    result, sources = 0.0, np.zeros(len(node.children))
    with torch.no_grad():
        for target in _sample(node):
            size, own = _from_gram(node, target) or _carried_out(node, target, evaluator)
            result += size
            sources += own
    together = float(np.sqrt(sources).sum())
    return math.sqrt(result) / together if together > 0 else math.nan


class _Sampler(Evaluator):
    """Evaluates the few modules that are looked at again and again: their files' ΔW are kept."""

    __slots__ = ()

    def children(self, node: Node, target: Target) -> list[Delta]:
        """Return every child's ΔW; see `Evaluator.children`."""
        return [
            delta_of(child, target.name)
            if isinstance(child, Leaf) and _has(child, target)
            else self._child(child, target)
            for child in node.children
        ]

    def identities(self, node: Node) -> list[str]:
        """Return names that need no reading: any draw is as likely as the merge's own."""
        return [f"{child.label}#{place}" for place, child in enumerate(node.children)]


def _carried_out(node: Node, target: Target, evaluator: Evaluator) -> tuple[float, np.ndarray]:
    """Return ‖τ‖² and per source ‖wᵢΔWᵢ‖² of one module, as the merge makes it."""
    deltas = zip(evaluator.children(node, target), node.weights(target))
    own = [(weight * norm(delta)) ** 2 if weight else 0.0 for delta, weight in deltas]
    return norm(evaluator.asked(node, target)) ** 2, np.array(own)


def _from_gram(node: Node, target: Target) -> tuple[float, np.ndarray] | None:
    """Return the same of a scalar method over files, from what no ratio changes; None of others."""
    if node.method.space is not Space.SCALAR:
        return None
    leaves = [child for child in node.children if isinstance(child, Leaf) and _has(child, target)]
    if any(isinstance(child, Node) for child in node.children):
        return None
    places = [place for place, child in enumerate(node.children) if any(child is one for one in leaves)]
    gram = np.zeros((len(node.children), len(node.children)))
    gram[np.ix_(places, places)] = products(leaves, target.name)
    weights = np.array(node.weights(target))
    weighted = gram * weights * weights[:, None]
    factors = np.array(node.coefficients(weights.tolist(), lambda: weighted))
    return max(float(factors @ gram @ factors), 0.0), weighted.diagonal().clip(0)


def _has(leaf: Leaf, target: Target) -> bool:
    part = leaf.parts.get(target.name)
    return part is not None and part.columns > 0


def _sample(node: Node) -> list[Target]:
    """Return a few modules, evenly spaced among the smaller half of them, merged in an instant."""
    heard = [target for target in node.targets.values() if target.columns and any(node.weights(target))]
    sizes = sorted(target.out * target.columns for target in heard)
    small = [target for target in heard if target.out * target.columns <= sizes[len(sizes) // 2]]
    return small[:: max(1, -(-len(small) // SAMPLE))]
