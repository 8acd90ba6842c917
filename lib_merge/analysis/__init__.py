"""Understand LoRAs and merges: what is in them, what a merge will do, what to do about it.

>>> from lib_merge.analysis import analyze
>>> report = analyze(["style.safetensors", "mira.safetensors"])                                # doctest:
                                                                                               +SKIP
>>> [advice.title for advice in report.advice]                                                 # doctest:
                                                                                               +SKIP
['Balance → 0.83 / 0.17']
"""

from __future__ import annotations

from lib_merge.analysis.model import (
    STAGES,
    Advice,
    AnalysisReport,
    CurvePoint,
    MethodRow,
    Outcome,
    PairPart,
    PairReport,
    Part,
    RecipeReport,
    SourceReport,
    Symptom,
    TensorStats,
    Training,
    TrainingRow,
)
from lib_merge.analysis.page import to_html, to_json
from lib_merge.analysis.sources import RELATIONS
from lib_merge.analysis.steps import Options, analyze, analyze_steps, reweigh
from lib_merge.analysis.symptoms import ROLES, by_role

__all__ = [
    "RELATIONS",
    "ROLES",
    "STAGES",
    "Advice",
    "AnalysisReport",
    "CurvePoint",
    "MethodRow",
    "Options",
    "Outcome",
    "PairPart",
    "PairReport",
    "Part",
    "RecipeReport",
    "SourceReport",
    "Symptom",
    "TensorStats",
    "Training",
    "TrainingRow",
    "analyze",
    "analyze_steps",
    "by_role",
    "reweigh",
    "to_html",
    "to_json",
]
