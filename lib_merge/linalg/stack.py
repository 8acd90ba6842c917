"""The sources of one module side by side: stacked factors and their Gram matrices.

With `U = [U₁ | U₂ | …]`, `D = [D₁; D₂; …]` and the scales s, everything an analysis asks for is in `G_U =
(UᵀU)∘ssᵀ` and `G_D = DDᵀ`: ⟨ΔWᵢ, ΔWⱼ⟩ = Σ G_U[i,j] ∘ G_D[i,j]. Products of large modules are float32 and then
float64; where that would cost digits (factors of a bad gauge, directions far weaker than the strongest,
near-copies) they are taken again in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib_merge.errors import NumericsError
from lib_merge.linalg import tolerances
from lib_merge.linalg.delta import Delta, Dense, LowRank, Term, borrow
from lib_merge.linalg.svd import from_grams, values_from_grams
from lib_merge.linalg.truncate import AtMost, compress

# R²·(out + in) up to which float64 products cost nothing worth saving.
SMALL = 4e6
# A whole matrix up to this side is taken as it is, beside an identity; of a larger one this many directions
# are.
WHOLE_SIDE = 768
STRONGEST = 128


@dataclass(frozen=True, slots=True)
class Stack:
    """Factors and Grams of one module.

    up, down              Float[out R], Float[R in], without scales; valid until the thread's next stack
    scales                Float64[R]
    parts                 source -> its slice of R; empty where it lacks the module
    owner                 Float64[R source], 1 where a rank belongs to a source
    gram_up, gram_down    Float64[R R], scales in gram_up
    squares               Float64[R], ‖uₖ‖² without scales
    products              Float64[source source], ⟨ΔWᵢ, ΔWⱼ⟩
    """

    up: Tensor
    down: Tensor
    scales: np.ndarray
    parts: tuple[slice, ...]
    owner: np.ndarray
    gram_up: np.ndarray
    gram_down: np.ndarray
    squares: np.ndarray
    products: np.ndarray


def block_sums(matrix: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return Float64[source source], the sum of every block of a matrix Float64[R R]; see `Stack.owner`."""
    sums: np.ndarray = owner.T @ matrix @ owner
    return sums


def low_rank(delta: Delta) -> tuple[LowRank, bool]:
    """Return ΔW in factors, and whether weak directions of a large whole matrix were left out."""
    if not isinstance(delta, Dense):
        return delta, False
    if min(delta.out, delta.columns) > WHOLE_SIDE:
        done = compress(delta, AtMost(STRONGEST))
        return LowRank(delta.out, delta.columns, (Term(1.0, done.up, done.down),)), True
    if delta.out <= delta.columns:
        term = Term(delta.scale, torch.eye(delta.out), delta.matrix)
    else:
        term = Term(delta.scale, delta.matrix, torch.eye(delta.columns))
    return LowRank(delta.out, delta.columns, (term,)), False


def stack(deltas: Sequence[LowRank | None], out: int, columns: int) -> tuple[Stack, list[Basis]]:
    """Stack the sources' factors of one module, take their Grams and decompose each source.

    Args:
        deltas: ΔW per source, each out × columns; None where a source lacks the module.
        out: rows of ΔW.
        columns: columns of ΔW.
    """
    rank = sum(delta.rank for delta in deltas if delta is not None)
    first = torch.float64 if rank * rank * (out + columns) <= SMALL else torch.float32
    stacked = _stack(deltas, out, columns, first)
    bases = _bases(stacked)
    if first is torch.float32 and (_poor(stacked) or any(_weak(base) for base in bases)):
        stacked = _stack(deltas, out, columns, torch.float64)
        bases = _bases(stacked)
    return stacked, bases


def _bases(stacked: Stack) -> list[Basis]:
    return [basis(stacked.gram_up[part, part], stacked.gram_down[part, part]) for part in stacked.parts]


def _weak(base: Basis) -> bool:
    """Tell whether a direction that counts is too weak for float32 Grams."""
    count = base.left.shape[1]
    return count > 0 and bool(base.singular[count - 1] < tolerances.WEAK * base.singular[0])


def _stack(deltas: Sequence[LowRank | None], out: int, columns: int, dtype: torch.dtype) -> Stack:
    ranks = [delta.rank if delta is not None else 0 for delta in deltas]
    edges = [0, *itertools.accumulate(ranks)]
    up, down = (
        borrow("analysis up", (out, edges[-1]), dtype),
        borrow("analysis down", (edges[-1], columns), dtype),
    )
    scales = np.ones(edges[-1])
    at = 0
    for term in (term for delta in deltas if delta is not None for term in delta.terms):
        stop = at + term.rank
        up[:, at:stop], down[at:stop], scales[at:stop] = term.up, term.down, term.scale
        at = stop
    gram_up, gram_down = (up.T @ up).double().numpy(), (down @ down.T).double().numpy()
    parts = tuple(slice(start, stop) for start, stop in itertools.pairwise(edges))
    owner = np.zeros((edges[-1], len(parts)))
    for source, part in enumerate(parts):
        owner[part, source] = 1.0
    squares = gram_up.diagonal().copy()
    gram_up = gram_up * scales * scales[:, None]
    products = block_sums(gram_up * gram_down, owner)
    return Stack(
        up=up,
        down=down,
        scales=scales,
        parts=parts,
        owner=owner,
        gram_up=gram_up,
        gram_down=gram_down,
        squares=squares,
        products=products,
    )


def _poor(stacked: Stack) -> bool:
    """Tell whether float32 Grams are not good enough here."""
    energies = stacked.products.diagonal()
    for place, part in enumerate(stacked.parts):
        up, down = stacked.gram_up[part, part].ravel(), stacked.gram_down[part, part].ravel()
        if float(up @ up) * float(down @ down) > (tolerances.STACK_ILL * energies[place]) ** 2:
            return True
    for i in range(len(energies)):
        for j in range(i):
            if stacked.products[i, j] ** 2 > tolerances.CLOSE**2 * energies[i] * energies[j]:
                return True
    return False


@dataclass(frozen=True, slots=True)
class Basis:
    """The singular value decomposition of one source at one module, in coordinates of its factors.

    With stacked factors B, A of the source: U = B·left, Vᵀ = rightᵀ·A for the directions that count.

    singular  Float64[r], all singular values, descending
    left      Float64[r k]
    right     Float64[r k]
    """

    singular: np.ndarray
    left: np.ndarray
    right: np.ndarray


def basis(gram_up: np.ndarray, gram_down: np.ndarray) -> Basis:
    """Decompose one source from its Grams: LLᵀ = G_U, LᵀG_D L = V·S²·Vᵀ, right = L·V/S, left = G_D·L·V/S².

    Args:
        gram_up: Float64[r r], scales included.
        gram_down: Float64[r r].
    Raises:
        NumericsError: the Grams hold NaN or infinity.
    """
    if not len(gram_up):
        return Basis(np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0)))
    down = torch.from_numpy(gram_down)
    decomposed = from_grams(torch.from_numpy(gram_up), down)
    if decomposed is None:
        message = "a delta holds NaN or infinity"
        raise NumericsError(message)
    singular = decomposed.singular
    count = int(np.count_nonzero(singular > tolerances.DIRECTION * singular[0])) if singular[0] > 0 else 0
    directions = decomposed.basis(count)
    left = (down @ directions) / decomposed.squares[:count]
    return Basis(singular, left.numpy(), directions.numpy() / singular[:count])


def singular_values(gram_up: np.ndarray, gram_down: np.ndarray) -> np.ndarray:
    """Return Float64[R], descending: the singular values of the sum that these Grams describe."""
    if not len(gram_up):
        return np.zeros(0)
    values: np.ndarray = values_from_grams(torch.from_numpy(gram_up), torch.from_numpy(gram_down)).numpy()
    return values
