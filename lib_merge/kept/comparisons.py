"""Comparisons that were made: figures and a small picture of the grid, for the verdict and the history."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_merge.errors import RecipeError

MOST = 40
WIDEST = 1600
_ID = re.compile(r"\d{6}-[0-9a-f]{8}")


class Comparisons:
    """A folder with one JSON and one JPEG per comparison."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made with the first comparison."""
        self._folder = folder
        self._lock = threading.Lock()

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
        """Keep a comparison and return its id, "" where it cannot be written; the oldest beyond `MOST` go.

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
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                ids = self._ids()
                number = int(ids[-1][:6]) + 1 if ids else 1
                identity = f"{number:06d}-{secrets.token_hex(4)}"
                small = picture.convert("RGB")
                small.thumbnail((WIDEST, WIDEST))
                small.save(self._folder / f"{identity}.jpg", quality=88)
                temp = self._folder / f".{identity}.json.merging"
                temp.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
                os.replace(temp, self._folder / f"{identity}.json")
                for old in ids[: max(0, len(ids) + 1 - MOST)]:
                    for suffix in (".json", ".jpg"):
                        (self._folder / f"{old}{suffix}").unlink(missing_ok=True)
            except OSError:
                return ""  # the pictures are with the WebUI; only the verdict form will not come
        return identity

    def newest(self) -> str:
        """Return the id of the newest, "" where there is none."""
        ids = self._ids()
        return ids[-1] if ids else ""

    def get(self, identity: str) -> dict[str, Any]:
        """Return what is known of one: `add`'s arguments but the picture, and its `id`.

        Raises:
            RecipeError: it is gone or broken.
        """
        try:
            if not _ID.fullmatch(identity):
                raise ValueError
            data = json.loads((self._folder / f"{identity}.json").read_text(encoding="utf-8"))
            return {**data, "id": identity}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            message = "that comparison is not there any more."
            raise RecipeError(message) from error

    def picture(self, identity: str) -> str:
        """Return the grid as a data: address.

        Raises:
            RecipeError: it is gone.
        """
        self.get(identity)
        try:
            data = (self._folder / f"{identity}.jpg").read_bytes()
        except OSError as error:
            message = "the picture of that comparison is gone."
            raise RecipeError(message) from error
        return "data:image/jpeg;base64," + base64.b64encode(data).decode()

    def _ids(self) -> list[str]:
        try:
            return sorted(path.stem for path in self._folder.glob("*.json") if _ID.fullmatch(path.stem))
        except OSError:
            return []
