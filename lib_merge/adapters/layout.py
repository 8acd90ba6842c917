"""What an adapter kind says of one module from shapes alone, before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]


class Layout(NamedTuple):
    """Kind and size of one module's ΔW.

    kind     LoRA, LoCon, Tucker, LoHa, LoKr, full, vectors
    out      rows of ΔW
    columns  in·kh·kw
    kernel   (kh, kw) where the tensors show it; () for a linear layer or where only the flattened matrix is
             stored
    rank     of the exact low-rank form; 0 where there is none
    """

    kind: str
    out: int
    columns: int
    kernel: tuple[int, ...]
    rank: int


class LayoutError(ValueError):
    """Shapes that cannot belong together; the caller adds file and key."""


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (first axis, product of the others)."""
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


def need(shapes: Shapes, *roles: str) -> None:
    """Raise `LayoutError` when one of the roles is absent."""
    missing = [role for role in roles if role not in shapes]
    if missing:
        message = f"{' and '.join(missing)} is missing beside {', '.join(sorted(shapes))}"
        raise LayoutError(message)


def at_least_2d(shapes: Shapes, *roles: str) -> None:
    """Raise `LayoutError` when a factor is not a matrix or is empty."""
    for role in roles:
        shape = shapes[role]
        if len(shape) not in (2, 3, 4, 5) or 0 in shape:
            message = f"{role} has shape {list(shape)}, not a matrix or a convolution kernel"
            raise LayoutError(message)
