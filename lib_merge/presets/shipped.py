"""Named block weights: the classic ones every LoRA Block Weight user knows, and pairs for style and character.

A preset is a list in one of the usual lengths (12, 17, 20, 26, 61), so that it applies to the families that length
belongs to. Names are matched without regard to case.
"""

from __future__ import annotations

from collections.abc import Mapping

_CLASSIC_17: Mapping[str, str] = {
    "NONE": "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
    "ALL": "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
    "INS": "1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0",
    "IND": "1 0 0 0 1 1 1 0 0 0 0 0 0 0 0 0 0",
    "INALL": "1 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0",
    "MIDD": "1 0 0 0 1 1 1 1 1 1 1 1 0 0 0 0 0",
    "OUTD": "1 0 0 0 0 0 0 0 1 1 1 1 0 0 0 0 0",
    "OUTS": "1 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1",
    "OUTALL": "1 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1",
    "ALL0.5": "0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5",
}
_NAMED: Mapping[str, Mapping[str, float | str]] = {
    # blocks by range, for every family that has IN, M and OUT: the guides' "style high in OUT, character high in IN"
    "STYLE": {"IN": 0.25, "M": 0.6, "OUT": 1.0},
    "CHARACTER": {"IN": 1.0, "M": 0.8, "OUT": 0.35},
    "NO-TEXT-ENCODER": {"BASE": 0.0, "CLIP": 0.0, "T5": 0.0},
}
_UNET_FAMILIES = ("SD1", "SD2", "SDXL")


def preset_names(family: str) -> tuple[str, ...]:
    """Return the names of the shipped presets that fit `family`."""
    classic = tuple(_CLASSIC_17) if family in ("SD1", "SD2") else ("NONE", "ALL", "ALL0.5")
    pairs = ("STYLE", "CHARACTER") if family in _UNET_FAMILIES else ()
    return (*classic, *pairs, "NO-TEXT-ENCODER")


def find_preset(name: str, family: str, blocks: tuple[str, ...]) -> list[float] | dict[str, float] | None:
    """Return a shipped preset's weights for `family`, or None when there is no such name.

    Args:
        name: as typed, any case.
        family: the base family.
        blocks: the family's block ids, in order.
    Returns:
        A classic 17-value list (SD1, SD2), or {block: weight} for every block.
    """
    upper = name.strip().upper()
    if upper not in preset_names(family):
        return None
    if upper in _CLASSIC_17:
        if family in ("SD1", "SD2"):
            return [float(value) for value in _CLASSIC_17[upper].split()]
        value = {"NONE": 0.0, "ALL": 1.0, "ALL0.5": 0.5}[upper]
        return {block: 1.0 if block == "OTHER" else value for block in blocks}
    rules = _NAMED[upper]
    weights = {}
    for block in blocks:
        prefix = block.rstrip("0123456789")
        weights[block] = float(rules.get(block, rules.get(prefix, 1.0)))
    return weights
