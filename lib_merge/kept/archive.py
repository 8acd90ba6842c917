"""Everything that only the program keeps, in one folder; and what version 0.1 kept there, taken over.

0.1 kept folders of JSON files (`history/entries`, `history/reports`, `comparisons`) and what the headers said
(`library.json`). They are read at the first start and left as they are and where they are,
so that 0.1 still finds them. What was taken is noted by its name in the database and is not taken again: an
entry that is removed later stays removed, and what 0.1 adds after a return to it comes along at the next
start.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib_merge.errors import FileFormatError, OutputError
from lib_merge.files import store
from lib_merge.kept.database import ID, NAME, Database, touch
from lib_merge.kept.facts import FileFacts, put_facts
from lib_merge.kept.history import History, broken, dump, parse
from lib_merge.kept.reports import Comparisons, Reports, packed, put_comparison
from lib_merge.kept.validations import Validations
from lib_merge.kept.windows import Windows

log = logging.getLogger("lib_merge")
# the largest cache of 0.1 that is read
MOST_CACHE = 256 << 20


class Archive:
    """The stores of one data folder, in one file.

    history      what was merged
    reports      analyses kept with merges
    comparisons  grids that were made, for their verdict
    validations  how far merges are validated
    windows      what is set up in the page's windows
    """

    def __init__(self, folder: Path) -> None:
        """Keep things in `folder`; nothing is read or made before it is needed."""
        self._database = Database(folder / NAME, lambda database: _take_over(database, folder))
        self.history = History(self._database, folder / "trash")
        self.reports = Reports(self._database)
        self.comparisons = Comparisons(self._database)
        self.validations = Validations(self._database)
        self.windows = Windows(self._database)

    def facts(self, kind: str, version: int, most: int = 100_000) -> FileFacts:
        """Return what is remembered of files; see `FileFacts`."""
        return FileFacts(self._database, kind, version, most)

    def rebuild(self, merges: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Add what is missing from a history that was damaged; that it cannot be written is a warning."""
        try:
            self.history.rebuild(merges)
        except OutputError as error:
            self._database.warn(f"entries of the history are still missing: {error}")

    def take_warnings(self) -> list[str]:
        """Return what happened to the file since the last call, in sentences, and forget it."""
        self._database.read(lambda connection: None, None)
        return self._database.take_warnings()


# -------------------------------------------------------------------------------------------- from 0.1


def _take_over(database: Database, folder: Path) -> None:
    """Write what 0.1 has kept in `folder` into the database, all of it or nothing.

    Raises:
        OutputError: the database cannot be written.
    """
    rows = database.read(lambda connection: connection.execute("SELECT * FROM taken_over").fetchall(), None)
    if rows is None:
        return
    taken = set(rows)
    steps = [
        (place, name, put)
        for place, take in _PLACES
        for name, put in take(folder / place, {name for at, name in taken if at == place})
    ]
    if not steps:
        return

    def work(connection: sqlite3.Connection) -> None:
        for place, name, put in steps:
            put(connection)
            connection.execute("INSERT OR IGNORE INTO taken_over VALUES (?, ?)", (place, name))
        touch(connection)

    database.write(work)
    log.info("%d files of version 0.1 were taken over into %s", len(steps), database.path.name)


_Step = tuple[str, Callable[[sqlite3.Connection], object]]


def _files(folder: Path, taken: set[str], *endings: str) -> Iterator[tuple[Path, bytes]]:
    """Yield the files of a folder of 0.1 that are named as an entry is and were not taken yet, with their
    bytes.
    """
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return
    for name in names:
        path = folder / name
        if name in taken or path.suffix not in endings or not ID.fullmatch(path.stem):
            continue
        try:
            data = store.read(path)
        except FileFormatError as error:  # perhaps it can be read at the next start
            log.warning("it was not taken over: %s", error)
            continue
        if data is not None:
            yield path, data


def _entries(folder: Path, taken: set[str]) -> Iterator[_Step]:
    for path, data in _files(folder, taken, ".json"):
        try:
            text = dump(parse(path.stem, data.decode("utf-8", "replace")))
        except RecursionError:  # nested so deeply that it can be read and not written
            text = dump(broken(path.stem))
        yield path.name, _insert("INSERT OR IGNORE INTO entries VALUES (?, ?)", path.stem, text)


def _reports(folder: Path, taken: set[str]) -> Iterator[_Step]:
    for path, data in _files(folder, taken, ".json", ".html"):
        form, blob = path.suffix[1:], packed(data.decode("utf-8", "replace"))
        query = (
            f"INSERT INTO reports (entry, {form}) SELECT ?1, ?2"
            " WHERE EXISTS (SELECT 1 FROM entries WHERE id = ?1)"
            f" ON CONFLICT (entry) DO UPDATE SET {form} = coalesce({form}, ?2)"
        )
        yield path.name, _insert(query, path.stem, blob)


def _comparisons(folder: Path, taken: set[str]) -> Iterator[_Step]:
    for path, data in _files(folder, taken, ".json"):
        try:
            jpeg = store.read(path.with_suffix(".jpg"))
        except FileFormatError:
            jpeg = None
        text = data.decode("utf-8", "replace")
        yield path.name, _comparison(path.stem, text, jpeg)


def _comparison(identity: str, text: str, jpeg: bytes | None) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: put_comparison(connection, identity, text, jpeg)


def _insert(query: str, *values: object) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute(query, values)


def _cache(folder: Path, taken: set[str]) -> Iterator[_Step]:
    name = "library.json"
    if name in taken:
        return
    try:
        data = store.read_json(folder / name, MOST_CACHE)
        if data is None:
            return
        lines = data["files"] if data["version"] == 1 else {}
        files = {path: _checked(path, *line) for path, line in lines.items()}
    except (FileFormatError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        files = {}  # a cache: whatever is wrong with it, the files are read again
    yield name, lambda connection: put_facts(connection, "header", 1, files)


def _checked(path: str, size: Any, time: Any, facts: Any) -> tuple[int, int, dict[str, Any]]:  # noqa: ANN401
    """Return what SQLite can keep of a cache's line; ValueError or TypeError for anything else."""
    os.fsencode(path)
    numbers = int(size), int(time)
    if not all(abs(number) < 1 << 63 for number in numbers):
        message = f"{path} has an absurd size or time"
        raise ValueError(message)
    return *numbers, dict(facts)


_PLACES: tuple[tuple[str, Callable[[Path, set[str]], Iterator[_Step]]], ...] = (
    ("history/entries", _entries),
    ("history/reports", _reports),
    ("comparisons", _comparisons),
    (".", _cache),
)
