"""Merge methods on dense ΔW, float64: each as its paper states it, in the plainest form."""

from __future__ import annotations

import numpy as np


def weighted_sum(deltas, weights):
    """Σ wᵢ ΔWᵢ."""
    return sum(w * d for w, d in zip(weights, deltas))


def add_difference(deltas, weights, factor=1.0):
    """A + f·B, or A + f·(B − base)."""
    total = weights[0] * deltas[0] + factor * weights[1] * deltas[1]
    return total - factor * weights[2] * deltas[2] if len(deltas) == 3 else total


def each(value, count):
    """A knob's value for every source."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def dare(deltas, weights, masks, drop_rate, rescale=True):
    """Σ mᵢ ∘ wᵢΔWᵢ / (1 − p)."""
    total = sum(w * d * m for w, d, m in zip(weights, deltas, masks))
    return total / (1 - drop_rate) if rescale else total


def trim(tau, fraction):
    """Zero the ⌊fraction·N⌋ smallest magnitudes."""
    k = int(np.floor(fraction * tau.size + 1e-9))
    if k == 0:
        return tau.copy()
    order = np.argsort(np.abs(tau).ravel(), kind="stable")
    kept = tau.copy().ravel()
    kept[order[:k]] = 0
    return kept.reshape(tau.shape)


def ties(deltas, weights, trim_fraction=0.2, elect="mass", normalize=True):
    """Weight, trim, elect, disjoint mean over the agreeing |weights|; entry by entry."""
    taus = [trim(w * d, f) for w, d, f in zip(weights, deltas, each(trim_fraction, len(deltas)))]
    out = np.zeros_like(deltas[0])
    for index in np.ndindex(out.shape):
        values = [t[index] for t in taus]
        mass = sum(values)
        sign = np.sign(mass)
        if elect == "count":
            votes = sum(np.sign(v) for v in values)
            sign = np.sign(votes) if votes != 0 else sign
        agree = [(v, abs(w)) for v, w in zip(values, weights) if v != 0 and np.sign(v) == sign]
        if agree:
            out[index] = sum(v for v, _ in agree)
            if normalize:
                out[index] /= sum(w for _, w in agree)
    return out


def truncate(delta, rank):
    """Best rank-r approximation (full SVD) and its error."""
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank], float(np.sqrt((s[rank:] ** 2).sum()))


def ranks_for(delta, *, energy=None, error=None):
    """Smallest rank that keeps `energy` of Σs², or leaves at most `error` of the norm."""
    s = np.linalg.svd(delta, compute_uv=False)
    total = (s**2).sum()
    for rank in range(1, len(s) + 1):
        left = (s[rank:] ** 2).sum()
        if energy is not None and left <= (1 - energy) * total:
            return rank
        if error is not None and np.sqrt(left) <= error * np.sqrt(total):
            return rank
    return len(s)
