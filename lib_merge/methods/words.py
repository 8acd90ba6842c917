"""Words of PEFT, mergekit and guides for settings that have other names here: understood, and said back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lib_merge.errors import RecipeError
from lib_merge.methods.election import DROP, ELECT
from lib_merge.methods.registry import TRIM_FRACTION, Knob, Method

DENSITY, THRESHOLD, GAMMA = "density", "threshold", "gamma"
ELECTIONS = ("majority_sign_method", "consensus_method")
FOREIGN = frozenset({DENSITY, THRESHOLD, *ELECTIONS})
_ELECTED: Mapping[str, str] = {
    "majority": "count", "frequency": "count", "votes": "count",
    "total": "mass", "sum": "mass", "magnitude": "mass",
}  # fmt: skip


@dataclass(slots=True)
class Understood:
    """Settings in our words.

    knobs      name -> value
    threshold  of absolute pruning, which is no method's; None where none was given
    said       a note for each word that was understood
    """

    knobs: dict[str, object]
    threshold: float | None = None
    said: list[str] = field(default_factory=list)


def own_knob(method: Method, word: str) -> Knob | None:
    """Return the knob of a method that another tool's word sets; None where it has none."""
    names = {DENSITY: (TRIM_FRACTION, DROP.name)}.get(word, (ELECT.name,) if word in ELECTIONS else ())
    return next((knob for name in names for knob in method.knobs if knob.name == name), None)


def understood(method: Method, given: Mapping[str, object]) -> Understood:
    """Return settings in our words: density d is 1 − d trimmed or dropped, majority is the count.

    Args:
        method: whose settings they are; a word that is a knob of its own keeps its meaning.
        given: name -> value, or a value per source.
    Raises:
        RecipeError: a word that means nothing to the method, twice the same setting, or no number.
    """
    known = {knob.name for knob in method.knobs}
    done = Understood({name: value for name, value in given.items() if name in known or name not in FOREIGN})
    for word in [name for name in given if name in FOREIGN and name not in known]:
        value = given[word]
        if word == THRESHOLD:
            done.threshold = _number(word, value)
            done.said.append(f"threshold {done.threshold:g} is prune_below {done.threshold:g}")
            continue
        knob = own_knob(method, word)
        if knob is None:
            method.knob(word)  # says which knobs there are
            continue
        if knob.name in done.knobs:
            message = f"{word} and {knob.name} set the same in {method.name}: give one of them."
            raise RecipeError(message)
        done.knobs[knob.name] = value if word in ELECTIONS else _dropped(method, word, value, done.knobs)
        if word == DENSITY:
            done.said.append(f"density {_text(value)} is {knob.name} {_text(done.knobs[knob.name])}")
    elected = str(done.knobs.get(ELECT.name, "")).strip().lower()
    if ELECT.name in known and elected in _ELECTED:
        done.knobs[ELECT.name] = _ELECTED[elected]
        done.said.append(f"elect {elected} is elect {_ELECTED[elected]}")
    return done


def _dropped(method: Method, word: str, value: object, knobs: Mapping[str, object]) -> object:
    """Return 1 − density, of each source; the largest that are dropped too are no part of it."""
    if isinstance(value, (list, tuple)):
        return tuple(_dropped(method, word, item, knobs) for item in value)
    density = _number(word, value)
    if not 0 < density <= 1:
        message = f"density is {value!r}; it takes a number above 0, up to 1: the share that is kept."
        raise RecipeError(message)
    named = {knob.name: knob for knob in method.knobs}
    largest = _number(GAMMA, knobs.get(GAMMA, named[GAMMA].default)) if GAMMA in named else 0.0
    return max(0.0, round(1.0 - density - largest, 12))


def _number(word: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        message = f"{word} is {value!r}; it takes a number."
        raise RecipeError(message)
    return number


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return f"{float(value):g}"  # type: ignore[arg-type]
