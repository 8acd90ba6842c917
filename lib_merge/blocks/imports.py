"""Preset files of other tools: where those keep them, which kind a file is, and what it holds.

They are text in whatever encoding the editor at hand used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_merge.blocks.formats import (
    SKIPPED,
    Collector,
    ImportLine,
    read_elements,
    read_lbw,
    read_lines,
    read_mbw,
)
from lib_merge.blocks.inspire import inspire_prefixes, read_inspire
from lib_merge.blocks.presets import Preset, check_family
from lib_merge.errors import FileFormatError
from lib_merge.files import store

# ------------------------------------------------------------------------ one file

KINDS = ("lbw", "elements", "mbw", "inspire")
_BY_NAME = (
    ("elempresets", "elements"),
    ("mbwpresets", "mbw"),
    ("lbw-preset", "inspire"),
    ("lbwpresets", "lbw"),
)
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
        tuple(out.presets.values()), tuple(sorted(out.lines, key=lambda line: line.number)), kind
    )


def import_file(path: Path, family: str | None = None) -> ImportReport:
    """Read a preset file from disk; see `import_presets`.

    Raises:
        FileFormatError: it cannot be read, is too large, or is not a text.
        RecipeError: no such family.
    """
    try:
        check_size(path.stat().st_size, path.name)
        data = store.read(path) or b""
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
    prefixes = "|".join(re.escape(prefix) for prefix, _ in inspire_prefixes())
    inspire = re.compile(rf"^(?:@|(?:{prefixes})-[^:]*:)|^[^:]*:\s*%", re.IGNORECASE)
    for line in some:
        if inspire.match(line):
            return "inspire"
        if _RULE.match(line):
            return "elements"
        if "\t" in line:
            return "mbw"
    return "lbw"


# ------------------------------------------------------------------------ encodings

MAX_BYTES = 1 << 20
MAX_LINES = 5000
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_HIGH = re.compile(rb"[\x80-\xff]+")


def decode(data: bytes, filename: str) -> tuple[str, str]:
    """Return a file's text, and a sentence on its encoding where that had to be guessed.

    Args:
        data: the whole file.
        filename: for messages.
    Raises:
        FileFormatError: it is too large, or not a text.
    """
    check_size(len(data), filename)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _wide(data, filename), "Read as UTF-16, as its first bytes say."
    try:
        return _text(data.decode("utf-8-sig"), filename), ""
    except UnicodeDecodeError:
        pass
    # Chinese text is pairs of high bytes; a Western letter with an accent stands alone
    if all(len(run) % 2 == 0 for run in _HIGH.findall(data)):
        try:
            return _text(
                data.decode("gbk"), filename
            ), "Not UTF-8: read as GBK. Look at names with special letters."
        except UnicodeDecodeError:
            pass
    text = data.decode("cp1252", errors="replace")
    return _text(text, filename), "Not UTF-8: read as Western (cp1252). Look at names with special letters."


def check_size(size: int, filename: str) -> None:
    """Raise `FileFormatError` for a file that is too large to be one of presets."""
    if size > MAX_BYTES:
        message = f"{filename} has {size:,} bytes; a file of presets has at most {MAX_BYTES:,}."
        raise FileFormatError(message)


def split_lines(text: str, filename: str) -> list[str]:
    """Return the lines as an editor counts them.

    Raises:
        FileFormatError: the text is not one, or has far too many lines.
    """
    check_size(len(text), filename)
    lines = re.split(r"\r\n|\r|\n", _text(text, filename).removeprefix("\ufeff"))
    if len(lines) > MAX_LINES:
        message = f"{filename} has {len(lines):,} lines; {MAX_LINES:,} is the limit for a file of presets."
        raise FileFormatError(message)
    return lines


def _wide(data: bytes, filename: str) -> str:
    try:
        return _text(data.decode("utf-16"), filename)
    except UnicodeDecodeError as error:
        message = f"{filename} is not a text file, so there are no presets in it."
        raise FileFormatError(message) from error


def _text(text: str, filename: str) -> str:
    if _BINARY.search(text):
        message = f"{filename} is not a text file, so there are no presets in it."
        raise FileFormatError(message)
    return text


# ------------------------------------------------------------------------ other extensions' folders

_PLACES = (
    ("scripts/lbwpresets.txt", "lbw", "LoRA Block Weight presets"),
    ("scripts/elempresets.txt", "elements", "LoRA Block Weight element presets"),
    ("scripts/mbwpresets.txt", "mbw", "SuperMerger presets"),
    ("data/mbwpresets.tsv", "mbw", "Model Mixer presets"),
    ("scripts/mbwpresets.tsv", "mbw", "Model Mixer presets"),
    ("resources/lbw-preset.txt", "inspire", "Inspire Pack presets"),
    ("resources/lbw-preset.custom.txt", "inspire", "Inspire Pack presets of your own"),
)
_OLD = ("lbw", "elements")  # once kept in the WebUI's own scripts folder
_MOST = 1000


@dataclass(frozen=True, slots=True)
class NeighbourFile:
    """A preset file on this machine.

    path   where it is
    kind   `lbw`, `elements`, `mbw` or `inspire`
    title  what it is and whose, for a list to choose from
    """

    path: Path
    kind: str
    title: str


def find_preset_files(extension_folders: Sequence[Path]) -> list[NeighbourFile]:
    """Look for other tools' preset files at their usual places.

    Args:
        extension_folders: folders of single extensions, or folders that hold many (`extensions`,
            `custom_nodes`).
    Returns:
        What is there, each file once; folders that cannot be read count as empty.
    """
    files: dict[Path, NeighbourFile] = {}
    for folder in _candidates(extension_folders):
        webui = folder.name.lower() != "extensions" and (folder / "extensions").is_dir()
        for place, kind, title in _PLACES:
            if webui and kind not in _OLD:
                continue
            path = folder / place
            try:
                if path.is_file():
                    files.setdefault(path.resolve(), NeighbourFile(path, kind, f"{title} ({folder.name})"))
            except OSError:
                continue
    return list(files.values())


def _candidates(folders: Iterable[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for given in folders:
        folder = Path(given).absolute()
        above = [folder.parent] if folder.name == "extensions" else []
        if folder.parent.name == "extensions":
            above = [folder.parent.parent]
        for candidate in (folder, *_children(folder), *above):
            if candidate not in seen:
                seen.add(candidate)
                yield candidate


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())[:_MOST]
    except OSError:
        return []
