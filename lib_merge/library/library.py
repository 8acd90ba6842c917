"""Every LoRA in the folders: what the header says, cached by path, size and time, so that thousands open at
once.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from lib_merge import metadata
from lib_merge.adapters import open_lora
from lib_merge.analysis.recognition import Mark, recognised
from lib_merge.errors import MergeError, OutputError, RecipeError
from lib_merge.families import blocks_present, encoder_of
from lib_merge.library.inspect import FactCache, common_tags
from lib_merge.recipe import loads

log = logging.getLogger("lib_merge")
# of what `read_facts` returns
VERSION = 3
MOST_FILES = 100_000
MOST_TAGS = 20
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True)
class Item:
    """One LoRA, as its header tells it.

    key         "folder number/path below it", how the browser names it
    candidates  families its shapes allow
    te          it has text-encoder modules
    convolutions  it has k×k ones, which may get a rank of their own
    blocks      the blocks it has modules in
    marks       what it is besides: a speed LoRA, a slider, an epoch …
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
    convolutions: bool = False
    blocks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    has_recipe: bool = False
    marks: tuple[Mark, ...] = ()
    preview: str = ""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for the browser."""
        return asdict(self)

    def short(self) -> dict[str, Any]:
        """Return it without what is empty or follows from the rest: thousands go over at once."""
        short = {name: value for name in self.__slots__ if (value := getattr(self, name)) and name != "rank"}
        if self.alias == self.name:
            del short["alias"]
        if self.candidates == (self.family,):
            del short["candidates"]
        if self.rank[1]:
            short["rank"] = self.rank
        short["mtime"] = round(self.mtime)
        short["blocks"] = " ".join(self.blocks)
        if self.marks:
            short["marks"] = [asdict(mark) for mark in self.marks]
        return short


class Library:
    """The LoRA folders of a host."""

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        cache: FactCache,
        preview: Callable[[Path], str],
        alias: Callable[[Path], str],
        *,
        scanned: Callable[[Library], object] | None = None,
    ) -> None:
        """Remember where to look; nothing is read before `refresh`.

        Args:
            folders: the LoRA folders, asked at every refresh.
            cache: remembers what headers say between two starts.
            preview: path -> address of the card's picture.
            alias: path -> the name a prompt tag takes.
            scanned: called in the scan's thread whenever all folders have been looked at.
        """
        self._folders, self._cache, self._preview, self._alias = folders, cache, preview, alias
        self._scanned = scanned
        self._lock = threading.Lock()
        # path -> size, time (ns) and what the header says; None before the first scan
        self._facts: dict[str, tuple[int, int, dict[str, Any]]] | None = None
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
            items = list(self._items.values())
        return sorted(items, key=lambda item: (item.name.lower(), item.key))

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
        number, relative = _read_key(key)
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
                    below = one.relative_to(other)
                except ValueError:
                    continue
                if ".." not in below.parts:
                    return key_of(number, below)
        return ""

    def find(self, name: str) -> Item | None:
        """Return the LoRA that answers to a stem or alias, exact case first."""
        items, name = self.items(), as_text(name)
        exact = (item for item in items if name in (item.alias, item.name))
        lower = name.lower()
        alike = (item for item in items if lower in (item.alias.lower(), item.name.lower()))
        return next(exact, None) or next(alike, None)

    def stem_taken(self, stem: str) -> bool:
        """Return True where a LoRA of that stem or alias is in the folders."""
        return any(as_text(stem) in (item.name, item.alias) for item in self.items())

    def merges(self) -> Iterator[dict[str, Any]]:
        """Yield what an entry of the history says of every merged LoRA, as far as the file itself tells
        it.
        """
        for item in self.items():
            if item.has_recipe:
                try:
                    yield merge_of(self.resolve(item.key), item.key)
                except (MergeError, OSError) as error:
                    log.info("the recipe in %s cannot be read: %s", item.key, error)

    # ---------------------------------------------------------------- scanning

    def _scan_all(self) -> None:
        while True:
            self._again = False
            try:
                self._scan()
                if self._scanned is not None:
                    self._scanned(self)
            except Exception:
                log.exception("the LoRA folders could not be read")
            if not self._again:
                self._done = self._total
                return

    def _scan(self) -> None:
        if self._facts is None:
            self._facts = self._cache.load()
        files = [(n, folder, path) for n, folder in enumerate(self._folders()) for path in walk(folder)]
        self._done, self._total = 0, len(files)
        present: dict[str, Item] = {}
        fresh: set[str] = set()
        for number, folder, path in files[:MOST_FILES]:
            try:
                state = path.stat()
            except OSError:
                self._done += 1
                continue
            facts = self._facts.get(str(path))
            if facts is None or facts[:2] != (state.st_size, state.st_mtime_ns):
                facts = self._facts[str(path)] = (state.st_size, state.st_mtime_ns, read_facts(path))
                fresh.add(str(path))
            item = self._item(number, folder, path, facts)
            present[item.key] = item
            self._put(item.key, item)
            self._done += 1
        for key in [key for key in self._items if key not in present]:
            self._put(key, None)
        self._remember(fresh, gone=self._facts.keys() - {str(path) for _, _, path in files})

    def _remember(self, fresh: set[str], gone: set[str]) -> None:
        facts = self._facts or {}
        try:
            if fresh or gone:
                self._cache.put({path: facts[path] for path in fresh}, gone)
        except OutputError as error:
            log.warning("what the headers say could not be kept: %s", error)
        for path in gone:
            del facts[path]

    def _item(self, number: int, folder: Path, path: Path, facts: tuple[int, int, dict[str, Any]]) -> Item:
        relative = path.relative_to(folder)
        where = relative.parent.as_posix()
        size, time, header = facts
        told: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in header.items()
            if name in _TOLD
        }
        marks = (Mark(**{**one, "evidence": tuple(one["evidence"])}) for one in header.get("marks", ()))
        return Item(
            key=key_of(number, relative),
            name=as_text(path.stem),
            folder="" if where == "." else as_text(where),
            alias=as_text(self._alias(path)),
            size=size,
            mtime=time / 1e9,
            preview=self._preview(path),
            marks=tuple(marks),
            **told,
        )


# -------------------------------------------------------------------------------------------- keys

_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(?:u(d[89a-f][0-9a-f]{2})|\\)")


def as_text(name: str) -> str:
    """Return a name of the file system as a text: half characters, which stand for bytes that are no UTF-8,
    are escaped.
    """
    return name if name.isascii() else _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", name)


def key_of(number: int, relative: Path) -> str:
    """Return how the browser names a file: "folder number/path below it".

    Names that are no text (not UTF-8, or half a character) cannot go over the wire: with a second slash,
    which no path has there, the path is escaped.
    """
    text = relative.as_posix()
    if not _HALF.search(text):
        return f"{number}/{text}"
    return f"{number}//" + as_text(text.replace("\\", "\\\\"))


def _read_key(key: str) -> tuple[str, str]:
    """Return folder number and path of a key."""
    number, _, relative = key.partition("/")
    if not relative.startswith("/"):
        return number, relative
    return number, _ESCAPED.sub(lambda sign: chr(int(sign[1], 16)) if sign[1] else "\\", relative[1:])


# -------------------------------------------------------------------------------------------- what files say


# fields of `Item` that `read_facts` returns
_TOLD = (
    "family",
    "candidates",
    "kinds",
    "rank",
    "te",
    "convolutions",
    "blocks",
    "tags",
    "has_recipe",
    "problem",
)


def walk(folder: Path) -> Iterator[Path]:
    """Yield the LoRA files below a folder, links included, each real folder once."""
    visited: set[str] = set()
    for where, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        names[:] = sorted(name for name in names if not name.startswith("."))
        if real in visited:
            names.clear()
            continue
        visited.add(real)
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(where) / name


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a header tells, JSON-ready; a file that cannot be merged has a `problem`."""
    try:
        with open_lora(path) as file:
            family = file.family or ""
            shown = file if file.family else file.settled(file.guess.candidates[0], drop_unsupported=True)
            layouts = [module.layout for module in shown.modules.values()]
            ranks = [layout.rank for layout in layouts if layout.rank]
            first = shown.family or ""
            return {
                "family": family,
                "candidates": list(file.guess.candidates),
                "kinds": [kind for kind, _ in Counter(str(layout.kind) for layout in layouts).most_common(3)],
                "rank": [min(ranks, default=0), max(ranks, default=0)],
                "te": any(encoder_of(name) for name in shown.modules),
                "convolutions": any(max(layout.kernel, default=1) > 1 for layout in layouts),
                "blocks": list(blocks_present(shown.modules, first)),
                "tags": [tag[:80] for tag in common_tags(file.metadata, MOST_TAGS)],
                "has_recipe": metadata.recipe_of(file.metadata) is not None,
                "marks": [asdict(mark) for mark in recognised(file)],
                "problem": "",
            }
    except MergeError as error:
        return {"problem": str(error)[:300]}
    except OSError as error:
        return {"problem": f"it cannot be read: {error.strerror or error}"}
    except Exception:  # one odd file must not empty the list
        log.exception("%a could not be read", path.name)
        return {"problem": "it could not be understood; the log says more"}


def merge_of(path: Path, key: str) -> dict[str, Any]:
    """Return what an entry of the history says of a merged LoRA, as far as the file itself tells it.

    Args:
        path: the file.
        key: how the library calls it.
    Raises:
        MergeError: it is damaged, or carries no recipe.
        OSError: it is gone.
    """
    with open_lora(path) as file:
        recipe = loads(metadata.recipe_of(file.metadata) or "", path.name)
        hashed = file.metadata.get("sshs_model_hash", "")
        family = file.family or ""
    state = path.stat()
    return {
        "time": datetime.fromtimestamp(state.st_mtime, timezone.utc).isoformat(timespec="seconds"),
        "name": path.stem,
        "key": key,
        "recipe": recipe.to_json(),
        "method": recipe.method,
        "sources": [{"name": source.label, "ratio": source.ratio} for source in recipe.sources],
        "report": {"bytes": state.st_size, "tensor_hash": hashed, "family": family},
    }
