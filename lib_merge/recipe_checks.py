"""What can be seen wrong with a recipe's numbers and roles before a file is opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lib_merge.errors import RecipeError
from lib_merge.methods import Method

if TYPE_CHECKING:
    from lib_merge.recipe import Source


def check_roles(method: Method, roles: Sequence[str | None]) -> None:
    """Raise `RecipeError` unless every role of the method is given to one source; other methods ignore roles."""
    given = [role for role in roles if role]
    if method.roles and sorted(given) != sorted(method.roles):
        message = f"{method.name} needs the roles {' and '.join(method.roles)}, one source each."
        raise RecipeError(message)


def check_source(source: Source) -> None:
    """Raise `RecipeError` for a ratio or rule of the source that is no finite number in range."""
    check_number(f"the ratio of {source.label}", source.ratio)
    ratios = source.te_ratio if isinstance(source.te_ratio, tuple) else (source.te_ratio,)
    if not 1 <= len(ratios) <= 3:
        message = f"the text-encoder ratio of {source.label} has {len(ratios)} numbers; it takes one for each encoder."
        raise RecipeError(message)
    for ratio in ratios:
        if ratio is not None:
            check_number(f"the text-encoder ratio of {source.label}", ratio)
    for rule in source.elements:
        check_number(f"an element rule of {source.label}", rule.ratio)


def check_number(what: str, value: float, least: float = -1e4, most: float = 1e4) -> None:
    """Raise `RecipeError` unless `value` is a number from `least` to `most`; `what` names it."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and least <= value <= most):
        message = f"{what} is {value!r}; it takes a number from {least:g} to {most:g}."
        raise RecipeError(message)
