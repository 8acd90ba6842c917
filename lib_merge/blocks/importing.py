"""Preset files of other tools: which kind a file is, and what it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_merge.blocks.decode import check_size, decode, split_lines
from lib_merge.blocks.elementfile import read_elements
from lib_merge.blocks.inspire import read_inspire
from lib_merge.blocks.listfile import read_lbw, read_lines, read_mbw
from lib_merge.blocks.model import Preset, check_family
from lib_merge.blocks.report import SKIPPED, Collector, ImportLine
from lib_merge.errors import FileFormatError

KINDS = ("lbw", "elements", "mbw", "inspire")
_BY_NAME = (
    ("elempresets", "elements"),
    ("mbwpresets", "mbw"),
    ("lbw-preset", "inspire"),
    ("lbwpresets", "lbw"),
)
_INSPIRE = re.compile(r"^(?:@|(?:SD|SDXL|FLUX)-[^:]*:)|^[^:]*:\s*%", re.IGNORECASE)
_RULE = re.compile(r"^[^:,]*:[^:,]*:[^:,]*:[^:,]*(?:,|$)")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What a file held.

    entries  the presets, ready for `PresetStore.add`; they may have names of shipped ones
    lines    what became of every line that is not blank
    kind     `lbw`, `elements`, `mbw` or `inspire`
    """

    entries: tuple[Preset, ...]
    lines: tuple[ImportLine, ...]
    kind: str


def import_presets(text: str | bytes, filename: str, family: str | None = None) -> ImportReport:
    """Read a preset file of LoRA Block Weight, SuperMerger, Model Mixer or the Inspire Pack.

    Args:
        text: its content; bytes are decoded.
        filename: tells which tool it is from, where it has a usual name.
        family: settles what a list's length leaves open; None = the usual one.
    Returns:
        The presets and a report, line by line.
    Raises:
        FileFormatError: too large, or not a text.
        RecipeError: no such family.
    """
    filename = re.split(r"[/\\]", filename)[-1]
    if family is not None:
        check_family(family)
    note = ""
    if isinstance(text, bytes):
        text, note = decode(text, filename)
    lines = split_lines(text, filename)
    kind = kind_of(lines, filename)
    out = Collector()
    if note:
        out.lines.append(ImportLine(0, SKIPPED, note))
    if kind == "elements":
        read_elements(lines, family, out)
    else:
        read_lines(lines, family, out, {"mbw": read_mbw, "inspire": read_inspire}.get(kind, read_lbw))
    return ImportReport(
        tuple(out.found.values()), tuple(sorted(out.lines, key=lambda line: line.number)), kind
    )


def import_file(path: Path, family: str | None = None) -> ImportReport:
    """Read a preset file from disk; see `import_presets`.

    Raises:
        FileFormatError: it cannot be read, is too large, or is not a text.
        RecipeError: no such family.
    """
    try:
        check_size(path.stat().st_size, path.name)
        data = path.read_bytes()
    except OSError as error:
        message = f"{path.name} cannot be read: {error.strerror or error}."
        raise FileFormatError(message) from error
    return import_presets(data, path.name, family)


def kind_of(lines: Sequence[str], filename: str) -> str:
    """Return which of `KINDS` a file is: by its name, else by its first lines that are no comments."""
    name = filename.lower()
    for part, kind in _BY_NAME:
        if part in name:
            return kind
    if name.endswith(".tsv"):
        return "mbw"
    some = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")][:20]
    for line in some:
        if _INSPIRE.match(line):
            return "inspire"
        if _RULE.match(line):
            return "elements"
        if "\t" in line:
            return "mbw"
    return "lbw"
