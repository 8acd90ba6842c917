"""What A1111, Forge, reForge, Classic, Neo and ComfyUI load: names of modules, and where they land."""

from __future__ import annotations

from lib_merge.loaders.check import (
    Contents,
    Verdict,
    Written,
    lost_on_the_way,
    sentence,
    verdict,
    verdicts,
    why,
    written_in,
)
from lib_merge.loaders.hosts import HOSTS
from lib_merge.loaders.naming import NAMINGS, Naming, namings
from lib_merge.loaders.record import Front, Host, How, Loads, Place
from lib_merge.loaders.spelling import Layout

__all__ = [
    "HOSTS",
    "NAMINGS",
    "Contents",
    "Front",
    "Host",
    "How",
    "Layout",
    "Loads",
    "Naming",
    "Place",
    "Verdict",
    "Written",
    "lost_on_the_way",
    "namings",
    "sentence",
    "verdict",
    "verdicts",
    "why",
    "written_in",
]
