"""The presets that come with the program, as the families have them.

Names are matched without regard to case and cannot be taken by a user's preset.
"""

from __future__ import annotations

from collections.abc import Sequence

from lib_merge.families import FAMILIES, family_of


def is_shipped(name: str) -> bool:
    """Tell whether a name, in any case, belongs to a shipped preset of any family."""
    return any(name.strip().upper() in family.presets for family in FAMILIES.values())


def shipped_names(family: str) -> tuple[str, ...]:
    """Return the names of the shipped presets that fit `family`."""
    return tuple(family_of(family).presets)


def preset_hint(name: str) -> str:
    """Return one sentence on a shipped preset, or an empty text for any other name."""
    key = name.strip().upper()
    return next((family.presets[key].hint for family in FAMILIES.values() if key in family.presets), "")


def shipped_weights(name: str, family: str, blocks: Sequence[str]) -> list[float] | dict[str, float] | None:
    """Return a shipped preset's weights for `family`, or None when it has none of that name.

    Args:
        name: as typed, any case.
        family: the base family.
        blocks: the family's block ids, in order.
    Returns:
        The family's usual list, or {block: weight} for every block.
    """
    preset = family_of(family).presets.get(name.strip().upper())
    return None if preset is None else preset.weights(blocks)
