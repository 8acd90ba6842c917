"""Scalar methods: ΔW = Σ cᵢ ΔWᵢ, exact at any rank."""

from __future__ import annotations

from lib_merge.methods.inputs import ScalarInput
from lib_merge.methods.registry import Knob, merge_method


@merge_method(
    "weighted_sum",
    title="Weighted sum",
    sentence="What you get from stacking the LoRAs in the prompt at these strengths, in one file. Start here.",
    paper="https://arxiv.org/abs/2212.04089",
    space="scalar",
)
def weighted_sum(given: ScalarInput) -> list[float]:
    """Task arithmetic (Ilharco et al. 2022): ΔW = Σ wᵢ ΔWᵢ.

    Source: arXiv:2212.04089, §2.
    """
    return list(given.weights)


@merge_method(
    "add_difference",
    title="Add difference",
    sentence="Keeps the first LoRA whole and adds the second on top; with a third, adds only what the second has "
    "learned beyond the third.",
    paper="https://arxiv.org/abs/2212.04089",
    space="scalar",
    sources=(2, 3),
    symmetric=False,
    knobs=(Knob("factor", 1.0, "How much of the difference is added (f).", -2.0, 2.0, 0.05),),
)
def add_difference(given: ScalarInput, *, factor: float) -> list[float]:
    """Task analogy (Ilharco et al. 2022): A + f·B, or A + f·(B − base) when a third source is the base.

    Every source keeps its own weight: w₁A + f·(w₂B − w₃·base).
    Source: arXiv:2212.04089, §5.
    """
    signs = (1.0, factor, -factor)
    return [sign * weight for sign, weight in zip(signs, given.weights)]
