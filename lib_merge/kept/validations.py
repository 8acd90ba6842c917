"""What a person has said of the steps of a merge's validation; the rest is known from the merge itself."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.kept.database import ID, Database, touch


class Validations:
    """Steps by entry of the history."""

    def __init__(self, database: Database) -> None:
        """Keep them in `database`."""
        self._database = database

    def put(self, entry: str, step: str, said: Mapping[str, Any] | None) -> None:
        """Write what is said of one step; None takes it back.

        Raises:
            RecipeError: no such entry.
            OutputError: it cannot be written.
        """
        if not ID.fullmatch(entry):
            message = "that is no entry of the history."
            raise RecipeError(message)

        def work(connection: sqlite3.Connection) -> None:
            if connection.execute("SELECT 1 FROM entries WHERE id = ?", (entry,)).fetchone() is None:
                message = "that entry of the history is gone already."
                raise RecipeError(message)
            steps = _steps(_row(connection, entry))
            steps.pop(step, None)
            if said is not None:
                steps[step] = dict(said)
            row = (entry, json.dumps(steps, allow_nan=False))
            connection.execute("INSERT OR REPLACE INTO validations VALUES (?, ?)", row)
            touch(connection)

        self._database.write(work)

    def of(self, entry: str) -> dict[str, dict[str, Any]]:
        """Return step -> what was said of it; nothing where nobody has said anything."""
        if not ID.fullmatch(entry):
            return {}
        return _steps(self._database.read(lambda connection: _row(connection, entry), None))


def _row(connection: sqlite3.Connection, entry: str) -> str | None:
    row = connection.execute("SELECT steps FROM validations WHERE entry = ?", (entry,)).fetchone()
    return None if row is None else str(row[0])


def _steps(text: str | None) -> dict[str, dict[str, Any]]:
    try:
        steps = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    known = steps.items() if isinstance(steps, dict) else ()
    return {str(name): said for name, said in known if isinstance(said, dict)}
