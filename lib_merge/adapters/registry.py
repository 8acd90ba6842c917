"""The adapter kinds there are, which of them a module is, and what the ends of keys mean."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import NamedTuple

from lib_merge.adapters.full import Full
from lib_merge.adapters.kind import SHARED, Ending, Kind, Shapes
from lib_merge.adapters.loha import LoHa
from lib_merge.adapters.lokr import LoKr
from lib_merge.adapters.lora import LoRA
from lib_merge.adapters.refused import REFUSED

KINDS: list[Kind] = [LoRA(), LoHa(), LoKr(), Full(), *REFUSED]


class KeyEnds(NamedTuple):
    """What the ends of keys mean.

    means        end of a key -> role and style
    parts        dotted parts that the longest has
    only_beside  role -> the role without which it is a tensor of some other model
    """

    means: Mapping[str, Ending]
    parts: int
    only_beside: Mapping[str, str]


def register(kind: Kind) -> None:
    """Add a kind.

    Raises:
        ValueError: one of its key endings means something else already.
    """
    known = key_ends().means
    for end, ending in kind.endings.items():
        if end in known and known[end].role != ending.role:
            message = f"{kind.name}: keys that end in {end} are {known[end].role} already"
            raise ValueError(message)
    KINDS.append(kind)


def unregister(kind: Kind) -> None:
    """Take a kind out again."""
    KINDS.remove(kind)


def kind_of(roles: Collection[str]) -> Kind | None:
    """Return the kind of a module, or None.

    A kind that needs the base weight is asked first: a DoRA has all tensors of a LoRA, and one more.
    """
    return next((kind for kind in _in_turn(tuple(KINDS)) if kind.matches(roles)), None)


@functools.lru_cache(maxsize=8)
def _in_turn(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    return tuple(sorted(kinds, key=lambda kind: not kind.needs_base))


def sides(shapes: Shapes) -> tuple[int, int]:
    """Return (rows, columns) of a linear module from whichever tensors show them; 0 where none does.

    Args:
        shapes: role -> shape.
    """
    rows = columns = 0
    for kind in KINDS:
        if kind.matches(shapes):
            own_rows, own_columns = kind.sides(shapes)
            rows, columns = rows or own_rows, columns or own_columns
    return rows, columns


def key_ends() -> KeyEnds:
    """Return what the ends of keys mean, for every kind."""
    return _key_ends(tuple(KINDS))


@functools.lru_cache(maxsize=8)
def _key_ends(kinds: tuple[Kind, ...]) -> KeyEnds:
    means = dict(SHARED)
    only_beside: dict[str, str] = {}
    for kind in kinds:
        means.update(kind.endings)
        only_beside.update(kind.only_beside)
    return KeyEnds(means, max(end.count(".") + 1 for end in means), only_beside)
