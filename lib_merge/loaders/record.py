"""What a loader knows: names of modules, told by what they begin with, and where they land.

A host gives every weight of a model one or several names. All of them are one of two kinds, with something in
front: the model's own names (`double_blocks.0.img_attn.qkv`) and those of diffusers' copy of the model
(`transformer_blocks.0.attn.to_q`), which may mean some rows of a weight. The families know both; a host says
which fronts it takes before which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from lib_merge.families.placement import Rows


class How(Enum):
    """How a table came to be.

    RUN   compared name by name with what the host's own mapping gives for a model of the family
    READ  read in the host's source, not run
    """

    RUN = "run"
    READ = "read, not run"


class Place(NamedTuple):
    """Where a loader puts a module.

    weight  of the model, its path with underscores and without a front; of an encoder with its name before
    rows    (first, last + 1) where only these are meant
    """

    weight: str
    rows: Rows | None = None


@dataclass(frozen=True)
class Encoder:
    """The modules of a text encoder that can carry a LoRA.

    path    pattern of a module's path with underscores; the first group is the number of its layer
    layers  that there are
    others  paths outside the layers
    head    what stands before a path that is written with dots
    """

    path: re.Pattern[str]
    layers: int
    others: frozenset[str] = frozenset()
    head: str = ""

    def has(self, path: str) -> bool:
        """Tell whether the encoder has a module."""
        match = self.path.fullmatch(path)
        return path in self.others if match is None else int(match[1]) < self.layers


class Front(NamedTuple):
    """What names begin with, and the only paths that it stands before: all where there is no pattern."""

    text: str
    only: re.Pattern[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Loads:
    """What one host loads for one family.

    A front that ends in an underscore stands before paths with underscores, any other before paths with dots.

    own       fronts before the model's own names
    other     fronts before diffusers' names
    mixed     diffusers has the model's own name where it has none of its own, and so has the host
    encoders  front -> text encoders; the first that has a module is meant
    without   pattern of paths that it does not know although the family has them; None = it knows all
    how       this was found out
    """

    own: tuple[Front | str, ...] = ()
    other: tuple[Front | str, ...] = ()
    mixed: bool = False
    encoders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: re.Pattern[str] | None = None
    how: How = How.RUN

    @cached_property
    def encoder_fronts(self) -> tuple[str, ...]:
        """The fronts of text encoders, the longest first: one may begin with another."""
        return tuple(sorted(self.encoders, key=len, reverse=True))


@dataclass(frozen=True, kw_only=True)
class Host:
    """A program that loads LoRAs.

    name, title     as options and people call it
    source, commit  the copy that was looked at
    families        name -> what it loads of it; a family that is not here has no model in this host
    roles           roles of tensors that it reads; a module with another is not loaded as it is meant
    all_or_none     it takes the modules of a set (`Family.together`) only when all of them are there
    strict          a module of which it can make nothing (a bias or an alpha alone, PEFT's factors) loses
                    the whole file
    most_unknown    share of a file's keys that may be unknown before it refuses the file
    """

    name: str
    title: str
    source: str
    commit: str
    families: Mapping[str, Loads]
    roles: frozenset[str]
    all_or_none: bool = False
    strict: bool = False
    most_unknown: float = 1.0
