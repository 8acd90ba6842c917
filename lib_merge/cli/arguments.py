"""From what is typed to a recipe: lists with a value per source, text-encoder ratios, knobs, roles."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_merge.blocks.weights import parse_elements
from lib_merge.errors import RecipeError
from lib_merge.methods import Method, Scope, get_method
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe import Recipe, Source

_NONE = (None, "", "-")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the options of `merge` and `resize` ask for.

    Raises:
        RecipeError: a list of the wrong length, a value that is no number, a knob or role that the method
            does not have.
    """
    method = get_method(arguments.method)
    count = len(arguments.models)
    settings = [
        _per_source("ratios", arguments.ratios, count, 1.0),
        _per_source("blocks", arguments.blocks, count, None),
        _per_source("te_ratios", arguments.te_ratios, count, None),
        _roles(arguments.roles, method, count),
        _per_source("elements", arguments.elements, count, None),
    ]
    sources = tuple(
        Source(
            path=Path(model),
            name=Path(model).name,
            ratio=ratio,
            blocks=None if blocks in _NONE else blocks,
            te_ratio=_te_ratio(te),
            role=role,
            elements=() if rules in _NONE else parse_elements(rules),
        )
        for model, ratio, blocks, te, role, rules in zip(arguments.models, *settings)
    )
    return Recipe(
        sources=sources,
        method=method.name,
        knobs=_knobs(arguments.knob or (), method, count),
        rank=None if arguments.rank is None else parse_policy(arguments.rank),
        conv_rank=arguments.conv_rank,
        prune=arguments.prune,
        precision=arguments.save_precision,
        seed=arguments.seed,
        family=arguments.family,
    )


def _per_source(name: str, values: list[Any] | None, count: int, default: Any) -> list[Any]:  # noqa: ANN401
    if values is None:
        return [default] * count
    if len(values) != count:
        message = f"--{name} has {len(values)} values for {count} models: give one for each."
        raise RecipeError(message)
    return values


def _roles(given: list[str] | None, method: Method, count: int) -> list[str | None]:
    roles = [None if role in _NONE else role for role in _per_source("roles", given, count, None)]
    if any(roles) and not method.roles:
        message = f"{method.name} has no roles: leave --roles out, or choose a method that has them."
        raise RecipeError(message)
    return roles


def _te_ratio(text: str | None) -> float | tuple[float, ...] | None:
    if text in _NONE:
        return None
    try:
        numbers = tuple(float(part) for part in str(text).split(","))
    except ValueError as error:
        message = f"text-encoder ratio {text!r} is not a number, nor two with a comma (TE1,TE2)."
        raise RecipeError(message) from error
    return numbers[0] if len(numbers) == 1 else numbers


def _knobs(given: Sequence[str], method: Method, count: int) -> dict[str, Any]:
    """Read NAME=VALUE for all sources and NAME@2=VALUE for the second one alone, whatever their order."""
    knobs: dict[str, Any] = {}
    for text in sorted(given, key=lambda text: "@" in text.partition("=")[0]):
        name, sign, value = text.partition("=")
        name, at, number = name.strip().partition("@")
        if not sign:
            message = f"--knob {text!r} is not NAME=VALUE."
            raise RecipeError(message)
        knob = method.knob(name)
        if not at:
            knobs[name] = value.strip()
            continue
        if knob.scope is not Scope.SOURCE:
            message = f"--knob {text!r}: {name} of {method.name} has one value for the whole merge."
            raise RecipeError(message)
        if not number.isdecimal() or not 1 <= int(number) <= count:
            message = f"--knob {text!r}: there is no source {number}; they count from 1 to {count}."
            raise RecipeError(message)
        values = knobs.get(name, knob.default)
        values = list(values) if isinstance(values, (list, tuple)) else [values] * count
        values[int(number) - 1] = value.strip()
        knobs[name] = values
    return knobs
