"""How weights are typed: one place of a list, and one element rule.

A place is a number, or a token that becomes one when the merge is planned:

R      random 0…1          R*3        random 0…3
U      random -0.5…1.5     R*3-1.5    random -1.5…1.5
X      the value of `x=`   X*0.5, X+0.1, X*-1+1

A rule is `blocks:elements:ratio`; see `lib_merge.recipe.ElementRule`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Union

from lib_merge.errors import RecipeError
from lib_merge.recipe import ElementRule

# ------------------------------------------------------------------------ places of a list

Weight = Union[float, str]
LIMIT = 1e4
_LONGEST = 60
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
_PLAIN = re.compile(rf"[-+]?{_NUMBER}")
_TOKEN = re.compile(rf"(?P<letter>[RUX])(?:\*(?P<factor>[-+]?{_NUMBER}))?(?P<offset>[-+]?{_NUMBER})?")


def parse_weight(text: str) -> Weight | None:
    """Read one place of a list.

    Args:
        text: a number or a token, with blanks anywhere. `X0.5` is `X`, as the tool that made these lists has
            it.
    Returns:
        The number, or the token in its plain spelling; None for anything else, and for numbers beyond
        ±10,000.
    """
    text = "".join(text[: _LONGEST * 2].split())
    if len(text) > _LONGEST:
        return None
    if _PLAIN.fullmatch(text):
        number = float(text)
        return number if abs(number) <= LIMIT else None
    match = _TOKEN.fullmatch(text)
    if match is None:
        return None
    factor, offset = _parts(match)
    if max(abs(factor), abs(offset)) > LIMIT:
        return None
    times = "" if factor == 1.0 else f"*{factor:g}"
    plus = "" if offset == 0.0 else f"{offset:+g}"
    return f"{match['letter']}{times}{plus}"


def draw_weight(token: str, x: float, draw: random.Random) -> tuple[float, bool]:
    """Turn a token of `parse_weight` into a number.

    Args:
        token: its plain spelling.
        x: what X stands for.
        draw: source of R and U.
    Returns:
        (the number, whether it was drawn).
    """
    match = _TOKEN.fullmatch(token)
    if match is None:
        message = f"{token!r} is no token"
        raise ValueError(message)
    factor, offset = _parts(match)
    if match["letter"] == "X":
        return x * factor + offset, False
    value = draw.random() if match["letter"] == "R" else draw.random() * 2.0 - 0.5
    return round(value * factor + offset, 3), True


def _parts(match: re.Match[str]) -> tuple[float, float]:
    offset = match["offset"] or ""
    return float(match["factor"] or 1.0), float(offset) if offset.startswith(("+", "-")) else 0.0


# ------------------------------------------------------------------------ element rules

MAX_PART = 400
# words that ask who has a module: every source of the merge, or this one alone
SHARED, UNIQUE = "shared_only", "unique_only"
SCOPES = (SHARED, UNIQUE)


def parse_rule(text: str) -> ElementRule:
    """Read one rule `blocks:elements:ratio`; `shared_only` and `unique_only` alone keep only such modules.

    Raises:
        RecipeError: not exactly two colons, a part that is too long, or a ratio that is no number.
    """
    if text.strip().lower() in SCOPES:
        return ElementRule("", f"NOT {text.strip().lower()}", 0.0)
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
