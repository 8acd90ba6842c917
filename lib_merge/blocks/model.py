"""What a preset is, which names and weights it may have, and how it looks as JSON."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

from lib_merge.blocks.elements import parse_rule, rule_blocks
from lib_merge.blocks.shipped import is_shipped
from lib_merge.blocks.tokens import Weight, parse_weight
from lib_merge.errors import RecipeError
from lib_merge.families.blocks import BLOCKS, expand_block_list
from lib_merge.families.detect import FAMILIES
from lib_merge.recipe import ElementRule

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
    weights   {block: weight}, where missing blocks weigh 1, or a list of 12, 17, 20, 26 or 61 numbers and
              tokens
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
    elif isinstance(preset.weights, (list, tuple)):
        weights = _check_list(preset.weights, preset.family, name)
    else:
        message = f"the preset {shown(name)} has neither a list of weights nor weights by block."
        raise RecipeError(message)
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
    for block, value in weights.items():
        allowed = block in BLOCKS[family] if family in BLOCKS else _BLOCK.fullmatch(str(block)) is not None
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


def _check_list(weights: Sequence[Any], family: str, name: str) -> tuple[Weight, ...]:
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


def same_table(one: str, other: str) -> bool:
    """Tell whether two families have the same blocks, so that one's presets serve the other."""
    return one == other or (one in BLOCKS and BLOCKS.get(one) == BLOCKS.get(other))


def fits(preset: Preset, family: str) -> bool:
    """Tell whether a preset can be used for `family`."""
    if preset.family != ANY and not same_table(preset.family, family):
        return False
    if family == ANY or family not in BLOCKS:
        return True
    named = {block for rule in preset.elements for block in rule_blocks(rule.blocks)}
    if preset.family == ANY:
        named.update(preset.weights)
    return named <= set(BLOCKS[family])


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
    rules = data.get("elements", []) if isinstance(data, dict) else None
    if not isinstance(name, str) or not isinstance(family, str) or not isinstance(rules, list):
        message = "an entry is not a preset."
        raise RecipeError(message)
    if not all(isinstance(rule, list) and len(rule) == 3 for rule in rules):
        message = f"the element rules of the preset {shown(name)} are damaged."
        raise RecipeError(message)
    elements = tuple(parse_rule(":".join(str(part) for part in rule)) for rule in rules)
    return check_preset(Preset(name, family, data.get("weights"), elements))
