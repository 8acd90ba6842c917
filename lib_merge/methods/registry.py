"""The registry of merge methods: one declaration feeds tab, command line, API, README and tests.

A method is one function in one of three spaces:

    scalar   ΔW = Σ cᵢ ΔWᵢ: the function returns the coefficients cᵢ; exact at any rank
    core     acts on the small matrices Mᵢ of ΔWᵢ = P·Mᵢ·Qᵀ and returns such a matrix, or its SVD where that
             is known; exact, rank ≤ Σ rᵢ
    dense    elementwise on ΔW: the function maps a tile of all sources to a tile of the result
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from lib_merge.errors import RecipeError

Value = Union[float, int, bool, str]
PerSource = Sequence[float]  # what a method is given for a knob of scope "source"
SPACES = ("scalar", "core", "dense")


@dataclass(frozen=True, slots=True)
class Knob:
    """One typed setting of a method.

    name, default, help   as the user meets them; `help` also names the paper's letter
    minimum, maximum      closed range of a number
    step                  of its slider; an integer step with an integer default makes a whole number
    choices               of a word
    scope                 "recipe" (one value) or "source" (a value per source)
    """

    name: str
    default: Value
    help: str
    minimum: float = 0.0
    maximum: float = 1.0
    step: float = 0.01
    choices: tuple[str, ...] = ()
    scope: str = "recipe"

    @property
    def kind(self) -> str:
        """choice, switch, whole or number."""
        if self.choices:
            return "choice"
        if isinstance(self.default, bool):
            return "switch"
        return "whole" if isinstance(self.default, int) else "number"

    def check(self, value: object, method: str) -> Value:
        """Return `value` in the knob's type.

        Raises:
            RecipeError: not of the type, not finite, or out of range.
        """
        where = f"knob {self.name} of {method}"
        if self.kind == "choice":
            if str(value) in self.choices:
                return str(value)
            message = f"{where} is {value!r}; it takes {' or '.join(self.choices)}."
            raise RecipeError(message)
        if self.kind == "switch":
            word = str(value).strip().lower()
            if word in ("true", "on", "yes", "1", "1.0", "false", "off", "no", "0", "0.0"):
                return word in ("true", "on", "yes", "1", "1.0")
            message = f"{where} is {value!r}; it takes on or off."
            raise RecipeError(message)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        whole = self.kind == "whole"
        if not self.minimum <= number <= self.maximum or (whole and number != int(number)):
            kind = "a whole number" if whole else "a number"
            message = f"{where} is {value!r}; it takes {kind} from {self.minimum:g} to {self.maximum:g}."
            raise RecipeError(message)
        return int(number) if whole else number


@dataclass(frozen=True, slots=True)
class Method:
    """What the registry knows of one method."""

    name: str
    title: str
    sentence: str
    paper: str
    space: str
    function: Callable[..., Any]
    knobs: tuple[Knob, ...] = ()
    sources: tuple[int, int | None] = (1, None)
    roles: tuple[str, ...] = ()
    symmetric: bool = True
    reads: str = "nothing"  # scalar methods: Gram matrix of the "module", of the whole "recipe", or nothing
    gives: str = (
        "core"  # core methods: a "core", "rows" Float[a in], or a factor for each of the "columns" of Σ τᵢ
    )
    # core methods: orthonormal bases wanted; "singular", or "left" alone, where it acts on single numbers
    bases: str = "any"

    def knob(self, name: str) -> Knob:
        """Return the knob of that name.

        Raises:
            RecipeError: the method has no such knob; names those it has.
        """
        for knob in self.knobs:
            if knob.name == name:
                return knob
        names = ", ".join(knob.name for knob in self.knobs) or "none"
        message = (
            f"{self.name} has no knob {name!r}; its knobs: "
            f"{names}.{_nearest(name, [k.name for k in self.knobs])}"
        )
        raise RecipeError(message)

    def check_sources(self, count: int) -> None:
        """Raise `RecipeError` when the method does not take `count` sources."""
        least, most = self.sources
        if count < least or (most is not None and count > most):
            takes = (
                f"exactly {least}" if least == most else f"{least} to {most}" if most else f"at least {least}"
            )
            plural = "source" if takes in ("exactly 1", "at least 1") else "sources"
            message = f"{self.name} takes {takes} {plural}; this recipe has {count}."
            raise RecipeError(message)

    def settings(self, given: Mapping[str, object], count: int) -> dict[str, Value | tuple[Value, ...]]:
        """Return every knob's value: the given ones checked, the rest at their defaults.

        Args:
            given: name -> value; a per-source knob may be a list of `count` values, or one value for all.
            count: number of sources.
        """
        for name in given:
            self.knob(name)
        resolved: dict[str, Value | tuple[Value, ...]] = {}
        for knob in self.knobs:
            value = given.get(knob.name, knob.default)
            if knob.scope == "source":
                values: Sequence[object] = value if isinstance(value, (list, tuple)) else [value] * count
                if len(values) != count:
                    message = f"knob {knob.name} of {self.name} has {len(values)} values for {count} sources."
                    raise RecipeError(message)
                resolved[knob.name] = tuple(knob.check(item, self.name) for item in values)
            else:
                resolved[knob.name] = knob.check(value, self.name)
        return resolved


METHODS: dict[str, Method] = {}


def merge_method(
    name: str,
    *,
    title: str,
    sentence: str,
    paper: str,
    space: str,
    **declared: Any,  # noqa: ANN401
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function under `name`; see `Method` for what can be declared."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METHODS[name] = Method(name, title, sentence, paper, space, function, **declared)
        return function

    return register


def get_method(name: str) -> Method:
    """Return a method by name.

    Raises:
        RecipeError: no such method; names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    message = f"there is no merge method {name!r}.{_nearest(name, list(METHODS))} `methods` lists all."
    raise RecipeError(message)


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, cutoff=0.4)
    return f" Did you mean {close[0]}?" if close else ""
