"""One size for the whole file: ranks go where they buy most.

Keeping rank k of a module removes S_k² from the squared error and costs (out + in)·width bytes. Within a
module S falls, so taking ranks in the order of S²/(out + in) until the bytes are spent is the best split
there is, up to the one rank that no longer fits (a knapsack's greedy bound). One rank for all modules is
looked at too, and kept should it be better.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lib_merge.errors import RecipeError
from lib_merge.linalg import tolerances


def allot(
    spectra: Mapping[str, np.ndarray],
    price: Mapping[str, int],
    budget: int,
    least: Mapping[str, int],
) -> dict[str, int]:
    """Return ranks per module, 0 for a module that is not worth its bytes.

    Args:
        spectra: Float64[k] per module, singular values that may be kept, descending.
        price: bytes per rank of each module, (out + in)·width.
        budget: bytes for all factors together.
        least: ranks that a module must have, for the sake of loaders; 0 where it is not named.
    Raises:
        RecipeError: the budget does not even hold those.
    """
    ranks = {name: least.get(name, 0) for name in spectra}
    left = budget - sum(ranks[name] * price[name] for name in spectra)
    cheapest = min((price[name] for name in spectra), default=0)
    if left < cheapest:
        short = sum(max(ranks[name], 0) * price[name] for name in spectra) + cheapest
        message = (
            f"the budget is too small: this merge needs {(short - budget) / 1e6:.3g} MB more "
            "for a single rank."
        )
        raise RecipeError(message)
    uniform = _uniform(spectra, price, budget, ranks)
    return min((_greedy(spectra, price, left, dict(ranks)), uniform), key=lambda split: _lost(spectra, split))


def fewest(spectra: Mapping[str, np.ndarray], price: Mapping[str, int], share: float) -> dict[str, int]:
    """Return the ranks that keep a share of the energy in the fewest bytes: taken in a budget's own order,
    until enough is kept.

    Args:
        spectra: Float64[k] per module, singular values, descending.
        price: bytes per rank of each module, (out + in)·width.
        share: 0…1 of Σ S².
    """
    ranks = dict.fromkeys(spectra, 0)
    missing = share * _lost(spectra, ranks) * (1 - tolerances.SHARE_SLACK)
    for worth, name in _by_worth(spectra, price, ranks):
        if missing <= 0:
            break
        missing += worth * price[name]
        ranks[name] += 1
    return ranks


def _by_worth(
    spectra: Mapping[str, np.ndarray], price: Mapping[str, int], ranks: Mapping[str, int]
) -> list[tuple[float, str]]:
    """Return (−S²/price, module) for every rank that is not taken yet, what buys most first.

    Modules without a price are not saved: what their sources leave of each other is rounding.
    """
    return sorted(
        (-(float(value) ** 2) / price[name], name)
        for name, values in spectra.items()
        for value in values[ranks[name] :]
        if value > 0 and price[name]
    )


def _greedy(
    spectra: Mapping[str, np.ndarray], price: Mapping[str, int], left: int, ranks: dict[str, int]
) -> dict[str, int]:
    full: set[str] = set()
    # a module's own ranks come in their order, since its singular values fall
    for _, name in _by_worth(spectra, price, ranks):
        if name in full:
            continue
        if price[name] > left:
            full.add(name)
            continue
        ranks[name] += 1
        left -= price[name]
    return ranks


def _uniform(
    spectra: Mapping[str, np.ndarray], price: Mapping[str, int], budget: int, least: Mapping[str, int]
) -> dict[str, int]:
    most = {name: int(np.count_nonzero(values)) for name, values in spectra.items()}
    best = dict(least)
    for rank in range(1, max(most.values(), default=0) + 1):
        ranks = {name: max(least[name], min(rank, most[name])) for name in spectra}
        if sum(count * price[name] for name, count in ranks.items()) > budget:
            break
        best = ranks
    return best


def _lost(spectra: Mapping[str, np.ndarray], ranks: Mapping[str, int]) -> float:
    return sum(
        float(np.square(values[ranks[name] :][::-1]).sum()) for name, values in sorted(spectra.items())
    )
