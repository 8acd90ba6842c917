"""Whole matrices (`.diff`) and the one-dimensional tensors that ride along: biases and norm weights.

They add as they are, scaled by the ratio alone: ΔW = diff, Δb = diff_b.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from lib_merge.adapters.layout import Layout, LayoutError, Shapes, flat
from lib_merge.linalg import Delta, Dense

VECTORS = frozenset({"diff_b", "lora_bias", "w_norm", "b_norm"})


def matches(roles: Collection[str]) -> bool:
    """Tell whether a module with these roles carries its whole matrix."""
    return "diff" in roles


def layout(shapes: Shapes) -> Layout:
    """Read the size; a one-dimensional `diff` (a norm's or a bias' weight) counts as one column.

    Raises:
        LayoutError: an empty tensor.
    """
    shape = shapes["diff"]
    if not shape or 0 in shape:
        message = f"diff has shape {list(shape)}"
        raise LayoutError(message)
    return Layout("full", *flat(shape), tuple(shape[2:]), 0)


def load(tensors: Mapping[str, Tensor], scale: float | None) -> Delta:
    """Return the matrix itself, Float[out in·kh·kw]."""
    matrix = tensors["diff"].float()
    return Dense(1.0 if scale is None else scale, matrix.reshape(matrix.shape[0], -1))
