"""What was found out about merges: the report of every entry of the history, and comparisons of pictures."""

from __future__ import annotations

import base64
import io
import json
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from lib_merge.errors import OutputError, RecipeError
from lib_merge.kept.database import ID, Database, new_id

# the longest text that is unpacked
MOST_BYTES = 64 << 20
# how many comparisons are kept
MOST = 40
WIDEST = 1600


class Reports:
    """Reports, one per entry of the history; a removed entry takes its own along."""

    def __init__(self, database: Database) -> None:
        """Keep them in `database`."""
        self._database = database

    def keep(self, entry: str, report: Mapping[str, Any], page: str) -> None:
        """Write the report of an entry, in place of an earlier one.

        Args:
            entry: id of the history.
            report: JSON-ready.
            page: the same as HTML.
        Raises:
            OutputError: it cannot be written.
        """
        _check(entry, "json")
        text = json.dumps(report, ensure_ascii=False, allow_nan=False)
        row = (entry, packed(text), packed(page))
        self._database.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)", row)
        )

    def text(self, entry: str, form: str) -> str | None:
        """Return a report as `json` or `html`; None where there is none that can be read."""
        _check(entry, form)
        query = f"SELECT {form} FROM reports WHERE entry = ?"
        row = self._database.read(lambda connection: connection.execute(query, (entry,)).fetchone(), None)
        return None if row is None or row[0] is None else unpacked(row[0])

    def read(self, entry: str) -> dict[str, Any] | None:
        """Return a report as JSON objects; None where there is none that can be read."""
        try:
            report = json.loads(self.text(entry, "json") or "null")
        except (ValueError, RecursionError):
            return None
        return report if isinstance(report, dict) else None


def _check(entry: str, form: str) -> None:
    if not ID.fullmatch(entry) or form not in ("json", "html"):
        message = "that is no report of the history."
        raise RecipeError(message)


def packed(text: str) -> bytes:
    """Return a text as it is kept: a tenth of its length."""
    return zlib.compress(text.encode("utf-8", "backslashreplace"))


def unpacked(blob: bytes) -> str | None:
    """Return the text of `packed`; None where it is damaged, or absurdly long."""
    try:
        engine = zlib.decompressobj()
        data = engine.decompress(blob, MOST_BYTES + 1)
        return data.decode("utf-8") if engine.eof and len(data) <= MOST_BYTES else None
    except (zlib.error, ValueError, TypeError):
        return None


class Comparisons:
    """Comparisons that were made: figures and a small picture of the grid, for the verdict and the
    history.
    """

    def __init__(self, database: Database) -> None:
        """Keep them in `database`."""
        self._database = database

    def add(
        self,
        picture: Any,  # noqa: ANN401 - PIL's Image; pictures are made inside WebUIs only
        *,
        sources: Sequence[str],
        columns: Sequence[Mapping[str, Any]],
        rows: Sequence[str],
        figures: Sequence[Mapping[str, Any]],
        stopped: bool,
    ) -> str:
        """Keep a comparison and return its id; the oldest beyond `MOST` go.

        Where it cannot be written the id is "" and the database has a warning: the pictures are with the
        WebUI, only the verdict form will not come.

        Args:
            picture: the drawn grid.
            sources: labels of the recipe's sources.
            columns: label, kind and recipe (JSON) of each.
            rows: labels of the rows that were made.
            figures: what was measured per column.
            stopped: not all pictures were made.
        """
        data = {
            "version": 1,
            "sources": list(sources),
            "columns": list(columns),
            "rows": list(rows),
            "figures": list(figures),
            "stopped": stopped,
        }
        small = picture.convert("RGB")
        small.thumbnail((WIDEST, WIDEST))
        jpeg = io.BytesIO()
        small.save(jpeg, "JPEG", quality=88)

        def work(connection: sqlite3.Connection) -> str:
            identity = new_id(connection, "comparisons")
            put_comparison(connection, identity, json.dumps(data), jpeg.getvalue())
            return identity

        try:
            return self._database.write(work)
        except OutputError as error:
            self._database.warn(str(error))
            return ""

    def newest(self) -> str:
        """Return the id of the newest, "" where there is none."""
        row = self._database.read(
            lambda connection: connection.execute("SELECT max(id) FROM comparisons").fetchone(), None
        )
        return str(row[0] or "") if row else ""

    def ids(self) -> list[str]:
        """Return the ids of all that are kept, newest first."""
        query = "SELECT id FROM comparisons ORDER BY id DESC"
        return [
            str(row[0])
            for row in self._database.read(lambda connection: connection.execute(query).fetchall(), [])
        ]

    def get(self, identity: str) -> dict[str, Any]:
        """Return what is known of one: `add`'s arguments but the picture, and its `id`.

        Raises:
            RecipeError: it is gone or broken.
        """
        try:
            return {**json.loads(self._row(identity)[0]), "id": identity}
        except (ValueError, TypeError, RecursionError) as error:
            message = "that comparison is not there any more."
            raise RecipeError(message) from error

    def picture(self, identity: str) -> str:
        """Return the grid as a data: address.

        Raises:
            RecipeError: it is gone.
        """
        jpeg = self._row(identity)[1]
        if jpeg is None:
            message = "the picture of that comparison is gone."
            raise RecipeError(message)
        return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()

    def _row(self, identity: str) -> tuple[str, bytes | None]:
        query = "SELECT comparison, picture FROM comparisons WHERE id = ?"
        row = None
        if ID.fullmatch(identity):
            row = self._database.read(
                lambda connection: connection.execute(query, (identity,)).fetchone(), None
            )
        if row is None:
            message = "that comparison is not there any more."
            raise RecipeError(message)
        return row[0], row[1]


def put_comparison(connection: sqlite3.Connection, identity: str, text: str, jpeg: bytes | None) -> None:
    """Write a comparison unless it is there, and let the oldest beyond `MOST` go."""
    connection.execute("INSERT OR IGNORE INTO comparisons VALUES (?, ?, ?)", (identity, text, jpeg))
    connection.execute(
        "DELETE FROM comparisons WHERE id NOT IN (SELECT id FROM comparisons ORDER BY id DESC LIMIT ?)",
        (MOST,),
    )
