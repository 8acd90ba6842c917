"""The other merge methods on dense ΔW, float64 numpy, each by the plainest route: whole matrices and full SVDs."""

from __future__ import annotations

import math

import numpy as np

from tests.reference.merge import each, trim

TINY = 1e-9


def _taus(deltas, weights):
    return [w * d for w, d in zip(weights, deltas)]


def _norm(x):
    return float(np.linalg.norm(x))


def average(deltas, weights):
    total = sum(abs(w) for w in weights)
    return sum(_taus(deltas, weights)) / total


def norm_preserving(modules, weights):
    """{name: deltas} -> {name: merged}; one factor for the whole LoRA."""
    merged = {name: sum(_taus(deltas, weights)) for name, deltas in modules.items()}
    size = math.sqrt(sum(_norm(m) ** 2 for m in merged.values()))
    norms = [
        math.sqrt(sum(_norm(deltas[i]) ** 2 for deltas in modules.values())) for i in range(len(weights))
    ]
    wanted = sum(abs(w) * n for w, n in zip(weights, norms)) / sum(abs(w) for w in weights)
    return {name: m * wanted / size for name, m in merged.items()}


def subtract(deltas, weights):
    return weights[0] * deltas[0] - weights[1] * deltas[1]


def _arc(a, b, t):
    na, nb = _norm(a), _norm(b)
    if na == 0 or nb == 0:
        return (1 - t) * a + t * b
    cosine = float((a * b).sum() / (na * nb))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    direction = (
        math.sin((1 - t) * angle) / math.sin(angle) * a / na + math.sin(t * angle) / math.sin(angle) * b / nb
    )
    return direction * ((1 - t) * na + t * nb)


def slerp(deltas, weights, t):
    return _arc(*_taus(deltas, weights), t)


def nuslerp(deltas, weights):
    signed = [math.copysign(1, w) * d for w, d in zip(weights, deltas)]
    return _arc(*signed, abs(weights[1]) / (abs(weights[0]) + abs(weights[1])))


def karcher(deltas, weights):
    """Riemannian gradient descent on the sphere of flattened vectors themselves."""
    w = np.abs(np.array(weights))
    units = [math.copysign(1, x) * d.ravel() / _norm(d) for x, d in zip(weights, deltas) if _norm(d) > 0]
    share = np.array([abs(x) for x, d in zip(weights, deltas) if _norm(d) > 0])
    if not units:
        return np.zeros_like(deltas[0])
    share = share / share.sum()
    point = sum(s * u for s, u in zip(share, units))
    point = point / _norm(point)
    for _ in range(200):
        step = np.zeros_like(point)
        for s, u in zip(share, units):
            angle = math.acos(min(1.0, max(-1.0, float(point @ u))))
            across = u - (point @ u) * point
            if _norm(across) > 1e-12:
                step += s * angle * across / _norm(across)
        size = _norm(step)
        if size < 1e-12:
            break
        point = math.cos(size) * point + math.sin(size) * step / size
    length = sum(x * _norm(d) for x, d in zip(w, deltas)) / w.sum()
    return (point * length).reshape(deltas[0].shape)


def model_stock(deltas, weights):
    taus = _taus(deltas, weights)
    count = len(taus)
    cosines = []
    for i in range(count):
        for j in range(i + 1, count):
            size = _norm(taus[i]) * _norm(taus[j])
            cosines.append(float((taus[i] * taus[j]).sum() / size) if size else 0.0)
    c = float(np.mean(cosines))
    t = min(max(count * c / (1 + (count - 1) * c), 0.0), 1.0) if c > 0 else 0.0
    return t * average(deltas, weights)


def orthogonal_subtract(deltas, weights):
    a, b = weights[0] * deltas[0], deltas[1]
    return a - weights[1] * float((a * b).sum()) / float((b * b).sum()) * b if _norm(b) else a


def ema(deltas, weights, beta):
    state = weights[0] * deltas[0]
    for d, w in zip(deltas[1:], weights[1:]):
        state = beta * state + (1 - beta) * w * d
    return state


# ------------------------------------------------------------------------------------------------- core


def _svd(x):
    u, s, v = np.linalg.svd(x, full_matrices=False)
    keep = int((s > TINY * s[0]).sum()) if s.size and s[0] > 0 else 0
    return u[:, :keep], s[:keep], v[:keep]


def _polar(x):
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


def _upright(u):
    place = np.abs(u).argmax(0)
    return u * np.where(u[place, np.arange(u.shape[1])] < 0, -1.0, 1.0)


def _elect(values, weights, elect="mass", normalize=True):
    values = np.stack(values)
    gamma = np.sign(values.sum(0))
    if elect == "count":
        votes = np.sign(np.sign(values).sum(0))
        gamma = np.where(votes == 0, gamma, votes)
    agree = (np.sign(values) == gamma) & (gamma != 0)
    merged = np.where(agree, values, 0).sum(0)
    if not normalize:
        return merged
    share = (agree * np.abs(np.array(weights))[:, None, None]).sum(0)
    return np.where(share > 0, merged / np.where(share > 0, share, 1), 0)


def _knots(deltas, weights):
    taus = _taus(deltas, weights)
    u = _upright(_svd(np.concatenate(taus, 1))[0])
    return u, [u.T @ tau for tau in taus]


def knots_ties(deltas, weights, trim_fraction, elect, normalize):
    u, blocks = _knots(deltas, weights)
    return u @ _elect(
        [trim(b, f) for b, f in zip(blocks, each(trim_fraction, len(blocks)))], weights, elect, normalize
    )


def core_ties(deltas, weights, trim_fraction, elect, normalize):
    taus = _taus(deltas, weights)
    p = _upright(_svd(np.concatenate(taus, 1))[0])
    q = _upright(_svd(np.concatenate(taus, 0))[2].T)
    cores = [trim(p.T @ t @ q, f) for t, f in zip(taus, each(trim_fraction, len(taus)))]
    return p @ _elect(cores, weights, elect, normalize) @ q.T


def tsv(deltas, weights):
    parts = [_svd(t) for t in _taus(deltas, weights)]
    u, v = (
        _polar(np.concatenate([p[0] for p in parts], 1)),
        _polar(np.concatenate([p[2] for p in parts], 0).T),
    )
    return (u * np.concatenate([p[1] for p in parts])) @ v.T


def iso_c(deltas, weights, lam):
    u, s, v = _svd(sum(_taus(deltas, weights)))
    return (u * (s ** (1 - lam) * s.mean() ** lam)) @ v


def iso_cts(deltas, weights, lam, common):
    taus = _taus(deltas, weights)
    u, s, v = _svd(sum(taus))
    rank = len(s)
    k = min(rank, math.ceil(common * rank - 1e-12))
    uc, vc = u[:, :k], v[:k].T
    left, size, right = [uc], [s[:k]], [vc]
    for i, tau in enumerate(taus):
        own = (rank - k) // len(taus) + (i < (rank - k) % len(taus))
        rest = (np.eye(tau.shape[0]) - uc @ uc.T) @ tau @ (np.eye(tau.shape[1]) - vc @ vc.T)
        a, b, c = _svd(rest)
        left.append(a[:, :own])
        size.append(b[:own])
        right.append(c[:own].T)
    s = np.concatenate(size)
    return (_polar(np.concatenate(left, 1)) * (s ** (1 - lam) * s.mean() ** lam)) @ _polar(
        np.concatenate(right, 1)
    ).T


def svc(deltas, weights, floor):
    taus = _taus(deltas, weights)
    merged = sum(taus)
    u, s, v = _svd(merged)
    scaled = s.copy()
    for r in range(len(s)):
        row = u[:, r] @ merged
        found = []
        for tau in taus:
            own = u[:, r] @ tau
            if own @ own > (1e-6 * s[0]) ** 2:
                found.append(max(floor, float(row @ own / (own @ own))))
        scaled[r] = s[r] * len(found) / sum(found) if found else s[r]
    return (u * scaled) @ v


def pico(deltas, weights, compensate):
    taus = _taus(deltas, weights)
    parts = [_svd(t) for t in taus]
    u, s, _ = _svd(np.concatenate([a * np.sqrt(b) for a, b, _ in parts], 1))
    c = s**2 / (s**2).sum()
    alpha = 1 / (1 + (len(taus) - 1) * c)
    merged = sum(taus)
    merged = merged + u @ np.diag(alpha - 1) @ u.T @ merged
    return merged * np.mean([_norm(t) for t in taus]) / _norm(merged) if compensate else merged


def np_lora(deltas, weights, mu):
    style, subject = _taus(deltas, weights)
    v = _svd(style)[2]
    return style + subject @ (np.eye(v.shape[1]) - mu / (1 + mu) * v.T @ v)


def decorrelated_sum(deltas, weights, mu, guard):
    taus = _taus(deltas, weights)
    parts = [_svd(t) for t in taus]
    b = np.concatenate([u * np.sqrt(s) for u, s, _ in parts], 1)
    a = np.concatenate([np.sqrt(s)[:, None] * v for _, s, v in parts], 0)
    k = a @ a.T
    own = np.zeros_like(k)
    at = 0
    for _, s, _ in parts:
        own[at : at + len(s), at : at + len(s)] = k[at : at + len(s), at : at + len(s)]
        at += len(s)
    found = b @ own @ np.linalg.pinv(mu * own + (1 - mu) * k, rcond=1e-10, hermitian=True) @ a
    if guard:
        merged = sum(taus)
        found = found * min(
            1, _norm(merged) / _norm(found), np.linalg.norm(merged, 2) / np.linalg.norm(found, 2)
        )
    return found


def column_balanced(deltas, weights):
    a, b = _taus(deltas, weights)
    out = np.zeros_like(a)
    for j in range(a.shape[1]):
        size = _norm(a[:, j]) * _norm(b[:, j])
        cosine = float(a[:, j] @ b[:, j]) / size if size > 0 else 0.0
        out[:, j] = (a[:, j] + b[:, j]) * (1.0 if cosine <= 0 else min(1.0, max(0.5, 1 / (1 + cosine))))
    return out


# ------------------------------------------------------------------------------------------------- dense


def magnitude_prune(deltas, weights, trim_fraction):
    return sum(trim(t, f) for t, f in zip(_taus(deltas, weights), each(trim_fraction, len(deltas))))


def breadcrumbs(deltas, weights, gamma, trim_fraction):
    total = 0
    for tau, fraction in zip(_taus(deltas, weights), each(trim_fraction, len(deltas))):
        order = np.argsort(np.abs(tau).ravel(), kind="stable")
        kept = tau.copy().ravel()
        kept[order[: int(np.floor(fraction * tau.size + 1e-9))]] = 0
        top = int(np.floor(gamma * tau.size + 1e-9))
        if top:
            kept[order[-top:]] = 0
        total = total + kept.reshape(tau.shape)
    return total


def sce(deltas, weights, select):
    taus = np.stack(_taus(deltas, weights))
    variance = ((taus - taus.mean(0)) ** 2).mean(0)
    count = math.ceil(select * variance.size - 1e-9)
    bound = np.sort(variance.ravel())[variance.size - count]
    chosen = np.where(variance >= bound, taus, 0)
    eta = (chosen**2).sum((1, 2))
    eta = eta / eta.sum()
    gamma = np.sign(chosen.sum(0))
    agree = (np.sign(chosen) == gamma) & (gamma != 0)
    total = (agree * eta[:, None, None]).sum(0)
    return np.where(
        total > 0, (np.where(agree, chosen, 0) * eta[:, None, None]).sum(0) / np.where(total > 0, total, 1), 0
    )


def tall_mask(deltas, weights, lam, agree):
    taus = np.stack(_taus(deltas, weights))
    total = taus.sum(0)
    needed = (np.abs(taus) >= lam * np.abs(total - taus)) & (taus != 0)
    return np.where(needed.sum(0) >= agree, total, 0)
