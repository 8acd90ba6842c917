"""Stable Diffusion 3: a transformer of joint blocks; its modules keep the spelling of their files."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.record import Fact, Family, HostModel, NameRules

FAMILY = Family(
    name="SD3",
    order=40,
    facts=(
        shared.FEED_FORWARD,
        shared.MORE_THAN_19,
        shared.MORE_THAN_27,
        shared.JOINT_ATTENTION,
        shared.TRANSFORMER_BLOCKS,
        Fact("joint blocks", re.compile(r"^joint_blocks_\d+_")),
        shared.JOINT_1536,
        shared.JOINT_2432,
        shared.TE1,
        shared.TE2,
        shared.TE3,
        shared.TEXT_768,
        shared.TEXT_1280,
    ),
    config_names=NameRules.of(30, (r"stable-diffusion-3|sd3", "SD3")),
    encoders={"te": "te1"},
    base_version="sd3m",
    architecture="stable-diffusion-3-m/lora",
    hosts=HostModel(flag="is_sd3"),
)
