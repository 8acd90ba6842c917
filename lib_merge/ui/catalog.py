"""What the browser must know once: methods with their knobs, families with their blocks, presets,
settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_merge.blocks import PresetStore, find_preset, preset_hint, preset_names
from lib_merge.families.blocks import BLOCK_ORDERS, BLOCKS
from lib_merge.methods import METHODS, Space

GROUPS = {
    Space.SCALAR: "Exact sums and means",
    Space.CORE: "Exact, in the LoRAs' shared directions",
    Space.DENSE: "Number by number, then cut to a rank",
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
# Width of the features in each block as a part of the picture's side. Coarse blocks decide shapes and
# arrangement, fine ones surfaces and colour (Voynov et al. 2023, "P+", measured on SD1's cross-attention).
_HALF: Mapping[str, int] = {
    **{f"IN{index:02d}": 8 * 2 ** (index // 3) for index in range(12)},
    "M00": 64,
    **{f"OUT{index:02d}": 64 // 2 ** (index // 3) for index in range(12)},
}
_THIRD: Mapping[str, int] = {
    **{f"IN{index:02d}": 8 * 2 ** (index // 3) for index in range(9)},
    "M00": 32,
    **{f"OUT{index:02d}": 32 // 2 ** (index // 3) for index in range(9)},
}
WIDTHS: Mapping[str, Mapping[str, int]] = {"SD1": _HALF, "SD2": _HALF, "SDXL": _THIRD}
CARRIES = {
    8: "fine detail, texture, colour",
    16: "surfaces, middle-sized detail",
    32: "shapes and parts",
    64: "arrangement, rough shapes",
}
# single blocks of SDXL that were singled out: content and style by Frenkel et al. 2024 ("B-LoRA"),
# arrangement and style by Wang et al. 2024 ("InstantStyle")
KNOWN: Mapping[str, Mapping[str, str]] = {
    "SDXL": {
        "IN08": "the block that holds the arrangement of the picture",
        "OUT00": "the block that holds what is shown",
        "OUT01": "the block that holds style and colours",
    },
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
            "hints": {block: hint(family, block) for block in blocks},
            "list": list(BLOCK_ORDERS[LISTS[family]]) if family in LISTS else [],
            "orders": {
                str(length): list(order)
                for length, order in BLOCK_ORDERS.items()
                if set(order) <= set(blocks)
            },
        }
        for family, blocks in BLOCKS.items()
    }


def hint(family: str, block: str) -> str:
    """Return what a block is known to carry; of blocks without a name of their own, what its side of the
    model does.
    """
    side = HINTS.get(block) or HINTS.get(block.rstrip("0123456789"), "a part of the model")
    width = WIDTHS.get(family, {}).get(block)
    known = KNOWN.get(family, {}).get(block)
    if known:
        return known
    return f"{side}. Its features are 1/{width} as wide as the picture: {CARRIES[width]}" if width else side


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
