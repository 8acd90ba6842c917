"""Dense methods: elementwise on ΔW, in bands of rows; what a rank cap throws away is reported with the result."""

from __future__ import annotations

import torch
from torch import Tensor

from lib_merge.methods.inputs import DenseInput
from lib_merge.methods.registry import Knob, merge_method


@merge_method(
    "dare",
    title="DARE",
    sentence="Drops a random share of every LoRA's changes and strengthens the rest, so that fewer of them collide. "
    "Try it when the weighted sum looks muddy.",
    paper="https://arxiv.org/abs/2311.03099",
    space="dense",
    knobs=(
        Knob("drop_rate", 0.3, "Share of the entries dropped at random (p).", 0.0, 0.95, 0.05),
        Knob("rescale", True, "Divide what stays by 1 − drop rate, so that the strength is kept on average."),
    ),
)
def dare(given: DenseInput, *, drop_rate: float, rescale: bool) -> Tensor:
    """Drop And REscale (Yu et al. 2023): Σ mᵢ ∘ wᵢΔWᵢ / (1 − p), mᵢ ~ Bernoulli(1 − p) per entry.

    Returns:
        Float[rows in].
    Source: arXiv:2311.03099, §3.2.
    """
    total = torch.zeros_like(given.deltas[0])
    for index, delta in enumerate(given.deltas):
        total += delta if drop_rate == 0 else torch.where(given.random(index) >= drop_rate, delta, 0.0)
    return total / (1.0 - drop_rate) if rescale else total


@merge_method(
    "ties",
    title="TIES",
    sentence="Removes each LoRA's smallest changes, lets the stronger side decide every sign and merges only what "
    "agrees. Try it when two LoRAs fight over the same thing.",
    paper="https://arxiv.org/abs/2306.01708",
    space="dense",
    knobs=(
        Knob("trim_fraction", 0.2, "Share of each LoRA's smallest entries dropped (1 − k).", 0.0, 0.95, 0.05),
        Knob(
            "elect",
            "mass",
            "Who decides the sign: the larger total (mass) or the more sources (count).",
            choices=("mass", "count"),
        ),
        Knob("normalize", True, "Mean over the weights that agree; off: their sum."),
    ),
)
def ties(given: DenseInput, *, trim_fraction: float, elect: str, normalize: bool) -> Tensor:
    """TIES-Merging (Yadav et al. 2023): trim, elect sign, disjoint mean.

    With τᵢ = wᵢΔWᵢ trimmed to its largest entries: γ = sign(Σ τᵢ) by mass, or sign(Σ sign τᵢ) by count, ties of count
    by mass; ΔW = Σ_{sign τᵢ = γ} τᵢ / Σ_{sign τᵢ = γ} |wᵢ|, per entry; 0 where nobody is left. `normalize` off leaves
    the sum.

    Returns:
        Float[rows in].
    Source: arXiv:2306.01708, §3, Algorithm 1.
    """
    trimmed = given.deltas.clone()
    if trim_fraction > 0:
        for index, delta in enumerate(trimmed):
            delta.masked_fill_(delta.abs() <= given.threshold(index, trim_fraction), 0.0)
    mass = trimmed.sum(0)
    gamma = torch.sign(mass)
    if elect == "count":
        votes = torch.sign(torch.sign(trimmed).sum(0))
        gamma = torch.where(votes == 0, gamma, votes)
    agrees = (torch.sign(trimmed) == gamma) & (gamma != 0)
    merged = torch.where(agrees, trimmed, 0.0).sum(0)
    if not normalize:
        return merged
    weights = torch.tensor([abs(weight) for weight in given.weights], dtype=merged.dtype, device=merged.device)
    share = (agrees * weights[:, None, None]).sum(0)
    return torch.where(share > 0, merged / share.clamp_min(torch.finfo(merged.dtype).tiny), 0.0)
