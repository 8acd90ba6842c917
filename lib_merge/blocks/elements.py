"""Element rules as text, `blocks:elements:ratio`, and the preset files made of them."""

from __future__ import annotations

from collections.abc import Sequence

from lib_merge.blocks.tokens import parse_weight
from lib_merge.errors import RecipeError
from lib_merge.recipe import ElementRule

MAX_PART = 400


def parse_rule(text: str) -> ElementRule:
    """Read one rule `blocks:elements:ratio`.

    Raises:
        RecipeError: not exactly two colons, a part that is too long, or a ratio that is no number.
    """
    parts = [part.strip() for part in text.split(":")]
    if len(parts) != 3:
        message = f"element rule {text.strip()[:60]!r} is not blocks:elements:ratio."
        raise RecipeError(message)
    if max(len(part) for part in parts) > MAX_PART:
        message = f"element rule {text.strip()[:60]!r} is longer than any rule can be."
        raise RecipeError(message)
    ratio = parse_weight(parts[2])
    if not isinstance(ratio, float):
        message = f"element rule: block weight {parts[2][:60]!r} is not a number."
        raise RecipeError(message)
    return ElementRule(parts[0], parts[1], ratio)


def rule_blocks(text: str) -> Sequence[str]:
    """Return the blocks that the first part of a rule names, ends of ranges included, in their plain
    spelling.
    """
    words = text[4:].split() if text.upper().startswith("NOT ") else text.split()
    names = [name.upper() for word in words for name in word.split("-", 1)]
    return [{"MID": "M00", "MID00": "M00"}.get(name, name) for name in names]
