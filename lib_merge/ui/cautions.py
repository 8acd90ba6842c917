"""What the headers of the sources warn of before anything is merged: plain sentences, in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_merge.adapters.source import LoraFile
from lib_merge.analysis.bench import file_info
from lib_merge.analysis.training import training
from lib_merge.engine.plan import Leaf
from lib_merge.families.blocks import encoder_of

EDGE = 1 << 16
# a ratio between two sources from which a merge gets hard to predict
APART: Mapping[str, float] = {
    "rank": 8.0,
    "learning rate": 10.0,
    "training steps": 20.0,
    "strength (alpha / rank)": 8.0,
}


@dataclass(frozen=True, slots=True)
class Named:
    """A source as the tab shows it: its letter and its place in the planned tree."""

    letter: str
    leaf: Leaf

    @property
    def file(self) -> LoraFile:
        """The opened, settled file."""
        return self.leaf.file

    @property
    def label(self) -> str:
        """Letter and name, for sentences."""
        return f"{self.letter} ({self.file.path.stem})"


def cautions(sources: Sequence[Named]) -> list[str]:
    """Return what may spoil a merge of these sources.

    Args:
        sources: opened and settled, in the tab's order.
    """
    first: dict[Path, Named] = {}
    for source in sources:
        first.setdefault(source.file.path, source)
    once = list(first.values())
    return [*_same_file(sources), *_mixed(once), *_encoders(once), *_apart(once)]


def _same_file(sources: Sequence[Named]) -> list[str]:
    """Name copies: the same path more than once, or two files whose size, header and edges are alike."""
    rows: dict[Path, list[Named]] = {}
    for source in sources:
        rows.setdefault(source.file.path, []).append(source)
    found = [
        f"{_and([one.letter for one in same])} are the same file: their ratios add up"
        for same in rows.values()
        if len(same) > 1
    ]
    once = [same[0] for same in rows.values()]
    for index, one in enumerate(once):
        for other in once[:index]:
            if _alike(one.file, other.file):
                found.append(
                    f"{other.label} and {one.label} are copies of the same file: their ratios add up"
                )
    return found


def _alike(one: LoraFile, other: LoraFile) -> bool:
    if one.size != other.size:
        return False
    names = ("sshs_model_hash", "modelspec.hash_sha256")
    hashes = [(one.metadata.get(name), other.metadata.get(name)) for name in names]
    if any(a and b and a != b for a, b in hashes):
        return False
    return _edges(one) == _edges(other)


def _edges(file: LoraFile) -> bytes:
    """Return the last bytes of a file: of the same length and layout, only copies end alike."""
    try:
        with file.path.open("rb") as handle:
            handle.seek(max(0, file.size - EDGE))
            return handle.read(EDGE)
    except OSError:
        return file.path.as_posix().encode()


def _mixed(sources: Sequence[Named]) -> list[str]:
    """Return what the analysis says of other lines of models and of v-prediction."""
    files = [file_info(source.leaf, source.label) for source in sources]
    return list(training(files, [(0, 0)] * len(files)).warnings)


def _encoders(sources: Sequence[Named]) -> list[str]:
    has = {s.letter: any(encoder_of(name, s.file.family or "") for name in s.file.modules) for s in sources}
    with_, without = [name for name in has if has[name]], [name for name in has if not has[name]]
    if not with_ or not without:
        return []
    return [
        f"{_and(with_)} {'has' if len(with_) == 1 else 'have'} text-encoder weights, {_and(without)} "
        f"{'has' if len(without) == 1 else 'have'} none: trigger words may answer unevenly"
    ]


def _apart(sources: Sequence[Named]) -> list[str]:
    found = []
    for what, read in _MEASURES.items():
        values = [(value, s.letter) for s in sources if (value := read(s.file)) is not None and value > 0]
        if len(values) < 2:
            continue
        (low, one), (high, other) = min(values), max(values)
        if high >= APART[what] * low:
            found.append(f"trained very differently: {what} {high:g} in {other}, {low:g} in {one}")
    return found


def _rank(file: LoraFile) -> float | None:
    ranks = sorted(module.layout.rank for module in file.modules.values() if module.layout.rank)
    return float(ranks[len(ranks) // 2]) if ranks else None


def _said(*names: str) -> Callable[[LoraFile], float | None]:
    def read(file: LoraFile) -> float | None:
        for name in names:
            try:
                value = float(file.metadata[name])
            except (KeyError, ValueError):
                continue
            if math.isfinite(value):
                return value
        return None

    return read


def _strength(file: LoraFile) -> float | None:
    alpha, rank = _said("ss_network_alpha")(file), _said("ss_network_dim")(file)
    return alpha / rank if alpha and rank else None


_MEASURES: Mapping[str, Callable[[LoraFile], float | None]] = {
    "rank": _rank,
    "strength (alpha / rank)": _strength,
    "learning rate": _said("ss_unet_lr", "ss_learning_rate"),
    "training steps": _said("ss_steps", "ss_max_train_steps"),
}


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
