"""What a merge method is given, by space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScalarInput:
    """Input of a scalar method.

    weights  wᵢ = ratio × block weight of source i here
    ratios   the sources' ratios, without block weights
    gram     () -> Float64[source source], ⟨wᵢΔWᵢ, wⱼΔWⱼ⟩ over the scope the method declared (module or whole recipe)
    """

    weights: tuple[float, ...]
    ratios: tuple[float, ...]
    gram: Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class CoreInput:
    """Input of a core method: τᵢ = wᵢΔWᵢ = P·Mᵢ·Qᵀ.

    P (out × a) and Q (in × b) are the singular bases of the stacked deltas, [τ₁ | τ₂ | …] and [τ₁; τ₂; …]; they depend on
    the deltas alone, up to signs, not on how these are factored; a method must not care for the signs.

    weights  wᵢ; already part of the cores
    cores    Float64[source a b], Mᵢ
    rows     () -> Float64[b in], Qᵀ
    roles    what the user called each source
    random   (source, count) -> Float64[count], uniform in [0, 1), the same for the same seed, source and module
    """

    weights: tuple[float, ...]
    cores: Tensor
    rows: Callable[[], Tensor]
    roles: tuple[str | None, ...]
    random: Callable[[int, int], Tensor]


@dataclass(frozen=True, slots=True)
class DenseInput:
    """Input of a dense method: a band of rows of every source.

    weights    wᵢ
    deltas     Float[source rows in], wᵢ·ΔWᵢ
    threshold  (source, fraction) -> the magnitude at or below which exactly that share of the module's entries
               of wᵢ·ΔWᵢ lies; −1 for fraction 0
    largest    (source, fraction) -> the magnitude at or above which exactly that share lies; infinity for none
    selection  share -> (least variance between sources among the top ⌈share·N⌉ entries of the module, and every source's
               share ηᵢ of Σ τᵢ² over those entries)
    random     source -> Float[rows in], uniform in [0, 1), the same for the same seed, source and module
    """

    weights: tuple[float, ...]
    deltas: Tensor
    threshold: Callable[[int, float], float]
    largest: Callable[[int, float], float]
    selection: Callable[[float], tuple[float, list[float]]]
    random: Callable[[int], Tensor]
