"""Anima: 28 blocks of self- and cross-attention with adaLN, after Cosmos; modules keep their spelling."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.record import Fact, Family

FAMILY = Family(
    name="Anima",
    order=90,
    facts=(
        Fact(
            "self and cross attention blocks with q_proj",
            re.compile(
                r"^blocks_\d+_(self_attn|cross_attn)_(q|k|v|output)_proj$|^blocks_\d+_adaln_modulation"
            ),
        ),
        shared.TE0,
    ),
)
