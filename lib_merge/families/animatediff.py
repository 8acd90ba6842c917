"""AnimateDiff: motion modules beside a UNet of Stable Diffusion 1; named so that it is told, and refused."""

from __future__ import annotations

import re

from lib_merge.families.record import Fact, Family

FAMILY = Family(
    name="AnimateDiff",
    order=900,
    facts=(Fact("motion modules", re.compile(r"_motion_modules_\d+_")),),
    refused="a motion LoRA of AnimateDiff, which belongs to its motion module and to no other model",
)
