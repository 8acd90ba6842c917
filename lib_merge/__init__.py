"""Merge LoRAs exactly: what was asked for is what is saved, and the saving proves it.

>>> from lib_merge import merge
>>> report = merge(["style.safetensors", "mira.safetensors"], ratios=[0.6, 0.4], save_to="out.safetensors")
>>> report.relative_error                                                                     # doctest: +SKIP
0.00021
"""

from __future__ import annotations

from lib_merge.adapters import LoraFile, open_lora
from lib_merge.analysis import AnalysisReport
from lib_merge.api import (
    analyze,
    convert,
    inspect,
    load_recipe,
    merge,
    presets,
    resize,
    run_recipe,
    verify,
)
from lib_merge.engine.report import MergeReport
from lib_merge.engine.threads import Job
from lib_merge.errors import MergeError
from lib_merge.methods import METHODS
from lib_merge.ranks.policy import RankPolicy, parse_policy
from lib_merge.recipe import Recipe, Source

__version__ = "0.2.0.dev0"
__all__ = [
    "METHODS",
    "AnalysisReport",
    "Job",
    "LoraFile",
    "MergeError",
    "MergeReport",
    "RankPolicy",
    "Recipe",
    "Source",
    "analyze",
    "convert",
    "inspect",
    "load_recipe",
    "merge",
    "open_lora",
    "parse_policy",
    "presets",
    "resize",
    "run_recipe",
    "verify",
]
