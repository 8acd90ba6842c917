"""A user's own presets, in one JSON file that any number of windows and processes may share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lib_merge.blocks.lock import held
from lib_merge.blocks.presets import (
    Preset,
    best,
    check_name,
    check_preset,
    missing,
    name_key,
    same,
    shown,
    with_added,
    with_saved,
)
from lib_merge.blocks.storefile import Content, dump, parse, read, set_aside, signature, write, write_error
from lib_merge.errors import OutputError, RecipeError

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
        self._seen: tuple[int, ...] | None = None
        self._content = Content()
        self._warnings: list[str] = []

    def list(self, family: str | None = None) -> tuple[Preset, ...]:
        """Return all presets, or those that fit `family`, in the order they were made."""
        presets = self._load().presets
        if family is None:
            return presets
        found = {name_key(preset.name): best(presets, preset.name, family) for preset in presets}
        return tuple(preset for preset in found.values() if preset is not None)

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
        said: list[str] = []
        wanted = list(presets)

        def edit(kept: tuple[Preset, ...]) -> tuple[Preset, ...]:
            said.clear()
            return with_added(kept, wanted, said)

        self._change(edit)
        return said

    def take_warnings(self) -> Sequence[str]:
        """Return what happened to the file since the last call, in sentences, and forget it."""
        with self._guard:
            self._load()
            said, self._warnings = self._warnings, []
            return said

    def _change(self, edit: _Edit) -> None:
        with self._guard:
            try:
                path = self.path.resolve()  # a link stays a link: what it points to is replaced
                path.parent.mkdir(parents=True, exist_ok=True)
                with held(path, self.timeout):
                    self._seen = None
                    content = self._read(path, locked=True)
                    if content.newer:
                        raise OutputError(content.notes[0])
                    write(path, dump(edit(content.presets)))
                    self._seen = None
            except (OSError, RuntimeError) as error:
                raise _sentence(error, self.path) from error

    def _load(self) -> Content:
        with self._guard:
            try:
                return self._read(self.path.resolve(), locked=False)
            except (OutputError, OSError, RuntimeError) as error:
                self._warn(str(_sentence(error, self.path)))
                self._seen = signature(self.path)  # not tried again before it changes
                return self._content

    def _read(self, path: Path, *, locked: bool) -> Content:
        seen = signature(path)
        if seen is not None and seen == self._seen:
            return self._content
        data = read(path)
        content = Content() if data is None else parse(data, path.name)
        if content.damage:
            time.sleep(_SETTLE)
            if signature(path) != seen:
                return self._read(path, locked=locked)
            content = self._mend(path, content, data) if locked else self._mend_locked(path, content)
            seen = None  # whatever stands there now is read again
        for note in content.notes:
            self._warn(note)
        self._seen, self._content = seen, content
        return content

    def _mend_locked(self, path: Path, content: Content) -> Content:
        self._content = content  # what is shown when the file cannot be mended
        try:
            with held(path, self.timeout):
                data = read(path)
                again = Content() if data is None else parse(data, path.name)
                return self._mend(path, again, data) if again.damage else again
        except OSError as error:
            message = f"{path.name} {content.damage} and cannot be set aside: {error.strerror or error}."
            raise OutputError(message) from error

    def _mend(self, path: Path, content: Content, data: bytes | None) -> Content:
        """Set a broken file aside; what could be read of it takes its place in one step."""
        aside = set_aside(path, data if content.presets else None)
        kept = len({name_key(preset.name) for preset in content.presets})
        self._warn(
            f"{path.name} {content.damage}; it was kept as {aside.name}, and {kept} presets could be read."
        )
        if content.presets:
            write(path, dump(content.presets))
        return Content(content.presets, content.notes)

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warnings:
            self._warnings.append(sentence)


def _sentence(error: Exception, path: Path) -> OutputError:
    if isinstance(error, OutputError):
        return error
    return write_error(error if isinstance(error, OSError) else OSError(str(error)), path)
