"""What was merged: an entry for every merge, with its proof, its verdict and what it was developed from."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lib_merge.errors import FileFormatError, OutputError, RecipeError
from lib_merge.files.store import read_text, write_text
from lib_merge.kept.changes import differences
from lib_merge.kept.database import ID, Database, new_id, touch
from lib_merge.kept.reports import MOST_BYTES as LARGEST
from lib_merge.kept.reports import packed, unpacked

VERSION = 1
CHANGEABLE = ("verdict", "notes", "status", "rating", "name", "key", "grid")
_GONE = "that entry of the history is gone already."


@dataclass(frozen=True, slots=True)
class Entry:
    """One merge.

    id        counts up; sorts by age
    time      ISO 8601, as the caller's clock had it
    key       where the file was saved, below the LoRA folders
    recipe    versioned JSON
    report    the proof: relative_error, energy_kept, rank, bytes, seconds, warnings, tensor_hash
    based_on  the entry it was developed from
    verdict   what a person thought of it
    status    ok, revise or broken
    grid      the comparison it was judged by
    asked     what was asked for that the recipe does not say: rank, "auto" or "own"
    """

    id: str
    time: str = ""
    name: str = ""
    key: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    sources: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    based_on: str = ""
    verdict: dict[str, Any] = field(default_factory=dict)
    notes: str = ""
    rating: int = 0
    status: str = "ok"
    grid: str = ""
    asked: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it for a file or the browser."""
        return asdict(self)


class History:
    """The entries; any number of threads and processes may change them."""

    def __init__(self, database: Database, trash: Path) -> None:
        """Keep entries in `database`; removed ones become files in the folder `trash`."""
        self._database, self._trash = database, trash
        self._listed: tuple[str, tuple[Entry, ...]] = ("", ())

    def add(self, **values: Any) -> Entry:  # noqa: ANN401
        """Write a new entry; see `Entry` for the fields.

        Raises:
            OutputError: it cannot be written.
        """
        return self._database.write(lambda connection: _added(connection, values))

    def get(self, identity: str) -> Entry:
        """Return one entry.

        Raises:
            RecipeError: there is none of that id, or it is broken.
        """
        _check(identity)
        entry = self._database.read(lambda connection: _entry(connection, identity), None)
        if entry is None or entry.status == "broken":
            message = "that entry of the history is gone or broken."
            raise RecipeError(message)
        return entry

    def list(self, search: str = "") -> list[Entry]:
        """Return the entries, newest first; `search` looks at names, sources, methods and notes."""
        words = search.lower().split()
        entries = self._database.read(self._all, ())
        return [entry for entry in entries if all(word in _text(entry) for word in words)]

    def _all(self, connection: sqlite3.Connection) -> tuple[Entry, ...]:
        (revision,) = connection.execute("SELECT value FROM state WHERE name = 'revision'").fetchone()
        if not revision or self._listed[0] != revision:
            rows = connection.execute("SELECT id, entry FROM entries ORDER BY id DESC").fetchall()
            self._listed = (revision, tuple(parse(identity, text) for identity, text in rows))
        return self._listed[1]

    def update(self, identity: str, **values: Any) -> Entry:  # noqa: ANN401
        """Change what a person may change: verdict, notes, status, rating, name, key, grid.

        Raises:
            RecipeError: no such entry or field.
            OutputError: it cannot be written; nothing has changed then.
        """
        unknown = sorted(set(values) - set(CHANGEABLE))
        if unknown:
            message = f"an entry has no {unknown[0]} that could be changed."
            raise RecipeError(message)
        _check(identity)

        def work(connection: sqlite3.Connection) -> Entry:
            entry = _entry(connection, identity)
            if entry is None or entry.status == "broken":
                message = "that entry of the history is gone or broken."
                raise RecipeError(message)
            entry = replace(entry, **values)
            _put(connection, entry)
            return entry

        return self._database.write(work)

    def remove(self, identity: str) -> None:
        """Move an entry and its report into the trash folder, as files.

        Raises:
            RecipeError: there is none of that id.
            OutputError: the trash cannot be written; the entry stays then.
        """
        _check(identity)

        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute("SELECT entry FROM entries WHERE id = ?", (identity,)).fetchone()
            if row is None:
                raise RecipeError(_GONE)
            report = connection.execute("SELECT json, html FROM reports WHERE entry = ?", (identity,))
            texts = {f"{identity}.json": row[0]}
            for form, blob in zip(("json", "html"), report.fetchone() or ()):
                if blob is not None and (text := unpacked(blob)) is not None:
                    texts[f"{identity}-report.{form}"] = text
            self._throw_away(texts)
            connection.execute("DELETE FROM entries WHERE id = ?", (identity,))
            connection.execute("DELETE FROM reports WHERE entry = ?", (identity,))
            connection.execute("DELETE FROM validations WHERE entry = ?", (identity,))
            touch(connection)

        self._database.write(work)

    def _throw_away(self, texts: Mapping[str, str]) -> None:
        try:
            self._trash.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"the folder {self._trash.name} cannot be made: {error.strerror or error}."
            raise OutputError(message) from error
        for name, text in texts.items():
            write_text(self._trash / name, text)

    def restore(self, identity: str) -> bool:
        """Put a removed entry and its report back from the trash; False where the trash has none of that id.

        Raises:
            OutputError: it cannot be written; the files in the trash stay then.
        """
        if not ID.fullmatch(identity):
            return False
        names = (f"{identity}.json", f"{identity}-report.json", f"{identity}-report.html")
        try:
            entry, *reports = [read_text(self._trash / name, LARGEST) for name in names]
        except FileFormatError as error:
            raise OutputError(str(error)) from error
        if entry is None:
            return False

        def work(connection: sqlite3.Connection) -> None:
            row = (identity, dump(parse(identity, entry)))
            connection.execute("INSERT OR IGNORE INTO entries VALUES (?, ?)", row)
            if any(reports):
                blobs = [None if text is None else packed(text) for text in reports]
                connection.execute("INSERT OR IGNORE INTO reports VALUES (?, ?, ?)", (identity, *blobs))
            touch(connection)

        self._database.write(work)
        for name in names:
            with contextlib.suppress(OSError):
                (self._trash / name).unlink()
        return True

    def diff(self, identity: str, other: str) -> Sequence[str]:
        """Return what changed from `other` to this entry, in sentences."""
        return differences(self.get(other).recipe, self.get(identity).recipe)

    def rebuild(self, merges: Callable[[], Iterable[Mapping[str, Any]]]) -> int:
        """Add what is missing after the file was damaged; return how many entries that were.

        Args:
            merges: asked only when entries may be missing: fields of `Entry` for every merged LoRA there is.
        Raises:
            OutputError: it cannot be written.
        """
        if not self._database.read(_incomplete, False):
            return 0
        rows = sorted(merges(), key=lambda values: str(values.get("time")))

        def work(connection: sqlite3.Connection) -> int:
            entries = [parse(*row) for row in connection.execute("SELECT id, entry FROM entries").fetchall()]
            keys = {entry.key for entry in entries}
            hashes = {str(entry.report.get("tensor_hash") or "") for entry in entries} - {""}
            missing = [
                values
                for values in rows
                if values["key"] not in keys and values["report"].get("tensor_hash") not in hashes
            ]
            for values in missing:
                _added(connection, values)
            connection.execute("DELETE FROM state WHERE name = 'rebuild'")
            return len(missing)

        return self._database.write(work)


def _incomplete(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM state WHERE name = 'rebuild'").fetchone() is not None


def _check(identity: str) -> None:
    if not ID.fullmatch(identity):
        message = "that is no entry of the history."
        raise RecipeError(message)


def _added(connection: sqlite3.Connection, values: Mapping[str, Any]) -> Entry:
    entry = Entry(id=new_id(connection, "entries"), **values)
    _put(connection, entry)
    return entry


def _entry(connection: sqlite3.Connection, identity: str) -> Entry | None:
    row = connection.execute("SELECT entry FROM entries WHERE id = ?", (identity,)).fetchone()
    return None if row is None else parse(identity, row[0])


def _put(connection: sqlite3.Connection, entry: Entry) -> None:
    connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (entry.id, dump(entry)))
    touch(connection)


def dump(entry: Entry) -> str:
    """Return an entry as JSON; in ASCII, since names of files may hold what is no text."""
    return json.dumps({"version": VERSION, **entry.to_json()})


def parse(identity: str, text: str) -> Entry:
    """Return the entry that a JSON text describes; one that cannot be read is listed as broken."""
    try:
        data = json.loads(text)
        kinds = {item.name: type(getattr(_EMPTY, item.name)) for item in fields(Entry)}
        values = {name: data[name] for name in kinds if name in data}
        if isinstance(data, dict) and all(isinstance(value, kinds[name]) for name, value in values.items()):
            return Entry(**{**values, "id": identity})
    except (ValueError, TypeError, RecursionError):
        pass
    return broken(identity)


def broken(identity: str) -> Entry:
    """Return what stands for an entry that cannot be read."""
    return Entry(id=identity, name=identity, status="broken", notes="this entry is broken and cannot be read")


_EMPTY = Entry(id="")


def _text(entry: Entry) -> str:
    names = " ".join(str(source.get("name", "")) for source in entry.sources if isinstance(source, dict))
    return f"{entry.name} {entry.method} {names} {entry.notes} {entry.status} {entry.time}".lower()
