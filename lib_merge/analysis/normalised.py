"""Merges that divide the ratios' total out: what that means for the ratios, and how strong they will be."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from lib_merge.analysis.model import Advice
from lib_merge.engine.evaluate import Evaluator
from lib_merge.engine.tree import Node, Target, Tree
from lib_merge.linalg import norm, tolerances
from lib_merge.methods import Reads
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
    evaluator = Evaluator(torch.device("cpu"))
    result, sources = 0.0, [0.0] * len(node.children)
    with torch.no_grad():
        for target in _sample(node):
            asked = evaluator.asked(node, target)
            result += norm(asked) ** 2
            weighted = zip(evaluator.children(node, target), node.weights(target))
            for index, (delta, weight) in enumerate(weighted):
                sources[index] += (weight * norm(delta)) ** 2 if weight else 0.0
    together = sum(map(math.sqrt, sources))
    return math.sqrt(result) / together if together > 0 else math.nan


def _sample(node: Node) -> list[Target]:
    """Return a few modules, evenly spaced among the smaller half of them, which are merged in an instant."""
    heard = [target for target in node.targets.values() if target.columns and any(node.weights(target))]
    sizes = sorted(target.out * target.columns for target in heard)
    small = [target for target in heard if target.out * target.columns <= sizes[len(sizes) // 2]]
    return small[:: max(1, -(-len(small) // SAMPLE))]
