"""The one base family of several files: shapes decide, what is written breaks ties, a person may say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lib_merge.errors import FamilyError, UnsupportedKindError
from lib_merge.families import FAMILIES, FamilyGuess, ModuleFacts, family_of, same_blocks


class Told(Protocol):
    """What is known of an opened file before its family is settled."""

    @property
    def name(self) -> str:
        """File name for messages."""
        ...

    @property
    def guess(self) -> FamilyGuess:
        """The families that its shapes allow."""
        ...

    @property
    def facts(self) -> Sequence[ModuleFacts]:
        """What each module says of the family."""
        ...

    @property
    def said(self) -> str | None:
        """The family that a configuration or the header names."""
        ...


def refuse_by_name(file: Told) -> None:
    """Refuse a file of a family of which nothing can be merged.

    Raises:
        UnsupportedKindError: with what it is.
    """
    for name in file.guess.candidates:
        if FAMILIES[name].refused:
            message = f"{file.name} is {FAMILIES[name].refused}: it cannot be merged."
            raise UnsupportedKindError(message)


def likely_families(file: Told) -> tuple[str, ...]:
    """Return the families that a file fits; of several, the one that its configuration or header names."""
    said = file.said
    return (said,) if said in file.guess.possible else file.guess.candidates


def settle_family(files: Sequence[Told], asked: str | None) -> str:
    """Return the one family of all files.

    Shapes decide; where they allow several, `asked`, then what a configuration or a header says, then the
    other sources.

    Raises:
        FamilyError: two families, two sizes of one, or none can be told.
    """
    if asked is not None:
        _check_asked(files, asked)
        family = asked
    else:
        allowed = _shared_families(files)
        if len(allowed) > 1:
            message = (
                f"{files[0].name} fits {' and '.join(allowed)} ({files[0].guess.reason}): say which with "
                "--family, or merge it with a LoRA that tells."
            )
            raise FamilyError(message)
        family = allowed[0]
    _check_sizes(files, family)
    return family


def _check_asked(files: Sequence[Told], asked: str) -> None:
    """Refuse a family that there is not, or that a file cannot be of."""
    if asked not in FAMILIES:
        message = f"there is no family {asked!r}; families: {', '.join(FAMILIES)}."
        raise FamilyError(message)
    for file in files:
        if asked not in file.guess.arguable:
            fits = " or ".join(file.guess.candidates)
            message = f"{file.name} is for {fits} ({file.guess.reason}), not for {asked}."
            raise FamilyError(message)


def _shared_families(files: Sequence[Told]) -> list[str]:
    """Return the families that all files fit, the likely ones where there are such."""
    allowed = list(_possible(files[0]))
    for file in files[1:]:
        both = [family for family in allowed if family in _possible(file)]
        if not both:
            first = next(f for f in files if not set(_possible(f)) & set(_possible(file)) or f is files[0])
            message = (
                f"{first.name} is for {_told(first)} and {file.name} for {_told(file)}: "
                "LoRAs of different base models cannot be merged."
            )
            raise FamilyError(message)
        allowed = both
    likely = [family for family in allowed if all(family in likely_families(file) for file in files)]
    return likely or [family for family in allowed if FAMILIES[family].gives_way_to not in allowed]


def _told(file: Told) -> str:
    """Return what a file is for, and why, for people."""
    likely = likely_families(file)
    why = file.guess.reason if likely == file.guess.candidates else "its configuration or header says so"
    return f"{' or '.join(likely)} ({why})"


def _possible(file: Told) -> tuple[str, ...]:
    """Return the families that a file can be of beside others: the one that is written where shapes leave it
    open, else the likely ones and those that differ from them by a layer.
    """
    said, likely = file.said, file.guess.candidates
    if said in file.guess.possible and likely != (said,):
        return (said,)
    return tuple(name for name in file.guess.possible if any(same_blocks(name, one) for one in likely))


def _check_sizes(files: Sequence[Told], family: str) -> None:
    """Refuse files for models of different sizes of one family, also where they have no module in common."""
    layers = family_of(family).layers
    if layers is None:
        return
    first, known = files[0], set(layers.sizes)
    for file in files:
        sizes = layers.fitting(file.facts)
        if sizes and not known.intersection(sizes):
            one = next(size.name for size in layers.sizes if size in known)
            message = (
                f"{first.name} is for {one} and {file.name} for {sizes[0].name}: "
                "LoRAs of different base models cannot be merged."
            )
            raise FamilyError(message)
        if sizes:
            first = file if len(known.intersection(sizes)) < len(known) else first
            known.intersection_update(sizes)
