"""What cutting the rank of a merge costs: spectra of every module, the error-against-rank curve, ranks under
a policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lib_merge.analysis.measure import Bench, Measured, grams_of
from lib_merge.analysis.model import CurvePoint
from lib_merge.analysis.workers import side_by_side
from lib_merge.linalg import tolerances
from lib_merge.linalg.stack import singular_values
from lib_merge.linalg.svd import pooled, tails
from lib_merge.ranks.policy import PolicyKind, RankPolicy
from lib_merge.recipe import Recipe

WIDTH = {"fp16": 2, "bf16": 2, "float": 4}
# Room that a merge leaves in the header: keys per module, bytes of a key beside the module's name, own and
# copied metadata.
KEYS, ENTRY, OWN, PER_SOURCE = 7, 120, 64 << 10, 4096
# Points of a curve at most.
POINTS = 64


def spectra(
    bench: Bench, found: np.ndarray, cancelled: Callable[[], bool] | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the singular values of τ = Σ cᵢΔWᵢ at every module, and Int[module], its rank before any cut.

    Args:
        bench: measured modules; where their Grams were not kept, the files are read again and must still be
            open.
        found: Float64[module source], cᵢ.
        cancelled: asked now and then.
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

    done = list(side_by_side(one, list(zip(bench.modules, found)), cancelled))
    return [singular for singular, _ in done], np.array([rank for _, rank in done], dtype=int)


def prices(bench: Bench, recipe: Recipe) -> np.ndarray:
    """Return Int[module], bytes of one rank."""
    width = WIDTH[recipe.precision]
    return np.array([(m.task.out + m.task.columns) * width for m in bench.modules], dtype=int)


def overhead(bench: Bench, recipe: Recipe, ranks: np.ndarray) -> int:
    """Return the bytes of alphas and of the header: its table for the modules that are kept, and room for
    metadata.
    """
    width = WIDTH[recipe.precision]
    kept = [m.task.name for m, rank in zip(bench.modules, ranks) if rank > 0]
    copied = sum(
        PER_SOURCE + 2 * sum(map(len, (*file.metadata, *file.metadata.values()))) for file in bench.files
    )
    return OWN + copied + sum(width + KEYS * (len(name) + ENTRY) for name in kept)


def curve(
    bench: Bench, recipe: Recipe, found: Sequence[np.ndarray], stacked: np.ndarray
) -> tuple[CurvePoint, ...]:
    """Return error, energy and size when every module is cut at one rank: error(r) = √(Σ_{k>r} S² / Σ S²).

    Args:
        bench: measured modules.
        recipe: decides the bytes of a number.
        found: singular values per module.
        stacked: Int[module], ranks before the cut.
    """
    energy = pooled(found)
    tail = tails(energy)
    price = prices(bench, recipe)
    points = []
    for rank in _ranks(int(stacked.max(initial=0))):
        ranks = np.minimum(stacked, rank)
        left = float(tail[min(rank, len(tail) - 1)]) / float(tail[0]) if tail[0] > 0 else 0.0
        points.append(
            CurvePoint(rank, math.sqrt(left), 1.0 - left, int(ranks @ price) + overhead(bench, recipe, ranks))
        )
    return tuple(points)


def _ranks(most: int) -> list[int]:
    if most <= POINTS:
        return list(range(1, most + 1))
    return sorted({max(1, round(most ** (step / (POINTS - 1)))) for step in range(POINTS)})


def ranks_under(bench: Bench, recipe: Recipe, found: Sequence[np.ndarray], stacked: np.ndarray) -> np.ndarray:
    """Return Int[module], the ranks that the recipe's policy keeps; see `RankPolicy.choose`."""
    policy = recipe.policy()
    if policy.kind is PolicyKind.BUDGET:
        return _within(found, prices(bench, recipe), policy.value - overhead(bench, recipe, stacked))
    ranks = []
    for module, singular, most in zip(bench.modules, found, stacked):
        own = policy
        if recipe.conv_rank is not None and _convolution(module):
            own = RankPolicy(PolicyKind.RANK, recipe.conv_rank)
        exact = own.exact or not len(singular) or not singular[0] > 0
        ranks.append(int(most) if exact else min(own.choose(singular, int(most)), int(most)))
    return np.array(ranks, dtype=int)


def _convolution(module: Measured) -> bool:
    kernels = [part[1].kernel for part in module.task.parts if part is not None]
    return any(size > 1 for kernel in kernels for size in kernel)


def _within(found: Sequence[np.ndarray], price: np.ndarray, budget: float) -> np.ndarray:
    """Spend a budget where a byte buys most: ranks in the order of S²/price."""
    order = sorted(
        (-(float(value) ** 2) / float(price[place]), place, index)
        for place, singular in enumerate(found)
        for index, value in enumerate(singular)
    )
    ranks, full = np.zeros(len(found), dtype=int), set()
    for gain, place, _ in order:
        if not gain or place in full:
            continue
        if price[place] > budget:
            full.add(place)
            continue
        ranks[place] += 1
        budget -= float(price[place])
    return ranks


def bytes_for(found: Sequence[np.ndarray], price: np.ndarray, share: float) -> tuple[int, np.ndarray]:
    """Return the fewest bytes of factors that keep `share` of the energy, and the ranks: a greedy choice by
    S²/price.
    """
    total = sum(float(np.square(singular).sum()) for singular in found)
    values = np.concatenate([np.square(singular) for singular in found]) if len(found) else np.zeros(0)
    places = np.concatenate(
        [np.full(len(singular), place) for place, singular in enumerate(found)] or [np.zeros(0)]
    )
    places = places.astype(int)
    order = np.argsort(-values / price[places], kind="stable") if len(values) else np.zeros(0, dtype=int)
    enough = int(np.searchsorted(np.cumsum(values[order]), share * total * (1 - tolerances.SHARE_SLACK))) + 1
    ranks = np.bincount(places[order[:enough]], minlength=len(found))
    return int(ranks @ price), ranks


def lost(found: Sequence[np.ndarray], ranks: np.ndarray) -> float:
    """Return √(Σ_{k>r} S² / Σ S²), the relative error of cutting every module at its rank."""
    total = sum(float(np.square(singular).sum()) for singular in found)
    left = sum(float(np.square(singular[rank:][::-1]).sum()) for singular, rank in zip(found, ranks))
    return math.sqrt(left / total) if total > 0 else 0.0
