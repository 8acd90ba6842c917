"""Trimming and sign election, shared by the elementwise methods of both spaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from lib_merge.linalg.delta import like
from lib_merge.linalg.svd import smallest
from lib_merge.methods.registry import Knob, Scope

TRIM = Knob(
    name="trim_fraction",
    default=0.2,
    help="Share of each LoRA's smallest entries dropped (1 − k).",
    minimum=0.0,
    maximum=0.95,
    step=0.05,
    scope=Scope.SOURCE,
)
SCOPE = Knob(
    "trim_scope",
    "module",
    "The smallest of each module, or of the whole LoRA (global, as the paper; takes an extra pass).",
    choices=("module", "global"),
)
DROP = Knob(
    name="drop_rate",
    default=0.3,
    help="Share of each LoRA's entries dropped at random (p).",
    minimum=0.0,
    maximum=0.95,
    step=0.05,
    scope=Scope.SOURCE,
)
RESCALE = Knob(
    "rescale", True, "Divide what stays by 1 − drop rate, so that the strength is kept on average."
)
ELECT = Knob(
    "elect",
    "mass",
    "Who decides the sign: the larger total (mass) or the more sources (count).",
    choices=("mass", "count"),
)
NORMALIZE = Knob("normalize", True, "Mean over the weights that agree; off: their sum.")


def added(values: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Return Σ values, in their order; three times as fast as a sum over the first axis."""
    total = values[0].clone() if out is None else out.copy_(values[0])
    for value in values[1:]:
        total += value
    return total


def elected_sign(values: Tensor | Sequence[Tensor], elect: str, out: Tensor | None = None) -> Tensor:
    """Return γ, Float[…] of −1, 0, 1: the sign of Σ τᵢ (mass) or of Σ sign τᵢ with ties decided by mass
    (count).

    Args:
        values: Float[source …], or a sequence of Float[…].
        elect: mass or count.
        out: memory that may be used.
    """
    gamma = added(list(values), out).sign_()
    if elect == "count":
        votes = torch.sign(sum(torch.sign(value) for value in values))  # type: ignore[arg-type]
        gamma = votes + (1 - votes.abs()) * gamma
    return gamma


def disjoint_merge(
    values: Tensor | Sequence[Tensor], weights: Sequence[float], elect: str, *, normalize: bool
) -> Tensor:
    """Merge what agrees with the elected sign: Σ τᵢ, or Σ τᵢ / Σ |wᵢ| over the agreeing sources; 0 where
    nobody is left.

    Args:
        values: Float[source rows in], or a sequence of Float[rows in], already weighted.
        weights: wᵢ.
        elect: mass or count.
        normalize: divide by the agreeing weights.
    """
    # signs and clamps are vector instructions, comparisons and `where` are not: the same result in a quarter
    # of the time
    gamma = elected_sign(values, elect, like("gamma", values[0]))
    merged, agrees = torch.zeros_like(gamma), like("agrees", gamma)
    share = like("share", gamma).zero_() if normalize else gamma
    for value, weight in zip(values, weights):
        torch.sign(value, out=agrees).mul_(gamma).clamp_(min=0)
        merged.addcmul_(value, agrees)
        if normalize:
            share.add_(agrees, alpha=abs(weight))
    return merged.div_(share.clamp_(min=torch.finfo(merged.dtype).tiny)) if normalize else merged


def trim_smallest(values: Tensor, fraction: float) -> Tensor:
    """Return `values` with the ⌊fraction·N⌋ smallest magnitudes zeroed."""
    # a fifteenth of the time of a comparison and a fill
    return hardshrink(values, max(smallest(values, fraction), 0.0))
