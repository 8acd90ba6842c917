"""Qwen-Image: 60 transformer blocks with an MLP for image and one for text; modules keep their spelling."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.record import Fact, Family

FAMILY = Family(
    name="Qwen-Image",
    order=70,
    facts=(
        Fact("image and text MLPs per block", re.compile(r"^transformer_blocks_\d+_(img|txt)_(mlp|mod)")),
        shared.MORE_THAN_19,
        shared.MORE_THAN_27,
        shared.JOINT_ATTENTION,
        shared.TRANSFORMER_BLOCKS,
        shared.JOINT_3072,
        shared.TE0,
    ),
)
