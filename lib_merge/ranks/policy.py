"""How many ranks a module keeps.

A policy is written as people type it: `lossless`, a number, `energy:0.99`, `error:0.01`, `budget:50MB`. It
    never asks for
more than the matrix can hold, min(out, in·kh·kw).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
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
