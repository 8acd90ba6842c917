"""The formats of other tools' preset files, read line by line into presets.

`lbwpresets.txt`        `NAME:w,w,…`
`mbwpresets.txt`, .tsv  `NAME<TAB>w,w,…`
`elempresets.txt`       `NAME:blocks:elements:ratio,blocks:elements:ratio`, over one or several lines
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from lib_merge.blocks.notation import Weight, parse_rule, parse_weight, rule_blocks
from lib_merge.blocks.presets import ANY, Preset, check_preset, name_key, shown
from lib_merge.blocks.shipped import is_shipped
from lib_merge.errors import RecipeError
from lib_merge.families import (
    FAMILIES,
    families_with_list,
    family_of,
    list_lengths,
    same_blocks,
    tables,
)
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
    families = [name for name in FAMILIES if same_blocks(name, preset.family)] or [preset.family]
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

_HEADINGS = frozenset({"preset_name", "name"})
_NO_SEPARATOR = "There is no ':' or tab between a name and its weights."
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
        if not families_with_list(len(weights)):
            message = f"{shown(name)} has {len(weights)} weights; a list has {_either(list_lengths())}."
            raise RecipeError(message)
    except RecipeError as error:
        out.refuse(number, sentence(str(error)))
        return
    keep_list(number, name, weights, family, (out, notes))


def read_mbw(number: int, name: str, values: str, family: str | None, out: Collector) -> None:
    """Read one line of an `mbwpresets` file: weights of checkpoint blocks, with or without one for BASE."""
    notes: list[str] = []
    try:
        weights = read_weights(values, name, notes)
        lengths = _checkpoint_lengths()
        if len(weights) + 1 in lengths:
            weights = (0.0, *weights)
            notes.append("The list has no place for BASE; it counts as 0.")
        if len(weights) not in lengths:
            message = (
                f"{shown(name)} has {len(weights)} weights; a list here has {_either(lengths)}, or one "
                "less without BASE."
            )
            raise RecipeError(message)
    except RecipeError as error:
        out.refuse(number, sentence(str(error)))
        return
    keep_list(number, name, weights, family, (out, notes))


def _checkpoint_lengths() -> list[int]:
    """Return the lengths of the lists that tools which merge checkpoints write."""
    return list(
        dict.fromkeys(len(listed) for table in tables() for listed in table.lists if listed.of_checkpoints)
    )


def _either(numbers: Sequence[int]) -> str:
    """Return numbers as a choice: `12, 17 or 20`."""
    first, last = ", ".join(str(number) for number in numbers[:-1]), str(numbers[-1])
    return f"{first} or {last}" if first else last


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
    """Keep a list that some family takes; `to` is (where, sentences for the report).

    A length that the told family does not have, or that no family was told for, decides only where one table
    of blocks alone has a list so long.
    """
    out, notes = to
    weights = tuple(weights)
    if family is not None and family_of(family).list_of(len(weights)) is not None:
        out.keep(number, Preset(name, family, weights), *notes)
        return
    taking = families_with_list(len(weights))
    if len(taking) > 1:
        names = " and ".join(record.name for record in taking)
        message = (
            f"{shown(name)} has {len(weights)} weights, which fits {names}; choose one and import again."
        )
        out.refuse(number, sentence(message))
        return
    misfit = [] if family is None else [f"A list of this length does not fit {family}."]
    out.keep(number, Preset(name, taking[0].name, weights), *notes, *misfit)


def _is_heading(text: str) -> bool:
    return text.partition("\t")[0].strip().lower() in _HEADINGS and "weight" in text.lower()


# ------------------------------------------------------------------------ element rules


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
    known = tables()
    fitting = [table for table in known if blocks <= set(table.blocks)]
    if not fitting:
        unknown = next((b for b in sorted(blocks) if not any(b in table.blocks for table in known)), "")
        why = (
            f"no family has a block {shown(unknown)}"
            if unknown
            else "its blocks belong to different families"
        )
        out.refuse(entry.number, f"{shown(entry.name)} is left out: {why}.")
        return
    told = family is not None and bool(family_of(family).blocks)
    fits = any(same_blocks(table.name, family or "") for table in fitting)
    notes = [f"Its blocks do not fit {family}."] if told and not fits else []
    # rules that several families can follow are kept once, for all of them
    kept = fitting[0].name if len(fitting) == 1 else ANY
    out.keep(entry.number, Preset(entry.name, kept, {}, tuple(entry.rules)), *notes)
