"""Whole matrices (`.diff`): ΔW = diff, scaled by the ratio alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lib_merge.adapters.kind import (
    BaseWeight,
    Ending,
    Layout,
    LayoutError,
    MergeableKind,
    Shapes,
    flat,
    side,
)
from lib_merge.linalg import Delta, Dense

ENDINGS = {"diff": Ending("diff", "kohya")}


class Full(MergeableKind):
    """One matrix."""

    name = "full"
    marks = frozenset({"diff"})
    endings = ENDINGS

    def sides(self, shapes: Shapes) -> tuple[int, int]:
        """Return the size of the matrix."""
        return side(shapes, "diff", 0), side(shapes, "diff", 1)

    def layout(self, shapes: Shapes) -> Layout:
        """Read the size; a one-dimensional `diff` (a norm's or a bias' weight) counts as one column.

        Raises:
            LayoutError: an empty tensor.
        """
        shape = shapes["diff"]
        if not shape or 0 in shape:
            message = f"diff has shape {list(shape)}"
            raise LayoutError(message)
        return Layout("full", *flat(shape), tuple(shape[2:]), 0, one_axis=len(shape) == 1)

    def load(self, tensors: Mapping[str, Tensor], scale: float | None, base: BaseWeight | None) -> Delta:
        """Return the matrix itself.

        Args:
            tensors: diff Float[out in …].
            scale: a factor; 1 by default.
            base: not needed.
        """
        del base
        matrix = tensors["diff"].float()
        return Dense(1.0 if scale is None else scale, matrix.reshape(matrix.shape[0], -1))
