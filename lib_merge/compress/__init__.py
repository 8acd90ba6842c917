"""Stacked factors → R × R core → truncated factors, and the policies that choose the rank."""

from __future__ import annotations

from lib_merge.compress.core import Compressed, compress, singular_values
from lib_merge.compress.policy import RankPolicy, parse_policy

__all__ = ["Compressed", "RankPolicy", "compress", "parse_policy", "singular_values"]
