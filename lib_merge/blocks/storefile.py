"""The one JSON file that holds a user's presets: read with care, replaced whole, set aside when it is
broken.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_merge.blocks.presets import Preset, free_name, name_key, preset_from_json, preset_to_json, shown
from lib_merge.errors import OutputError, RecipeError
from lib_merge.files.temporary import create, rename_new, sweep_stale

FORMAT = "lora-merge-presets"
VERSION = 1
MAX_BYTES = 16 << 20
# seconds between attempts, while another program (a scanner, a sync client) has the file open
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True, slots=True)
class Content:
    """What a presets file says.

    presets  what could be read
    notes    sentences on what was changed while reading
    damage   why the file has to be set aside; empty = it is sound
    newer    it was written by a newer version and must be left alone
    """

    presets: tuple[Preset, ...] = ()
    notes: tuple[str, ...] = ()
    damage: str = ""
    newer: bool = False


def signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file changes: time, size, identity; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read(path: Path) -> bytes | None:
    """Return a file's bytes, None where there is no file.

    Raises:
        OutputError: it is there and cannot be read.
    """
    try:
        return _patiently(lambda: _bytes(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{path.name} cannot be read: {error.strerror or error}."
        raise OutputError(message) from error


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _patiently(action: Any) -> Any:  # noqa: ANN401
    for pause in _PAUSES:
        try:
            return action()
        except PermissionError:
            time.sleep(pause)
    return action()


def parse(data: bytes, where: str) -> Content:
    """Read a presets file's bytes; nothing is raised, whatever they are.

    Args:
        data: the whole file.
        where: its name, for sentences.
    """
    if len(data) > MAX_BYTES:
        return Content(damage=f"is larger than {MAX_BYTES >> 20} MB")
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return Content(damage="is not valid JSON")
    if (
        not isinstance(found, dict)
        or found.get("format") != FORMAT
        or not isinstance(found.get("presets"), list)
    ):
        return Content(damage="is not a file of presets")
    version = found.get("version")
    if isinstance(version, int) and version > VERSION:
        note = f"{where} was written by a newer version of this program and is left alone; update to use it."
        return Content(notes=(note,), newer=True)
    return _entries(found["presets"])


def _entries(entries: Sequence[Any]) -> Content:
    presets: list[Preset] = []
    notes: list[str] = []
    lost = 0
    taken: set[str] = set()
    for entry in entries:
        families = entry.get("families") if isinstance(entry, dict) else None
        if not isinstance(families, dict) or not families:
            lost += 1
            continue
        name = entry.get("name")
        if isinstance(name, str):
            name, old = free_name(name, taken), name
            if name != old.strip():
                notes.append(f"the preset {shown(old)} is now called {shown(name)}: its name was taken.")
        for family, data in families.items():
            try:
                presets.append(preset_from_json(name, family, data))
                taken.add(name_key(str(name)))
            except RecipeError:
                lost += 1
    damage = f"has {lost} entries that cannot be read" if lost else ""
    return Content(tuple(presets), tuple(notes), damage)


def dump(presets: Sequence[Preset]) -> bytes:
    """Return the file's bytes for these presets."""
    entries: dict[str, dict[str, Any]] = {}
    for preset in presets:
        entry = entries.setdefault(name_key(preset.name), {"name": preset.name, "families": {}})
        entry["families"][preset.family] = preset_to_json(preset)
    data = {"format": FORMAT, "version": VERSION, "presets": list(entries.values())}
    return (json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode("utf-8")


def write(path: Path, data: bytes) -> None:
    """Replace a file's content in one step: whoever reads sees the old or the new one, and a crash keeps the
    old.

    Raises:
        OutputError: too large, no room, no right to write, or held open by another program.
    """
    if len(data) > MAX_BYTES:
        message = f"{path.name} would grow beyond {MAX_BYTES >> 20} MB; delete some presets first."
        raise OutputError(message)
    sweep_stale(path.parent)
    try:
        temp, file = create(path)
    except OSError as error:
        raise write_error(error, path) from error
    try:
        with file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            with contextlib.suppress(OSError):  # some network folders cannot
                os.fsync(file.fileno())
            if sys.platform == "win32":
                # an open file cannot be renamed there; elsewhere its lock keeps it from being swept
                file.close()
            _patiently(lambda: os.replace(temp, path))
    except OSError as error:
        raise write_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()


def write_error(error: OSError, path: Path) -> OutputError:
    """Return the sentence for a failure to write `path`."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return OutputError(f"no space is left for {path.name}: the presets are as they were before.")
    if error.errno == errno.EROFS or (
        isinstance(error, PermissionError) and not os.access(path.parent, os.W_OK)
    ):
        return OutputError(f"{path.name} cannot be written: the folder {path.parent.name} is read-only.")
    if isinstance(error, PermissionError):
        return OutputError(f"{path.name} is held open by another program: close it there and save again.")
    return OutputError(f"{path.name} cannot be written: {error.strerror or error}.")


def set_aside(path: Path, copy: bytes | None = None) -> Path:
    """Keep a broken file as `name.broken-1.json`, or the next free number, and return that path.

    Args:
        path: the file, which is renamed.
        copy: its bytes, when it is going to be replaced and must not be missing meanwhile: they are copied
            instead.
    Raises:
        OutputError: it can be neither renamed nor copied.
    """
    number = 1
    while True:
        aside = path.with_name(f"{path.stem}.broken-{number}{path.suffix}")
        try:
            if copy is None:
                _patiently(lambda aside=aside: rename_new(path, aside))
            else:
                with aside.open("xb") as file:
                    file.write(copy)
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            message = (
                f"{path.name} is broken and cannot be set aside ({error.strerror or error}); "
                "rename it by hand."
            )
            raise OutputError(message) from error
        return aside
