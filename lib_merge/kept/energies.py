"""Norm and energy by block of LoRAs: measured once in a thread of their own, kept beside the presets, asked
for at any time.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lib_merge.errors import MergeError
from lib_merge.library.inspect import inspect_file

log = logging.getLogger("lib_merge")
KEPT = (
    "norm",
    "block_energy",
    "encoder_energy",
    "blocks",
    "rank",
    "alpha",
    "dtype",
    "kinds",
    "left_out",
    "tags",
)
VERSION = 1
MOST = 4000


class Looks:
    """What has been measured, by path, size and time; a file that changes is measured again."""

    def __init__(self, cache_file: Path) -> None:
        """Remember in `cache_file`, JSON; read when it is first needed."""
        self._cache_file = cache_file
        self._known: dict[str, dict[str, Any]] | None = None
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="lora-merge-look")

    def look(self, path: Path) -> dict[str, Any] | None:
        """Return what is known of a file; None while it is being measured."""
        state = path.stat()
        stamp = f"{path}|{state.st_size}|{state.st_mtime_ns}"
        with self._lock:
            if self._known is None:
                self._known = self._load()
            if stamp not in self._known and stamp not in self._busy:
                self._busy.add(stamp)
                self._readers.submit(self._measure, path, stamp)
            return self._known.get(stamp)

    def _measure(self, path: Path, stamp: str) -> None:
        try:
            found = inspect_file(path)
            looked = {name: found[name] for name in KEPT}
        except (MergeError, OSError) as error:
            looked = {"problem": str(error)}
        with self._lock:
            known = self._known if self._known is not None else {}
            known[stamp] = looked
            self._busy.discard(stamp)
            if not self._busy:
                self._store(dict(list(known.items())[-MOST:]))

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            data = json.loads(self._cache_file.read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                return {}
            return {
                str(stamp): dict(looked)
                for stamp, looked in data["files"].items()
                if set(KEPT) <= set(looked) and isinstance(looked["block_energy"], dict)
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}  # a cache: whatever is wrong with it, the files are measured again

    def _store(self, known: dict[str, dict[str, Any]]) -> None:
        temp = self._cache_file.with_name(f".{self._cache_file.name}.{secrets.token_hex(4)}")
        try:
            temp.write_text(json.dumps({"version": VERSION, "files": known}), encoding="utf-8")
            os.replace(temp, self._cache_file)
        except OSError as error:
            log.warning("what was measured could not be kept: %s", error)
