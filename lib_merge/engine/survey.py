"""What some methods must know of the whole LoRA before the first module is merged: norms, or one threshold
for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lib_merge.engine.evaluate import Evaluator, gram_matrix
from lib_merge.engine.plan import Node, Target
from lib_merge.engine.tiles import DenseModule
from lib_merge.linalg.order import histogram_of, locate, members_of, place_of
from lib_merge.methods import Reads

Each = Callable[[Callable[[Target], None], Sequence[Target]], None]


def survey(node: Node, evaluator: Evaluator, each: Each) -> None:
    """Fill the evaluator's whole-recipe figures for every node that needs them, inner groups first.

    Args:
        node: the tree.
        evaluator: receives Gram matrices and thresholds.
        each: runs a function over targets, in any order and on any thread.
    """
    for child in node.children:
        if isinstance(child, Node):
            survey(child, evaluator, each)
    if node.method.reads is Reads.RECIPE:
        evaluator.grams[id(node)] = _whole_gram(node, evaluator, each)
    fractions = node.method.global_trim(node.settings)
    if fractions is not None:
        evaluator.bounds[id(node)] = _global_bounds(node, evaluator, each, fractions)


def _matrices(node: Node) -> list[Target]:
    return [target for target in node.targets.values() if target.columns]


def _whole_gram(node: Node, evaluator: Evaluator, each: Each) -> np.ndarray:
    grams: dict[str, np.ndarray] = {}

    def measure(target: Target) -> None:
        grams[target.name] = gram_matrix(evaluator.children(node, target), node.weights(target))

    each(measure, _matrices(node))
    # summed in a fixed order: threads must not decide the last digit
    return sum((grams[name] for name in sorted(grams)), np.zeros((len(node.children), len(node.children))))


def _global_bounds(node: Node, evaluator: Evaluator, each: Each, fractions: Sequence[float]) -> list[float]:
    """Return per source the exact magnitude under which its fraction of all entries lies; −1 for none.

    Two passes over the files: a histogram of every entry, then the members of the one bucket that holds the
        threshold.
    Entries of modules that a source lacks are zeros and count like any other.
    """
    targets = _matrices(node)
    sources = range(len(node.children))
    histograms: dict[str, list[Tensor]] = {}

    def count(target: Target) -> None:
        module = DenseModule(node.weights(target), evaluator.children(node, target), evaluator.device)
        histograms[target.name] = [histogram_of(module.magnitudes(source)) for source in sources]

    each(count, targets)
    entries = sum(target.out * target.columns for target in targets)
    wanted = [place_of(fraction, entries) for fraction in fractions]
    if not any(wanted):
        return [-1.0 for _ in sources]
    # a source that keeps everything is looked up like the others, and its bound then forgotten
    places = [
        locate(sum(found[source] for found in histograms.values()), max(wanted[source], 1))
        for source in sources
    ]
    members: dict[str, list[Tensor]] = {}

    def collect(target: Target) -> None:
        module = DenseModule(node.weights(target), evaluator.children(node, target), evaluator.device)
        members[target.name] = [
            members_of(module.magnitudes(source), places[source][0]) for source in sources
        ]

    each(collect, targets)
    return [
        float(
            torch.kthvalue(torch.cat([found[source] for found in members.values()]), places[source][1]).values
        )
        if wanted[source]
        else -1.0
        for source in sources
    ]
