"""Dense methods: elementwise on ΔW, in bands of rows; what a rank cap throws away is reported with the
result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib_merge.linalg.delta import like
from lib_merge.methods.election import (
    DROP,
    ELECT,
    NORMALIZE,
    RESCALE,
    SCOPE,
    TRIM,
    added,
    disjoint_merge,
    elected_sign,
)
from lib_merge.methods.inputs import DenseInput
from lib_merge.methods.registry import Knob, PerSource, Scope, Space, merge_method

DARE = "https://arxiv.org/abs/2311.03099"
TIES = "https://arxiv.org/abs/2306.01708"


def _dropped(given: DenseInput, drop_rate: PerSource, *, rescale: bool) -> Sequence[Tensor]:
    """Return Float[rows in] per source: entries dropped with probability pᵢ, the rest divided by 1 − pᵢ."""
    if not any(drop_rate):
        return list(given.deltas)
    scales = [1.0 / (1.0 - rate) if rescale else 1.0 for rate in drop_rate]
    return [
        given.random(index).ge_(rate).mul_(scale).mul_(delta)
        for index, (delta, rate, scale) in enumerate(zip(given.deltas, drop_rate, scales))
    ]


def _trimmed(given: DenseInput, trim_fraction: PerSource) -> Sequence[Tensor]:
    """Return Float[rows in] per source with each source's ⌊fractionᵢ·N⌋ smallest entries zeroed."""
    if not any(trim_fraction):
        return list(given.deltas)
    bounds = [given.threshold(index, fraction) for index, fraction in enumerate(trim_fraction)]
    # a source without a bound keeps all, zeros included
    places = like("trimmed", given.deltas)
    return [
        torch.hardshrink(delta, max(bound, 0.0), out=place)
        for delta, bound, place in zip(given.deltas, bounds, places)
    ]


@merge_method(
    "ties",
    title="TIES",
    sentence="Removes each LoRA's smallest changes, lets the stronger side decide every sign and "
    "merges only what "
    "agrees. Try it when two LoRAs fight over the same thing.",
    paper=TIES,
    space=Space.DENSE,
    knobs=(TRIM, SCOPE, ELECT, NORMALIZE),
    elects=True,
    normalises=True,
    core_variant="core_ties",
)
def ties(
    given: DenseInput, *, trim_fraction: PerSource, trim_scope: str, elect: str, normalize: bool
) -> Tensor:
    """TIES-Merging (Yadav et al. 2023): trim, elect sign, disjoint mean.

    With τᵢ = wᵢΔWᵢ trimmed to its largest entries: γ = sign(Σ τᵢ) by mass, or sign(Σ sign τᵢ) by count, ties
    of count by mass; ΔW = Σ_{sign τᵢ = γ} τᵢ / Σ_{sign τᵢ = γ} |wᵢ|, per entry; 0 where nobody is left.
    `normalize` off leaves the sum. `trim_scope` "global" takes one threshold per source over all modules, as
    the paper does; the engine finds it.

    Returns:
        Float[rows in].
    Source: arXiv:2306.01708, §3, Algorithm 1.
    """
    del trim_scope  # given.threshold already answers for that scope
    return disjoint_merge(_trimmed(given, trim_fraction), given.weights, elect, normalize=normalize)


@merge_method(
    "dare",
    title="DARE",
    sentence="Drops a random share of every LoRA's changes and strengthens the rest, so that fewer "
    "of them collide. "
    "Try it when the weighted sum looks muddy.",
    paper=DARE,
    space=Space.DENSE,
    knobs=(DROP, RESCALE),
    drops=True,
    core_variant="knots_dare",
)
def dare(given: DenseInput, *, drop_rate: PerSource, rescale: bool) -> Tensor:
    """Drop And REscale (Yu et al. 2023): Σ mᵢ ∘ wᵢΔWᵢ / (1 − p), mᵢ ~ Bernoulli(1 − p) per entry.

    Returns:
        Float[rows in].
    Source: arXiv:2311.03099, §3.2.
    """
    return added(_dropped(given, drop_rate, rescale=rescale))


@merge_method(
    "dare_ties",
    title="DARE-TIES",
    sentence="DARE first, then TIES' election of signs: random dropping, and no fighting over what stays.",
    paper=DARE,
    space=Space.DENSE,
    knobs=(DROP, RESCALE, ELECT),
    elects=True,
    drops=True,
)
def dare_ties(given: DenseInput, *, drop_rate: PerSource, rescale: bool, elect: str) -> Tensor:
    """DARE, then sign election and disjoint sum (Yu et al. 2023, §4.3).

    Returns:
        Float[rows in].
    Source: arXiv:2311.03099; arXiv:2306.01708.
    """
    return disjoint_merge(_dropped(given, drop_rate, rescale=rescale), given.weights, elect, normalize=False)


@merge_method(
    "magnitude_prune",
    title="Magnitude prune",
    sentence="A weighted sum without each LoRA's smallest changes.",
    paper=TIES,
    space=Space.DENSE,
    knobs=(TRIM,),
)
def magnitude_prune(given: DenseInput, *, trim_fraction: PerSource) -> Tensor:
    """Σ τᵢ with each source's ⌊fraction·N⌋ smallest entries zeroed, per module.

    Returns:
        Float[rows in].
    Source: the trim step of arXiv:2306.01708.
    """
    return added(_trimmed(given, trim_fraction))


@merge_method(
    "breadcrumbs",
    title="Breadcrumbs",
    sentence="Leaves out both the outliers and the smallest changes of every LoRA: try it against artefacts.",
    paper="https://arxiv.org/abs/2312.06795",
    space=Space.DENSE,
    knobs=(
        Knob(
            name="gamma",
            default=0.01,
            help="Share of the largest entries dropped (γ).",
            minimum=0.0,
            maximum=0.5,
            step=0.005,
        ),
        Knob(
            name="trim_fraction",
            default=0.2,
            help="Share of the smallest entries dropped (β).",
            minimum=0.0,
            maximum=0.95,
            step=0.05,
            scope=Scope.SOURCE,
        ),
    ),
)
def breadcrumbs(given: DenseInput, *, gamma: float, trim_fraction: PerSource) -> Tensor:
    """Model Breadcrumbs (Davari & Belilovsky 2023): per module, drop the ⌊γN⌋ largest and ⌊βN⌋ smallest
    entries, then sum.

    Returns:
        Float[rows in].
    Source: arXiv:2312.06795, §3.
    """
    kept = _trimmed(given, trim_fraction)
    if gamma == 0:
        return added(kept)
    bounds = [given.largest(index, gamma) for index in range(len(kept))]
    return added([d.masked_fill(d.abs() >= bound, 0.0) for d, bound in zip(kept, bounds)])


@merge_method(
    "della",
    title="DELLA",
    sentence="DARE that prefers to keep the large changes of every row, then lets signs be elected.",
    paper="https://arxiv.org/abs/2406.11617",
    space=Space.DENSE,
    knobs=(
        DROP,
        Knob(
            name="epsilon",
            default=0.2,
            help="How much likelier a row's largest entry stays than its smallest (ε).",
            minimum=0.0,
            maximum=1.0,
            step=0.05,
        ),
        RESCALE,
        ELECT,
    ),
    elects=True,
    drops=True,
)
def della(given: DenseInput, *, drop_rate: PerSource, epsilon: float, rescale: bool, elect: str) -> Tensor:
    """DELLA-Merging (Deep et al. 2024): keep with chance 1 − pᵢ − ε/2 + ε·rank/(n − 1) by magnitude in each
    row, ÷ it; elect.

    Returns:
        Float[rows in].
    Source: arXiv:2406.11617, §3.
    """
    columns = given.deltas.shape[2]
    place = torch.arange(columns, dtype=torch.float32) / max(columns - 1, 1)
    kept = []
    for index, (delta, rate) in enumerate(zip(given.deltas, drop_rate)):
        # by rank, the smallest entry of a row first
        keep = (1.0 - rate - epsilon / 2 + epsilon * place).clamp_(0.0, 1.0).to(given.deltas)
        order = delta.abs().sort(dim=1, stable=True).indices
        chance = torch.empty_like(delta).scatter_(1, order, keep.expand_as(delta))
        chosen = (given.random(index) < chance) * delta
        kept.append(chosen.div_(chance.clamp_(min=1e-9)) if rescale else chosen)
    return disjoint_merge(kept, given.weights, elect, normalize=False)


def spread(deltas: Tensor) -> Tensor:
    """Return Float[rows in], the variance between the sources at every entry: mean of squared distances to
    the mean.
    """
    mean = deltas.mean(0)
    total: Tensor = sum((delta - mean).square_() for delta in deltas)
    return total.div_(len(deltas))


@merge_method(
    "sce",
    title="SCE",
    sentence=(
        "Keeps the entries on which the LoRAs differ most and weighs each LoRA by how much it says there."
    ),
    paper="https://arxiv.org/abs/2408.07990",
    space=Space.DENSE,
    sources=(2, None),
    knobs=(
        Knob(
            name="select",
            default=0.5,
            help="Share of the entries kept, by variance between the LoRAs (τ).",
            minimum=0.05,
            maximum=1.0,
            step=0.05,
        ),
    ),
    elects=True,
)
def sce(given: DenseInput, *, select: float) -> Tensor:
    """Select, Calculate, Erase (Wan et al. 2024), per module: entries of top variance; coefficients ηᵢ ∝ Σ
    τᵢ² there; minority signs (against sign Σ τᵢ) erased; Σ ηᵢτᵢ / Σ ηᵢ over what is left.

    Returns:
        Float[rows in].
    Source: arXiv:2408.07990, §3.3.
    """
    variance = spread(given.deltas)
    bound, shares = given.selection(select)
    chosen = torch.where(variance >= bound, given.deltas, 0.0)
    gamma = elected_sign(chosen, "mass")
    agrees = (torch.sign(chosen) == gamma) & (gamma != 0)
    eta = torch.tensor(shares, dtype=chosen.dtype, device=chosen.device)[:, None, None]
    total = (agrees * eta).sum(0)
    merged = torch.where(agrees, chosen * eta, 0.0).sum(0)
    return torch.where(total > 0, merged / total.clamp_min(1e-30), 0.0)


@merge_method(
    "tall_mask",
    title="TALL masks (consensus)",
    sentence="Keeps the entries that several LoRAs need and drops those that only one of them wants.",
    paper="https://arxiv.org/abs/2405.07813",
    space=Space.DENSE,
    sources=(2, None),
    knobs=(
        Knob(
            name="lam",
            default=0.4,
            help="How clearly an entry must belong to a LoRA to count (λ).",
            minimum=0.0,
            maximum=2.0,
            step=0.05,
        ),
        Knob(
            name="agree",
            default=2,
            help="How many LoRAs must need an entry for it to stay.",
            minimum=1,
            maximum=8,
            step=1,
        ),
    ),
)
def tall_mask(given: DenseInput, *, lam: float, agree: int) -> Tensor:
    """Consensus merging (Wang et al. 2024): mᵢ = 1[|τᵢ| ≥ λ·|τ − τᵢ|] with τ = Σ τᵢ; τ where Σ mᵢ ≥ k, else
    0.

    Returns:
        Float[rows in].
    Source: arXiv:2405.07813, eq. 4 and §4.2.
    """
    total = given.deltas.sum(0)
    needed = (given.deltas.abs() >= lam * (total - given.deltas).abs()) & (given.deltas != 0)
    return torch.where(needed.sum(0) >= agree, total, 0.0)
