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
    gram     () -> Float64[source source], ⟨ΔWᵢ, ΔWⱼ⟩ without weights, over the scope the method declared
    """

    weights: tuple[float, ...]
    gram: Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class CoreInput:
    """Input of a core method: ΔWᵢ = P·Mᵢ·Qᵀ with orthonormal P (out × a) and Q (in × b).

    weights  wᵢ, not yet applied to the cores
    cores    Float64[source a b], Mᵢ
    """

    weights: tuple[float, ...]
    cores: Tensor
    roles: tuple[str | None, ...]
    random: Callable[[int, int], Tensor]


@dataclass(frozen=True, slots=True)
class DenseInput:
    """Input of a dense method: a band of rows of every source.

    weights    wᵢ
    deltas     Float[source rows in], wᵢ·ΔWᵢ
    threshold  (source, fraction) -> the magnitude at or below which exactly that share of the module's entries
               of wᵢ·ΔWᵢ lies; −1 for fraction 0
    random     source -> Float[rows in], uniform in [0, 1), the same for the same seed, source and module
    """

    weights: tuple[float, ...]
    deltas: Tensor
    threshold: Callable[[int, float], float]
    random: Callable[[int], Tensor]
