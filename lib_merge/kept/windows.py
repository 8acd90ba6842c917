"""What is set up in each window of the page: two windows have two set-ups, a reload finds its own."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.kept.database import Database

MOST = 60  # windows whose set-up is kept
LARGEST = 1 << 20  # characters of a set-up
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class Windows:
    """Set-ups by window; a browser's newest is offered to its next window and stays the other's."""

    def __init__(self, database: Database) -> None:
        """Keep them in `database`."""
        self._database = database

    def keep(self, window: str, browser: str, setup: Mapping[str, Any]) -> None:
        """Write a window's set-up, in place of its earlier one.

        Args:
            window: its id, which a reload keeps and no other window has.
            browser: an id that all windows of one browser share.
            setup: JSON-ready.
        Raises:
            RecipeError: an id that is none, or a set-up that is too large.
            OutputError: it cannot be written.
        """
        _check(window, browser)
        text = json.dumps(setup, allow_nan=False)
        if len(text) > LARGEST:
            message = "what is set up is too large to be kept for the next time."
            raise RecipeError(message)

        def work(connection: sqlite3.Connection) -> None:
            (last,) = connection.execute("SELECT coalesce(max(used), 0) FROM windows").fetchone()
            row = (window, browser, text, last + 1)
            connection.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?)", row)
            kept = "SELECT id FROM windows ORDER BY used DESC LIMIT ?"
            connection.execute(f"DELETE FROM windows WHERE id NOT IN ({kept})", (MOST,))

        self._database.write(work)

    def of(self, window: str, browser: str) -> dict[str, Any] | None:
        """Return a window's own set-up; None where it has none yet."""
        _check(window, browser)
        return self._one("id = ? AND browser = ?", window, browser)

    def last(self, window: str, browser: str) -> dict[str, Any] | None:
        """Return the set-up that another window of the same browser used last; None where there is none."""
        _check(window, browser)
        return self._one("id != ? AND browser = ?", window, browser)

    def _one(self, which: str, *values: str) -> dict[str, Any] | None:
        query = f"SELECT setup FROM windows WHERE {which} ORDER BY used DESC LIMIT 1"
        row = self._database.read(lambda connection: connection.execute(query, values).fetchone(), None)
        try:
            setup = json.loads(row[0]) if row else None
        except (ValueError, RecursionError):
            return None
        return setup if isinstance(setup, dict) else None


def _check(window: str, browser: str) -> None:
    if not _ID.fullmatch(window) or not _ID.fullmatch(browser):
        message = "a window and a browser are named by up to 64 letters, digits, - and _."
        raise RecipeError(message)
