"""Wan: 30 or 40 blocks of self- and cross-attention; modules keep their spelling."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.record import Fact, Family

FAMILY = Family(
    name="Wan",
    order=110,
    facts=(
        Fact(
            "self and cross attention blocks",
            re.compile(r"^blocks_\d+_(self_attn|cross_attn)_(q|k|v|o|k_img|v_img)$"),
        ),
        shared.TE0,
    ),
)
