"""What the browser must know once: methods with their knobs, families with their blocks, presets, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_merge.adapters.blocks import BLOCK_ORDERS, BLOCKS
from lib_merge.methods import METHODS
from lib_merge.presets import PresetStore, find_preset, preset_hint, preset_names

GROUPS = {
    "scalar": "Exact sums and means",
    "core": "Exact, in the LoRAs' shared directions",
    "dense": "Number by number, then cut to a rank",
}
# What a block is known to carry, after common practice; a starting point, not a law.
HINTS: Mapping[str, str] = {
    "BASE": "text encoder: what words mean",
    "IN": "input blocks: structure, pose, low-level features",
    "M": "middle: overall composition",
    "OUT": "output blocks: rendering, colour, style",
    "CLIP": "CLIP text encoder",
    "T5": "T5 text encoder",
    "D": "double-stream block: image and text together",
    "S": "single-stream block: details and rendering",
    "OTHER": "what belongs to no block: time embedding, last convolution",
}
LISTS = {"SD1": 17, "SD2": 17, "SDXL": 12, "Flux": 61, "Chroma": 61}


def methods() -> list[dict[str, Any]]:
    """Return the registry for the method picker."""
    return [
        {
            "name": method.name,
            "title": method.title,
            "sentence": method.sentence,
            "paper": method.paper,
            "space": method.space,
            "group": GROUPS[method.space],
            "least": method.sources[0],
            "most": method.sources[1],
            "roles": list(method.roles),
            "symmetric": method.symmetric,
            "knobs": [
                {
                    "name": knob.name,
                    "kind": knob.kind,
                    "default": knob.default,
                    "minimum": knob.minimum,
                    "maximum": knob.maximum,
                    "step": knob.step,
                    "choices": list(knob.choices),
                    "help": knob.help,
                    "scope": knob.scope,
                }
                for knob in method.knobs
            ],
        }
        for method in METHODS.values()
    ]


def families() -> dict[str, Any]:
    """Return blocks, list orders and hints of every family with a table."""
    return {
        family: {
            "blocks": list(blocks),
            "list": list(BLOCK_ORDERS[LISTS[family]]) if family in LISTS else [],
            "orders": {str(length): list(order) for length, order in BLOCK_ORDERS.items() if set(order) <= set(blocks)},
        }
        for family, blocks in BLOCKS.items()
    }


def presets(store: PresetStore) -> dict[str, list[dict[str, Any]]]:
    """Return every family's presets as {block: weight}, the shipped ones first."""
    own = {preset.name for preset in store.list()}
    return {
        family: [
            {
                "name": name,
                "own": name in own,
                "hint": "" if name in own else preset_hint(name),
                "weights": weights_of(name, family, store),
                "elements": rules_of(name, family, store) if name in own else "",
            }
            for name in (preset_names(family, store) if family in BLOCKS else store.names(family))
        ]
        for family in dict.fromkeys([*BLOCKS, *(preset.family for preset in store.list() if preset.family)])
    }


def rules_of(name: str, family: str, store: PresetStore) -> str:
    """Return a preset's element rules as text, "" where it has none."""
    preset = store.get(name, family)
    rules = preset.elements if preset is not None else ()
    return ", ".join(f"{rule.blocks}:{rule.elements}:{rule.ratio!r}" for rule in rules)


def weights_of(name: str, family: str, store: PresetStore) -> dict[str, float | str]:
    """Return one preset as {block: weight}; blocks that are not named weigh 1."""
    found = find_preset(name, family, BLOCKS.get(family, ()), store)
    if isinstance(found, Mapping):
        return dict(found)
    if found is None:
        return {}
    order = BLOCK_ORDERS[len(found)]
    given = dict(zip(order, found))
    return {block: 1.0 if block == "OTHER" else given.get(block, 0.0) for block in BLOCKS.get(family, ())}
