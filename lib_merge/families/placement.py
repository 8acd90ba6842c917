"""What a file says of one module, and where the module goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class ModuleFacts(NamedTuple):
    """What one module of a file says to somebody who wants to tell its family.

    component      unet (any denoiser), or the text encoder as its key style numbers it: te, te0, te1, …
    path           module path with underscores, without its prefix
    rows, columns  of its weight, from whichever factor shows them; 0 where none does
    """

    component: str
    path: str
    rows: int
    columns: int


Rows = tuple[int, int]
Pieces = tuple[tuple[str, Rows], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """The output name of a module; for a piece of a fused module also which rows of which one it covers.

    swap_halves  the two halves of the out axis change places on the way
    """

    name: str
    fused: str | None = None
    rows: Rows | None = None
    swap_halves: bool = False
