"""The trash: files that were deleted or replaced, with a note of where they lay, so that they can go back.

Beside the files lies a note for each that went together, `ID.trash.json`:
{"version": 1, "time": …, "why": …, "folder": …, "files": {name in the trash: name in the folder}}.
It is written first: after a crash in between, what it names is in the trash or still in its place.
A name in the trash is the id, the own name and `.kept`: WebUIs list whatever ends as a LoRA does, in hidden
folders, too, and a trash may lie in a folder of LoRAs.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lib_merge.errors import FileFormatError, OutputError, RecipeError
from lib_merge.files import store
from lib_merge.files.moving import keep, move_all
from lib_merge.files.names import MAX_NAME, parts_below

VERSION = 1
_NOTE, _KEPT = ".trash.json", ".kept"
_ID = re.compile(r"[0-9a-f-]{4,60}")
DELETED, REPLACED = "deleted", "replaced"


@dataclass(frozen=True, slots=True)
class Thrown:
    """Files that went into the trash together.

    id      how the trash calls them
    time    ISO 8601
    why     deleted or replaced
    folder  where they lay
    files   name in the trash -> name in that folder, the LoRA's first
    """

    id: str
    time: str
    why: str
    folder: str
    files: dict[str, str]

    @property
    def name(self) -> str:
        """The first file's name."""
        return next(iter(self.files.values()), "")


class Trash:
    """A folder of what was deleted or replaced."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made when something is thrown away."""
        self.folder = folder

    def take(self, files: Sequence[Path], identity: str = "") -> Thrown:
        """Move files of one folder into the trash, all or none.

        Args:
            files: the LoRA first.
            identity: how the trash is to call them, free or "".
        Raises:
            OutputError: one cannot be moved, or the trash cannot be written.
        """
        thrown = self._note(files, DELETED, identity)
        try:
            move_all(self._pairs(thrown))
        except OutputError:
            self._forget(thrown)
            raise
        return thrown

    def keep(self, files: Sequence[Path]) -> Thrown:
        """Keep files that are going to be replaced: they stay where they are and lie in the trash, too.

        Raises:
            OutputError: no room, or the trash cannot be written.
        """
        thrown = self._note(files, REPLACED)
        for place, kept in self._pairs(thrown):
            try:
                keep(place, kept)
            except OSError as error:
                self.drop(thrown)
                raise store.write_error(error, kept, f"the copy of the old {place.name}") from error
        return thrown

    def drop(self, thrown: Thrown) -> None:
        """Take back what `keep` kept: the files are still in their place."""
        for _, kept in self._pairs(thrown):
            with contextlib.suppress(OSError):
                kept.unlink()
        self._forget(thrown)

    def things(self) -> list[Thrown]:
        """Return what lies there and can go back, the newest first."""
        try:
            names = [name for name in os.listdir(self.folder) if name.endswith(_NOTE)]  # noqa: PTH208
        except OSError:
            return []
        found = [self._read(name.removesuffix(_NOTE)) for name in names]
        there = [one for one in found if one is not None and (self.folder / next(iter(one.files))).exists()]
        return sorted(there, key=lambda one: (one.time, one.id), reverse=True)

    def get(self, identity: str) -> Thrown:
        """Return what went into the trash under an id.

        Raises:
            RecipeError: there is none.
        """
        thrown = self._read(identity)
        if thrown is None:
            message = "that is not in the trash any more."
            raise RecipeError(message)
        return thrown

    def restore(self, thrown: Thrown) -> list[Path]:
        """Move files back to where they lay, all or none; return their paths, the LoRA's first.

        Raises:
            OutputError: another file has one of the names now, or one cannot be moved.
        """
        pairs = [(kept, place) for place, kept in self._pairs(thrown) if os.path.lexists(kept)]
        with contextlib.suppress(OSError):  # moving says what is wrong with the folder
            Path(thrown.folder).mkdir(parents=True, exist_ok=True)
        move_all(pairs)
        self._forget(thrown)
        return [place for _, place in pairs]

    # ---------------------------------------------------------------- notes

    def _pairs(self, thrown: Thrown) -> list[tuple[Path, Path]]:
        place = Path(thrown.folder)
        return [(place / name, self.folder / kept) for kept, name in thrown.files.items()]

    def _note(self, files: Sequence[Path], why: str, identity: str = "") -> Thrown:
        now = datetime.now(timezone.utc)
        identity = identity or f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        while os.path.lexists(self.folder / f"{identity}{_NOTE}"):
            identity = f"{identity[:40]}-{secrets.token_hex(4)}"
        thrown = Thrown(
            id=identity,
            time=now.isoformat(timespec="seconds"),
            why=why,
            folder=str(files[0].parent.absolute()),
            files=dict(zip(_kept(identity, files), (path.name for path in files))),
        )
        note = self.folder / f"{identity}{_NOTE}"
        data = {"version": VERSION, **{name: value for name, value in asdict(thrown).items() if name != "id"}}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"the folder {self.folder.name} cannot be made: {error.strerror or error}."
            raise OutputError(message) from error
        store.write_json(note, data, title=f"the note on {files[0].name} in the trash")
        return thrown

    def _forget(self, thrown: Thrown) -> None:
        """Remove a note when nothing that it names is here."""
        if not any(os.path.lexists(self.folder / kept) for kept in thrown.files):
            with contextlib.suppress(OSError):
                (self.folder / f"{thrown.id}{_NOTE}").unlink()

    def _read(self, identity: str) -> Thrown | None:
        if not _ID.fullmatch(identity):
            return None
        try:
            return _understood(identity, store.read_json(self.folder / f"{identity}{_NOTE}"))
        except FileFormatError:
            return None


def _kept(identity: str, files: Sequence[Path]) -> list[str]:
    """Return the names in the trash: the id, as much of the end of the own name as fits, and `.kept`."""
    names: list[str] = []
    room = MAX_NAME - len(identity) - len(_KEPT) - 4
    for path in files:
        raw = path.name.encode("utf-8", "surrogateescape")[-room:]
        name = f"{identity}-{raw.decode('utf-8', 'ignore')}{_KEPT}"
        names.append(name if name not in names else f"{identity}-{len(names)}-{path.suffix}{_KEPT}")
    return names


def _plain(name: object) -> bool:
    """Tell whether a name is one part of a path, on every system."""
    return isinstance(name, str) and "\\" not in name and parts_below(name) == (name,)


def _understood(identity: str, data: Any) -> Thrown | None:  # noqa: ANN401 - whatever the file says
    """Return a note as it was written; None for anything else: it says where files are moved to."""
    if not isinstance(data, dict) or data.get("version") != VERSION:
        return None
    files, told = data.get("files"), [data.get(name) for name in ("time", "why", "folder")]
    if not isinstance(files, dict) or not files or not all(isinstance(one, str) for one in told):
        return None
    for kept, name in files.items():
        if not (_plain(name) and _plain(kept) and kept.startswith(f"{identity}-")):
            return None
    time, why, folder = map(str, told)
    return Thrown(identity, time, why, folder, files)
