"""One place of a weight list: a number, or a token that becomes one when the merge is planned.

R      random 0…1          R*3        random 0…3
U      random -0.5…1.5     R*3-1.5    random -1.5…1.5
X      the value of `x=`   X*0.5, X+0.1, X*-1+1
"""

from __future__ import annotations

import random
import re
from typing import Union

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
