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

from tests.reference import kinds

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

    changes  weight → (first row, up Float[out r], down Float[r in]) of each module that changes it; a change that is
             written out has itself for up, and None for down
    unknown  names that the loader does not know
    misfits  names whose size is not that of their weight or rows
    """

    changes: dict[str, list[tuple[int, Tensor, Tensor | None]]]
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
    if one[2] is None or other[2] is None:
        left, right = (up if down is None else up @ down for up, down in ((left, one[2]), (right, other[2])))
        return float((left * right).sum())
    return float(((left.T @ right) * (one[2] @ other[2].T)).sum())


def apart(one: Loaded, other: Loaded) -> float:
    """Return ‖(ΔW − ΔW')·X‖ ÷ ‖ΔW·X‖ of two files as they are loaded, over all weights, X random."""
    squares = whole = 0.0
    for weight in sorted({*one.changes, *other.changes}):
        before, after = (_sketch(file.changes.get(weight, ())) for file in (one, other))
        rows = max(before.shape[0], after.shape[0])
        difference = torch.zeros(rows, 8, dtype=torch.float64)
        difference[: before.shape[0]] += before
        difference[: after.shape[0]] -= after
        squares += float(difference.square().sum())
        whole += float(before.square().sum())
    return (squares / whole) ** 0.5


def _sketch(terms) -> Tensor:
    """Return ΔW·X, Float64[rows 8]."""
    if not terms:
        return torch.zeros(0, 8, dtype=torch.float64)
    columns = _columns(*terms[0][1:])
    probe = torch.randn(columns, 8, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    result = torch.zeros(max(first + up.shape[0] for first, up, _ in terms), 8, dtype=torch.float64)
    for first, up, down in terms:
        result[first : first + up.shape[0]] += up @ (probe if down is None else down @ probe)
    return result


def _columns(up: Tensor, down: Tensor | None) -> int:
    return (up if down is None else down).shape[1]


# ends of keys, kohya's and PEFT's, and what they are of a module
_ENDS = {
    **{f"lora_{side}.weight": f"lora_{side}" for side in ("up", "down")},
    "lora_B.weight": "lora_up",
    "lora_A.weight": "lora_down",
    **{role: role for role in ("alpha", "diff")},
    **{f"hada_w{n}_{side}": f"hada_w{n}_{side}" for n in "12" for side in "ab"},
    **{f"lokr_w{n}{side}": f"lokr_w{n}{side}" for n in "12" for side in ("", "_a", "_b")},
}


def modules_of(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read a file: name of a module → role → tensor."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(str(path)).items():
        for end, role in _ENDS.items():
            if key.endswith(f".{end}"):
                modules.setdefault(key.removesuffix(f".{end}"), {})[role] = value
    return modules


def load(path: Path, table: LoaderTable) -> Loaded:
    """Apply a saved file as the host of a table does: LoRA, LoHa, LoKr and `diff`."""
    found = Loaded({}, [], [])
    for name, tensors in modules_of(path).items():
        if set(tensors) == {"alpha"}:
            continue
        if name not in table.names:
            found.unknown.append(name)
            continue
        weight, rows = table.names[name]
        up, down = _factors(tensors)
        shape = table.shapes.get(weight)
        wanted = (rows[1] - rows[0] if rows else shape[0]) if shape else up.shape[0]
        if up.shape[0] != wanted or (shape and _columns(up, down) != max(1, _product(shape[1:]))):
            found.misfits.append(name)
        found.changes.setdefault(weight, []).append((rows[0] if rows else 0, up, down))
    return found


def _factors(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    if "lora_up" in tensors:
        up, down = (tensors[f"lora_{side}"].double().flatten(1) for side in ("up", "down"))
        return up * (alpha / down.shape[0] if alpha is not None else 1.0), down
    if "diff" in tensors:
        whole = tensors["diff"].double()
        whole = whole.flatten(1) if whole.dim() > 1 else whole[:, None]
    else:
        plain = {role: value.double().numpy() for role, value in tensors.items() if role != "alpha"}
        whole = torch.from_numpy((kinds.loha if "hada_w1_a" in plain else kinds.lokr)(plain, alpha))
    return whole, None


def _product(sides) -> int:
    result = 1
    for side in sides:
        result *= side
    return result
