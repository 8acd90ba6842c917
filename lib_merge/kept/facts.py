"""What was read or measured of LoRA files, remembered for as long as a file keeps its size and time."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lib_merge.kept.database import Database, Row

Facts = dict[str, Any]
_ONE = "SELECT facts FROM facts WHERE kind = ? AND path = ? AND version = ? AND size = ? AND mtime_ns = ?"


class FileFacts:
    """Facts of one kind; whoever reads them anew in another way gives them another version."""

    def __init__(self, database: Database, kind: str, version: int, most: int = 100_000) -> None:
        """Keep facts in `database`.

        Args:
            database: the file.
            kind: "header" or "energy".
            version: of the reader; facts of another version do not count.
            most: how many are kept; those that were written first go.
        """
        self._database, self._kind, self._version, self._most = database, kind, version, most

    def load(self) -> dict[str, tuple[int, int, Facts]]:
        """Return size, time (ns) and facts of every file, by path; nothing where they cannot be read."""
        query = "SELECT path, size, mtime_ns, facts FROM facts WHERE kind = ? AND version = ?"
        reader = (self._kind, self._version)
        rows: list[Row] = self._database.read(
            lambda connection: connection.execute(query, reader).fetchall(), []
        )
        table = ((os.fsdecode(path), size, time, _parsed(text)) for path, size, time, text in rows)
        return {path: (size, time, facts) for path, size, time, facts in table if facts is not None}

    def get(self, path: Path, size: int, mtime_ns: int) -> Facts | None:
        """Return what is known of a file; None where there is nothing, or it has changed since.

        Args:
            path: the file.
            size: its bytes as of now.
            mtime_ns: its time as of now.
        """
        stamp = (self._kind, os.fsencode(path), self._version, size, mtime_ns)
        row = self._database.read(lambda connection: connection.execute(_ONE, stamp).fetchone(), None)
        return None if row is None else _parsed(row[0])

    def put(self, files: Mapping[str, tuple[int, int, Facts]], gone: Iterable[str] = ()) -> None:
        """Remember facts of files, and forget those of others.

        Args:
            files: path -> size, time (ns) and facts (JSON-ready).
            gone: paths to forget.
        Raises:
            OutputError: they cannot be written.
        """

        def work(connection: sqlite3.Connection) -> None:
            put_facts(connection, self._kind, self._version, files)
            connection.executemany(
                "DELETE FROM facts WHERE kind = ? AND path = ?", [(self._kind, os.fsencode(p)) for p in gone]
            )
            connection.execute(
                "DELETE FROM facts WHERE kind = ? AND rowid NOT IN"
                " (SELECT rowid FROM facts WHERE kind = ? ORDER BY rowid DESC LIMIT ?)",
                (self._kind, self._kind, self._most),
            )

        self._database.write(work)


def put_facts(
    connection: sqlite3.Connection, kind: str, version: int, files: Mapping[str, tuple[int, int, Facts]]
) -> None:
    """Write facts in place of earlier ones."""
    connection.executemany(
        "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?, ?)",
        [
            (kind, os.fsencode(path), size, time, version, json.dumps(facts))
            for path, (size, time, facts) in files.items()
        ],
    )


def _parsed(text: Any) -> Facts | None:  # noqa: ANN401 - whatever stands in the file
    try:
        facts = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None  # a cache: whatever is wrong with it, the file is read again
    return facts if isinstance(facts, dict) else None
