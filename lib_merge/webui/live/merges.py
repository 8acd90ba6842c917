"""Merges that are seen before they are saved: files outside the LoRA folders that the WebUI loads like any
LoRA.

Each is named after its recipe and its sources' files, so that nothing is merged twice; a few are kept for
the next picture. All go when the process ends, however it ends; what a power cut left behind is removed at
the next start. The WebUI's table of names that prompts may use gets them just before a picture; its list of
LoRAs, which the cards show, never does.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lib_merge import metadata
from lib_merge.adapters import open_lora
from lib_merge.api import run_recipe
from lib_merge.engine.threads import Job
from lib_merge.errors import FileFormatError
from lib_merge.files.hashes import file_hash
from lib_merge.files.store import Temporary, remove_unheld
from lib_merge.recipe import Recipe, Source, loads
from lib_merge.webui import lora_code
from lib_merge.webui.live.afterwards import Afterwards

log = logging.getLogger("lib_merge")
PREFIX = "lora-merge-live-"
KEPT = 6
KEPT_BYTES = 3 << 30


@dataclass(frozen=True, slots=True)
class Live:
    """A merge that can be loaded as `<lora:NAME:1>`.

    family   of the base model it is for
    seconds  what merging and writing it took
    """

    name: str
    path: Path
    family: str
    bytes: int
    seconds: float


class LiveMerges:
    """The live files of one process, in a folder of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        """Remove what dead processes left in `folder`; nothing is made before the first merge."""
        self._base = folder
        self._home: Path | None = None
        self._held: Any = None
        self._afterwards: Afterwards | None = None
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._shown: dict[str, Live] = {}
        self._lock = threading.RLock()
        self._sweep()
        atexit.register(self.clear)

    def make(self, recipe: Recipe, device: torch.device | str = "cpu", **options: Any) -> Live:  # noqa: ANN401
        """Merge `recipe` unless it is there already.

        Args:
            recipe: with paths.
            device: where large products run; the CPU where its memory does not suffice.
            options: progress and cancelled of `Job`.
        Raises:
            MergeError: nothing is shown then.
        """
        name = PREFIX + _digest(recipe)
        with self._lock:
            known = self._shown.pop(name, None)
            if known is None or not known.path.is_file():
                known = self._merge(name, recipe, device, options)
            self._shown[name] = known  # the newest are the last
        return known

    def _merge(self, name: str, recipe: Recipe, device: torch.device | str, options: dict[str, Any]) -> Live:
        path = self._folder() / f"{name}.safetensors"
        begun = time.perf_counter()
        # nothing is saved here, so nothing is proven: the same recipe is proven when it becomes a LoRA
        job = Job(
            device=device, drop_unsupported=True, side_car=False, overwrite=True, proof=False, **options
        )
        before = [_state(source) for source in recipe.leaves()]
        report = run_recipe(recipe, path, job=job)
        with open_lora(path) as file:
            made = loads(metadata.recipe_of(file.metadata) or "", path.name)
        self._hashes.update(
            {state: source.sha256 for state, source in zip(before, made.leaves()) if state is not None}
        )
        return Live(name, path, report.family, report.bytes, time.perf_counter() - begun)

    def stamped(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the sha256 of every source, as its files are now.

        Raises:
            MergeError: a file cannot be read.
        """
        return replace(recipe, sources=tuple(self._stamped(source) for source in recipe.sources))

    def _stamped(self, source: Source) -> Source:
        if source.recipe is not None:
            return replace(source, recipe=self.stamped(source.recipe))
        state = _state(source)
        if state is None or source.path is None:
            return source
        if state not in self._hashes:
            self._hashes[state] = file_hash(source.path)
        return replace(source, sha256=self._hashes[state], size=state[1])

    def show(self) -> None:
        """Let prompts use them; asked again before every picture, since a refresh of the WebUI's list
        forgets them.
        """
        if not lora_code.loads_live():
            return
        aliases = lora_code.tables().available_network_aliases
        for name, live in self._shown.items():
            known = aliases.get(name)
            if known is None or known.filename != str(live.path):
                aliases[name] = lora_code.live_entry(name, live.path)

    def trim(self, keep: Collection[str] = ()) -> None:
        """Remove the oldest beyond what is worth keeping for the next picture.

        Args:
            keep: names that stay in any case.
        """
        with self._lock:
            total = 0
            for number, live in enumerate(reversed(list(self._shown.values()))):
                total += live.bytes
                if (number >= KEPT or total > KEPT_BYTES) and live.name not in keep:
                    self._remove(live)

    def forget(self, names: Iterable[str]) -> None:
        """Remove the merges of these names."""
        with self._lock:
            for name in names:
                if name in self._shown:
                    self._remove(self._shown[name])

    def clear(self) -> None:
        """Remove all of them, and the folder."""
        with self._lock:
            self.forget(list(self._shown))
            if self._held is not None:
                self._held.close()
                self._held = None
            if self._home is not None:
                shutil.rmtree(
                    self._home, ignore_errors=True
                )  # still mapped on Windows: the next start removes it
                self._home = None
            if self._afterwards is not None:
                self._afterwards.now()
                self._afterwards = None
            with contextlib.suppress(OSError):
                self._base.rmdir()

    @property
    def names(self) -> list[str]:
        """Names of the merges that are there now."""
        return list(self._shown)

    def _remove(self, live: Live) -> None:
        if lora_code.loads_live():
            lora_code.tables().available_network_aliases.pop(live.name, None)
        del self._shown[live.name]
        with contextlib.suppress(OSError):  # still mapped on Windows: gone with the folder
            live.path.unlink()

    def _folder(self) -> Path:
        if self._home is None:
            home = self._base / f"{os.getpid()}-{secrets.token_hex(4)}"
            home.mkdir(parents=True)
            # held open and locked as long as this process lives, so that no other one sweeps the folder
            self._held = Temporary(home / "alive")
            self._home = home
            self._afterwards = Afterwards(home)
        return self._home

    def _sweep(self) -> None:
        with contextlib.suppress(OSError):
            for home in list(self._base.iterdir()):
                if not home.is_dir():
                    with contextlib.suppress(OSError):
                        home.unlink()
                    continue
                try:
                    for held in home.glob(".alive.*"):
                        remove_unheld(held)
                except OSError:
                    continue  # another WebUI of this folder is running
                shutil.rmtree(home, ignore_errors=True)


def _digest(recipe: Recipe) -> str:
    text = recipe.dumps()
    for source in recipe.leaves():
        state = _state(source)
        if state is not None:
            text += "|" + "|".join(map(str, state))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _state(source: Source) -> tuple[str, int, int] | None:
    """Return path, size and time of a source's file: while they stay, so does what is in it."""
    if source.path is None:
        return None
    try:
        state = source.path.stat()
    except OSError as error:
        message = f"{source.label} cannot be read any more: {error.strerror or error}."
        raise FileFormatError(message) from error
    return str(source.path), state.st_size, state.st_mtime_ns
