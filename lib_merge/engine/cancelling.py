"""Modules whose sources cancel each other: what is left of them is rounding, and is not saved.

A LoRA minus itself, or plus its negative, is zero; so is a frozen text encoder in the difference of two
epochs. Summed factors show it nowhere, so a few entries of ΔW are looked at first, and only where they
vanish beside their summands is the whole measured, in float64 and without squaring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import mul

import torch
from torch import Tensor

from lib_merge.engine.tree import Node, Target
from lib_merge.linalg import Delta, Dense, LowRank, Spanned, norm, tolerances

CANCELLED = "its sources cancel each other"
# of a method that chooses entries, which may keep none
LEFT_NOTHING = "the method leaves nothing of it"
# of a merge of which nothing is left
NOTHING = "every module of the result is zero: nothing would be left to save."
# Rows and columns whose entries are looked at first, and what of their summands is worth a second look.
_LOOK = 24
_NEXT_TO_NOTHING = 1e-4


def cancels(node: Node, target: Target, asked: Delta | Spanned, together: Callable[[], float]) -> bool:
    """Tell whether ‖ΔW‖ is rounding beside √Σ‖wᵢΔWᵢ‖².

    Args:
        node: the merge, or a group in it.
        target: the module.
        asked: what the node makes of it.
        together: () -> √Σ‖wᵢΔWᵢ‖²; asked only where ΔW may be nothing.
    """
    if not target.columns or sum(map(bool, node.weights(target))) < 2 or not _may_cancel(asked):
        return False
    size, summands = _size(asked), together()
    allowed = tolerances.CANCELS_WHOLE if isinstance(asked, Dense) else tolerances.CANCELS
    return bool(summands > 0.0 and size <= allowed * summands)


def none_left(values: Sequence[Tensor]) -> bool:
    """Tell whether a sum of biases or norm weights, wᵢvᵢ each, is rounding beside them."""
    together = math.sqrt(sum(float(value.double().square().sum()) for value in values))
    return float(sum(values[1:], values[0]).double().norm()) <= tolerances.CANCELS_WHOLE * together


def _may_cancel(asked: Delta | Spanned) -> bool:
    """Tell whether nothing speaks against it that a look at little shows."""
    if isinstance(asked, LowRank):
        return len(asked.terms) > 1 and _entry_vanishes(asked) and _vanishes(asked)
    if isinstance(asked, Dense):  # its summands are known, and it is measured in one pass
        return True
    parts = math.sqrt(float(asked.up_sizes.sum() * asked.down_sizes.sum()))
    return float(asked.values.norm()) <= _NEXT_TO_NOTHING * parts


def _entry_vanishes(asked: LowRank) -> bool:
    """Tell whether the entry in the middle is next to nothing beside those of its terms; most are not."""
    row, column = asked.out // 2, asked.columns // 2
    # in plain numbers: for a few dozen products torch takes longer to begin than to end
    parts: list[float] = [
        term.scale * sum(map(mul, term.up[row].tolist(), term.down[:, column].tolist()))
        for term in asked.terms
    ]
    return abs(sum(parts)) <= _NEXT_TO_NOTHING * math.hypot(*parts)


def _vanishes(asked: LowRank) -> bool:
    """Tell whether some entries of a sum are next to nothing beside those of its terms."""
    rows = slice(None, None, max(1, asked.out // _LOOK))
    columns = slice(None, None, max(1, asked.columns // _LOOK))
    parts: Sequence[Tensor] = [
        term.scale * (term.up[rows].double() @ term.down[:, columns].double()) for term in asked.terms
    ]
    total = sum(parts, torch.zeros_like(parts[0]))
    together: float = math.sqrt(sum(float(part.square().sum()) for part in parts))
    return float(total.norm()) <= _NEXT_TO_NOTHING * together


def _size(delta: Delta | Spanned) -> float:
    """Return ‖ΔW‖; of factors from their triangles in float64, which rounds at 1e-16 of them."""
    if isinstance(delta, Dense):
        return abs(delta.scale) * float(torch.linalg.vector_norm(delta.matrix.float()))
    if not isinstance(delta, LowRank) or not delta.terms:
        return norm(delta)
    up, down = delta.factors(dtype=torch.float64)
    if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
        return math.nan
    left, right = torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.T, mode="r").R
    return float((left @ right.T).norm())
