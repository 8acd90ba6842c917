"""Presets of ComfyUI's Inspire Pack: `NAME:w,w,…` whose places are counted in that program's own ways.

The first weight goes to everything outside the blocks. For Flux the double blocks follow, then the single
ones, and a list that ends early repeats its last weight. The `LyC` lists of the UNets have three places for
the middle. A weight may be R (0…3), U (-1.5…1.5), A or B (two values set beside the list; a and b are half of
them). A list may also be written `%default=1,in1-4=.5,mid=0`, counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lib_merge.blocks.listfile import FAMILY_OF, keep_list, read_weights
from lib_merge.blocks.model import Preset, same_table, shown
from lib_merge.blocks.report import Collector, sentence
from lib_merge.blocks.tokens import Weight, parse_weight
from lib_merge.errors import RecipeError
from lib_merge.families.blocks import BLOCK_ORDERS, BLOCKS

_DOUBLE, _SINGLE = 19, 38
_FLUX_LENGTHS = range(12, 1 + _DOUBLE + _SINGLE + 1)
# list length -> (the length it becomes, how many input blocks)
_THREE_MIDDLES = {27: (26, 11), 21: (20, 8)}
_FAMILIES = (("SDXL", "SDXL"), ("SD", "SD1"), ("FLUX", "Flux"))
_ALL = 9999
_SPEC = re.compile(r"(default|base|in|out|mid|double|single)(?:([0-9]{1,3})(?:-([0-9]{1,3}))?)?=(.+)")


def read_inspire(number: int, name: str, values: str, family: str | None, out: Collector) -> None:
    """Read one line of an Inspire Pack file."""
    if name.startswith("@") or (not name and values.startswith("@")):
        out.skip(number, "A test series, not a preset.")
        return
    told = next((told for prefix, told in _FAMILIES if name.upper().startswith(prefix)), None)
    meant = family if told is None or (family is not None and same_table(told, family)) else told
    notes: list[str] = []
    try:
        if values.startswith("%"):
            out.keep(number, _spec(name, values[1:], meant, notes), *notes)
            return
        _refuse_parts(values, name)
        weights = _arrange(read_weights(_letters(values, notes), name, notes), name, meant, notes)
    except RecipeError as error:
        out.refuse(number, sentence(str(error)))
        return
    keep_list(number, name, weights, meant, (out, notes))


def _refuse_parts(values: str, name: str) -> None:
    for place, part in enumerate(values.split(","), 1):
        if len(part.split()) > 1:
            message = (
                f"weight {place} of {shown(name)} gives parts of a block different weights, "
                "which no list here can."
            )
            raise RecipeError(message)


def _letters(values: str, notes: list[str]) -> str:
    """Spell the letters of that program in our tokens."""
    parts = [part.strip() for part in values.split(",")]
    used = {part.upper() for part in parts}
    both = {"A", "B"} <= used
    spelled = {"R": "R*3", "r": "R*3", "U": "R*3-1.5", "u": "R*3-1.5", "A": "X", "a": "X*0.5"}
    spelled.update({"B": "1", "b": "0.5"} if both else {"B": "X", "b": "X*0.5"})
    if both:
        notes.append("A is X here; B was taken as 1, its usual value.")
    elif used & {"A", "B"}:
        notes.append(f"{'A' if 'A' in used else 'B'} is X here.")
    return ",".join(spelled.get(part, part) for part in parts)


def _arrange(
    weights: tuple[Weight, ...], name: str, family: str | None, notes: list[str]
) -> tuple[Weight, ...]:
    """Bring a list into one of the usual orders."""
    count = len(weights)
    if family is not None and same_table(family, "Flux") and count in _FLUX_LENGTHS:
        return _flux(weights, notes)
    if family is None and count == 1 + _DOUBLE + _SINGLE:
        return _flux(weights, notes)
    if count in _THREE_MIDDLES:
        return _unet(weights, notes)
    if count in FAMILY_OF:
        return weights
    message = f"{shown(name)} has {count} weights, which fits no family's blocks."
    raise RecipeError(message)


def _flux(weights: tuple[Weight, ...], notes: list[str]) -> tuple[Weight, ...]:
    places = 1 + _DOUBLE + _SINGLE
    if len(weights) < places:
        notes.append(f"The {places - len(weights)} blocks after the end of the list repeat its last weight.")
    whole = (*weights, *[weights[-1]] * (places - len(weights)))
    notes.append("The first weight is used for CLIP, T5, IN and OUT.")
    return (whole[0], whole[0], whole[0], *whole[1:], whole[0])


def _unet(weights: tuple[Weight, ...], notes: list[str]) -> tuple[Weight, ...]:
    _, inputs = _THREE_MIDDLES[len(weights)]
    base, ins = weights[0], weights[1 : 1 + inputs]
    middle, outs = weights[1 + inputs : 4 + inputs], weights[4 + inputs :]
    notes.append("The list has no place for IN00; it counts as 0.")
    if len(set(middle)) > 1:
        notes.append("The three weights of the middle differ; M00 takes the second, that of its attention.")
    return (base, 0.0, *ins, middle[1], *outs)


def _spec(name: str, text: str, family: str | None, notes: list[str]) -> Preset:
    """Read `default=1,base=1,in1-4=.5`."""
    items = [_item(part) for part in text.split(",") if part.strip()]
    if family is None and any(kind in ("double", "single") for kind, *_ in items):
        family = "Flux"
    if family not in BLOCKS:
        message = "the line does not say which family it is for; choose one and import again."
        raise RecipeError(message)
    orders = _orders(family, items)
    weights = dict.fromkeys(
        BLOCKS[family], next((value for kind, *_, value in items if kind == "default"), 1.0)
    )
    weights["OTHER"] = 1.0
    for kind, first, last, value in items:
        if kind == "default":
            continue
        places = orders.get(kind, ())[max(first - 1, 0) : last]
        if last == _ALL and kind in ("in", "out"):  # those that the count leaves out too
            places = tuple(block for block in weights if re.fullmatch(rf"{kind.upper()}\d\d", block))
        weights.update({block: value for block in places if block})
        if places and not any(places):
            notes.append(f"{kind}{first} has no place of its own here; M00 follows mid2.")
    if family in ("SD1", "SD2", "SDXL"):
        notes.append(("Blocks were counted as in a LoRA that "
        "has ") + ("all." if "IN01" in orders["in"] and "IN03" in
                     orders["in"] else "attention only."))  # fmt: skip
    return Preset(name, family, weights)


def _item(part: str) -> tuple[str, int, int, float]:
    match = _SPEC.fullmatch("".join(part.split()).lower())
    value = parse_weight(match[4]) if match else None
    if match is None or not isinstance(value, float):
        message = f"{shown(part.strip())} is not block=number, as in in1-4=0.5."
        raise RecipeError(message)
    first = int(match[2] or 1)
    return match[1], first, int(match[3] or match[2] or _ALL), value


def _orders(family: str, items: Sequence[tuple[str, int, int, float]]) -> dict[str, tuple[str, ...]]:
    """Return, for each word of a spec, its blocks in order: those of a LoRA of attention only, if the
    numbers fit it.
    """
    if same_table(family, "Flux"):
        blocks = BLOCKS[family]
        return {
            "base": ("CLIP", "T5", "IN", "OUT"),
            "double": tuple(block for block in blocks if re.fullmatch(r"D\d\d", block)),
            "single": tuple(block for block in blocks if re.fullmatch(r"S\d\d", block)),
        }
    short, long = (
        (BLOCK_ORDERS[12], BLOCK_ORDERS[20]) if family == "SDXL" else (BLOCK_ORDERS[17], BLOCK_ORDERS[26])
    )
    orders = {}
    for blocks in (short, tuple(block for block in long if block != "IN00")):
        orders = {
            "base": ("BASE",),
            "mid": ("M00",) if blocks is short else ("", "M00", ""),
            "in": tuple(block for block in blocks if block.startswith("IN")),
            "out": tuple(block for block in blocks if block.startswith("OUT")),
        }
        if all(last in (_ALL, 0) or last <= len(orders.get(kind, ())) for kind, _, last, _ in items):
            break
    return orders
