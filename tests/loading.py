"""A loader in the small: which weight a saved file changes and by how much, by a host's own table of names.

The tables are what a host's own mapping gives for its own model (`../shared/data/keys/neo_key_maps.json.gz`):
name without its end → weight, and rows of it where only these are meant.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Place = tuple[str, tuple[int, int] | None]
FRONT = "diffusion_model."


@dataclass(frozen=True)
class LoaderTable:
    """What a host loads for one model.

    names   name → (weight without diffusion_model., rows or None)
    shapes  weight → its shape
    """

    names: Mapping[str, Place]
    shapes: Mapping[str, tuple[int, ...]]


@functools.lru_cache(maxsize=1)
def tables(path: Path) -> dict[str, LoaderTable]:
    """Read the tables of a host: family → table."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return {family: _table(found) for family, found in json.load(file).items()}


def _table(found: Mapping) -> LoaderTable:
    names = {}
    for weight, spelt in found["names"].items():
        for item in spelt:
            name, cut = (item, None) if isinstance(item, str) else item
            rows = None if cut is None else (cut[1], cut[1] + cut[2])
            names[name] = (weight.removeprefix(FRONT), rows)
    return LoaderTable(names, {weight: tuple(shape) for weight, shape in found["shapes"].items()})


@dataclass
class Loaded:
    """What a loader makes of a file.

    changes  weight → (first row, up Float[out r], down Float[r in]) of each module that changes it
    unknown  names that the loader does not know
    misfits  names whose size is not that of their weight or rows
    """

    changes: dict[str, list[tuple[int, Tensor, Tensor]]]
    unknown: list[str]
    misfits: list[str]

    def norm(self, weight: str) -> float:
        """Return ‖ΔW‖_F of a weight, or of rows of it: `NAME[first:last]`."""
        name, _, rows = weight.partition("[")
        first, last = map(int, rows.removesuffix("]").split(":")) if rows else (0, 1 << 60)
        terms = [(start, *factors) for start, *factors in self.changes.get(name, ())]
        total = sum(_inner(one, other, first, last) for one in terms for other in terms)
        return max(total, 0.0) ** 0.5

    def norms(self, weights: Iterator[str]) -> dict[str, float]:
        """Return ‖ΔW‖_F of each weight asked for."""
        return {weight: self.norm(weight) for weight in weights}


def _inner(one, other, first: int, last: int) -> float:
    """Return the inner product of two changes over the rows that both have, without multiplying them out."""
    low = max(first, one[0], other[0])
    high = min(last, one[0] + one[1].shape[0], other[0] + other[1].shape[0])
    if low >= high:
        return 0.0
    left, right = (term[1][low - term[0] : high - term[0]] for term in (one, other))
    return float(((left.T @ right) * (one[2] @ other[2].T)).sum())


def load(path: Path, table: LoaderTable) -> Loaded:
    """Apply a saved file as the host of a table does: `lora_up`, `lora_down`, `alpha`, `diff`."""
    tensors = load_file(str(path))
    found = Loaded({}, [], [])
    for name in dict.fromkeys(key.rpartition(".lora_up")[0] or key.removesuffix(".diff") for key in tensors):
        if f"{name}.lora_up.weight" not in tensors and f"{name}.diff" not in tensors:
            continue
        if name not in table.names:
            found.unknown.append(name)
            continue
        weight, rows = table.names[name]
        up, down = _factors(name, tensors)
        shape = table.shapes.get(weight)
        wanted = (rows[1] - rows[0] if rows else shape[0]) if shape else up.shape[0]
        if up.shape[0] != wanted or (shape and down.shape[1] != max(1, _product(shape[1:]))):
            found.misfits.append(name)
        found.changes.setdefault(weight, []).append((rows[0] if rows else 0, up, down))
    return found


def _factors(name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if f"{name}.diff" in tensors:
        diff = tensors[f"{name}.diff"].double()
        diff = diff.flatten(1) if diff.dim() > 1 else diff[:, None]
        return diff, torch.eye(diff.shape[1], dtype=torch.float64)
    up, down = (tensors[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    alpha = tensors.get(f"{name}.alpha")
    return up * (float(alpha) / down.shape[0] if alpha is not None else 1.0), down


def _product(sides) -> int:
    result = 1
    for side in sides:
        result *= side
    return result
