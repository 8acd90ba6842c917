"""A user's own presets, in one JSON file that any number of windows and processes may share."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib_merge.blocks.presets import (
    Preset,
    best,
    check_name,
    check_preset,
    free_name,
    missing,
    name_key,
    preset_from_json,
    preset_to_json,
    same,
    shown,
    with_added,
    with_saved,
)
from lib_merge.errors import MergeError, OutputError, RecipeError
from lib_merge.files.moving import set_aside
from lib_merge.files.store import json_bytes, locked, read, signature, write, write_error

FORMAT = "lora-merge-presets"
VERSION = 1
MAX_BYTES = 16 << 20
_SETTLE = 0.15  # an editor that writes in place may be half way
_Edit = Callable[[tuple[Preset, ...]], tuple[Preset, ...]]


class PresetStore:
    """Presets under names that differ by more than case; one name may have weights for several families.

    Nothing is read or made before the first call. Every call notices what another process or an editor
    changed. A broken file is renamed, never overwritten, and what became of it waits in `take_warnings`.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        """Keep presets in `path`, a `.json` file; wait up to `timeout` seconds for another writer."""
        self.path = Path(path)
        self.timeout = timeout
        self._guard = threading.RLock()
        self._read_at: tuple[int, ...] | None = None
        self._content = Content()
        self._warnings: list[str] = []

    def list(self, family: str | None = None) -> tuple[Preset, ...]:
        """Return all presets, or those that fit `family`, in the order they were made."""
        presets = self._load().presets
        if family is None:
            return presets
        fitting = {name_key(preset.name): best(presets, preset.name, family) for preset in presets}
        return tuple(preset for preset in fitting.values() if preset is not None)

    def names(self, family: str | None = None) -> tuple[str, ...]:
        """Return the names of `list`, each once."""
        return tuple({preset.name: None for preset in self.list(family)})

    def get(self, name: str, family: str | None = None) -> Preset | None:
        """Return a preset by name, in any case; None when there is none.

        Args:
            name: as typed.
            family: its weights for this family, or for one with the same blocks, or for any; None = the
                first.
        """
        return best(self._load().presets, name, family)

    def save(self, preset: Preset, *, overwrite: bool = True) -> Preset:
        """Keep a preset; other families' weights under its name stay.

        Args:
            preset: what to keep.
            overwrite: replace weights that are there already for this name and family.
        Returns:
            The preset as kept: blanks trimmed, tokens in their plain spelling.
        Raises:
            RecipeError: a name or weights that cannot be, a shipped name, or one that is taken.
            OutputError: the file cannot be written.
        """
        clean = check_preset(preset)

        def edit(presets: tuple[Preset, ...]) -> tuple[Preset, ...]:
            if not overwrite and any(same(old, clean) for old in presets):
                message = f"there is already a preset {shown(clean.name)} for {clean.family}."
                raise RecipeError(message)
            return with_saved(presets, clean)

        self._change(edit)
        return clean

    def rename(self, old: str, new: str) -> str:
        """Give a preset another name, for all its families, and return the name as kept.

        Raises:
            RecipeError: there is no such preset, or the new name is bad, shipped or taken.
            OutputError: the file cannot be written.
        """
        new = check_name(new)
        key, wished = name_key(old), name_key(new)

        def edit(presets: tuple[Preset, ...]) -> tuple[Preset, ...]:
            keys = {name_key(preset.name) for preset in presets}
            if key not in keys:
                raise missing(old)
            if wished != key and wished in keys:
                message = f"there is already a preset {shown(new)}; choose another name."
                raise RecipeError(message)
            return tuple(replace(item, name=new) if name_key(item.name) == key else item for item in presets)

        self._change(edit)
        return new

    def delete(self, name: str, family: str | None = None) -> None:
        """Remove a preset, or only its weights for `family`.

        Raises:
            RecipeError: there is no such preset.
            OutputError: the file cannot be written.
        """

        def edit(presets: tuple[Preset, ...]) -> tuple[Preset, ...]:
            kept = tuple(
                item
                for item in presets
                if name_key(item.name) != name_key(name) or (family is not None and item.family != family)
            )
            if len(kept) == len(presets):
                raise missing(name)
            return kept

        self._change(edit)

    def add(self, presets: Iterable[Preset]) -> Sequence[str]:
        """Keep many presets at once, as an import does, and overwrite none: a taken name gets a number.

        Args:
            presets: what to keep; those that equal a shipped preset, or one that is there, are left out.
        Returns:
            One sentence per preset.
        Raises:
            RecipeError: one of them cannot be; none is kept then.
            OutputError: the file cannot be written.
        """
        outcomes: list[str] = []
        new = list(presets)

        def edit(kept: tuple[Preset, ...]) -> tuple[Preset, ...]:
            outcomes.clear()
            return with_added(kept, new, outcomes)

        self._change(edit)
        return outcomes

    def take_warnings(self) -> Sequence[str]:
        """Return what happened to the file since the last call, in sentences, and forget it."""
        with self._guard:
            self._load()
            warnings, self._warnings = self._warnings, []
            return warnings

    def _change(self, edit: _Edit) -> None:
        with self._guard:
            try:
                path = self.path.resolve()  # a link stays a link: what it points to is replaced
                path.parent.mkdir(parents=True, exist_ok=True)
                with locked(path, self.timeout):
                    self._read_at = None
                    content = self._read(path, change=True)
                    if content.newer:
                        raise OutputError(content.notes[0])
                    _replace(path, edit(content.presets))
                    self._read_at = None
            except (OSError, RuntimeError) as error:
                raise _sentence(error, self.path) from error

    def _load(self) -> Content:
        with self._guard:
            try:
                return self._read(self.path.resolve(), change=False)
            except (MergeError, OSError, RuntimeError) as error:
                self._warn(str(_sentence(error, self.path)))
                self._read_at = signature(self.path)  # not tried again before it changes
                return self._content

    def _read(self, path: Path, *, change: bool) -> Content:
        stamp = signature(path)
        if stamp is not None and stamp == self._read_at:
            return self._content
        content, data = _content(path)
        if content.damage:
            time.sleep(_SETTLE)
            if signature(path) != stamp:
                return self._read(path, change=change)
            content = self._mend(path, content, data) if change else self._mend_locked(path, content)
            stamp = None  # whatever stands there now is read again
        for note in content.notes:
            self._warn(note)
        self._read_at, self._content = stamp, content
        return content

    def _mend_locked(self, path: Path, content: Content) -> Content:
        self._content = content  # what is shown when the file cannot be mended
        try:
            with locked(path, self.timeout):
                again, data = _content(path)
                return self._mend(path, again, data) if again.damage else again
        except OutputError as error:
            message = f"{path.name} {content.damage} and was left as it is: {error}"
            raise OutputError(message) from error

    def _mend(self, path: Path, content: Content, data: bytes | None) -> Content:
        """Set a broken file aside; what could be read of it takes its place in one step."""
        aside = set_aside(path, data if content.presets else None)
        kept = len({name_key(preset.name) for preset in content.presets})
        self._warn(
            f"{path.name} {content.damage}; it was kept as {aside.name}, and {kept} presets could be read."
        )
        if content.presets:
            _replace(path, content.presets)
        return Content(content.presets, content.notes)

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warnings:
            self._warnings.append(sentence)


def _sentence(error: Exception, path: Path) -> MergeError:
    return error if isinstance(error, MergeError) else write_error(error, path)


# -------------------------------------------------------------------------------------------- the file


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


def _content(path: Path) -> tuple[Content, bytes | None]:
    """Return what a file says, and its bytes: None where there is none, or one that is too large to be
    ours.
    """
    state = signature(path)
    if state is not None and state[1] > MAX_BYTES and path.is_file():
        return Content(damage=f"is larger than {MAX_BYTES >> 20} MB"), None
    data = read(path, MAX_BYTES)
    return (Content() if data is None else parse(data, path.name)), data


def _replace(path: Path, presets: Sequence[Preset]) -> None:
    data = dump(presets)
    if len(data) > MAX_BYTES:
        message = f"{path.name} would grow beyond {MAX_BYTES >> 20} MB; delete some presets first."
        raise OutputError(message)
    write(path, data)


def parse(data: bytes, where: str) -> Content:
    """Read a presets file's bytes; nothing is raised, whatever they are.

    Args:
        data: the whole file.
        where: its name, for sentences.
    """
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return Content(damage="is not valid JSON")
    if (
        not isinstance(document, dict)
        or document.get("format") != FORMAT
        or not isinstance(document.get("presets"), list)
    ):
        return Content(damage="is not a file of presets")
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        note = f"{where} was written by a newer version of this program and is left alone; update to use it."
        return Content(notes=(note,), newer=True)
    return _entries(document["presets"])


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
    return json_bytes(data) + b"\n"
