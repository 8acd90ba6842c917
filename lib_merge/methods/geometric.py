"""Scalar methods with geometry: lengths and angles of whole deltas, read off a source × source Gram matrix.

Each module's ΔW is one long vector; spheres, means on them and projections need only inner products, so the
result is a combination Σ cᵢ ΔWᵢ and stays exact at any rank.
"""

from __future__ import annotations

import math

import numpy as np

from lib_merge.linalg import tolerances
from lib_merge.methods.inputs import ScalarInput
from lib_merge.methods.registry import Knob, Reads, Space, merge_method

SLERP = "https://dl.acm.org/doi/10.1145/325165.325242"


def _slerp(first: float, second: float, product: float, t: float) -> tuple[float, float]:
    """Return the coefficients of a and b on the arc between them, at length (1 − t)‖a‖ + t‖b‖.

    Args:
        first: ‖a‖².
        second: ‖b‖².
        product: ⟨a, b⟩.
        t: position on the arc.
    """
    a, b = math.sqrt(max(first, 0.0)), math.sqrt(max(second, 0.0))
    cosine = product / (a * b) if a > 0 and b > 0 else 1.0
    if abs(cosine) > tolerances.PARALLEL:
        return 1.0 - t, t
    angle = math.acos(cosine)
    length = (1.0 - t) * a + t * b
    return math.sin((1.0 - t) * angle) / math.sin(angle) * length / a, math.sin(t * angle) / math.sin(
        angle
    ) * length / b


@merge_method(
    "slerp",
    title="SLERP",
    sentence="Walks along the arc from the first LoRA to the second and keeps the strength on the "
    "way: a blend that does "
    "not go faint in the middle.",
    paper=SLERP,
    space=Space.SCALAR,
    sources=(2, 2),
    symmetric=False,
    reads=Reads.MODULE,
    knobs=(
        Knob(
            name="t",
            default=0.5,
            help="0 is the first LoRA, 1 the second (t).",
            minimum=0.0,
            maximum=1.0,
            step=0.01,
        ),
    ),
    spherical=True,
)
def slerp(given: ScalarInput, *, t: float) -> list[float]:
    """Spherical linear interpolation (Shoemake 1985) of τ₁ = w₁ΔW₁ and τ₂ = w₂ΔW₂, per module.

    (sin((1−t)Ω)/sin Ω · τ₁/‖τ₁‖ + sin(tΩ)/sin Ω · τ₂/‖τ₂‖) · ((1−t)‖τ₁‖ + t‖τ₂‖); the chord where one is
    zero or |cos Ω| > 0.9995.
    Source: Shoemake 1985, §3.3.
    """
    gram = given.gram()
    first, second = _slerp(gram[0, 0], gram[1, 1], gram[0, 1], t)
    return [first * given.weights[0], second * given.weights[1]]


@merge_method(
    "nuslerp",
    title="NuSLERP",
    sentence=(
        "SLERP whose place on the arc follows the ratios: 0.7 and 0.3 stop at three tenths, at "
        "the strength of one LoRA."
    ),
    paper=SLERP,
    space=Space.SCALAR,
    sources=(2, 2),
    reads=Reads.MODULE,
    spherical=True,
    normalises=True,
)
def nuslerp(given: ScalarInput) -> list[float]:
    """SLERP of sign(w₁)ΔW₁ and sign(w₂)ΔW₂ at t = |w₂| / (|w₁| + |w₂|), per module; weights only choose the
    place.

    Source: Shoemake 1985; t from weights as mergekit's method of this name.
    """
    w1, w2 = given.weights
    if not w1 or not w2:  # the whole arc belongs to the other end
        return [math.copysign(1.0, w1) if w1 else 0.0, math.copysign(1.0, w2) if w2 else 0.0]
    gram = given.gram()
    product = gram[0, 1] / abs(w1 * w2)
    first, second = _slerp(gram[0, 0] / w1**2, gram[1, 1] / w2**2, product, abs(w2) / (abs(w1) + abs(w2)))
    return [math.copysign(first, w1 * first), math.copysign(second, w2 * second)]


@merge_method(
    "karcher",
    title="Karcher mean",
    sentence=(
        "The fair middle of any number of LoRAs on the sphere: like SLERP, but for three and "
        "more, in any order."
    ),
    paper="https://arxiv.org/abs/1407.2087",
    space=Space.SCALAR,
    sources=(2, None),
    reads=Reads.MODULE,
    spherical=True,
    normalises=True,
)
def karcher(given: ScalarInput) -> list[float]:
    """Riemannian mean (Karcher 1977) of the directions sign(wᵢ)ΔWᵢ/‖ΔWᵢ‖ with weights |wᵢ|, per module.

    p ← exp_p(Σ aᵢ log_p(xᵢ)) from the normalised arithmetic mean, until the step is below 1e-9; then length
    Σ |wᵢ|‖ΔWᵢ‖ / Σ |wᵢ|. Zero deltas have no direction and count in the length alone. Points are kept as
    coefficients over the xᵢ, so that only their Gram matrix is needed.
    Source: Karcher 1977; survey arXiv:1407.2087.
    """
    weights = np.abs(np.asarray(given.weights))
    gram = given.gram()
    norms = np.sqrt(np.diag(gram).clip(0))  # |wᵢ|‖ΔWᵢ‖
    used = np.flatnonzero(norms > 0)
    if len(used) == 0:
        return [0.0] * len(weights)
    cosines = gram[np.ix_(used, used)] / np.outer(norms[used], norms[used])
    shares = weights[used] / weights[used].sum()
    point = _sphere_mean(cosines, shares)
    length = norms.sum() / weights.sum()
    factors = np.zeros(len(weights))
    factors[used] = point * length / norms[used] * np.asarray(given.weights)[used]
    return [float(value) for value in factors]


def _sphere_mean(cosines: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the Karcher mean as coefficients over unit vectors with the given cosines."""

    def length(vector: np.ndarray) -> float:
        return math.sqrt(max(float(vector @ cosines @ vector), 0.0))

    if len(shares) == 2 and abs(cosines[0, 1]) < tolerances.PARALLEL:  # the point of the arc itself
        angle = math.acos(cosines[0, 1])
        return np.array([math.sin(share * angle) / math.sin(angle) for share in shares])
    size = length(shares)
    if size < tolerances.ZERO_ANGLE:  # opposite directions have no mean: the chord's middle, which is nothing
        return np.zeros(len(shares))
    point = shares / size
    for _ in range(50):
        toward = np.clip(cosines @ point, -1.0, 1.0)
        angles = np.arccos(toward)
        scale = np.where(angles > tolerances.ZERO_ANGLE, angles / np.maximum(np.sin(angles), 1e-300), 1.0)
        step = shares * scale - float(shares @ (scale * toward)) * point
        size = length(step)
        if size < tolerances.KARCHER_STEP:
            break
        point = math.cos(size) * point + math.sin(size) / size * step
        point /= length(point)
    return point


@merge_method(
    "model_stock",
    title="Model stock",
    sentence="Shrinks the average towards nothing by as much as the LoRAs disagree: for fine-tunes "
    "of one subject, not for "
    "unrelated LoRAs, of which it leaves almost nothing.",
    paper="https://arxiv.org/abs/2403.19522",
    space=Space.SCALAR,
    sources=(2, None),
    reads=Reads.MODULE,
    averages=True,
    kin_only=True,
    normalises=True,
)
def model_stock(given: ScalarInput) -> list[float]:
    """Model Stock (Jang et al. 2024): t·Σ τᵢ/Σ|wᵢ| with t = N·c/(1 + (N−1)·c), c the mean cosine over pairs,
    per module.

    t is clipped to [0, 1]; a zero delta has cosine 0 to every other.
    Source: arXiv:2403.19522, eq. 5.
    """
    gram = given.gram()
    norms = np.sqrt(np.diag(gram).clip(0))
    count = len(norms)
    safe = np.where(norms > 0, norms, np.inf)
    pairs = (gram / np.outer(safe, safe))[np.triu_indices(count, 1)]
    cosine = float(pairs.mean())
    t = min(max(count * cosine / (1.0 + (count - 1) * cosine), 0.0), 1.0) if cosine > 0 else 0.0
    total = sum(abs(weight) for weight in given.weights) or 1.0
    return [t * weight / total for weight in given.weights]


@merge_method(
    "orthogonal_subtract",
    title="Orthogonal subtract",
    sentence=(
        "Removes from the first LoRA only what it shares with the second; what they do not "
        "share stays as it is."
    ),
    paper="https://arxiv.org/abs/2505.15875",
    space=Space.SCALAR,
    sources=(2, 2),
    symmetric=False,
    reads=Reads.MODULE,
    removes=True,
)
def orthogonal_subtract(given: ScalarInput) -> list[float]:
    """Projection of the second out of the first: τ₁ − w₂·(⟨τ₁, B⟩/⟨B, B⟩)·B with B = ΔW₂, per module.

    w₂ = 1 removes the shared direction entirely; a zero B removes nothing.
    Source: Gram-Schmidt, as in DO-Merging, arXiv:2505.15875, §3.
    """
    w1, w2 = given.weights
    gram = given.gram()
    if not w2 or gram[1, 1] <= 0:
        return [w1, 0.0]
    return [w1, -float(gram[0, 1] / gram[1, 1]) * w2 * w2]
