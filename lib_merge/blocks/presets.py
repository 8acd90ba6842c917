"""Presets: which names and weights they may have, how they look as JSON, how a set of them changes.

Everything here is a value: no file, no lock. The shipped ones are found by name before a user's own.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Union

from lib_merge.blocks.notation import Weight, parse_rule, parse_weight, rule_blocks
from lib_merge.blocks.shipped import is_shipped, shipped_names, shipped_weights
from lib_merge.errors import RecipeError
from lib_merge.families import FAMILIES, expand_block_list, family_of, same_blocks
from lib_merge.recipe import ElementRule

# ------------------------------------------------------------------------ one preset

ANY = "any"  # the family of presets that name no block, or only blocks that several families have
MAX_NAME = 80
MAX_RULES = 200
_SHOWN = 60
_BLOCK = re.compile(r"[A-Z][A-Z0-9]{0,15}")
# control characters, halves of characters, line and paragraph ends
_NOT_IN_NAMES = frozenset({"Cc", "Cs", "Zl", "Zp"})
Weights = Union[Mapping[str, float], "tuple[Weight, ...]"]


@dataclass(frozen=True, slots=True)
class Preset:
    """Weights under a name, for one family; the same name may have weights for other families too.

    name      as the user wrote it
    family    the base family, or `ANY`
    weights   {block: weight}, where missing blocks weigh 1, or one of the family's lists of numbers
              and tokens
    elements  rules that replace the block weight
    """

    name: str
    family: str
    weights: Weights
    elements: tuple[ElementRule, ...] = ()


def name_key(name: str) -> str:
    """Return what two names have in common when they count as the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def shown(text: str) -> str:
    """Return a text in quotes for a sentence: short, and with nothing in it that could upset a terminal."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


def check_name(name: object) -> str:
    """Return a preset's name without blanks around it.

    Raises:
        RecipeError: empty, too long, a control character in it, or the name of a shipped preset.
    """
    if not isinstance(name, str) or not name.strip():
        message = "a preset needs a name."
        raise RecipeError(message)
    name = name.strip()
    if len(name) > MAX_NAME:
        message = f"the preset name {shown(name)} has {len(name)} characters; {MAX_NAME} is the limit."
        raise RecipeError(message)
    if any(unicodedata.category(character) in _NOT_IN_NAMES for character in name):
        message = f"the preset name {shown(name)} has a line end or another control character in it."
        raise RecipeError(message)
    if is_shipped(name):
        message = f"{name.upper()} is a preset of this program and stays as it is; choose another name."
        raise RecipeError(message)
    return name


def check_preset(preset: Preset) -> Preset:
    """Return the preset with name, numbers and tokens in their plain form.

    Raises:
        RecipeError: a bad name, an unknown family, a list of the wrong length, a weight that is no number.
    """
    name = check_name(preset.name)
    check_family(preset.family)
    if isinstance(preset.weights, Mapping):
        weights: Weights = _check_mapping(preset.weights, preset.family, name)
    else:
        weights = _check_list(preset.weights, preset.family, name)
    if len(preset.elements) > MAX_RULES:
        message = (
            f"the preset {shown(name)} has {len(preset.elements)} element rules; {MAX_RULES} is the limit."
        )
        raise RecipeError(message)
    rules = tuple(parse_rule(f"{rule.blocks}:{rule.elements}:{rule.ratio!r}") for rule in preset.elements)
    clean = replace(preset, name=name, weights=weights, elements=rules)
    if preset.family != ANY and not fits(clean, preset.family):
        message = (
            f"an element rule of the preset {shown(name)} names a block that {preset.family} does not have."
        )
        raise RecipeError(message)
    return clean


def check_family(family: object) -> None:
    """Raise `RecipeError` for a family this program does not know."""
    if family != ANY and family not in FAMILIES:
        message = (
            f"{shown(str(family))} is not a family of models; known are {', '.join(FAMILIES)} and {ANY}."
        )
        raise RecipeError(message)


def _check_mapping(weights: Mapping[str, Any], family: str, name: str) -> dict[str, float]:
    clean = {}
    table = family_of(family).blocks
    for block, value in weights.items():
        allowed = block in table if table else _BLOCK.fullmatch(str(block)) is not None
        if not allowed:
            message = (
                f"the preset {shown(name)} has a weight for {shown(str(block))}, which is no "
                f"block of {family}."
            )
            raise RecipeError(message)
        number = _number(value)
        if not isinstance(number, float):
            message = (
                f"the preset {shown(name)}: the weight of {block} is {shown(str(value))}, "
                "which is not a number."
            )
            raise RecipeError(message)
        clean[str(block)] = number
    return clean


def _check_list(weights: object, family: str, name: str) -> tuple[Weight, ...]:
    if not isinstance(weights, (list, tuple)):
        message = f"the preset {shown(name)} has neither a list of weights nor weights by block."
        raise RecipeError(message)
    try:
        expand_block_list([0.0] * len(weights), family)
    except RecipeError as error:
        message = f"the preset {shown(name)}: {error}"
        raise RecipeError(message) from error
    clean = []
    for place, value in enumerate(weights, 1):
        weight = _number(value)
        if weight is None:
            message = (
                f"the preset {shown(name)}: weight {place} is {shown(str(value))}, which is not a number."
            )
            raise RecipeError(message)
        clean.append(weight)
    return tuple(clean)


def _number(value: object) -> Weight | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return parse_weight(value if isinstance(value, str) else repr(float(value)))
    except OverflowError:
        return None


def fits(preset: Preset, family: str) -> bool:
    """Tell whether a preset can be used for `family`."""
    if preset.family != ANY and not same_blocks(preset.family, family):
        return False
    table = family_of(family).blocks
    if not table:
        return True
    named = {block for rule in preset.elements for block in rule_blocks(rule.blocks)}
    if isinstance(preset.weights, Mapping):
        named.update(preset.weights)
    return named <= set(table)


def complement(weights: Mapping[str, float]) -> dict[str, float]:
    """Return 1 - weight for every block, so that both add up to 1; OTHER stays as it is.

    Args:
        weights: {block: weight} of the whole family, as `resolve_blocks` gives it.
    """
    return {block: value if block == "OTHER" else round(1.0 - value, 12) for block, value in weights.items()}


def preset_to_json(preset: Preset) -> dict[str, Any]:
    """Return weights and rules as JSON-ready objects; name and family are kept by the file around them."""
    weights = list(preset.weights) if isinstance(preset.weights, tuple) else dict(preset.weights)
    data: dict[str, Any] = {"weights": weights}
    if preset.elements:
        data["elements"] = [[rule.blocks, rule.elements, rule.ratio] for rule in preset.elements]
    return data


def preset_from_json(name: object, family: object, data: object) -> Preset:
    """Read what `preset_to_json` wrote; whether the name is free is for the caller to say.

    Raises:
        RecipeError: anything that is not a preset.
    """
    fields: dict[str, Any] = data if isinstance(data, dict) else {"elements": None}
    rules = fields.get("elements", [])
    if not isinstance(name, str) or not isinstance(family, str) or not isinstance(rules, list):
        message = "an entry is not a preset."
        raise RecipeError(message)
    if not all(isinstance(rule, list) and len(rule) == 3 for rule in rules):
        message = f"the element rules of the preset {shown(name)} are damaged."
        raise RecipeError(message)
    elements = tuple(parse_rule(":".join(str(part) for part in rule)) for rule in rules)
    weights: Any = fields.get("weights")  # whatever it is, it is checked now
    return check_preset(Preset(name, family, weights, elements))


# ------------------------------------------------------------------------ a set of presets


def same(one: Preset, other: Preset) -> bool:
    """Tell whether two presets stand at the same place: one name, one family."""
    return name_key(one.name) == name_key(other.name) and one.family == other.family


def best(presets: Iterable[Preset], name: str, family: str | None) -> Preset | None:
    """Return the preset of that name for `family`, else for one with the same blocks, else for any, else
    None.
    """
    key = name_key(name)
    fitting = [
        item for item in presets if name_key(item.name) == key and (family is None or fits(item, family))
    ]
    return min(fitting, key=lambda item: (item.family != family, item.family == ANY), default=None)


def with_saved(presets: tuple[Preset, ...], new: Preset) -> tuple[Preset, ...]:
    """Return the presets with `new` in its place, or at the end; its spelling of the name holds for all
    families.
    """
    key = name_key(new.name)
    renamed = [replace(item, name=new.name) if name_key(item.name) == key else item for item in presets]
    if any(same(item, new) for item in renamed):
        return tuple(new if same(item, new) else item for item in renamed)
    return (*renamed, new)


def with_added(presets: tuple[Preset, ...], new: Iterable[Preset], notes: list[str]) -> tuple[Preset, ...]:
    """Return the presets with those of `new` that are not there yet, under free names.

    Args:
        presets: the set.
        new: to be added; what equals a shipped preset, or one of the set under the same name or that name
            with a number behind it, is left out.
        notes: gets a sentence on each.
    Raises:
        RecipeError: one of them cannot be.
    """
    kept = list(presets)
    spelled = {name_key(item.name): item.name for item in kept}
    taken: defaultdict[str, set[str]] = defaultdict(set)
    series: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
    for item in kept:
        taken[item.family].add(name_key(item.name))
        series[_content(item)] |= _series(item.name)
    for preset in new:
        name = preset.name.strip()
        if _comes_with_us(preset):
            notes.append(f"{shown(name)} comes with this program already.")
            continue
        clean = check_preset(replace(preset, name=free_name(name, ())))
        if name_key(name) in series[_content(clean)]:
            notes.append(f"{shown(name)} is there already.")
            continue
        free = free_name(name, taken[clean.family])
        note = "" if free == name else f" as {shown(free)}: the name was taken"
        notes.append(f"{shown(name)} was added{note}.")
        clean = replace(clean, name=spelled.setdefault(name_key(free), free))
        taken[clean.family].add(name_key(free))
        series[_content(clean)] |= _series(free)
        kept.append(clean)
    return tuple(kept)


def _series(name: str) -> set[str]:
    """Return the names that `free_name` may have made this one of: itself, and the part before its number."""
    key = name_key(name)
    return {key, re.sub(r" [0-9]+$", "", key)}


def _content(preset: Preset) -> tuple[object, ...]:
    weights = preset.weights
    return (
        preset.family,
        weights if isinstance(weights, tuple) else tuple(sorted(weights.items())),
        preset.elements,
    )


def free_name(name: str, taken: Iterable[str]) -> str:
    """Return the name, or `name 2`, `name 3`, … : the first that is neither shipped nor taken.

    Args:
        name: the wished name.
        taken: keys of names in use.
    """
    name = name.strip()
    candidate, number = name, 1
    while is_shipped(candidate) or name_key(candidate) in taken:
        number += 1
        candidate = f"{name[:74]} {number}"
    return candidate


def missing(name: str) -> RecipeError:
    """Return the error for a name that no preset has."""
    return RecipeError(f"there is no preset {shown(name)}.")


def _comes_with_us(preset: Preset) -> bool:
    blocks = family_of(preset.family).blocks
    ours = shipped_weights(preset.name, preset.family, blocks)
    if ours is None or preset.elements or not blocks:
        return False
    return _by_block(ours, preset.family) == _by_block(preset.weights, preset.family)


def _by_block(weights: Mapping[str, float] | Iterable[Weight], family: str) -> dict[str, float] | None:
    if isinstance(weights, Mapping):
        return {block: float(weights.get(block, 1.0)) for block in family_of(family).blocks}
    values = list(weights)
    if any(isinstance(value, str) for value in values):
        return None
    try:
        return expand_block_list([float(value) for value in values], family)[0]
    except RecipeError:
        return None


# ------------------------------------------------------------------------ by name


class NamedPresets(Protocol):
    """A user's presets, wherever they are kept; see `lib_merge.blocks.store.PresetStore`."""

    def names(self, family: str | None = None) -> tuple[str, ...]:
        """Return the names of the presets that fit `family`."""
        ...

    def get(self, name: str, family: str | None = None) -> Preset | None:
        """Return a preset by name, in any case; None when there is none."""
        ...


def preset_names(family: str, store: NamedPresets | None = None) -> tuple[str, ...]:
    """Return the names of the presets that fit `family`: the shipped ones, then the user's.

    Args:
        family: the base family.
        store: the user's presets, where there are any.
    """
    return (*shipped_names(family), *(store.names(family) if store is not None else ()))


def find_preset(
    name: str, family: str, blocks: Sequence[str], store: NamedPresets | None = None
) -> list[float] | list[Weight] | dict[str, float] | None:
    """Return a preset's weights for `family`, or None when there is no such name.

    Args:
        name: as typed, any case.
        family: the base family.
        blocks: the family's block ids, in order.
        store: the user's presets, asked when no shipped preset has the name.
    Returns:
        A list in one of the usual lengths (a user's may hold tokens), or {block: weight}; blocks missing
        from the mapping weigh 1. Element rules are not part of it: `PresetStore.get` has them.
    """
    shipped = shipped_weights(name, family, blocks)
    if shipped is not None or store is None:
        return shipped
    preset = store.get(name, family)
    if preset is None:
        return None
    return list(preset.weights) if isinstance(preset.weights, tuple) else dict(preset.weights)
