"""Z-Image: 30 layers of attention and feed-forward; modules keep their spelling."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.record import Fact, Family

FAMILY = Family(
    name="Z-Image",
    order=100,
    facts=(
        Fact(
            "layers with attention and feed_forward",
            re.compile(r"^layers_\d+_(attention|feed_forward|adaLN)"),
        ),
        shared.TE0,
    ),
)
