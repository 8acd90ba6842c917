"""What was merged: one JSON file per merge, so that nothing that happens to one can harm the others."""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib_merge.errors import RecipeError

_ID = re.compile(r"\d{6}-[0-9a-f]{8}")
_FIELDS = ("verdict", "notes", "status", "rating", "name", "key", "grid")
VERSION = 1


@dataclass(slots=True)
class Entry:
    """One merge.

    id        counts up; sorts by age
    time      ISO 8601, as the caller's clock had it
    key       where the file was saved, below the LoRA folders
    recipe    versioned JSON
    report    the proof: relative_error, energy_kept, rank, bytes, seconds, warnings, tensor_hash
    based_on  the entry it was developed from
    verdict   what a person thought of it
    status    ok, revise or broken
    grid      the comparison it was judged by
    """

    id: str
    time: str = ""
    name: str = ""
    key: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    sources: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    based_on: str = ""
    verdict: dict[str, Any] = field(default_factory=dict)
    notes: str = ""
    rating: int = 0
    status: str = "ok"
    grid: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for a file or the browser."""
        return asdict(self)


class History:
    """A folder of entries."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made when the first entry is added."""
        self._folder = folder / "entries"
        self._trash = folder / "trash"
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[int, Entry]] = {}

    def add(self, **fields: Any) -> Entry:  # noqa: ANN401
        """Write a new entry; see `Entry` for the fields.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            last = max((int(path.name[:6]) for path in self._files()), default=0)
            entry = Entry(id=f"{last + 1:06d}-{secrets.token_hex(4)}", **fields)
            self._write(entry)
        return entry

    def get(self, identity: str) -> Entry:
        """Return one entry.

        Raises:
            RecipeError: there is none of that id, or its file is broken.
        """
        entry = self._read(self._path(identity))
        if entry is None or entry.status == "broken":
            message = "that entry of the history is gone or broken."
            raise RecipeError(message)
        return entry

    def list(self, search: str = "") -> list[Entry]:
        """Return the entries, newest first; `search` looks at names, sources, methods and notes."""
        words = search.lower().split()
        found = []
        for path in sorted(self._files(), reverse=True):
            entry = self._read(path)
            if entry is not None and all(word in _text(entry) for word in words):
                found.append(entry)
        return found

    def update(self, identity: str, **fields: Any) -> Entry:  # noqa: ANN401
        """Change what a person may change: verdict, notes, status, rating, name, key, grid.

        Raises:
            RecipeError: no such entry or field.
        """
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown:
            message = f"an entry has no {unknown[0]} that could be changed."
            raise RecipeError(message)
        with self._lock:
            entry = self.get(identity)
            for name, value in fields.items():
                setattr(entry, name, value)
            self._write(entry)
        return entry

    def remove(self, identity: str) -> None:
        """Move an entry into the trash folder beside the others."""
        path = self._path(identity)
        with self._lock:
            self._trash.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(path, self._trash / path.name)
            except OSError as error:
                message = "that entry of the history is gone already."
                raise RecipeError(message) from error

    def diff(self, identity: str, other: str) -> list[str]:
        """Return what changed from `other` to this entry, in sentences."""
        return differences(self.get(other).recipe, self.get(identity).recipe)

    def find_by_hash(self, tensor_hash: str) -> Entry | None:
        """Return the newest entry whose file had these tensors."""
        return next((entry for entry in self.list() if entry.report.get("tensor_hash") == tensor_hash), None)

    def _files(self) -> list[Path]:
        try:
            return [
                path for path in self._folder.iterdir() if path.suffix == ".json" and _ID.fullmatch(path.stem)
            ]
        except OSError:
            return []

    def _path(self, identity: str) -> Path:
        if not _ID.fullmatch(identity):
            message = "that is no entry of the history."
            raise RecipeError(message)
        return self._folder / f"{identity}.json"

    def _read(self, path: Path) -> Entry | None:
        try:
            stamp = path.stat().st_mtime_ns
            known = self._cache.get(path.stem)
            if known is None or known[0] != stamp:
                self._cache[path.stem] = known = (stamp, _parse(path))
            return known[1]
        except OSError:
            return None

    def _write(self, entry: Entry) -> None:
        path = self._folder / f"{entry.id}.json"
        temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        temp.write_text(
            json.dumps({"version": VERSION, **entry.to_json()}, ensure_ascii=False, indent=1),
            encoding="utf-8",
        )
        os.replace(temp, path)
        self._cache.pop(entry.id, None)


def _parse(path: Path) -> Entry:
    """Return a file's entry; one that cannot be read is listed as broken, and left as it is."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kinds = {name: type(value) for name, value in Entry(id="").to_json().items()}
        fields = {name: data[name] for name in kinds if name in data}
        if all(isinstance(value, kinds[name]) for name, value in fields.items()):
            return Entry(**{**fields, "id": path.stem})
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    return Entry(
        id=path.stem,
        name=path.stem,
        status="broken",
        notes="this entry's file is broken; it was left as it is",
    )


def _text(entry: Entry) -> str:
    names = " ".join(str(source.get("name", "")) for source in entry.sources if isinstance(source, dict))
    return f"{entry.name} {entry.method} {names} {entry.notes} {entry.status} {entry.time}".lower()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what changed between two recipes (JSON), in sentences."""
    found = []
    for name in ("method", "rank", "conv_rank", "prune", "precision", "seed"):
        if before.get(name) != after.get(name):
            found.append(f"{name.replace('_', ' ')}: {before.get(name)} → {after.get(name)}")
    old, new = before.get("knobs") or {}, after.get("knobs") or {}
    for knob in sorted(set(old) | set(new)):
        if old.get(knob) != new.get(knob):
            found.append(f"{knob.replace('_', ' ')}: {old.get(knob)} → {new.get(knob)}")
    one, other = _sources(before), _sources(after)
    found += [f"{name} was taken out" for name in one if name not in other]
    found += [
        f"{name} was added at {source.get('ratio')}" for name, source in other.items() if name not in one
    ]
    for name in one:
        if name in other:
            found += _changed(name, one[name], other[name])
    return found or ["nothing changed"]


def _changed(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what changed of one source, or of a group and what it holds."""
    found = []
    for what, none in (("ratio", 1), ("te_ratio", "as the ratio"), ("role", "none")):
        old, new = before.get(what), after.get(what)
        if old != new:
            title = what.replace("te_ratio", "text-encoder ratio")
            found.append(f"{name}, {title}: {none if old is None else old} → {none if new is None else new}")
    if before.get("blocks") != after.get("blocks"):
        found.append(f"{name}, block weights: {_blocks(before.get('blocks'), after.get('blocks'))}")
    if before.get("elements") != after.get("elements"):
        found.append(
            f"{name}, element rules: {len(before.get('elements') or ())} → {len(after.get('elements') or ())}"
        )
    old, new = before.get("recipe"), after.get("recipe")
    if old != new and isinstance(old, Mapping) and isinstance(new, Mapping):
        found += [f"{name}: {text}" for text in differences(old, new)]
    return found


def _blocks(before: Any, after: Any) -> str:  # noqa: ANN401
    """Return the blocks whose weight changed, those that changed alike together; a block that is not named
    weighs 1.
    """
    if not all(isinstance(value, (Mapping, type(None))) for value in (before, after)):
        return f"{before} → {after}"
    old, new = before or {}, after or {}
    alike: dict[tuple[Any, Any], list[str]] = {}
    for block in sorted(set(old) | set(new)):
        pair = (old.get(block, 1), new.get(block, 1))
        if pair[0] != pair[1]:
            alike.setdefault(pair, []).append(block)
    return (
        "; ".join(f"{' '.join(blocks)} {one:g} → {two:g}" for (one, two), blocks in alike.items())
        or "the same"
    )


def _sources(recipe: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for source in recipe.get("sources") or []:
        name = str(source.get("name") or "group").removesuffix(".safetensors")
        while name in found:
            name += " (again)"
        found[name] = source
    return found
