"""Files of weight lists: `lbwpresets.txt` (`NAME:w,w,…`) and `mbwpresets.txt`/`.tsv` (`NAME<TAB>w,w,…`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lib_merge.blocks.model import Preset, same_table, shown
from lib_merge.blocks.report import Collector, sentence
from lib_merge.blocks.tokens import Weight, parse_weight
from lib_merge.errors import RecipeError

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
    name, found, values = text.partition("\t")
    if found and values.strip():
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
