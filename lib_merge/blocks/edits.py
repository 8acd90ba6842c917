"""Changes to a tuple of presets, as values: no file, no lock."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from lib_merge.blocks.model import ANY, Preset, check_preset, fits, name_key, shown
from lib_merge.blocks.shipped import shipped_weights
from lib_merge.blocks.storefile import free_name
from lib_merge.blocks.tokens import Weight
from lib_merge.errors import RecipeError
from lib_merge.families.blocks import BLOCKS, expand_block_list


def same(one: Preset, other: Preset) -> bool:
    """Tell whether two presets stand at the same place: one name, one family."""
    return name_key(one.name) == name_key(other.name) and one.family == other.family


def best(presets: Iterable[Preset], name: str, family: str | None) -> Preset | None:
    """Return the preset of that name for `family`, else for one with the same blocks, else for any, else
    None.
    """
    key = name_key(name)
    found = [
        item for item in presets if name_key(item.name) == key and (family is None or fits(item, family))
    ]
    return min(found, key=lambda item: (item.family != family, item.family == ANY), default=None)


def with_saved(presets: tuple[Preset, ...], new: Preset) -> tuple[Preset, ...]:
    """Return the presets with `new` in its place, or at the end; its spelling of the name holds for all
    families.
    """
    key = name_key(new.name)
    renamed = [replace(item, name=new.name) if name_key(item.name) == key else item for item in presets]
    if any(same(item, new) for item in renamed):
        return tuple(new if same(item, new) else item for item in renamed)
    return (*renamed, new)


def with_added(presets: tuple[Preset, ...], wanted: Iterable[Preset], said: list[str]) -> tuple[Preset, ...]:
    """Return the presets with those of `wanted` that are new, under free names; `said` gets a sentence on
    each.

    Raises:
        RecipeError: one of them cannot be.
    """
    kept = list(presets)
    spelled = {name_key(item.name): item.name for item in kept}
    taken: defaultdict[str, set[str]] = defaultdict(set)
    known: dict[tuple[object, ...], list[str]] = {}
    for item in kept:
        taken[item.family].add(name_key(item.name))
        known.setdefault(_content(item), []).append(name_key(item.name))
    for preset in wanted:
        wished = preset.name.strip()
        if _comes_with_us(preset):
            said.append(f"{shown(wished)} comes with this program already.")
            continue
        clean = check_preset(replace(preset, name=free_name(wished, ())))
        series = re.compile(rf"{re.escape(name_key(wished))}(?: [0-9]+)?")
        if any(series.fullmatch(key) for key in known.get(_content(clean), ())):
            said.append(f"{shown(wished)} is there already.")
            continue
        name = free_name(wished, taken[clean.family])
        note = "" if name == wished else f" as {shown(name)}: the name was taken"
        said.append(f"{shown(wished)} was added{note}.")
        clean = replace(clean, name=spelled.setdefault(name_key(name), name))
        taken[clean.family].add(name_key(name))
        known.setdefault(_content(clean), []).append(name_key(name))
        kept.append(clean)
    return tuple(kept)


def _content(preset: Preset) -> tuple[object, ...]:
    weights = preset.weights
    return (
        preset.family,
        weights if isinstance(weights, tuple) else tuple(sorted(weights.items())),
        preset.elements,
    )


def missing(name: str) -> RecipeError:
    """Return the error for a name that no preset has."""
    return RecipeError(f"there is no preset {shown(name)}.")


def _comes_with_us(preset: Preset) -> bool:
    blocks = BLOCKS.get(preset.family, ())
    ours = shipped_weights(preset.name, preset.family, blocks)
    if ours is None or preset.elements or not blocks:
        return False
    return _by_block(ours, preset.family) == _by_block(preset.weights, preset.family)


def _by_block(weights: Mapping[str, float] | Iterable[Weight], family: str) -> dict[str, float] | None:
    if isinstance(weights, Mapping):
        return {block: float(weights.get(block, 1.0)) for block in BLOCKS[family]}
    values = list(weights)
    if any(isinstance(value, str) for value in values):
        return None
    try:
        return expand_block_list([float(value) for value in values], family)[0]
    except RecipeError:
        return None
