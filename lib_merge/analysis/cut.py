"""What cutting the rank of a merge costs: spectra of every module, the error-against-rank curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lib_merge.analysis.measure import CPU, Bench, Measured, grams_of
from lib_merge.analysis.model import CurvePoint, Pruned
from lib_merge.engine.pruning import RankPlan, plan_ranks
from lib_merge.engine.threads import exact_numerics, in_order
from lib_merge.engine.tree import Node
from lib_merge.linalg.stack import singular_values
from lib_merge.linalg.svd import pooled, tails
from lib_merge.ranks.policy import PolicyKind, SizeEstimate

# Points of a curve at most.
POINTS = 64
# The threshold of the practice, told where none is set.
USUAL = 0.01


def spectra_of(
    bench: Bench, coefficients: np.ndarray, cancelled: Callable[[], bool]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the singular values of τ = Σ cᵢΔWᵢ at every module, and Int[module], its rank before any cut.

    Args:
        bench: measured modules; where their Grams were not kept, the files are read again and must still be
            open.
        coefficients: Float64[module source], cᵢ.
        cancelled: asked between modules.
    """

    def one(item: tuple[Measured, np.ndarray]) -> tuple[np.ndarray, int]:
        module, factors = item
        up, down, parts = grams_of(module)
        scales = np.concatenate([np.full(part.stop - part.start, c) for part, c in zip(parts, factors)])
        used = np.flatnonzero(scales)
        if len(used) < len(scales):
            scales, up, down = scales[used], up[np.ix_(used, used)], down[np.ix_(used, used)]
        singular = singular_values(up * scales * scales[:, None], down)
        side = min(module.task.out, module.task.columns)
        return singular[:side], min(len(used), side)

    with exact_numerics(CPU):
        done = list(in_order(one, list(zip(bench.modules, coefficients)), CPU, cancelled))
    return [singular for singular, _ in done], np.array([rank for _, rank in done], dtype=int)


def curve(
    spectra: Sequence[np.ndarray], stacked: np.ndarray, bytes_at: Callable[[np.ndarray], int]
) -> tuple[CurvePoint, ...]:
    """Return error, energy and size when every module is cut at one rank: error(r) = √(Σ_{k>r} S² / Σ S²).

    Args:
        spectra: singular values per module.
        stacked: Int[module], ranks before the cut.
        bytes_at: Int[module], ranks -> size of the file; see `SizeEstimate.bytes_at`.
    """
    tail = tails(pooled(spectra))
    points = []
    for rank in _ranks(int(stacked.max(initial=0))):
        left = float(tail[min(rank, len(tail) - 1)]) / float(tail[0]) if tail[0] > 0 else 0.0
        points.append(
            CurvePoint(
                rank=rank,
                error=math.sqrt(left),
                energy=1.0 - left,
                bytes=bytes_at(np.minimum(stacked, rank)),
            )
        )
    return tuple(points)


def _ranks(most: int) -> list[int]:
    if most <= POINTS:
        return list(range(1, most + 1))
    return sorted({max(1, round(most ** (step / (POINTS - 1)))) for step in range(POINTS)})


def ranks_under(
    node: Node, names: Sequence[str], spectra: Sequence[np.ndarray], stacked: np.ndarray, size: SizeEstimate
) -> np.ndarray:
    """Return Int[module], the ranks that the merge will keep, as policy, pruning and a budget decide there.

    Args:
        node: the recipe in its tree.
        names: the modules.
        spectra: singular values per module.
        stacked: Int[module], ranks before the cut.
        size: what was foreseen of the file; what it lacks is left out, and fillers are as they are there.
    Raises:
        RecipeError: a budget is too small.
    """
    plan = RankPlan()
    if node.recipe.prunes or node.policy.kind is PolicyKind.BUDGET:
        known = {name: values for name, values in zip(names, spectra) if len(values)}
        plan = plan_ranks(node, known, size.fixed)
    ranks = []
    for name, singular, most in zip(names, spectra, stacked):
        saved = size.modules.get(name)
        if saved is None or saved.filler:
            ranks.append(saved.rank if saved is not None else 0)
            continue
        policy = plan.policy_at(node, node.targets[name])
        whole = policy.exact or not len(singular) or not singular[0] > 0
        rank = int(most) if whole else min(policy.choose(singular, int(most)), int(most))
        ranks.append(0 if name in plan.dropped else rank)
    return np.array(ranks, dtype=int)


def prunings(
    node: Node, names: Sequence[str], spectra: Sequence[np.ndarray], size: SizeEstimate
) -> tuple[Pruned, ...]:
    """Return what a threshold relative to the largest would do alone, and what an absolute one.

    Each at the threshold that the recipe sets, or at `USUAL`; as `plan_ranks` decides it in the merge.

    Args:
        node: the recipe in its tree.
        names: the modules.
        spectra: singular values per module.
        size: what was foreseen of the file; modules that cancel are not pruned.
    """
    gone = set(size.cancelled) - {name for name, saved in size.modules.items() if saved.filler}
    known = {name: values for name, values in zip(names, spectra) if len(values) and name not in gone}
    if not known or node.policy.kind is PolicyKind.BUDGET:  # there the budget decides
        return ()
    found = []
    for field, relative in (("prune", True), ("prune_below", False)):
        given: float = getattr(node.recipe, field)
        threshold = given or USUAL
        recipe = replace(
            node.recipe, prune=threshold if relative else 0.0, prune_below=0.0 if relative else threshold
        )
        told = plan_ranks(replace(node, recipe=recipe), known, size.fixed).summary()
        found.append(
            Pruned(
                field=field,
                threshold=threshold,
                chosen=given > 0,
                modules=int(told["modules"]),
                saved=int(told["bytes_saved"]),
                error=told["relative_error"],
            )
        )
    return tuple(found)


def lost(spectra: Sequence[np.ndarray], ranks: np.ndarray) -> float:
    """Return √(Σ_{k>r} S² / Σ S²), the relative error of cutting every module at its rank."""
    total = sum(float(np.square(singular).sum()) for singular in spectra)
    left = sum(float(np.square(singular[rank:][::-1]).sum()) for singular, rank in zip(spectra, ranks))
    return math.sqrt(left / total) if total > 0 else 0.0
