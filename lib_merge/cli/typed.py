"""From what is typed to the recipe it asks for: sources, groups, settings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_merge.blocks.weights import parse_elements
from lib_merge.errors import RecipeError
from lib_merge.methods import DEFAULT_METHOD, Method, Scope, get_method
from lib_merge.methods.words import FOREIGN, own_knob
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe import Recipe, Source
from lib_merge.recipe_edits import letter, with_aside

_NONE = (None, "", "-")
# a group's name becomes part of a file's; one or two letters are a source
_NAME = re.compile(r"\d{1,3}|[^\W\d_][\w-]{2,39}")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the options of `merge`, `resize` and `convert` ask for.

    Raises:
        RecipeError: a list of the wrong length, a value that is no number, a knob or role that the method
            does not have, a group of nothing.
    """
    method = get_method(arguments.method)
    groups = [_read_group(words, number) for number, words in enumerate(arguments.group or (), 1)]
    _check_roles(arguments.roles, [method, *(get_method(group.method) for group in groups)])
    sources = _grouped(_sources(arguments), groups, arguments.seed)
    recipe = Recipe(
        sources=sources,
        method=method.name,
        knobs=knobs_of(arguments.knob or (), method, len(sources)),
        rank=None if arguments.rank is None else parse_policy(arguments.rank),
        conv_rank=arguments.conv_rank,
        prune=arguments.prune,
        prune_below=arguments.prune_below,
        precision=arguments.save_precision,
        seed=arguments.seed,
        family=arguments.family,
        names=arguments.target or "",
        trainable=arguments.trainable,
    )
    return with_aside(recipe, arguments.aside) if arguments.aside else recipe


def _sources(arguments: argparse.Namespace) -> tuple[Source, ...]:
    count = len(arguments.models)
    settings = [
        _per_source("ratios", arguments.ratios, count, 1.0),
        _per_source("blocks", arguments.blocks, count, None),
        _per_source("te_ratios", arguments.te_ratios, count, None),
        _per_source("roles", arguments.roles, count, None),
        _per_source("elements", arguments.elements, count, None),
    ]
    return tuple(
        Source(
            path=Path(model),
            name=Path(model).name,
            ratio=ratio,
            blocks=None if blocks in _NONE else blocks,
            te_ratio=_te_ratio(te),
            role=None if role in _NONE else role,
            elements=() if rules in _NONE else parse_elements(rules),
            handle=letter(index),
        )
        for index, (model, ratio, blocks, te, role, rules) in enumerate(zip(arguments.models, *settings))
    )


def _per_source(name: str, values: list[Any] | None, count: int, default: Any) -> list[Any]:  # noqa: ANN401
    if values is None:
        return [default] * count
    if len(values) != count:
        message = f"--{name} has {len(values)} values for {count} models: give one for each."
        raise RecipeError(message)
    return values


def _check_roles(given: list[str] | None, methods: Sequence[Method]) -> None:
    """Raise `RecipeError` for roles that no method of the merge asks for."""
    if any(role not in _NONE for role in given or ()) and not any(method.roles for method in methods):
        message = f"{methods[0].name} has no roles: leave --roles out, or choose a method that has them."
        raise RecipeError(message)


def _te_ratio(text: str | None) -> float | tuple[float, ...] | None:
    if text in _NONE:
        return None
    try:
        numbers = tuple(float(part) for part in str(text).split(","))
    except ValueError as error:
        message = f"text-encoder ratio {text!r} is not a number, nor two with a comma (TE1,TE2)."
        raise RecipeError(message) from error
    return numbers[0] if len(numbers) == 1 else numbers


def knobs_of(given: Sequence[str], method: Method, count: int) -> dict[str, Any]:
    """Read NAME=VALUE for all sources and NAME@2=VALUE for the second one alone, whatever their order.

    Args:
        given: as typed.
        method: whose knobs they are.
        count: how many sources it merges, a group counted as one.
    Raises:
        RecipeError: no `=`, a source that is not there, one value for a source where there is one for all.
    """
    knobs: dict[str, Any] = {}
    for text in sorted(given, key=lambda text: "@" in text.partition("=")[0]):
        name, sign, value = text.partition("=")
        name, at, number = name.strip().partition("@")
        if not sign:
            message = f"--knob {text!r} is not NAME=VALUE."
            raise RecipeError(message)
        knob = own_knob(method, name) if name in FOREIGN else method.knob(name)
        if not at:
            knobs[name] = value.strip()
            continue
        if knob is None or knob.scope is not Scope.SOURCE:
            message = f"--knob {text!r}: {name} of {method.name} has one value for the whole merge."
            raise RecipeError(message)
        if not number.isdecimal() or not 1 <= int(number) <= count:
            message = f"--knob {text!r}: there is no source {number}; they count from 1 to {count}."
            raise RecipeError(message)
        values = knobs.get(name, knob.default if name == knob.name else 1.0 - float(knob.default))
        values = list(values) if isinstance(values, (list, tuple)) else [values] * count
        values[int(number) - 1] = value.strip()
        knobs[name] = values
    return knobs


# ---------------------------------------------------------------- groups


@dataclass(frozen=True, slots=True)
class _Group:
    """A `--group` as typed: letters of sources and names of earlier groups, then NAME=VALUE."""

    name: str
    members: tuple[str, ...]
    method: str = DEFAULT_METHOD
    ratio: float = 1.0
    rank: str | None = None
    role: str | None = None
    knobs: tuple[str, ...] = ()


def _read_group(words: Sequence[str], number: int) -> _Group:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    given = {name.strip(): value.strip() for name, value in given.items()}
    group = _Group(
        name=given.pop("name", str(number)),
        members=tuple(word for word in words if "=" not in word),
        method=given.pop("method", DEFAULT_METHOD),
        rank=given.pop("rank", None),
        role=given.pop("role", None),
        ratio=_ratio(given.pop("ratio", "1"), number),
        knobs=tuple(f"{name}={value}" for name, value in given.items()),
    )
    if not _NAME.fullmatch(group.name):
        message = (
            f"the group's name {group.name!r} is none: it takes three letters or more, as in name=styles."
        )
        raise RecipeError(message)
    if not group.members:
        message = f"the group {group.name} has no sources: name them by letter, as in --group A B."
        raise RecipeError(message)
    return group


def _ratio(text: str, group: int) -> float:
    try:
        return float(text)
    except ValueError as error:
        message = f"the ratio of the group {group} is {text!r}; it takes a number."
        raise RecipeError(message) from error


def _grouped(sources: Sequence[Source], groups: Sequence[_Group], seed: int) -> tuple[Source, ...]:
    """Return the sources with each group in the place of its first member.

    Raises:
        RecipeError: a source that is not there or in a group already, or two groups of one name.
    """
    units = {source.handle: source for source in sources}
    for group in groups:
        members = [_member(name, units, group.name) for name in group.members]
        if len(set(members)) < len(members) or group.name in units:
            message = f"the group {group.name} is there twice, or holds a source twice."
            raise RecipeError(message)
        method = get_method(group.method)
        inner = Recipe(
            tuple(units[name] for name in members),
            method.name,
            knobs_of(group.knobs, method, len(members)),
            None if group.rank is None else parse_policy(group.rank),
            seed=seed,
        )
        called = f"group {group.name}" if group.name.isdecimal() else group.name
        made = Source(recipe=inner, ratio=group.ratio, role=group.role, name=called, handle=group.name)
        first = min(members, key=list(units).index)
        units = {
            (group.name if handle == first else handle): (made if handle == first else unit)
            for handle, unit in units.items()
            if handle == first or handle not in members
        }
    return tuple(units.values())


def _member(name: str, units: dict[str, Source], group: str) -> str:
    handle = name if name in units else name.upper()
    if handle in units:
        return handle
    free = ", ".join(units)
    message = f"the group {group} asks for {name!r}, and what can still go into a group is {free}."
    raise RecipeError(message)
