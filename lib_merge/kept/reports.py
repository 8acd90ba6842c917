"""The report of every merge in the history: one JSON file and one HTML page per entry, beside the entries."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_merge.errors import RecipeError

_ID = re.compile(r"\d{6}-[0-9a-f]{8}")
MOST = 16 << 20


class Reports:
    """A folder of reports, named as the history's entries are."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made when the first report is kept."""
        self._folder = folder

    def keep(self, entry: str, report: Mapping[str, Any], page: str) -> None:
        """Write the report of an entry, in place of an earlier one.

        Args:
            entry: id of the history.
            report: JSON-ready.
            page: the same as HTML.
        Raises:
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, ensure_ascii=False, allow_nan=False)
        for form, content in (("html", page), ("json", text)):
            path = self._path(entry, form)
            temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            temp.write_text(content, encoding="utf-8")
            os.replace(temp, path)

    def text(self, entry: str, form: str) -> str | None:
        """Return a report as it lies there, `json` or `html`; None where there is none that can be read."""
        path = self._path(entry, form)
        try:
            return path.read_text(encoding="utf-8") if path.stat().st_size <= MOST else None
        except (OSError, ValueError):
            return None

    def read(self, entry: str) -> dict[str, Any] | None:
        """Return a report as JSON objects; None where there is none that can be read."""
        try:
            found = json.loads(self.text(entry, "json") or "null")
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def remove(self, entry: str, trash: Path) -> None:
        """Move an entry's report into a trash folder; a report that is not there is no error."""
        for form in ("html", "json"):
            path = self._path(entry, form)
            try:
                if path.is_file():
                    trash.mkdir(parents=True, exist_ok=True)
                    os.replace(path, trash / f"{path.stem}-report.{form}")
            except OSError:
                continue  # what stays behind belongs to no entry and harms nobody

    def _path(self, entry: str, form: str) -> Path:
        if not _ID.fullmatch(entry) or form not in ("json", "html"):
            message = "that is no report of the history."
            raise RecipeError(message)
        return self._folder / f"{entry}.{form}"
