"""The merge methods. Importing this package fills the registry, in the order of the README's table."""

from __future__ import annotations

from lib_merge.methods import linear  # isort: skip - the registry keeps this order
from lib_merge.methods import geometric  # isort: skip
from lib_merge.methods import spectral  # isort: skip
from lib_merge.methods import subspace  # isort: skip
from lib_merge.methods import elementwise  # isort: skip
from lib_merge.methods.inputs import ColumnInput, CoreInput, DenseInput, RowInput, ScalarInput
from lib_merge.methods.registry import METHODS, Knob, Method, get_method

__all__ = [
    "METHODS",
    "ColumnInput",
    "CoreInput",
    "DenseInput",
    "Knob",
    "Method",
    "RowInput",
    "ScalarInput",
    "elementwise",
    "geometric",
    "get_method",
    "linear",
    "spectral",
    "subspace",
]
