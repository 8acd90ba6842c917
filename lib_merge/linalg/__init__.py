"""ΔW as algebra: sums of scaled low-rank terms, and dense matrices where a kind has no low-rank form."""

from __future__ import annotations

from lib_merge.linalg.delta import Delta, Dense, LowRank, Term, add, rows_of, scaled, zero
from lib_merge.linalg.gram import difference_norm, inner, norm
from lib_merge.linalg.spanned import Spanned, Stack

__all__ = [
    "Delta",
    "Dense",
    "LowRank",
    "Spanned",
    "Stack",
    "Term",
    "add",
    "difference_norm",
    "inner",
    "norm",
    "rows_of",
    "scaled",
    "zero",
]
