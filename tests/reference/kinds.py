"""Dense ΔW of one module from its raw tensors, the plainest way."""

from __future__ import annotations

import numpy as np


def lora(up, down, alpha=None, mid=None):
    """LoRA/LoCon: alpha/r · up·down; Tucker: out[m,i,k,l] = Σ up[m,a] mid[a,b,k,l] down[b,i]."""
    up, down = _f(up), _f(down)
    scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
    if mid is not None:
        delta = np.einsum(
            "ma,abkl,bi->mikl", up.reshape(up.shape[0], -1), _f(mid), down.reshape(down.shape[0], -1)
        )
        return scale * delta.reshape(delta.shape[0], -1)
    return scale * up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)


def loha(t, alpha=None):
    """(w1a·w1b) ∘ (w2a·w2b); with Tucker cores W[p,q,k,l] = Σ t[i,j,k,l] b[j,q] a[i,p]."""
    halves = []
    for n in "12":
        a, b = _f(t[f"hada_w{n}_a"]), _f(t[f"hada_w{n}_b"])
        if f"hada_t{n}" in t:
            whole = np.einsum("ijkl,jq,ip->pqkl", _f(t[f"hada_t{n}"]), b, a)
            halves.append(whole.reshape(whole.shape[0], -1))
        else:
            halves.append(a @ b.reshape(b.shape[0], -1))
    scale = 1.0 if alpha is None else float(alpha) / t["hada_w1_b"].shape[0]
    return scale * halves[0] * halves[1]


def lokr(t, alpha=None):
    """kron(w1, w2); today's layout keeps the kernel in w2, the one of 2023 factorises the flattened matrix."""
    w1 = _f(t["lokr_w1"]) if "lokr_w1" in t else _f(t["lokr_w1_a"]) @ _f(t["lokr_w1_b"])
    if "lokr_w2" in t:
        w2 = _f(t["lokr_w2"])
    elif "lokr_t2" in t:
        w2 = np.einsum("ijkl,ip,jr->prkl", _f(t["lokr_t2"]), _f(t["lokr_w2_a"]), _f(t["lokr_w2_b"]))
    else:
        b = _f(t["lokr_w2_b"])
        w2 = (_f(t["lokr_w2_a"]) @ b.reshape(b.shape[0], -1)).reshape(-1, *b.shape[1:])
    if alpha is None or ("lokr_w1" in t and "lokr_w2" in t):
        scale = 1.0
    else:
        scale = float(alpha) / (t["lokr_w2_b"].shape[0] if "lokr_w2_b" in t else t["lokr_w1_b"].shape[0])
    if w2.ndim == 4:  # out = a·c, in = b·d, kernel apart: written out index by index
        a, b = w1.shape
        c, d, k, l = w2.shape
        delta = np.einsum("ab,cdkl->acbdkl", w1, w2).reshape(a * c, b * d, k, l)
        return scale * delta.reshape(a * c, -1)
    return scale * np.kron(w1, w2)


def _f(x):
    return np.asarray(x, dtype=np.float64)
