"""The one file of what only the program keeps, `lora-merge.sqlite3`: opened, brought up to date, mended.

Every call opens a connection of its own and closes it: nothing is held open between calls (Windows can then
move the folder), any thread may ask, and any number of processes share the file. Changes are made one at a
time, under SQLite's own lock, with its rollback journal: unlike its write-ahead log that also works in
folders of a network. Nothing is read or made before the first call.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lib_merge.errors import MergeError, OutputError
from lib_merge.files import store
from lib_merge.files.moving import move, set_aside

T = TypeVar("T")
D = TypeVar("D")
Row = tuple[Any, ...]

NAME = "lora-merge.sqlite3"
# "LMrg": what says of a SQLite file that it is ours
APPLICATION = 0x4C4D7267
# seconds to wait for another process
TIMEOUT = 30.0
# seconds at which a file without a byte is no longer one that another process is just making
BEING_MADE = 60.0
ID = re.compile(r"\d{6}-[0-9a-f]{8}")

# Each step brings the file from the version before to the next; a step that was released never changes.
STEPS: tuple[Sequence[str], ...] = (
    (
        # entry: JSON, see `history.Entry`
        "CREATE TABLE entries (id TEXT PRIMARY KEY, entry TEXT NOT NULL)",
        # json and html: compressed texts
        "CREATE TABLE reports (entry TEXT PRIMARY KEY, json BLOB, html BLOB)",
        # comparison: JSON; picture: JPEG
        "CREATE TABLE comparisons (id TEXT PRIMARY KEY, comparison TEXT NOT NULL, picture BLOB)",
        # what was read of a file: valid while size and mtime_ns are the file's, and version the reader's
        "CREATE TABLE facts (kind TEXT, path BLOB, size INTEGER, mtime_ns INTEGER, version INTEGER,"
        " facts TEXT, PRIMARY KEY (kind, path))",
        # files of 0.1 that were taken over, so that they are not again
        "CREATE TABLE taken_over (place TEXT, name TEXT, PRIMARY KEY (place, name))",
        # revision: another value after every change of the entries; rebuild: 1 while entries may be missing
        "CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "INSERT INTO state VALUES ('revision', '')",
    ),
    (
        # steps: JSON, what a person has said of each step of a merge's validation
        "CREATE TABLE validations (entry TEXT PRIMARY KEY, steps TEXT NOT NULL)",
        # setup: JSON, what is set up in a window of a browser; used: counts up with every change
        "CREATE TABLE windows (id TEXT PRIMARY KEY, browser TEXT NOT NULL, setup TEXT NOT NULL,"
        " used INTEGER NOT NULL)",
    ),
)
# what is worth reading of a broken file; the rest is measured again
_SALVAGED = ("entries", "reports", "comparisons", "taken_over", "validations")
_TABLES = {*_SALVAGED, "facts", "state", "windows"}


class Database:
    """The file, and what happened to it."""

    def __init__(self, path: Path, first: Callable[[Database], None] | None = None) -> None:
        """Use `path`, made when it is first needed.

        Args:
            path: the file.
            first: called once, before anything else is asked of a sound file.
        """
        self.path = path
        self._first = first
        self._begun, self._beginning = first is None, False
        self._guard = threading.RLock()
        self._warnings: list[str] = []

    def read(self, work: Callable[[sqlite3.Connection], T], otherwise: D) -> T | D:
        """Return what `work` reads; `otherwise`, and a warning, where the file cannot be opened."""
        try:
            return self._run(work, change=False)
        except OutputError as error:
            self.warn(str(error))
            return otherwise

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Change the file: all of what `work` does or, where it raises, nothing.

        Raises:
            OutputError: no room, no right to write, held by another program for long, a newer version's.
        """
        return self._run(work, change=True)

    def warn(self, sentence: str) -> None:
        """Keep a sentence for `take_warnings`."""
        with self._guard:
            if sentence not in self._warnings:
                self._warnings.append(sentence)

    def take_warnings(self) -> list[str]:
        """Return what happened since the last call, in sentences, and forget it."""
        with self._guard:
            warnings, self._warnings = self._warnings, []
            return warnings

    # ---------------------------------------------------------------- one call

    def _run(self, work: Callable[[sqlite3.Connection], T], *, change: bool) -> T:
        if self._shared:
            return self._tried(work, change=change)
        with self._guard:
            return self._tried(work, change=change)

    @functools.cached_property
    def _shared(self) -> bool:
        """True where the folder's locks work, as everywhere but in some folders of a network."""
        self._make_folder()
        if _has_locks(self.path.parent):
            return True
        self.warn(
            f"the folder {self.path.parent.name} knows no locks: use its history from one program at a time."
        )
        return False

    def _tried(self, work: Callable[[sqlite3.Connection], T], *, change: bool) -> T:
        try:
            try:
                return self._once(work, change=change)
            except sqlite3.DatabaseError as error:
                if not _damaged(error):
                    raise
                self._mend()
                return self._once(work, change=change)
        except sqlite3.Error as error:
            raise _sentence(error, self.path) from error
        except OSError as error:
            raise store.write_error(error, self.path) from error

    def _once(self, work: Callable[[sqlite3.Connection], T], *, change: bool) -> T:
        with contextlib.closing(self._connect()) as connection:
            self._bring_up_to_date(connection)
            self._begin()
            if not change:
                return work(connection)
            connection.execute("BEGIN IMMEDIATE")  # closing the connection takes back what is not committed
            result = work(connection)
            connection.execute("COMMIT")
            return result

    def _connect(self) -> sqlite3.Connection:
        self._make_folder()
        if not self._shared:
            address = f"{self.path.absolute().as_uri()}?nolock=1"
            return sqlite3.connect(address, uri=True, isolation_level=None)
        return sqlite3.connect(self.path, timeout=TIMEOUT, isolation_level=None)

    def _make_folder(self) -> None:
        with contextlib.suppress(OSError):  # SQLite says what is wrong with the folder
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def _begin(self) -> None:
        if self._begun:
            return
        with self._guard:  # other threads wait; what `first` itself asks passes
            if self._begun or self._beginning or self._first is None:
                return
            self._beginning = True
            try:
                self._first(self)
            except MergeError as error:
                self.warn(str(error))
            finally:
                self._beginning, self._begun = False, True

    # ---------------------------------------------------------------- versions

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        version = _pragma(connection, "user_version")
        if version == len(STEPS):
            return
        if version > len(STEPS):
            message = (
                f"{self.path.name} was written by a newer version of this program and is left alone; "
                "update to use it."
            )
            raise OutputError(message)
        if version == 0 and _tables(connection):
            raise sqlite3.DatabaseError(_FOREIGN)
        with store.locked(self.path, TIMEOUT):
            version = _pragma(connection, "user_version")
            if 0 < version < len(STEPS):
                self._copy_aside(connection, version)
            connection.execute("BEGIN IMMEDIATE")
            try:
                emptied = version == 0 and self._emptied()
                _step_up(connection, version)
                if emptied:
                    connection.execute("INSERT OR REPLACE INTO state VALUES ('rebuild', '1')")
                connection.execute("COMMIT")
            except sqlite3.Error:
                connection.execute("ROLLBACK")
                raise
        if emptied:
            self.warn(f"{self.path.name} was empty; its history comes back from the recipes in your merges.")

    def _emptied(self) -> bool:
        """Tell whether the file lost all it had: one that is being made is without a byte for a moment."""
        state = self.path.stat()
        return state.st_size == 0 and time.time() - state.st_mtime > BEING_MADE

    def _copy_aside(self, connection: sqlite3.Connection, version: int) -> None:
        """Copy the file before it is brought up to date, as `lora-merge.version-1.sqlite3`."""
        number = 0
        while True:
            mark = f"version-{version}" + (f".{number}" if number else "")
            copy = self.path.with_name(f"{self.path.stem}.{mark}{self.path.suffix}")
            if not copy.exists():
                break
            number += 1
        with _new_file(self.path) as fresh:
            with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as target:
                connection.backup(target)
            store.rename_new(fresh, copy)

    # ---------------------------------------------------------------- damage

    def _mend(self) -> None:
        """Put what can be read of a broken file into a new one, and that into its place; keep the broken one.

        A process that is killed meanwhile leaves the broken file where it is, to be mended later.
        """
        with store.locked(self.path, TIMEOUT):
            if _sound(self.path):
                return  # another process was faster
            rows = _salvaged(self.path)
            with _new_file(self.path) as fresh:
                _fill(fresh, rows)
                aside = set_aside(self.path, stays=True)
                journal = self.path.with_name(f"{self.path.name}-journal")
                with contextlib.suppress(FileNotFoundError):  # it must not be played into the new file
                    move(journal, aside.with_name(f"{aside.name}-journal"))
                store.patiently(lambda: os.replace(fresh, self.path))
        self._begun = self._first is None  # what 0.1 left is looked at again
        self.warn(
            f"{self.path.name} was damaged; it was kept as {aside.name}. {len(rows['entries'])} entries of "
            "the history could be read; others come back from the recipes in your merged LoRAs."
        )


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Give a name for a new file beside one; what is still there at the end is removed."""
    fresh = store.temporary_name(path)
    try:
        yield fresh
    finally:
        for left in (fresh, fresh.with_name(f"{fresh.name}-journal")):
            with contextlib.suppress(OSError):
                left.unlink()


def _step_up(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables up to date, inside a transaction."""
    for step in STEPS[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(STEPS)}")
    connection.execute(f"PRAGMA application_id = {APPLICATION}")


def _fill(path: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    """Make a new file with rows of a broken one; entries may be missing from it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        _step_up(connection, 0)
        for table, lines in rows.items():
            for row in lines:
                marks = ", ".join("?" * len(row))
                connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)
        connection.execute("INSERT OR REPLACE INTO state VALUES ('rebuild', '1')")
        touch(connection)
        connection.execute("COMMIT")


_FOREIGN = "file is not a database of this program: it is malformed"


def _damaged(error: sqlite3.Error) -> bool:
    text = str(error)
    return any(part in text for part in ("not a database", "malformed", "no such table", "no such column"))


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _tables(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {str(name) for (name,) in rows}


def _sound(path: Path) -> bool:
    """Tell whether a file can be read from its first page to its last and has our tables."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=TIMEOUT)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return False
            tables = _tables(connection)
            version = _pragma(connection, "user_version")
            if version == 0:
                return not tables
            return version != len(STEPS) or tables >= _TABLES
    except sqlite3.DatabaseError as error:
        return not _damaged(error)


def _salvaged(path: Path) -> dict[str, list[Row]]:
    """Return the rows of a broken file that can be read, from its beginning and from its end, by table."""
    rows: dict[str, list[Row]] = {table: [] for table in _SALVAGED}
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as connection:
        if _pragma(connection, "user_version") != len(STEPS):
            return rows
        for table in _SALVAGED:
            unique: dict[Row, None] = {}
            for order in ("ASC", "DESC"):
                with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeDecodeError):
                    cursor = connection.execute(f"SELECT * FROM {table} ORDER BY rowid {order}")
                    unique.update((tuple(row), None) for row in cursor)
            rows[table] = list(unique)
    return rows


def _has_locks(folder: Path) -> bool:
    """Tell whether the system grants locks on files of a folder; SQLite would take a no for being busy."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # a folder that cannot be written is another matter
        return error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
    return True


def _sentence(error: sqlite3.Error, path: Path) -> OutputError:
    text = str(error)
    # SQLite calls a full disk so only at some writes; at others a file is read-only or cannot be opened
    hidden = any(part in text for part in ("disk I/O", "readonly", "unable to open"))
    if "full" in text or (hidden and path.parent.is_dir() and store.is_full(path.parent)):
        return store.write_error(OSError(errno.ENOSPC, text), path)
    if "unable to open" in text and not path.parent.is_dir():
        return store.write_error(OSError(errno.ENOENT, text), path)
    if "readonly" in text or ("unable to open" in text and not path.is_dir()):
        return store.write_error(OSError(errno.EROFS, text), path)
    if "locked" in text:
        return OutputError(f"{path.name} has been held by another program for {TIMEOUT:g} s; try again.")
    return store.write_error(OSError(errno.EIO, text), path)


# -------------------------------------------------------------------------------------------- for the tables


def touch(connection: sqlite3.Connection) -> None:
    """Note that the entries have changed."""
    connection.execute("UPDATE state SET value = ? WHERE name = 'revision'", (secrets.token_hex(8),))


def new_id(connection: sqlite3.Connection, table: str) -> str:
    """Return an id that sorts behind all others of a table, and that no other machine gives."""
    (last,) = connection.execute(f"SELECT max(id) FROM {table}").fetchone()
    return f"{int(last[:6]) + 1 if last else 1:06d}-{secrets.token_hex(4)}"
