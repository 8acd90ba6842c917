"""What a person should be told about a result before it is used: much was cut, next to nothing is left, it
blew up.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from lib_merge.engine.evaluate import Evaluator, gram_matrix
from lib_merge.engine.plan import Node, Target
from lib_merge.engine.report import Report
from lib_merge.linalg import tolerances
from lib_merge.methods import get_method

# Norms of the sources are taken at this many modules, evenly spaced: enough for a factor of two, free beside
# the merge.
SAMPLE = 12


def remarks(node: Node, evaluator: Evaluator, report: Report, spectra: Mapping[str, np.ndarray]) -> list[str]:
    """Return sentences about a finished result; none for an unremarkable one.

    Args:
        node: the tree.
        evaluator: evaluates modules of the sources.
        report: measured modules.
        spectra: the known singular values of modules that were cut.
    """
    return [*_cut(node, report, spectra), *_size(node, evaluator, report)]


def _cut(node: Node, report: Report, spectra: Mapping[str, np.ndarray]) -> list[str]:
    lost = 1.0 - report.energy_kept
    if lost <= tolerances.CUT_LIMIT:
        return []
    advice = []
    rank = _rank_for(report, spectra, 1.0 - tolerances.CUT_LIMIT)
    if rank:
        advice.append(f"rank {rank} would keep {1 - tolerances.CUT_LIMIT:.0%}")
    if node.method.core_variant:
        variant = get_method(node.method.core_variant)
        advice.append(
            f"{variant.title} takes the same steps in the LoRAs' shared directions and needs no cut"
        )
    hint = f": {', and '.join(advice)}" if advice else "; a higher rank keeps more"
    return [f"the rank limit threw away {lost:.1%} of this merge's energy{hint}"]


def _rank_for(report: Report, spectra: Mapping[str, np.ndarray], share: float) -> int:
    """Return the one rank that would keep `share` of the energy, 0 where too little of the spectra is
    known.
    """
    total = sum(module.size**2 for module in report.modules)
    known = [np.square(values) for _, values in sorted(spectra.items())]
    sure = total - sum(module.size**2 for module in report.modules if module.name in spectra)
    longest = max((len(values) for values in known), default=0)
    gained = np.zeros(longest)
    for values in known:
        gained[: len(values)] += values
    kept = sure + np.cumsum(gained)
    enough = np.flatnonzero(kept >= share * total)
    return int(enough[0]) + 1 if len(enough) else 0


def _size(node: Node, evaluator: Evaluator, report: Report) -> list[str]:
    if len(node.children) < 2 and node.method.stacks:
        return []
    sizes = {module.name: module.size for module in report.modules}
    names = [
        name for name, target in sorted(node.targets.items()) if target.columns and any(node.weights(target))
    ]
    chosen = names[:: max(1, len(names) // SAMPLE)]
    result = sum(sizes.get(name, 0.0) ** 2 for name in chosen) ** 0.5
    each, opposite = np.zeros(len(node.children)), 0
    for name in chosen:
        gram = _gram(node, evaluator, node.targets[name])
        norms = np.sqrt(np.diag(gram).clip(0))
        each += norms**2
        cosines = gram / np.maximum(np.outer(norms, norms), 1e-300)
        opposite += bool((cosines < tolerances.OPPOSITE).any())
    each = np.sqrt(each)
    together = float(np.sqrt(np.square(each).sum()))
    found = []
    if together > 0 and result < tolerances.EMPTY_RESULT * together:
        found.append(
            f"next to nothing is left: the result has {result / together:.1%} of its sources' strength"
            + (", since unrelated LoRAs have no stock in common" if node.method.kin_only else "")
        )
    if result > tolerances.INFLATED * float(each.sum()) > 0:
        found.append(
            f"the result is inflated: {result / float(each.sum()):.1f} times as strong as its "
            "sources together; "
            "use it at a lower strength"
        )
    if opposite and node.method.spherical:
        found.append(
            f"two sources point in opposite directions in {opposite} of {len(chosen)} modules "
            "looked at: no way between "
            "them is better than another, so the straight line was taken there"
        )
    return found


def _gram(node: Node, evaluator: Evaluator, target: Target) -> np.ndarray:
    # a factor of two is what is asked for: three digits would do
    return gram_matrix(evaluator.children(node, target), node.weights(target), torch.float32)
