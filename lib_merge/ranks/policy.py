"""How many ranks a module keeps.

A policy is written as people type it: `lossless`, a number, `energy:0.99`, `error:0.01`, `budget:50MB`. It
    never asks for
more than the matrix can hold, min(out, in·kh·kw).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from lib_merge.errors import RecipeError

KINDS = ("lossless", "rank", "energy", "error", "budget", "sum")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """One rule for every module, or one size for all.

    kind    lossless | rank | energy | error | budget | sum (Σ of the sources' ranks; the default of dense
            methods)
    value   the rank, the share of energy to keep (0…1), the relative Frobenius error allowed (0…1), or the
            file's bytes
    """

    kind: str = "lossless"
    value: float = 0.0

    @property
    def text(self) -> str:
        """The policy as a person types it; `parse_policy` reads it back."""
        if self.kind == "rank":
            return str(int(self.value))
        if self.kind == "budget":
            return f"budget:{self.value / 1e6:.12g}MB"
        return self.kind if self.kind in ("lossless", "sum") else f"{self.kind}:{self.value:.12g}"

    @property
    def exact(self) -> bool:
        """True when nothing may be cut."""
        return self.kind == "lossless"

    def choose(self, singular: np.ndarray, stacked: int) -> int:
        """Return the number of ranks to keep, at least 1.

        Args:
            singular: Float[k], the singular values of ΔW, descending.
            stacked: Σ of the sources' ranks at this module.
        """
        energy = np.square(singular.astype(np.float64))
        total = float(energy.sum())
        held = int(np.count_nonzero(singular > singular[0] * 1e-12)) if total > 0 else 1
        if self.kind == "rank":
            wanted = int(self.value)
        elif self.kind == "sum":
            wanted = stacked
        elif total <= 0:
            wanted = 1
        elif self.kind in (
            "lossless",
            "budget",
        ):  # a budget is shared over the whole LoRA, and given as ranks then
            wanted = held
        else:
            # tail[k] = energy left out when k ranks are kept, summed from the small end so that no digit is
            # lost
            tail = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
            allowed = (1.0 - self.value) if self.kind == "energy" else self.value**2
            wanted = int(np.argmax(tail <= allowed * total * (1 + 1e-12)))
        return max(1, min(wanted, held))


def parse_policy(text: str | int | float | RankPolicy) -> RankPolicy:
    """Read a rank policy.

    Raises:
        RecipeError: not one of the forms, a rank below 1, or a share outside 0…1.
    """
    if isinstance(text, RankPolicy):
        return text
    word = str(text).strip().lower()
    if word in ("lossless", "sum"):
        return RankPolicy(word)
    kind, _, number = word.rpartition(":")
    size = re.fullmatch(r"([0-9.]+)\s*([kmg]?b?)", number) if kind == "budget" else None
    unit = size[2].upper() if size else ""
    factor = UNITS[unit if unit.endswith("B") or not unit else unit + "B"]
    number = size[1] if size else number
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not kind and value == int(value if math.isfinite(value) else 0) and 1 <= value <= 1 << 16:
        return RankPolicy("rank", value)
    if kind in ("energy", "error") and 0.0 < value <= 1.0 and (kind == "energy" or value < 1.0):
        return RankPolicy(kind, value)
    if size and 0 < value * factor < 1 << 50:
        return RankPolicy("budget", float(round(value * factor)))
    message = (
        f"rank {text!r} is not understood: give a whole number from 1, lossless, energy:0.99, "
        "error:0.01 or budget:50MB."
    )
    raise RecipeError(message)
