"""What an import understood, line by line."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lib_merge.blocks.model import ANY, Preset, check_preset, name_key, shown
from lib_merge.blocks.shipped import is_shipped
from lib_merge.errors import RecipeError
from lib_merge.families.blocks import BLOCKS

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
    found: dict[tuple[str, str], Preset] = field(default_factory=dict)
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
        self.found.pop(key, None)
        self.found[key], self.places[key] = clean, number
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
