"""Every LoRA in the folders: what the header says, cached by path, size and time, so that thousands open at
once.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.library.headers import SUFFIXES, read_facts, walk

log = logging.getLogger("lib_merge")
VERSION = 1
MOST_FILES = 100_000


@dataclass(frozen=True, slots=True)
class Item:
    """One LoRA, as its header tells it.

    key         "folder number/path below it", how the browser names it
    candidates  families its shapes allow
    te          it has text-encoder modules
    blocks      the blocks it has modules in
    problem     one sentence when it cannot be merged
    """

    key: str
    name: str
    folder: str
    alias: str
    family: str = ""
    candidates: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    rank: tuple[int, int] = (0, 0)
    size: int = 0
    mtime: float = 0.0
    te: bool = False
    blocks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    has_recipe: bool = False
    preview: str = ""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for the browser."""
        return asdict(self)

    def short(self) -> dict[str, Any]:
        """Return it without what is empty or follows from the rest: thousands go over at once."""
        found = {name: value for name in self.__slots__ if (value := getattr(self, name)) and name != "rank"}
        if self.alias == self.name:
            del found["alias"]
        if self.candidates == (self.family,):
            del found["candidates"]
        if self.rank[1]:
            found["rank"] = self.rank
        found["mtime"] = round(self.mtime)
        found["blocks"] = " ".join(self.blocks)
        return found


@dataclass(slots=True)
class _Known:
    """What is remembered of a file between two starts; its header's facts."""

    size: int
    mtime_ns: int
    facts: dict[str, Any] = field(default_factory=dict)


class Library:
    """The LoRA folders of a host."""

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        cache_file: Path,
        preview: Callable[[Path], str],
        alias: Callable[[Path], str],
    ) -> None:
        """Remember where to look; nothing is read before `refresh`.

        Args:
            folders: the LoRA folders, asked at every refresh.
            cache_file: JSON beside the user's presets.
            preview: path -> address of the card's picture.
            alias: path -> the name a prompt tag takes.
        """
        self._folders, self._cache_file, self._preview, self._alias = folders, cache_file, preview, alias
        self._lock = threading.Lock()
        self._known: dict[str, _Known] | None = None
        self._items: dict[str, Item] = {}
        self._done = self._total = 0
        self._thread: threading.Thread | None = None
        self._again = False
        self._epoch, self._count = secrets.token_hex(4), 0
        self._changed: dict[str, int] = {}

    @property
    def scanning(self) -> tuple[int, int]:
        """Return (headers looked at, files found) of the scan that runs or ran last."""
        return self._done, self._total

    def items(self) -> list[Item]:
        """Return what is known now, by name."""
        with self._lock:
            found = list(self._items.values())
        return sorted(found, key=lambda item: (item.name.lower(), item.key))

    def changes(self, since: str) -> dict[str, Any]:
        """Return what is new, changed and gone since an answer before; everything where there was none.

        Args:
            since: the answer's own "since", "" for everything.
        """
        epoch, _, count = since.partition(":")
        with self._lock:
            full = epoch != self._epoch or not count.isdigit()
            newer = [key for key, at in self._changed.items() if full or at > int(count)]
            items = [self._items[key].short() for key in newer if key in self._items]
            gone = [] if full else [key for key in newer if key not in self._items]
            return {"items": items, "gone": gone, "full": full, "since": f"{self._epoch}:{self._count}"}

    def _put(self, key: str, item: Item | None) -> None:
        with self._lock:
            if self._items.get(key) == item:
                return
            self._count += 1
            self._changed[key] = self._count
            if item is None:
                del self._items[key]
            else:
                self._items[key] = item

    def refresh(self, *, wait: bool = False) -> None:
        """Look at the folders again, in a thread; `wait` for it to end."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                self._again = True
                thread = self._thread
            else:
                self._done, self._total = 0, 1
                thread = self._thread = threading.Thread(
                    target=self._scan_all, name="lora-merge-scan", daemon=True
                )
                thread.start()
        if wait:
            thread.join()

    def resolve(self, key: str) -> Path:
        """Return the file of a key.

        Raises:
            RecipeError: no such folder or file, or a path that leads outside.
        """
        number, _, relative = key.partition("/")
        folder = {str(place): one for place, one in enumerate(self._folders())}.get(number)
        parts = PurePosixPath(relative).parts
        inside = parts and ".." not in parts and parts[0] != "/"
        if (
            folder is None
            or not inside
            or any(":" in part and os.name == "nt" for part in parts)
            or "\x00" in relative
        ):
            message = "that LoRA is not in the LoRA folders."
            raise RecipeError(message)
        path = folder.joinpath(*parts)
        try:
            there = path.suffix.lower() in SUFFIXES and path.is_file()
        except OSError:  # a name that is too long for the disk
            there = False
        if not there:
            message = f"{path.name} is not in the LoRA folders any more; refresh the list."
            raise RecipeError(message)
        return path

    def key_of(self, path: Path) -> str:
        """Return the key of a file in the folders; "" for one outside."""
        for number, folder in enumerate(self._folders()):
            for one, other in ((path, folder), (path.resolve(), folder.resolve())):
                try:
                    return f"{number}/{one.relative_to(other).as_posix()}"
                except ValueError:
                    continue
        return ""

    def find(self, name: str) -> Item | None:
        """Return the LoRA that answers to a stem or alias, exact case first."""
        items = self.items()
        for same in (lambda text: text == name, lambda text: text.lower() == name.lower()):
            for item in items:
                if same(item.alias) or same(item.name):
                    return item
        return None

    def stem_taken(self, stem: str) -> bool:
        """Return True where a LoRA of that stem or alias is in the folders."""
        return any(stem in (item.name, item.alias) for item in self.items())

    # ---------------------------------------------------------------- scanning

    def _scan_all(self) -> None:
        while True:
            self._again = False
            try:
                self._scan()
            except Exception:
                log.exception("the LoRA folders could not be read")
            if not self._again:
                self._done = self._total
                return

    def _scan(self) -> None:
        if self._known is None:
            self._known = self._load()
        files = [(n, folder, path) for n, folder in enumerate(self._folders()) for path in walk(folder)]
        self._done, self._total = 0, len(files)
        present: dict[str, Item] = {}
        fresh = False
        for number, folder, path in files[:MOST_FILES]:
            try:
                state = path.stat()
            except OSError:
                self._done += 1
                continue
            known = self._known.get(str(path))
            if known is None or (known.size, known.mtime_ns) != (state.st_size, state.st_mtime_ns):
                known = self._known[str(path)] = _Known(state.st_size, state.st_mtime_ns, read_facts(path))
                fresh = True
            item = self._item(number, folder, path, known)
            present[item.key] = item
            self._put(item.key, item)
            self._done += 1
        for key in [key for key in self._items if key not in present]:
            self._put(key, None)
        if fresh or len(self._known) > len(present):
            kept = {str(path) for _, _, path in files}
            self._known = {name: known for name, known in self._known.items() if name in kept}
            self._store()

    def _item(self, number: int, folder: Path, path: Path, known: _Known) -> Item:
        relative = path.relative_to(folder)
        where = relative.parent.as_posix()
        facts = {
            name: tuple(value) if isinstance(value, list) else value for name, value in known.facts.items()
        }
        return Item(
            key=f"{number}/{relative.as_posix()}",
            name=path.stem,
            folder="" if where == "." else where,
            alias=self._alias(path),
            size=known.size,
            mtime=known.mtime_ns / 1e9,
            preview=self._preview(path),
            **facts,
        )

    def _load(self) -> dict[str, _Known]:
        try:
            data = json.loads(self._cache_file.read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                return {}
            names = set(Item.__dataclass_fields__)
            return {
                path: _Known(int(size), int(mtime), {k: v for k, v in facts.items() if k in names})
                for path, (size, mtime, facts) in data["files"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}  # a cache: whatever is wrong with it, the headers are read again

    def _store(self) -> None:
        files = {
            path: [known.size, known.mtime_ns, known.facts] for path, known in (self._known or {}).items()
        }
        temp = self._cache_file.with_name(f".{self._cache_file.name}.{secrets.token_hex(4)}")
        try:
            text = json.dumps({"version": VERSION, "files": files}, ensure_ascii=True)
            temp.write_text(text, encoding="utf-8")
            os.replace(temp, self._cache_file)
        except OSError as error:
            log.warning("the list of LoRAs could not be kept: %s", error)
