"""ΔW as algebra: sums of scaled low-rank terms, and dense matrices where a kind has no low-rank form."""

from __future__ import annotations

from lib_merge.linalg.delta import (
    Columns,
    Delta,
    Dense,
    LowRank,
    Spanned,
    Term,
    add,
    rows_of,
    scaled,
    zero,
)
from lib_merge.linalg.gram import difference_norm, inner, norm

__all__ = [
    "Columns",
    "Delta",
    "Dense",
    "LowRank",
    "Spanned",
    "Term",
    "add",
    "difference_norm",
    "inner",
    "norm",
    "rows_of",
    "scaled",
    "zero",
]
