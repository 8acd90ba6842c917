"""Figures of a spectrum: how many directions a change really uses, and what a cut of the rank costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

# Shares of the energy for which the needed rank is told.
SHARES = (0.90, 0.95, 0.99, 0.999)


def effective_rank(singular: np.ndarray) -> float:
    """Return exp(−Σ p ln p) with p = S²/ΣS²: the number of equally strong directions with the same entropy.

    Args:
        singular: Float64[k], singular values.
    Returns:
        0 for a zero matrix, else 1…k.
    Source: Roy & Vetterli 2007, "The effective rank", with p from squared singular values.
    """
    energy = np.square(singular)
    total = float(energy.sum())
    if total <= 0:
        return 0.0
    shares = energy[energy > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(singular: np.ndarray) -> float:
    """Return ΣS²/S₀², how many directions as strong as the strongest would carry the energy; 0 for a zero
    matrix.

    Args:
        singular: Float64[k], descending.
    """
    top = float(singular[0]) if len(singular) else 0.0
    return float(np.square(singular).sum()) / top**2 if top > 0 else 0.0


def pooled(spectra: Iterable[np.ndarray]) -> np.ndarray:
    """Return Float64[k], the energy Σ Sₖ² over several modules that their k-th directions carry together."""
    found = np.zeros(0)
    for singular in spectra:
        if len(singular) > len(found):
            found = np.concatenate([found, np.zeros(len(singular) - len(found))])
        found[: len(singular)] += np.square(singular)
    return found


def rank_for(energy: np.ndarray, share: float) -> int:
    """Return the smallest rank that keeps `share` of the energy when every module is cut at it; 0 for a zero
    matrix.

    Args:
        energy: Float64[k], as `pooled` returns it.
        share: 0…1.
    """
    tail = tails(energy)
    if not len(energy) or tail[0] <= 0:
        return 0
    return int(np.argmax(tail <= (1.0 - share) * tail[0] * (1 + 1e-12)))


def ranks_for(energy: np.ndarray, shares: Sequence[float] = SHARES) -> dict[float, int]:
    """Return {share: rank} for several shares of the energy; see `rank_for`."""
    return {share: rank_for(energy, share) for share in shares}


def tails(energy: np.ndarray) -> np.ndarray:
    """Return Float64[k + 1], the energy left out at rank 0, 1, …, k, summed from the small end so that no
    digit is lost.
    """
    return np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
