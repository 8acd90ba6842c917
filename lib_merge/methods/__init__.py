"""The merge methods. Importing this package fills the registry, in the order of the README's table."""

from __future__ import annotations

from lib_merge.methods import linear  # isort: skip - the registry keeps this order
from lib_merge.methods import geometric  # isort: skip
from lib_merge.methods import spectral  # isort: skip
from lib_merge.methods import subspace  # isort: skip
from lib_merge.methods import elementwise  # isort: skip
from lib_merge.linalg.core import Bases
from lib_merge.methods.inputs import ColumnInput, CoreInput, DenseInput, RowInput, ScalarInput
from lib_merge.methods.registry import (
    DEFAULT_METHOD,
    METHODS,
    Complaint,
    Gives,
    Knob,
    Method,
    Reads,
    Scope,
    Space,
    get_method,
)

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Bases",
    "ColumnInput",
    "Complaint",
    "CoreInput",
    "DenseInput",
    "Gives",
    "Knob",
    "Method",
    "Reads",
    "RowInput",
    "ScalarInput",
    "Scope",
    "Space",
    "elementwise",
    "geometric",
    "get_method",
    "linear",
    "spectral",
    "subspace",
]
