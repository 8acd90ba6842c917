"""The merge methods. Importing this package fills the registry."""

from __future__ import annotations

from lib_merge.methods import elementwise, linear
from lib_merge.methods.inputs import CoreInput, DenseInput, ScalarInput
from lib_merge.methods.registry import METHODS, Knob, Method, get_method

__all__ = [
    "METHODS",
    "CoreInput",
    "DenseInput",
    "Knob",
    "Method",
    "ScalarInput",
    "elementwise",
    "get_method",
    "linear",
]
