"""Presets by name: the shipped ones, then those of a user's store where one is given."""

from __future__ import annotations

from collections.abc import Sequence

from lib_merge.blocks.shipped import shipped_names, shipped_weights
from lib_merge.blocks.store import PresetStore
from lib_merge.blocks.tokens import Weight


def preset_names(family: str, store: PresetStore | None = None) -> tuple[str, ...]:
    """Return the names of the presets that fit `family`: the shipped ones, then the user's.

    Args:
        family: the base family.
        store: the user's presets, where there are any.
    """
    return (*shipped_names(family), *(store.names(family) if store is not None else ()))


def find_preset(
    name: str, family: str, blocks: Sequence[str], store: PresetStore | None = None
) -> list[float] | list[Weight] | dict[str, float] | None:
    """Return a preset's weights for `family`, or None when there is no such name.

    Args:
        name: as typed, any case.
        family: the base family.
        blocks: the family's block ids, in order.
        store: the user's presets, asked when no shipped preset has the name.
    Returns:
        A list in one of the usual lengths (a user's may hold tokens), or {block: weight}; blocks missing
        from the mapping weigh 1. Element rules are not part of it: `PresetStore.get` has them.
    """
    shipped = shipped_weights(name, family, blocks)
    if shipped is not None or store is None:
        return shipped
    preset = store.get(name, family)
    if preset is None:
        return None
    return list(preset.weights) if isinstance(preset.weights, tuple) else dict(preset.weights)
