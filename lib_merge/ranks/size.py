"""How large a merge will be: one estimate, asked by the tab, the analysis and the merge itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

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
    """

    modules: Mapping[str, SavedModule]
    room: int
    start: int
    copied: int
    width: int
    fixed: int
    most: int | None = None
    emptied: int = 0

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
