"""What is in a LoRA file, for people and for the tab; norms and energies, measured in a thread of their
own.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from lib_merge import metadata
from lib_merge.adapters import LoraFile, open_lora
from lib_merge.analysis.recognition import recognised
from lib_merge.errors import MergeError, OutputError
from lib_merge.families import block_of, blocks_present, encoder_of
from lib_merge.loaders import sentence, verdicts, why, written_in

log = logging.getLogger("lib_merge")
MOST_TAGS = 24
# of what `Energies` keeps of `inspect_file`
VERSION = 3
MOST_FILES = 4000
_MEASURED = (
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


def inspect_file(path: Path, family: str | None = None) -> dict[str, Any]:
    """Return family, kinds, what it is besides, ranks, alpha, dtype, blocks present, norms, tags and recipe
    of a file, JSON-ready.

    Modules that hold NaN or infinity are listed as broken and count in no norm.

    Raises:
        MergeError: damaged or not a LoRA.
    """
    with open_lora(path, family) as file:
        shown = file
        if file.family is None:
            shown = file.settled(file.guess.candidates[0], drop_unsupported=True)
        return {
            "file": path.name,
            "family": file.family,
            "candidates": list(file.guess.candidates),
            "reason": file.guess.reason,
            "style": file.parsed.style,
            "bytes": file.size,
            **_modules(shown),
            **_loaders(shown),
            "marks": [asdict(mark) for mark in recognised(file)],
            "embeddings": list(file.parsed.embeddings),
            "left_out": dict(Counter(shown.left_out.values())),
            "tags": common_tags(file.metadata, MOST_TAGS),
            "notes": list(file.parsed.notes),
            "recipe": _recipe(file),
            "metadata_keys": len(file.metadata),
        }


def _loaders(file: LoraFile) -> dict[str, Any]:
    """Return who loads how much of the file, as figures and in words."""
    checked = verdicts(written_in(file))
    return {
        "loads_in": {one.host: one.to_json() for one in checked},
        "loads_in_words": sentence(checked),
        "loads_in_why": why(checked),
    }


def _modules(file: LoraFile) -> dict[str, Any]:
    family = file.family or ""
    ranks = [module.layout.rank for module in file.modules.values() if module.layout.rank]
    squares: dict[str, float] = {}
    encoders: dict[str, dict[str, float]] = {}  # of each block's part in each text encoder
    broken: list[str] = []
    for name, module in file.modules.items():
        size = module.norm(file.file)
        if not math.isfinite(size):
            broken.append(name)
        elif module.layout.columns:
            block, encoder = block_of(name, family), encoder_of(name)
            squares[block] = squares.get(block, 0.0) + size**2
            if encoder:
                parts = encoders.setdefault(block, {})
                parts[str(encoder)] = parts.get(str(encoder), 0.0) + size**2
    total = sum(squares.values())
    present = blocks_present(file.modules, family)
    dtypes = Counter(info.dtype for info in file.file.tensors.values())
    return {
        "modules": len(file.modules),
        "kinds": dict(Counter(module.layout.kind for module in file.modules.values())),
        "rank": {"min": min(ranks, default=0), "max": max(ranks, default=0)},
        "alpha": _alpha(file),
        "dtype": dtypes.most_common(1)[0][0] if dtypes else "",
        "blocks": list(present),
        "norm": total**0.5,
        "broken": broken,
        "block_energy": {block: squares.get(block, 0.0) / (total or 1.0) for block in present},
        "encoder_energy": {
            block: {encoder: square / (total or 1.0) for encoder, square in parts.items()}
            for block, parts in encoders.items()
        },
    }


def _alpha(file: LoraFile) -> float | str:
    """Return the file's alpha, or in words where it stands or that it differs."""
    alphas = {float(file.file.read(m.roles["alpha"])) for m in file.modules.values() if "alpha" in m.roles}
    if not alphas:
        return (file.config.alpha if file.config else "") or "= rank"
    alpha = alphas.pop()
    return "differs" if alphas or not math.isfinite(alpha) else alpha


def common_tags(header: Mapping[str, str], most: int) -> list[str]:
    """Return the training tags of a file that occur most often.

    Args:
        header: its metadata.
        most: how many.
    """
    counts: Counter[str] = Counter()
    for tags in metadata.read_tags(header).values():
        for tag, count in tags.items():
            counts[tag.strip()] += count
    return [tag for tag, _ in counts.most_common(most)]


def _recipe(file: LoraFile) -> Any:  # noqa: ANN401
    text = metadata.recipe_of(file.metadata)
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# -------------------------------------------------------------------------------------------- remembered


class FactCache(Protocol):
    """Remembers what was read or measured of files between two starts."""

    def load(self) -> dict[str, tuple[int, int, dict[str, Any]]]:
        """Return size, time (ns) and facts of every file, by path."""
        ...

    def get(self, path: Path, size: int, mtime_ns: int) -> dict[str, Any] | None:
        """Return the facts of a file; None where there are none, or it has changed since."""
        ...

    def put(self, files: Mapping[str, tuple[int, int, dict[str, Any]]], gone: Iterable[str] = ()) -> None:
        """Remember facts of files, and forget those of others; OutputError where that cannot be."""
        ...


class Energies:
    """Norm and energy by block of LoRAs; a file that changes is measured again."""

    def __init__(self, cache: FactCache) -> None:
        """Remember in `cache` what was measured."""
        self._cache = cache
        self._measured: dict[tuple[str, int, int], dict[str, Any]] = {}
        self._waiting: set[tuple[str, int, int]] = set()
        self._unsaved: dict[str, tuple[int, int, dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="lora-merge-energies")

    def get(self, path: Path) -> dict[str, Any] | None:
        """Return norm, block_energy and more of `inspect_file`, or a `problem`; None while it is measured."""
        state = path.stat()
        stamp = (str(path), state.st_size, state.st_mtime_ns)
        with self._lock:
            if stamp in self._measured or stamp in self._waiting:
                return self._measured.get(stamp)
        facts = self._cache.get(path, state.st_size, state.st_mtime_ns)
        with self._lock:
            if facts is not None and set(_MEASURED) <= set(facts) and isinstance(facts["block_energy"], dict):
                self._measured[stamp] = facts
            elif stamp not in self._waiting:
                self._waiting.add(stamp)
                self._reader.submit(self._measure, path, stamp)
            return self._measured.get(stamp)

    def _measure(self, path: Path, stamp: tuple[str, int, int]) -> None:
        try:
            whole = inspect_file(path)
            facts = {name: whole[name] for name in _MEASURED}
            self._unsaved[stamp[0]] = (stamp[1], stamp[2], facts)
        except (MergeError, OSError) as error:
            facts = {"problem": str(error)}
        except Exception:  # one odd file must not end the thread that measures all of them
            log.exception("%a could not be measured", path.name)
            facts = {"problem": f"{ascii(path.name)[1:-1]} could not be measured."}
        with self._lock:
            self._measured[stamp] = facts
            self._waiting.discard(stamp)
            done = not self._waiting
        if done:  # one writing for all that were asked for at once
            try:
                self._cache.put(self._unsaved)
                self._unsaved = {}
            except OutputError as error:
                log.warning("what was measured could not be kept: %s", error)
