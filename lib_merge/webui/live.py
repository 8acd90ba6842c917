"""Merges that are seen before they are saved: files outside the LoRA folders that the WebUI loads like any LoRA.

Each is named after its recipe and its sources' files, so that nothing is merged twice; they are removed when the work is
done, and whatever a crash left behind is removed at the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lib_merge.api import run_recipe
from lib_merge.engine.job import Job
from lib_merge.recipe import Recipe
from lib_merge.webui.caches import forget_loras

PREFIX = "lora-merge-live-"


class LiveMerges:
    """The live files of one process."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, emptied now of what an earlier process may have left."""
        self._folder = folder
        self._shown: dict[str, Path] = {}
        self.clear()

    def make(self, recipe: Recipe, device: torch.device | str = "cpu", **options: Any) -> str:  # noqa: ANN401
        """Merge `recipe` unless it is there already, and return the name for `<lora:NAME:1>`.

        Args:
            recipe: with paths.
            device: where large products run.
            options: progress and cancelled of `Job`.
        Raises:
            MergeError: nothing is shown then.
        """
        name = PREFIX + _digest(recipe)
        path = self._folder / f"{name}.safetensors"
        if not path.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            job = Job(device=device, drop_unsupported=True, side_car=False, overwrite=True, **options)
            run_recipe(recipe, path, job=job)
        self._shown[name] = path
        return name

    def show(self) -> None:
        """Let the WebUI find them by name; asked again before every picture, since a refresh of its list forgets them."""
        networks, kind = _networks()
        if networks is None:
            return
        for name, path in self._shown.items():
            if name not in networks.available_networks:
                entry = kind(name, str(path))
                entry.alias = name
                networks.available_networks[name] = entry
            networks.available_network_aliases[name] = networks.available_networks[name]

    def clear(self) -> None:
        """Take them out of the WebUI's list and off the disk."""
        networks, _ = _networks()
        for name in self._shown:
            if networks is not None:
                networks.available_networks.pop(name, None)
                networks.available_network_aliases.pop(name, None)
        if self._shown:
            forget_loras()  # loaded weights are views of the files
        self._shown.clear()
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"*{PREFIX}*"):
                with contextlib.suppress(OSError):  # still mapped on Windows: the next start removes it
                    path.unlink()


def _digest(recipe: Recipe) -> str:
    text = recipe.dumps()
    for path in _paths(recipe):
        state = path.stat()
        text += f"|{path}|{state.st_size}|{state.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _paths(recipe: Recipe) -> Iterable[Path]:
    for source in recipe.sources:
        if source.recipe is not None:
            yield from _paths(source.recipe)
        elif source.path is not None:
            yield source.path


def _networks() -> tuple[Any, Any]:
    """Return the WebUI's `networks` module and its class of a LoRA on disk; (None, None) outside a WebUI."""
    try:
        import network
        import networks
    except ImportError:
        return None, None
    return networks, network.NetworkOnDisk
