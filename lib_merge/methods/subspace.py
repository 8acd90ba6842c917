"""Core methods that vote or drop, in coordinates that the deltas themselves define: exactly low-rank,
nothing is cut.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from lib_merge.linalg.core import Bases
from lib_merge.methods.election import DROP, ELECT, NORMALIZE, RESCALE, TRIM, disjoint_merge, trim_smallest
from lib_merge.methods.inputs import CoreInput, RowInput
from lib_merge.methods.registry import Complaint, Gives, PerSource, Space, merge_method

KNOTS = "https://arxiv.org/abs/2410.19735"
CORE_SPACE = "https://arxiv.org/abs/2509.17786"


@merge_method(
    "knots_ties",
    title="KnOTS-TIES",
    sentence="TIES where it can see the LoRAs' shared directions; as exact as a sum, nothing is cut away.",
    paper=KNOTS,
    space=Space.CORE,
    gives=Gives.ROWS,
    bases=Bases.LEFT,
    knobs=(TRIM, ELECT, NORMALIZE),
    elects=True,
    normalises=True,
)
def knots_ties(given: RowInput, *, trim_fraction: PerSource, elect: str, normalize: bool) -> Tensor:
    """KnOTS with TIES (Stoica et al. 2024): [τ₁ | τ₂ | …] = U·Σ·[V₁ᵀ | V₂ᵀ | …]; TIES on the blocks ΣVᵢᵀ;
    U·merged.

    Returns:
        Float[a in], rows in the basis U.
    Source: arXiv:2410.19735, §4.
    """
    blocks = [given.rows(source) for source in range(len(given.weights))]
    bounds = [given.bound(source, block, trim_fraction[source]) for source, block in enumerate(blocks)]
    trimmed = [hardshrink(block, max(bound, 0.0)) for block, bound in zip(blocks, bounds)]
    return disjoint_merge(trimmed, given.weights, elect, normalize=normalize)


@merge_method(
    "knots_dare",
    title="KnOTS-DARE",
    sentence="DARE in the LoRAs' shared directions: random dropping without spilling out of the rank.",
    paper=KNOTS,
    space=Space.CORE,
    gives=Gives.ROWS,
    bases=Bases.LEFT,
    knobs=(DROP, RESCALE),
    drops=True,
)
def knots_dare(given: RowInput, *, drop_rate: PerSource, rescale: bool) -> Tensor:
    """KnOTS with DARE (Stoica et al. 2024): entries of the blocks ΣVᵢᵀ are dropped with probability pᵢ and
    divided by 1 − pᵢ.

    Returns:
        Float[a in], rows in the basis U.
    Source: arXiv:2410.19735, §4.
    """
    blocks = [given.rows(source) for source in range(len(given.weights))]
    total = torch.zeros_like(blocks[0])
    for index, (block, rate) in enumerate(zip(blocks, drop_rate)):
        keep = given.random(index, block.numel()).reshape(block.shape).ge_(rate)
        total.addcmul_(block, keep, value=1.0 / (1.0 - rate if rescale else 1.0))
    return total


@merge_method(
    "core_ties",
    title="Core-space TIES",
    sentence="TIES on the small matrices that hold all LoRAs; keeps the rank, costs nothing, a gentler TIES.",
    paper=CORE_SPACE,
    space=Space.CORE,
    bases=Bases.SINGULAR,
    knobs=(TRIM, ELECT, NORMALIZE),
    elects=True,
    normalises=True,
    helps={Complaint.MUDDY: "signs are decided by the stronger side, without losing rank"},
)
def core_ties(given: CoreInput, *, trim_fraction: PerSource, elect: str, normalize: bool) -> Tensor:
    """Core Space merging (Panariello et al. 2025) with TIES: TIES on Mᵢ = Pᵀ·τᵢ·Q, then P·M·Qᵀ.

    Returns:
        Float[a b].
    Source: arXiv:2509.17786, §4.
    """
    trimmed = [trim_smallest(core, fraction) for core, fraction in zip(given.cores, trim_fraction)]
    return disjoint_merge(trimmed, given.weights, elect, normalize=normalize)


@merge_method(
    "core_dare",
    title="Core-space DARE",
    sentence=(
        "Drops whole directions of each LoRA at random instead of single numbers: dropout that "
        "a LoRA file can hold."
    ),
    paper=CORE_SPACE,
    space=Space.CORE,
    knobs=(DROP, RESCALE),
    drops=True,
    helps={Complaint.MUDDY: "drops directions at random"},
)
def core_dare(given: CoreInput, *, drop_rate: PerSource, rescale: bool) -> Tensor:
    """Dropout in each source's own SVD basis: Σᵢ Σₖ mᵢₖ·σᵢₖ·uᵢₖvᵢₖᵀ / (1 − pᵢ), mᵢₖ ~ Bernoulli(1 − pᵢ).

    Returns:
        Float[a b].
    Source: DARE, arXiv:2311.03099, on singular triplets in core space, arXiv:2509.17786.
    """
    total = torch.zeros_like(given.cores[0])
    for index, rate in enumerate(drop_rate):
        left, values, right = given.svd(index)
        kept = given.random(index, len(values)) >= rate
        total += (left * torch.where(kept, values, 0.0)) @ right / (1.0 - rate if rescale else 1.0)
    return total
