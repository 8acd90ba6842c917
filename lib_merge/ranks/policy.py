"""How many ranks a module keeps, and how large that makes the file.

A policy is written as people type it: `lossless`, a number, `energy:0.99`, `error:0.01`, `budget:50MB`. It
never asks for more than the matrix can hold, min(out, in·kh·kw). The size of a file is estimated here and
nowhere else; the tab, the analysis and the merge itself ask.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from lib_merge.errors import RecipeError
from lib_merge.linalg import tolerances
from lib_merge.linalg.svd import numerical_rank, tails

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class PolicyKind(str, Enum):
    """What decides how many ranks a module keeps."""

    LOSSLESS = "lossless"
    RANK = "rank"
    ENERGY = "energy"
    ERROR = "error"
    BUDGET = "budget"
    SUM = "sum"  # Σ of the sources' ranks; the default of dense methods

    def __str__(self) -> str:
        """Return the word, in every version of Python."""
        return str(self.value)


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """One rule for every module, or one size for all; a `RankRule` of `linalg`.

    kind    what decides
    value   the rank, the share of energy to keep (0…1), the relative Frobenius error allowed (0…1), or the
            file's bytes
    """

    kind: PolicyKind = PolicyKind.LOSSLESS
    value: float = 0.0

    def __post_init__(self) -> None:
        """Take the kind as its word, too: scripts write RankPolicy("rank", 16)."""
        if self.kind not in tuple(PolicyKind):
            message = f"there is no rank policy {self.kind!r}; there are {', '.join(PolicyKind)}."
            raise RecipeError(message)
        object.__setattr__(self, "kind", PolicyKind(self.kind))

    @property
    def text(self) -> str:
        """The policy as a person types it; `parse_policy` reads it back."""
        if self.kind is PolicyKind.RANK:
            return str(int(self.value))
        if self.kind is PolicyKind.BUDGET:
            return f"budget:{self.value / 1e6:.12g}MB"
        word = str(self.kind)
        return word if self.kind in (PolicyKind.LOSSLESS, PolicyKind.SUM) else f"{word}:{self.value:.12g}"

    @property
    def words(self) -> str:
        """The policy in a sentence: `rank 8`, `a file of 50 MB`."""
        if self.kind is PolicyKind.RANK:
            return f"rank {int(self.value)}"
        if self.kind is PolicyKind.ENERGY:
            return f"{100 * self.value:.12g}% of every module"
        if self.kind is PolicyKind.ERROR:
            return f"an error of {100 * self.value:.12g}% in every module"
        if self.kind is PolicyKind.BUDGET:
            return f"a file of {self.value / 1e6:.12g} MB"
        return "the sum of the sources' ranks" if self.kind is PolicyKind.SUM else "lossless"

    @property
    def exact(self) -> bool:
        """True when nothing may be cut."""
        return self.kind is PolicyKind.LOSSLESS

    @property
    def fixed(self) -> int | None:
        """The rank that is asked for whatever the singular values; None where they decide."""
        return int(self.value) if self.kind is PolicyKind.RANK else None

    def choose(self, singular: np.ndarray, stacked: int) -> int:
        """Return the number of ranks to keep, at least 1.

        Args:
            singular: Float[k], the singular values of ΔW, descending.
            stacked: Σ of the sources' ranks at this module.
        """
        energy = np.square(singular.astype(np.float64))
        total = float(energy.sum())
        most = numerical_rank(singular)
        if self.kind is PolicyKind.RANK:
            target = int(self.value)
        elif self.kind is PolicyKind.SUM:
            target = stacked
        elif self.kind in (PolicyKind.ENERGY, PolicyKind.ERROR) and total > 0:
            # tail[k] = energy left out when k ranks are kept, summed from the small end so that no digit is
            # lost
            tail = tails(energy)
            allowed = (1.0 - self.value) if self.kind is PolicyKind.ENERGY else self.value**2
            target = int(np.argmax(tail <= allowed * total * (1 + tolerances.SHARE_SLACK)))
        else:  # a budget is shared over the whole LoRA, and given as ranks then
            target = most
        return max(1, min(target, most))


def parse_policy(text: str | int | float | RankPolicy) -> RankPolicy:
    """Read a rank policy.

    Raises:
        RecipeError: not one of the forms, a rank below 1, or a share outside 0…1.
    """
    if isinstance(text, RankPolicy):
        return text
    word = str(text).strip().lower()
    if word in (PolicyKind.LOSSLESS, PolicyKind.SUM):
        return RankPolicy(PolicyKind(word))
    kind, _, number = word.rpartition(":")
    size = re.fullmatch(r"([0-9.]+)\s*([kmg]?b?)", number) if kind == PolicyKind.BUDGET else None
    unit = size[2].upper() if size else ""
    factor = UNITS[unit if unit.endswith("B") or not unit else unit + "B"]
    number = size[1] if size else number
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not kind and value == int(value if math.isfinite(value) else 0) and 1 <= value <= 1 << 16:
        return RankPolicy(PolicyKind.RANK, value)
    if kind == PolicyKind.ENERGY and 0.0 < value <= 1.0:
        return RankPolicy(PolicyKind.ENERGY, value)
    if kind == PolicyKind.ERROR and 0.0 < value < 1.0:
        return RankPolicy(PolicyKind.ERROR, value)
    if size and 0 < value * factor < 1 << 50:
        return RankPolicy(PolicyKind.BUDGET, float(round(value * factor)))
    message = (
        f"rank {text!r} is not understood: give a whole number from 1, lossless, energy:0.99, "
        "error:0.01 or budget:50MB."
    )
    raise RecipeError(message)


# ---------------------------------------------------------------- the size of the file

# bytes of a number
WIDTHS: Mapping[str, int] = {"fp16": 2, "bf16": 2, "float": 4}


@dataclass(frozen=True, slots=True)
class SavedModule:
    """One module as it will be saved.

    out, columns  size of ΔW, in·kh·kw columns
    rank          ranks of its factors, or at most that many; 0 where it has none
    whole         saved as a whole matrix, or with a rank perhaps as one
    vectors       numbers of its biases and norm weights
    exact         False where only the numbers themselves can tell: it may get smaller, never larger
    cut           a rank policy may take something away
    filler        zeros that a loader wants to be there
    """

    out: int
    columns: int
    rank: int = 0
    whole: bool = False
    vectors: int = 0
    exact: bool = True
    cut: bool = False
    filler: bool = False

    @property
    def price(self) -> int:
        """Numbers of one rank: out + in·kh·kw."""
        return self.out + self.columns

    @property
    def numbers(self) -> int:
        """Numbers saved: both factors and an alpha, or the matrix, and the vectors."""
        factors = 1 + self.rank * self.price if self.rank else 0
        return max(factors, self.out * self.columns if self.whole else 0) + self.vectors


@dataclass(frozen=True, slots=True)
class SizeEstimate:
    """A file before it is written.

    modules   name -> as it will be saved
    room      bytes kept for the header
    start     bytes before the first tensor
    copied    numbers of tensors that are no module's
    width     bytes of a number
    fixed     bytes that are no factors, should every module be kept
    most      bytes that the file will not exceed, where there is a budget
    emptied   modules that weigh nothing in any source
    cancelled  modules whose sources cancel each other, of which no ΔW is saved
    """

    modules: Mapping[str, SavedModule]
    room: int
    start: int
    copied: int
    width: int
    fixed: int
    most: int | None = None
    emptied: int = 0
    cancelled: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the file; at most that where it is not `exact`."""
        numbers = self.copied + sum(module.numbers for module in self.modules.values())
        size = self.start + numbers * self.width
        return size if self.most is None else min(size, self.most)

    @property
    def rank(self) -> tuple[int, int]:
        """(Least, greatest) rank of the modules that have one, but for fillers."""
        ranks = [module.rank for module in self.modules.values() if module.rank and not module.filler]
        return min(ranks, default=0), max(ranks, default=0)

    @property
    def exact(self) -> bool:
        """True where ranks and bytes are what will be saved, not only bounds."""
        return self.most is None and all(module.exact for module in self.modules.values())

    @property
    def nothing(self) -> bool:
        """True where no module is left, and nothing else is copied either."""
        return not self.copied and all(module.filler for module in self.modules.values())

    @property
    def cut(self) -> bool:
        """True where a rank policy, pruning or a budget may take something away."""
        return self.most is not None or any(module.cut for module in self.modules.values())

    def at(self, ranks: Mapping[str, int]) -> SizeEstimate:
        """Return the estimate with these ranks, where the numbers were looked at; 0 leaves a module out."""
        modules = {
            name: replace(module, rank=ranks[name], whole=False, exact=True) if name in ranks else module
            for name, module in self.modules.items()
            if ranks.get(name, 1)
        }
        return replace(self, modules=modules, most=None)

    def fillers(self, names: Sequence[str]) -> np.ndarray:
        """Return Bool[module], which of these modules are zeros that a loader wants."""
        known = [self.modules.get(name) for name in names]
        return np.array([module is not None and module.filler for module in known], dtype=bool)

    def prices(self, names: Sequence[str]) -> np.ndarray:
        """Return Int[module], bytes of one rank of these modules; 0 of one that weighs nothing anywhere."""
        known = [self.modules.get(name) for name in names]
        return np.array([module.price * self.width if module else 0 for module in known], dtype=int)

    def bytes_at(self, names: Sequence[str]) -> Callable[[np.ndarray], int]:
        """Return a function from these modules' ranks, Int[module], to the size of the file; see `at`."""
        prices = self.prices(names)
        rest = self.at(dict.fromkeys(names, 0)).bytes
        known = [self.modules.get(name) for name in names]
        besides = np.array([1 + module.vectors if module else 0 for module in known], dtype=int) * self.width

        def size(ranks: np.ndarray) -> int:
            return rest + int(ranks @ prices) + int(besides[ranks > 0].sum())

        return size
