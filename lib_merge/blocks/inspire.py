"""Presets of ComfyUI's Inspire Pack: `NAME:w,w,…` whose places are counted in that program's own ways.

The first weight goes to everything outside the blocks. For Flux the double blocks follow, then the single
ones, and a list that ends early repeats its last weight. The `LyC` lists of the UNets have three places for
the middle. A weight may be R (0…3), U (-1.5…1.5), A or B (two values set beside the list; a and b are half of
them). A list may also be written `%default=1,in1-4=.5,mid=0`, counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lib_merge.blocks.formats import Collector, keep_list, read_weights, sentence
from lib_merge.blocks.notation import Weight, parse_weight
from lib_merge.blocks.presets import Preset, shown
from lib_merge.errors import RecipeError
from lib_merge.families import Family, families_with_list, family_of, same_blocks, tables, with_blocks

_ALL = 9999
_SPEC = re.compile(r"(default|base|in|out|mid|double|single)(?:([0-9]{1,3})(?:-([0-9]{1,3}))?)?=(.+)")


def inspire_prefixes() -> list[tuple[str, str]]:
    """Return (what the names of an Inspire Pack's presets begin with, family), longer ones first."""
    prefixes = [
        (family.counting.prefix, family.name)
        for family in with_blocks()
        if family.counting is not None and family.counting.prefix
    ]
    return sorted(prefixes, key=lambda item: -len(item[0]))


def read_inspire(number: int, name: str, values: str, family: str | None, out: Collector) -> None:
    """Read one line of an Inspire Pack file."""
    if name.startswith("@") or (not name and values.startswith("@")):
        out.skip(number, "A test series, not a preset.")
        return
    told = next((told for prefix, told in inspire_prefixes() if name.upper().startswith(prefix)), None)
    meant = family if told is None or (family is not None and same_blocks(told, family)) else told
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
    counted = _counted(len(weights), family)
    if counted is not None:
        return _placed(weights, counted, notes)
    if families_with_list(len(weights)):
        return weights
    message = f"{shown(name)} has {len(weights)} weights, which fits no family's blocks."
    raise RecipeError(message)


def _counted(count: int, family: str | None) -> Family | None:
    """Return the family whose counting a list of `count` weights follows: the told one before any other."""
    own = None if family is None else family_of(family)
    if own is not None and own.counting is not None and own.counting.takes(count):
        return own
    for other in tables():
        counting = other.counting
        if counting is None or count != 1 + len(counting.places):
            continue
        if family is None or not counting.least:  # one that may end early is never taken for another's
            return other
    return None


def _placed(weights: tuple[Weight, ...], family: Family, notes: list[str]) -> tuple[Weight, ...]:
    """Return a list that is written as the Inspire Pack counts as the family's list of every block."""
    counting = family.counting
    assert counting is not None
    places, base = counting.places, counting.base
    rest = [*weights[1:], *[weights[-1]] * (1 + len(places) - len(weights))]
    if len(rest) >= len(weights):
        notes.append(
            f"The {1 + len(rest) - len(weights)} blocks after the end of the list repeat its last weight."
        )
    given = {
        **dict.fromkeys(base, weights[0]),
        **{block: weight for block, weight in zip(places, rest) if block},
    }
    if len(base) > 1:
        notes.append(f"The first weight is used for {', '.join(base[:-1])} and {base[-1]}.")
    blocks = family.lists[-1].blocks
    silent = [block for block in blocks if block not in given]
    if silent:
        count = "it counts" if len(silent) == 1 else "they count"
        notes.append(f"The list has no place for {', '.join(silent)}; {count} as 0.")
    start = places.index("") if "" in places else 0
    if start and len(set(rest[start : start + 3])) > 1:
        notes.append("The three weights of the middle differ; M00 takes the second, that of its attention.")
    return tuple(given.get(block, 0.0) for block in blocks)


def _spec(name: str, text: str, family: str | None, notes: list[str]) -> Preset:
    """Read `default=1,base=1,in1-4=.5`."""
    items = [_item(part) for part in text.split(",") if part.strip()]
    if family is None:
        family = _told_by_words([kind for kind, *_ in items])
    record = family_of(family or "")
    if family is None or not record.blocks:
        message = "the line does not say which family it is for; choose one and import again."
        raise RecipeError(message)
    counted, places_of = _orders(record, items)
    weights = dict.fromkeys(
        record.blocks, next((value for kind, *_, value in items if kind == "default"), 1.0)
    )
    weights["OTHER"] = 1.0
    for kind, first, last, value in items:
        if kind == "default":
            continue
        places = places_of.get(kind, ())[max(first - 1, 0) : last]
        if last == _ALL and kind in ("in", "out"):  # those that the count leaves out too
            places = tuple(block for block in weights if re.fullmatch(rf"{kind.upper()}\d\d", block))
        weights.update({block: value for block in places if block})
        if places and not any(places):
            notes.append(f"{kind}{first} has no place of its own here; M00 follows mid2.")
    if record.counting is not None and len(record.counting.orders) > 1:
        notes.append(f"Blocks were counted as in a LoRA that has {counted}.")
    return Preset(name, family, weights)


def _item(part: str) -> tuple[str, int, int, float]:
    match = _SPEC.fullmatch("".join(part.split()).lower())
    value = parse_weight(match[4]) if match else None
    if match is None or not isinstance(value, float):
        message = f"{shown(part.strip())} is not block=number, as in in1-4=0.5."
        raise RecipeError(message)
    first = int(match[2] or 1)
    return match[1], first, int(match[3] or match[2] or _ALL), value


def _told_by_words(words: Iterable[str]) -> str | None:
    """Return the one family whose blocks are called so, or None."""
    for word in words:
        knowing = [
            table.name
            for table in tables()
            if table.counting is not None and any(word in order for order in table.counting.orders.values())
        ]
        if len(knowing) == 1:
            return knowing[0]
    return None


def _orders(
    family: Family, items: Sequence[tuple[str, int, int, float]]
) -> tuple[str, Mapping[str, tuple[str, ...]]]:
    """Return which LoRAs are counted so and, for each word of a spec, its blocks in order.

    Raises:
        RecipeError: nobody has said how the blocks of the family are counted.
    """
    if family.counting is None:
        message = (
            f"the blocks of {family.name} are not counted in this program; give a weight for each block."
        )
        raise RecipeError(message)
    *shorter, last = family.counting.orders.items()
    for counted, order in shorter:
        if all(end in (_ALL, 0) or end <= len(order.get(kind, ())) for kind, _, end, _ in items):
            return counted, order
    return last
