"""What a merge method is given, by space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lib_merge.linalg.svd import Triplets


@dataclass(frozen=True, slots=True)
class ScalarInput:
    """Input of a scalar method.

    weights  wᵢ = ratio × block weight of source i here
    ratios   the sources' ratios, without block weights
    gram     () -> Float64[source source], ⟨wᵢΔWᵢ, wⱼΔWⱼ⟩ over the scope the method declared (module or whole
             recipe)
    """

    weights: tuple[float, ...]
    ratios: tuple[float, ...]
    gram: Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class CoreInput:
    """Input of a core method: τᵢ = wᵢΔWᵢ = P·Mᵢ·Qᵀ.

    P (out × a) and Q (in × b) are orthonormal bases of the stacked deltas, [τ₁ | τ₂ | …] and [τ₁; τ₂; …]:
    any, so that a
    method must not depend on the choice; the singular ones, unique up to signs, where it declares so with
    `bases`.

    weights  wᵢ; already part of the cores
    cores    Float64[source a b], Mᵢ
    svd      source -> (U [a r], S [r], Vᵀ [r b]) of Mᵢ, without empty directions
    roles    what the user called each source
    random   (source, count) -> Float64[count], uniform in [0, 1), the same for the same seed, source and
             module
    """

    weights: tuple[float, ...]
    cores: Tensor
    svd: Callable[[int], Triplets]
    roles: tuple[str | None, ...]
    random: Callable[[int, int], Tensor]


@dataclass(frozen=True, slots=True)
class RowInput:
    """Input of a core method that acts on rows: Pᵀτᵢ with τᵢ = wᵢΔWᵢ and P as in `CoreInput`.

    weights  wᵢ; already part of the rows
    rows     source -> Float32[a in], Pᵀτᵢ
    bound    (source, its rows, share) -> the magnitude at or below which exactly that share of its entries
             lies; −1 for none
    random   (source, count) -> Float32[count], otherwise as in `CoreInput`
    """

    weights: tuple[float, ...]
    rows: Callable[[int], Tensor]
    bound: Callable[[int, Tensor, float], float]
    random: Callable[[int, int], Tensor]


@dataclass(frozen=True, slots=True)
class ColumnInput:
    """Input of a core method that only weighs inputs: how τᵢ = wᵢΔWᵢ agree on each of them.

    weights   wᵢ; already part of the products
    products  Float64[source source in], ⟨τᵢeⱼ, τₖeⱼ⟩
    """

    weights: tuple[float, ...]
    products: Tensor


@dataclass(frozen=True, slots=True)
class DenseInput:
    """Input of a dense method: a band of rows of every source.

    weights    wᵢ
    deltas     Float[source rows in], wᵢ·ΔWᵢ
    threshold  (source, fraction) -> the magnitude at or below which exactly that share of the module's
               entries of wᵢ·ΔWᵢ lies; −1 for fraction 0
    largest    (source, fraction) -> the magnitude at or above which exactly that share lies; infinity for
               none
    selection  share -> (least variance between sources among the top ⌈share·N⌉ entries of the module, and
               every source's share ηᵢ of Σ τᵢ² over those entries)
    random     source -> Float[rows in], uniform in [0, 1), the same for the same seed, source and module
    """

    weights: tuple[float, ...]
    deltas: Tensor
    threshold: Callable[[int, float], float]
    largest: Callable[[int, float], float]
    selection: Callable[[float], tuple[float, list[float]]]
    random: Callable[[int], Tensor]
