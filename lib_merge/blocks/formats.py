"""The formats of other tools' preset files, read line by line into presets.

`lbwpresets.txt`        `NAME:w,w,…`
`mbwpresets.txt`, .tsv  `NAME<TAB>w,w,…`
`elempresets.txt`       `NAME:blocks:elements:ratio,blocks:elements:ratio`, over one or several lines
Inspire Pack            `NAME:w,w,…` whose places are counted in that program's own ways

In an Inspire list the first weight goes to everything outside the blocks. For Flux the double blocks
follow, then the single ones, and a list that ends early repeats its last weight. The `LyC` lists of the
UNets have three places for the middle. A weight may be R (0…3), U (-1.5…1.5), A or B (two values set beside
the list; a and b are half of them). A list may also be written `%default=1,in1-4=.5,mid=0`, counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from lib_merge.blocks.notation import Weight, parse_rule, parse_weight, rule_blocks
from lib_merge.blocks.presets import ANY, Preset, check_preset, name_key, same_table, shown
from lib_merge.blocks.shipped import is_shipped
from lib_merge.errors import RecipeError
from lib_merge.families.blocks import BLOCK_ORDERS, BLOCKS
from lib_merge.recipe import ElementRule

# ------------------------------------------------------------------------ what was understood

READ, SKIPPED, REFUSED = "read", "skipped", "refused"
_RESERVED = frozenset({"XYZ", "ZYX"})


@dataclass(frozen=True, slots=True)
class ImportLine:
    """One line of the report.

    number   the line in the file, from 1; 0 = about the file as a whole
    outcome  `read`, `skipped` (a comment, a heading) or `refused`
    says     a plain sentence
    """

    number: int
    outcome: str
    says: str


@dataclass(slots=True)
class Collector:
    """Gathers presets and sentences while a file is read."""

    lines: list[ImportLine] = field(default_factory=list)
    presets: dict[tuple[str, str], Preset] = field(default_factory=dict)
    places: dict[tuple[str, str], int] = field(default_factory=dict)

    def skip(self, number: int, says: str) -> None:
        """Report a line that is meant to hold no preset."""
        self.lines.append(ImportLine(number, SKIPPED, says))

    def refuse(self, number: int, says: str) -> None:
        """Report a line that cannot be used."""
        self.lines.append(ImportLine(number, REFUSED, says))

    def keep(self, number: int, preset: Preset, *notes: str) -> None:
        """Take a preset; of two with one name for one family the later wins, as in the tools the files are
        from.

        Args:
            number: its line.
            preset: what was read; a shipped preset's name is allowed here.
            notes: sentences for the report.
        """
        name = preset.name.strip()
        if name in _RESERVED:
            self.skip(number, f"{name} is a placeholder for comparison grids, not a preset.")
            return
        try:
            # shipped names are for the store to sort out; the rest is judged here
            clean = replace(check_preset(replace(preset, name="-" if is_shipped(name) else name)), name=name)
        except RecipeError as error:
            self.refuse(number, sentence(str(error)))
            return
        key = (name_key(name), clean.family)
        earlier = (
            f"It replaces line {self.places[key]}, which has the same name." if key in self.places else ""
        )
        self.presets.pop(key, None)
        self.presets[key], self.places[key] = clean, number
        self.lines.append(
            ImportLine(number, READ, " ".join(filter(None, (_describe(clean), *notes, earlier))))
        )


def sentence(text: str) -> str:
    """Return the text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def _describe(preset: Preset) -> str:
    families = [family for family in BLOCKS if BLOCKS[family] == BLOCKS.get(preset.family)] or [preset.family]
    where = f"for {' and '.join(families)}"
    if preset.family == ANY:
        where = (
            f"for every family{' with these blocks' if any(rule.blocks for rule in preset.elements) else ''}"
        )
    what = []
    if preset.weights:
        what.append(f"{len(preset.weights)} weights")
    if preset.elements:
        what.append(
            "1 element rule" if len(preset.elements) == 1 else f"{len(preset.elements)} element rules"
        )
    tokens = sorted({weight[0] for weight in preset.weights if isinstance(weight, str)} & {"R", "U", "X"})
    drawn = [token for token in tokens if token in "RU"] if isinstance(preset.weights, tuple) else []
    says = [f"{shown(preset.name)}: {' and '.join(what) or 'nothing'} {where}."]
    if drawn:
        says.append(f"{' and '.join(drawn)} will be drawn once, when the merge is planned.")
    if "X" in tokens and isinstance(preset.weights, tuple):
        says.append("X stands for the x= of the request, 1 without it.")
    return " ".join(says)


# ------------------------------------------------------------------------ weight lists

# length of a list -> the family it belongs to
FAMILY_OF = {12: "SDXL", 17: "SD1", 20: "SDXL", 26: "SD1", 61: "Flux"}
_HEADINGS = frozenset({"preset_name", "name"})
_NO_SEPARATOR = "There is no ':' or tab between a name and its weights."
_WRONG_COUNT = "{} has {} weights; a list has 12, 17, 20, 26 or 61."
Reader = Callable[[int, str, str, "str | None", Collector], None]


def read_lines(lines: Sequence[str], family: str | None, out: Collector, reader: Reader) -> None:
    """Hand every line's name and weights to `reader`, and report the lines that have none.

    Args:
        lines: of the file.
        family: what the user takes the file to be for.
        out: where presets and sentences go.
        reader: gets (line number, name, weights, family, out).
    """
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        if "#" in text:
            out.skip(number, "A comment." if text[0] == "#" else "Skipped: a line with # in it is a comment.")
        elif _is_heading(text):
            out.skip(number, "The heading of the table.")
        else:
            name, values = split_name(text)
            if not values:
                out.refuse(number, _NO_SEPARATOR)
            elif not name:
                out.refuse(number, "There is no name before the weights.")
            else:
                reader(number, name, values, family, out)


def split_name(text: str) -> tuple[str, str]:
    """Return (name, weights) of a line; the tab, or else the last colon, stands between, so names may have
    colons.
    """
    name, tab, values = text.partition("\t")
    if tab and values.strip():
        return name.strip(" \t:"), values.strip()
    name, _, values = text.rpartition(":")
    return name.strip(), values.strip()


def read_lbw(number: int, name: str, values: str, family: str | None, out: Collector) -> None:
    """Read one line of an `lbwpresets.txt`."""
    notes: list[str] = []
    try:
        weights = read_weights(values, name, notes)
        if len(weights) not in FAMILY_OF:
            raise RecipeError(_WRONG_COUNT.format(shown(name), len(weights)))
    except RecipeError as error:
        out.refuse(number, sentence(str(error)))
        return
    keep_list(number, name, weights, family, (out, notes))


def read_mbw(number: int, name: str, values: str, family: str | None, out: Collector) -> None:
    """Read one line of an `mbwpresets` file: weights of checkpoint blocks, with or without one for BASE."""
    notes: list[str] = []
    try:
        weights = read_weights(values, name, notes)
        if len(weights) in (19, 25):
            weights = (0.0, *weights)
            notes.append("The list has no place for BASE; it counts as 0.")
        if len(weights) not in (20, 26):
            message = (
                f"{shown(name)} has {len(weights)} weights; a list here has 26 or 20, or one "
                "less without BASE."
            )
            raise RecipeError(message)
    except RecipeError as error:
        out.refuse(number, sentence(str(error)))
        return
    keep_list(number, name, weights, family, (out, notes))


def read_weights(values: str, name: str, notes: list[str]) -> tuple[Weight, ...]:
    """Read numbers and tokens between commas.

    Args:
        values: the text after the name.
        name: of the preset, for messages.
        notes: gets a sentence where something was forgiven.
    Raises:
        RecipeError: a place that holds neither.
    """
    parts = [part.strip() for part in values.split(",")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
        notes.append("The comma at the end was ignored.")
    weights = []
    for place, part in enumerate(parts, 1):
        weight = parse_weight(part)
        if weight is None and part.upper() != part:
            weight = parse_weight(part.upper())
            if isinstance(weight, str):
                notes.append(f"{shown(part)} was read as {weight}.")
        if weight is None:
            message = (
                f"weight {place} of {shown(name)} is {shown(part) if part else 'missing'}, "
                "which is no number."
            )
            raise RecipeError(message)
        weights.append(weight)
    return tuple(weights)


def keep_list(
    number: int, name: str, weights: Iterable[Weight], family: str | None, to: tuple[Collector, Sequence[str]]
) -> None:
    """Keep a list of one of the usual lengths; `to` is (where, sentences for the report)."""
    out, notes = to
    weights = tuple(weights)
    belongs = FAMILY_OF[len(weights)]
    if family is None or same_table(family, belongs):
        out.keep(number, Preset(name, family or belongs, weights), *notes)
    else:
        out.keep(
            number, Preset(name, belongs, weights), *notes, f"A list of this length does not fit {family}."
        )


def _is_heading(text: str) -> bool:
    return text.partition("\t")[0].strip().lower() in _HEADINGS and "weight" in text.lower()


# ------------------------------------------------------------------------ element rules

_TABLES = ("SD1", "SDXL", "Flux")


@dataclass(slots=True)
class _Entry:
    number: int
    name: str
    rules: list[ElementRule] = field(default_factory=list)
    bad: bool = False


def read_elements(lines: Sequence[str], family: str | None, out: Collector) -> None:
    """Read a whole file; a blank line, or a rule with a name before it, begins a new entry.

    An entry with one rule that cannot be read is refused as a whole: half of it would be another preset.

    Args:
        lines: of the file.
        family: what the user takes the file to be for.
        out: where presets and sentences go.
    """
    entry: _Entry | None = None
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            _finish(entry, family, out)
            entry = None
            continue
        if text.startswith("#"):
            out.skip(number, "A comment.")
            continue
        items = text.split(",")
        if entry is None or items[0].count(":") == 3:
            _finish(entry, family, out)
            name, colon, items[0] = items[0].partition(":")
            entry = _Entry(number, name.strip())
            if not colon or not entry.name:
                entry.bad = True
                out.refuse(number, "There is no name with a ':' before the rules.")
                continue
        for item in items:
            _rule(entry, number, item, out)
    _finish(entry, family, out)


def _rule(entry: _Entry, number: int, item: str, out: Collector) -> None:
    if not item.strip():
        return
    try:
        entry.rules.append(parse_rule(item))
    except RecipeError as error:
        if not entry.bad:
            out.refuse(number, f"{sentence(str(error))} The preset {shown(entry.name)} is left out.")
        entry.bad = True


def _finish(entry: _Entry | None, family: str | None, out: Collector) -> None:
    if entry is None or entry.bad:
        return
    if not entry.rules:
        out.refuse(entry.number, f"{shown(entry.name)} has no rules.")
        return
    blocks = {block for rule in entry.rules for block in rule_blocks(rule.blocks)}
    tables = [table for table in _TABLES if blocks <= set(BLOCKS[table])]
    if not tables:
        unknown = next((b for b in sorted(blocks) if not any(b in BLOCKS[table] for table in _TABLES)), "")
        why = (
            f"no family has a block {shown(unknown)}"
            if unknown
            else "its blocks belong to different families"
        )
        out.refuse(entry.number, f"{shown(entry.name)} is left out: {why}.")
        return
    fitting = next((table for table in tables if family is not None and same_table(table, family)), None)
    notes = [f"Its blocks do not fit {family}."] if family in BLOCKS and fitting is None else []
    # rules that several families can follow are kept once, for all of them
    kept = tables[0] if len(tables) == 1 else ANY
    out.keep(entry.number, Preset(entry.name, kept, {}, tuple(entry.rules)), *notes)


# ------------------------------------------------------------------------ Inspire Pack

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
    if family is None or family not in BLOCKS:
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
        whole = "IN01" in orders["in"] and "IN03" in orders["in"]
        notes.append(f"Blocks were counted as in a LoRA that has {'all' if whole else 'attention only'}.")
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
