"""What A1111, Forge, reForge, Classic, Neo and ComfyUI load: names of modules, and where they land."""

from __future__ import annotations

from lib_merge.loaders.check import Verdict, Written, sentence, verdict, verdicts, why, written_in
from lib_merge.loaders.hosts import HOSTS
from lib_merge.loaders.naming import NAMINGS, Naming
from lib_merge.loaders.record import Front, Host, How, Loads, Place
from lib_merge.loaders.spelling import Layout

__all__ = [
    "HOSTS",
    "NAMINGS",
    "Front",
    "Host",
    "How",
    "Layout",
    "Loads",
    "Naming",
    "Place",
    "Verdict",
    "Written",
    "sentence",
    "verdict",
    "verdicts",
    "why",
    "written_in",
]
