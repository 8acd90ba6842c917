"""Dense methods in bands of rows: exact thresholds, keyed masks, one module's matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib_merge.deltas import Delta, LowRank, scaled
from lib_merge.methods import DenseInput

if TYPE_CHECKING:
    from lib_merge.engine.plan import Node

# Entries per band: large enough for BLAS, small enough that a few float32 bands stay in cache-sized memory.
BAND = 1 << 20


def combine_tiles(
    node: Node,
    weights: Sequence[float],
    deltas: Sequence[Delta],
    generator: Callable[[int, int], torch.Generator],
    device: torch.device,
) -> Tensor:
    """Apply the node's dense method to one module.

    Args:
        node: gives method and settings.
        weights: wᵢ.
        deltas: ΔWᵢ, unweighted.
        generator: (source, band) -> generator of that band's mask.
        device: where bands are computed.
    Returns:
        Float[out in], float32, on the CPU.
    """
    bands = [_Banded(scaled(delta, weight), device) for delta, weight in zip(deltas, weights)]
    out, columns = bands[0].out, bands[0].columns
    result = torch.empty((out, columns), dtype=torch.float32)
    height = max(1, BAND // max(columns, 1))
    cache: dict[tuple[int, float], float] = {}

    def threshold(source: int, fraction: float) -> float:
        key = (source, fraction)
        if key not in cache:
            cache[key] = bands[source].magnitude(fraction, height)
        return cache[key]

    for band, start in enumerate(range(0, out, height)):
        rows = slice(start, min(start + height, out))
        tile = torch.stack([delta.rows(rows) for delta in bands])

        def uniform(source: int, band: int = band, shape: torch.Size = tile.shape[1:]) -> Tensor:
            return torch.rand(shape, generator=generator(source, band)).to(device)

        given = DenseInput(tuple(weights), tile, threshold, uniform)
        result[rows] = node.method.function(given, **node.settings).to("cpu")
    return result


class _Banded:
    """One weighted source as bands of rows; factors are stacked once."""

    def __init__(self, delta: Delta, device: torch.device) -> None:
        self.out, self.columns = delta.out, delta.columns
        self._factors = delta.factors(device) if isinstance(delta, LowRank) else None
        self._delta = delta
        self._device = device

    def rows(self, rows: slice) -> Tensor:
        """Return Float[rows in], float32."""
        if self._factors is None:
            return self._delta.dense(self._device, rows=rows)
        up, down = self._factors
        return up[rows] @ down

    def magnitude(self, fraction: float, height: int) -> float:
        """Return the ⌊fraction·N⌋-th smallest magnitude of the module, exactly; −1 when that is the 0-th.

        Two passes over the bands: magnitudes as integers keep their order, so a histogram of the upper 16 bits finds
        the bucket, and the members of that bucket alone are sorted.
        """
        wanted = math.floor(fraction * self.out * self.columns + 1e-9)
        if wanted < 1:
            return -1.0
        counts = torch.zeros(1 << 16, dtype=torch.int64)
        for bits in self._bits(height):
            counts += torch.bincount(bits >> 15, minlength=1 << 16)
        below = torch.cumsum(counts, 0)
        bucket = int(torch.searchsorted(below, wanted))
        rest = wanted - (int(below[bucket - 1]) if bucket else 0)
        members = torch.cat([bits[(bits >> 15) == bucket] for bits in self._bits(height)])
        value = torch.kthvalue(members, rest).values.to(torch.int32)
        return float(value.view(torch.float32))

    def _bits(self, height: int):  # noqa: ANN202 - iterator of Int[rows·in]
        for start in range(0, self.out, height):
            tile = self.rows(slice(start, min(start + height, self.out)))
            yield tile.abs().flatten().to("cpu").view(torch.int32)
