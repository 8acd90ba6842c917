"""Base models: one record per family, and what is asked of them.

A family is one file of this folder with a `FAMILY`; it is found by being there.
"""

from __future__ import annotations

import importlib
import pkgutil

from lib_merge.families.layers import Size
from lib_merge.families.placement import ModuleFacts, Placement
from lib_merge.families.record import Family
from lib_merge.families.registry import (
    FAMILIES,
    USUAL,
    FamilyGuess,
    block_of,
    block_order,
    blocks_present,
    encoder_of,
    expand_block_list,
    families_with_list,
    family_in_metadata,
    family_in_name,
    family_of,
    family_with_list,
    in_order,
    line_in_name,
    list_lengths,
    register,
    same_blocks,
    tables,
    tell_family,
    unregister,
    with_blocks,
)

__all__ = [
    "FAMILIES",
    "USUAL",
    "Family",
    "FamilyGuess",
    "ModuleFacts",
    "Placement",
    "Size",
    "block_of",
    "block_order",
    "blocks_present",
    "encoder_of",
    "expand_block_list",
    "families_with_list",
    "family_in_metadata",
    "family_in_name",
    "family_of",
    "family_with_list",
    "in_order",
    "line_in_name",
    "list_lengths",
    "register",
    "same_blocks",
    "tables",
    "tell_family",
    "unregister",
    "with_blocks",
]


def _find() -> None:
    """Register the `FAMILY` of every file in this folder."""
    for module in pkgutil.iter_modules(__path__):
        family = getattr(importlib.import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        if isinstance(family, Family):
            register(family)


_find()
