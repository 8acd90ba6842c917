"""The presets that come with the program: the classic ones every LoRA Block Weight user knows, and pairs.

The classic lists of SD1 have 17 places; SDXL's have 12 and switch the same part of the U: shallow or deep,
going in or coming out. Pairs follow the common practice that a style lives in OUT and a character in IN.
Names are matched without regard to case and cannot be taken by a user's preset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_SD = ("SD1", "SD2")
_UNETS = (*_SD, "SDXL")
_FLUX = ("Flux", "Chroma")
_EVEN: Mapping[str, float] = {"NONE": 0.0, "ALL": 1.0, "ALL0.5": 0.5}
# name -> 17 values (SD1, SD2), 12 values (SDXL)
_CLASSIC: Mapping[str, tuple[str, str]] = {
    "NONE": ("0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", ""),
    "ALL": ("1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", ""),
    "INS": ("1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0", "1 1 1 0 0 0 0 0 0 0 0 0"),
    "IND": ("1 0 0 0 1 1 1 0 0 0 0 0 0 0 0 0 0", "1 0 0 1 1 0 0 0 0 0 0 0"),
    "INALL": ("1 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0", "1 1 1 1 1 0 0 0 0 0 0 0"),
    "MIDD": ("1 0 0 0 1 1 1 1 1 1 1 1 0 0 0 0 0", "1 0 0 1 1 1 1 1 1 0 0 0"),
    "OUTD": ("1 0 0 0 0 0 0 0 1 1 1 1 0 0 0 0 0", "1 0 0 0 0 0 1 1 1 0 0 0"),
    "OUTS": ("1 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1", "1 0 0 0 0 0 0 0 0 1 1 1"),
    "OUTALL": ("1 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1", "1 0 0 0 0 0 1 1 1 1 1 1"),
    "ALL0.5": (" ".join(["0.5"] * 17), ""),
}
# name -> families, {block or its letters: weight}; what is not named is 1
_RULES: Mapping[str, tuple[tuple[str, ...], Mapping[str, float]]] = {
    "STYLE": (_UNETS, {"IN": 0.25, "M": 0.6, "OUT": 1.0}),
    "CHARACTER": (_UNETS, {"IN": 1.0, "M": 0.8, "OUT": 0.35}),
    "STYLE-OUT": (_UNETS, {"BASE": 0.5, "IN": 0.0, "M": 0.5, "OUT": 1.0}),
    "CHARACTER-IN": (_UNETS, {"BASE": 0.5, "IN": 1.0, "M": 0.5, "OUT": 0.0}),
    "FLUXALL": (_FLUX, {}),
    "DOUBLE": (_FLUX, {"S": 0.0}),
    "SINGLE": (_FLUX, {"D": 0.0}),
    "NO-TEXT-ENCODER": ((), {"BASE": 0.0, "CLIP": 0.0, "T5": 0.0}),
}
_HINTS: Mapping[str, str] = {
    "NONE": "Every block off.",
    "ALL": "Every block at full strength.",
    "ALL0.5": "Every block at half strength.",
    "INS": "Only the shallow input blocks: low-level structure.",
    "IND": "Only the deep input blocks.",
    "INALL": "All input blocks: structure.",
    "MIDD": "The deep blocks around the middle: composition.",
    "OUTD": "Only the deep output blocks.",
    "OUTS": "Only the shallow output blocks: colours and rendering.",
    "OUTALL": "All output blocks: rendering and appearance.",
    "STYLE": "High in OUT, low in IN, where a style usually lives; goes with CHARACTER.",
    "CHARACTER": "High in IN, low in OUT, where a character usually lives; goes with STYLE.",
    "STYLE-OUT": "Only OUT, half of the middle; with CHARACTER-IN every block adds up to 1.",
    "CHARACTER-IN": "Only IN, half of the middle; with STYLE-OUT every block adds up to 1.",
    "FLUXALL": "Every block at full strength.",
    "DOUBLE": "Only the double blocks, where text and image are mixed; goes with SINGLE.",
    "SINGLE": "Only the single blocks; goes with DOUBLE.",
    "NO-TEXT-ENCODER": "Everything but the text encoders.",
}
SHIPPED_NAMES = frozenset(_HINTS)


def is_shipped(name: str) -> bool:
    """Tell whether a name, in any case, belongs to a shipped preset of any family."""
    return name.strip().upper() in SHIPPED_NAMES


def shipped_names(family: str) -> tuple[str, ...]:
    """Return the names of the shipped presets that fit `family`."""
    classic = tuple(_CLASSIC) if family in _UNETS else tuple(_EVEN)
    return (*classic, *(name for name, (families, _) in _RULES.items() if not families or family in families))


def preset_hint(name: str) -> str:
    """Return one sentence on a shipped preset, or an empty text for any other name."""
    return _HINTS.get(name.strip().upper(), "")


def shipped_weights(name: str, family: str, blocks: Sequence[str]) -> list[float] | dict[str, float] | None:
    """Return a shipped preset's weights for `family`, or None when it has none of that name.

    Args:
        name: as typed, any case.
        family: the base family.
        blocks: the family's block ids, in order.
    Returns:
        A list of 17 (SD1, SD2) or 12 (SDXL), or {block: weight} for every block.
    """
    name = name.strip().upper()
    if name not in shipped_names(family):
        return None
    values = _CLASSIC.get(name, ("", ""))[0 if family in _SD else 1] if family in _UNETS else ""
    if values:
        return [float(value) for value in values.split()]
    if name in _EVEN:
        return {block: 1.0 if block == "OTHER" else _EVEN[name] for block in blocks}
    rules = _RULES[name][1]
    return {block: float(rules.get(block, rules.get(block.rstrip("0123456789"), 1.0))) for block in blocks}
