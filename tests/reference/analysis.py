"""Figures of an analysis on dense ΔW, float64: each as its definition reads, in the plainest form."""

from __future__ import annotations

from collections import deque

import numpy as np

# (ΔW, its SVD) of the last few: every figure of a module is read from the same two or three
_recent = deque(maxlen=6)


def _svd(delta):
    for array, parts in _recent:
        if array is delta:
            return parts
    parts = np.linalg.svd(delta, full_matrices=False)
    _recent.append((delta, parts))
    return parts


def spectrum(delta):
    return _svd(delta)[1]


def effective_rank(delta):
    """exp of the entropy of S²/ΣS²."""
    p = spectrum(delta) ** 2
    p = p[p > 0] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def stable_rank(delta):
    s = spectrum(delta)
    return float((s**2).sum() / s[0] ** 2)


def weighted_mean(deltas, figure):
    """Mean over modules, weighted by ‖ΔW‖²."""
    energies = {name: float((d**2).sum()) for name, d in deltas.items()}
    return sum(energies[n] * figure(d) for n, d in deltas.items()) / sum(energies.values())


def rank_for(deltas, share):
    """Smallest r such that cutting every module at r leaves at most 1 − share of the energy."""
    spectra = [spectrum(d) ** 2 for d in deltas.values()]
    total = sum(s.sum() for s in spectra)
    for r in range(1, max(len(s) for s in spectra) + 1):
        if sum(s[r:].sum() for s in spectra) <= (1 - share) * total:
            return r
    return max(len(s) for s in spectra)


def spaces(delta, floor=1e-3):
    """(U, V): orthonormal bases of what ΔW writes and reads, directions above floor·S₀."""
    u, s, vt = _svd(delta)
    k = int((s > floor * s[0]).sum()) if s[0] > 0 else 0
    return u[:, :k], vt[:k].T


def overlap(a, b, side):
    """(‖QaᵀQb‖²/min(ka, kb), what random subspaces have: max(ka, kb)/side length)."""
    qa, qb = spaces(a)[side], spaces(b)[side]
    least = min(qa.shape[1], qb.shape[1])
    return float(((qa.T @ qb) ** 2).sum() / least), qa.shape[1] * qb.shape[1] / qa.shape[0] / least


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def flat(deltas):
    return np.concatenate([deltas[name].ravel() for name in sorted(deltas)])


def conflict(a, b):
    """Share of all entries with opposite signs."""
    return float((np.sign(a) * np.sign(b) < 0).mean())


def expected_conflict(a, b):
    return float(np.arccos(np.clip(cosine(a, b), -1, 1)) / np.pi)


def crosstalk(total, part):
    """‖(τ − P)V‖/‖P‖ with V an orthonormal basis of the rows of P."""
    v = spaces(part)[1]
    return float(np.linalg.norm((total - part) @ v) / np.linalg.norm(part))


def retention(total, part):
    return float((total * part).sum() / (part**2).sum())


def growth(total, parts):
    return spectrum(total)[0] / max(spectrum(p)[0] for p in parts)


def cut_error(deltas, rank):
    """Relative error of the best rank-r approximation of every module, over all of them."""
    left = sum(float((spectrum(d)[rank:] ** 2).sum()) for d in deltas.values())
    return float(np.sqrt(left / sum(float((d**2).sum()) for d in deltas.values())))


def best_fit(total, parts):
    """c that minimises ‖τ − Σ cᵢPᵢ‖."""
    columns = np.stack([p.ravel() for p in parts], 1)
    return np.linalg.lstsq(columns, total.ravel(), rcond=None)[0]
