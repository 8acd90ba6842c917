"""Scalar methods without geometry: ΔW = Σ cᵢ ΔWᵢ with coefficients that are known beforehand or from
norms.
"""

from __future__ import annotations

import math

import numpy as np

from lib_merge.linalg import tolerances
from lib_merge.methods.inputs import ScalarInput
from lib_merge.methods.registry import Knob, Reads, Space, merge_method

TASK_ARITHMETIC = "https://arxiv.org/abs/2212.04089"


@merge_method(
    "weighted_sum",
    title="Weighted sum",
    sentence=(
        "What you get from stacking the LoRAs in the prompt at these strengths, in one file. Start here."
    ),
    paper=TASK_ARITHMETIC,
    space=Space.SCALAR,
    stacks=True,
    adds=True,
)
def weighted_sum(given: ScalarInput) -> list[float]:
    """Task arithmetic (Ilharco et al. 2022): ΔW = Σ wᵢ ΔWᵢ.

    Source: arXiv:2212.04089, §2.
    """
    return list(given.weights)


@merge_method(
    "average",
    title="Average",
    sentence=(
        "The weighted mean: never stronger than its sources, so each of two unrelated LoRAs "
        "comes out at half strength."
    ),
    paper="https://arxiv.org/abs/2203.05482",
    space=Space.SCALAR,
    averages=True,
    normalises=True,
)
def average(given: ScalarInput) -> list[float]:
    """Model soup (Wortsman et al. 2022): ΔW = Σ wᵢ ΔWᵢ / Σ |wᵢ|; zero where every weight is zero.

    Source: arXiv:2203.05482, §2.
    """
    total = sum(abs(weight) for weight in given.weights)
    return [weight / total if total else 0.0 for weight in given.weights]


@merge_method(
    "norm_preserving",
    title="Norm preserving sum",
    sentence=(
        "A weighted sum scaled as a whole to the strength of its sources: try it when the sum "
        "looks over-baked or faint."
    ),
    paper=TASK_ARITHMETIC,
    space=Space.SCALAR,
    reads=Reads.RECIPE,
    adds=True,
    normalises=True,
)
def norm_preserving(given: ScalarInput) -> list[float]:
    """Weighted sum, scaled so that its norm is the |ratio|-weighted mean of the sources' norms, over the
    whole LoRA.

    ΔW = c·Σ τᵢ with τᵢ = wᵢΔWᵢ and c = (Σ ‖τᵢ‖ / Σ |ratioᵢ|) / ‖Σ τᵢ‖, all norms exact, from Gram matrices
    over all modules. Where the sum cancels to nothing the result is zero.
    """
    gram = given.gram()
    total = math.sqrt(max(float(gram.sum()), 0.0))
    target = float(np.sqrt(np.diag(gram).clip(0)).sum()) / (sum(abs(ratio) for ratio in given.ratios) or 1.0)
    cancels = total <= tolerances.CANCELS * math.sqrt(float(np.trace(gram)))
    return [0.0 if cancels else weight * target / total for weight in given.weights]


@merge_method(
    "add_difference",
    title="Add difference",
    sentence="Keeps the first LoRA whole and adds the second on top; with a third, adds only what "
    "the second has "
    "learned beyond the third.",
    paper=TASK_ARITHMETIC,
    space=Space.SCALAR,
    sources=(2, 3),
    symmetric=False,
    knobs=(
        Knob(
            name="factor",
            default=1.0,
            help="How much of the difference is added (f).",
            minimum=-2.0,
            maximum=2.0,
            step=0.05,
        ),
    ),
    removes=True,
)
def add_difference(given: ScalarInput, *, factor: float) -> list[float]:
    """Task analogy (Ilharco et al. 2022): A + f·B, or A + f·(B − base) when a third source is the base.

    Every source keeps its own weight: w₁A + f·(w₂B − w₃·base).
    Source: arXiv:2212.04089, §5.
    """
    signs = (1.0, factor, -factor)
    return [sign * weight for sign, weight in zip(signs, given.weights)]


@merge_method(
    "subtract",
    title="Subtract",
    sentence=(
        "Takes the second LoRA out of the first: try it to remove a style that came along with a character."
    ),
    paper=TASK_ARITHMETIC,
    space=Space.SCALAR,
    sources=(2, 2),
    symmetric=False,
    removes=True,
)
def subtract(given: ScalarInput) -> list[float]:
    """Task negation (Ilharco et al. 2022): w₁A − w₂B.

    Source: arXiv:2212.04089, §3.
    """
    return [given.weights[0], -given.weights[1]]


@merge_method(
    "ema",
    title="EMA of epochs",
    sentence=(
        "A moving average over the epochs of one training run, oldest first: smoother than the "
        "last epoch alone."
    ),
    paper="https://arxiv.org/abs/2312.02696",
    space=Space.SCALAR,
    sources=(2, None),
    symmetric=False,
    knobs=(
        Knob(
            name="beta",
            default=0.9,
            help="How much of the past each step keeps (β).",
            minimum=0.0,
            maximum=0.999,
            step=0.01,
        ),
    ),
)
def ema(given: ScalarInput, *, beta: float) -> list[float]:
    """Exponential moving average over the sources in order: θ₁ = τ₁, θₖ = β·θₖ₋₁ + (1 − β)·τₖ.

    Source: post-hoc EMA, Karras et al. 2023, arXiv:2312.02696, §3, applied to ΔW instead of to factors.
    """
    last = len(given.weights) - 1
    shares = [beta**last] + [(1.0 - beta) * beta ** (last - k) for k in range(1, last + 1)]
    return [share * weight for share, weight in zip(shares, given.weights)]
