"""Dense methods in bands of rows: exact thresholds, keyed masks, one module's matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lib_merge.errors import NumericsError
from lib_merge.linalg import Delta, LowRank, scaled, tolerances
from lib_merge.linalg.delta import borrow
from lib_merge.linalg.svd import bracket, order_statistic, place_of
from lib_merge.methods import DenseInput, Method
from lib_merge.methods.elementwise import spread

# Entries per band: large enough for BLAS, small enough that a few float32 bands stay in cache-sized memory.
BAND = 1 << 17
# Entries that an accelerator takes at a time: there a launch costs as much as a million entries do.
STRETCH = 1 << 22
# Every so many rows and columns make a sample; primes that divide neither the size of a head nor a kernel.
STRIDES = (13, 11, 7, 5, 1)
SAMPLE = 1 << 14


class DenseModule:
    """The weighted sources of one module as bands of rows, with order statistics over all of them."""

    def __init__(
        self,
        weights: Sequence[float],
        deltas: Sequence[Delta],
        device: torch.device,
        known: dict[tuple[str, int, float], float] | None = None,
    ) -> None:
        """Stack every source's factors once; `known` keeps order statistics between two passes over the same
        module.

        Raises:
            NumericsError: a delta holds NaN or infinity.
        """
        self.weights = tuple(weights)
        self.out, self.columns = deltas[0].out, deltas[0].columns
        self.height = max(1, BAND // max(self.columns, 1))
        self.device = device
        wide = STRETCH // (self.height * max(self.columns, 1))
        self.bands_at_once = 1 if device.type == "cpu" else max(1, wide)
        self._deltas = [scaled(delta, weight) for delta, weight in zip(deltas, weights)]
        self._factors = [d.factors(device) if isinstance(d, LowRank) else None for d in self._deltas]
        self._cache = {} if known is None else known
        self._check()

    def _check(self) -> None:
        """Elections and masks would lose a NaN without a trace, so it is looked for here."""
        for delta, factors in zip(self._deltas, self._factors):
            parts = factors if factors is not None else (delta.matrix,)  # type: ignore[union-attr]
            # the sum of a tensor with a NaN or infinity is neither; one that merely overflows is looked at
            # again
            if not all(
                math.isfinite(float(part.sum())) or bool(torch.isfinite(part).all()) for part in parts
            ):
                message = "a delta holds NaN or infinity"
                raise NumericsError(message)

    def stretches(self) -> Iterator[tuple[range, slice]]:
        """Yield (numbers of the bands, rows) of what is worked on at a time: a band, or many of them on an
        accelerator. Masks belong to bands, so the numbers drawn are the same everywhere.
        """
        bands = -(-self.out // self.height)
        for first in range(0, bands, self.bands_at_once):
            last = min(first + self.bands_at_once, bands)
            yield range(first, last), slice(first * self.height, min(last * self.height, self.out))

    def uniform(self, generator: Callable[[int], torch.Generator], bands: range) -> Tensor:
        """Return Float[rows in], uniform in [0, 1), drawn on the CPU band by band."""
        drawn = [
            torch.rand(
                (min(self.height, self.out - band * self.height), self.columns), generator=generator(band)
            )
            for band in bands
        ]
        return (drawn[0] if len(drawn) == 1 else torch.cat(drawn)).to(self.device)

    def source(self, index: int, rows: slice, out: Tensor) -> Tensor:
        """Write Float[rows in] of one weighted source into `out`, and return it."""
        factors = self._factors[index]
        if factors is None:
            return out.copy_(self._deltas[index].dense(self.device, rows=rows))
        return torch.mm(factors[0][rows], factors[1], out=out)

    def sample(self, index: int) -> Tensor:
        """Return every k-th entry in every k-th row of one weighted source, some `SAMPLE` of them or all."""
        step = next(step for step in STRIDES if step == 1 or self.out * self.columns >= step**2 * SAMPLE)
        factors = self._factors[index]
        if factors is None:
            return self._deltas[index].dense(self.device)[::step, ::step]
        return factors[0][::step] @ factors[1][:, ::step]

    def tile(self, rows: slice, use: str) -> Tensor:
        """Return Float[source rows in], in memory that is valid until the next tile of the same use in this
        thread.
        """
        tile = self._scratch(use, len(self.weights), rows)
        for index, place in enumerate(tile):
            self.source(index, rows, place)
        return tile

    def _scratch(self, use: str, count: int, rows: slice) -> Tensor:
        shape = (count, rows.stop - rows.start, self.columns)
        # fresh bands of half a megabyte go back to the system and are faulted in again, page by page
        on_cpu = self.device.type == "cpu"
        return borrow(use, shape, torch.float32) if on_cpu else torch.empty(shape, device=self.device)

    def magnitudes(self, index: int) -> Iterator[Tensor]:
        """Yield the magnitudes of one source, band by band, each valid until the next."""
        for _, rows in self.stretches():
            yield self.source(index, rows, self._scratch("magnitudes", 1, rows)[0]).abs_()

    def threshold(self, index: int, fraction: float) -> float:
        """Return the ⌊fraction·N⌋-th smallest magnitude of a source; −1 when that is the 0-th."""
        count = place_of(fraction, self.out * self.columns)
        return self._statistic("least", index, count) if count else -1.0

    def largest(self, index: int, fraction: float) -> float:
        """Return the ⌊fraction·N⌋-th largest magnitude of a source; infinity when that is the 0-th."""
        entries = self.out * self.columns
        count = place_of(fraction, entries)
        return self._statistic("least", index, entries - count + 1) if count else math.inf

    def _statistic(self, kind: str, index: int, count: int) -> float:
        key = (kind, index, count)
        if key not in self._cache:
            near = bracket(self.sample(index).abs(), count / (self.out * self.columns))
            self._cache[key] = order_statistic(lambda: self.magnitudes(index), count, near)
        return self._cache[key]

    def selection(self, share: float) -> tuple[float, list[float]]:
        """Return the variance bound of the top ⌈share·N⌉ entries and each source's share of Σ τᵢ² over
        them.
        """
        key = ("selection", 0, share)
        if key not in self._cache:
            bound, shares = self._selected(share)
            self._cache[key] = bound
            self._cache.update({("share", index, share): value for index, value in enumerate(shares)})
        return self._cache[key], [self._cache["share", index, share] for index in range(len(self.weights))]

    def _selected(self, share: float) -> tuple[float, list[float]]:
        entries = self.out * self.columns
        count = math.ceil(share * entries - tolerances.COUNT_SLACK)

        def variances() -> Iterator[Tensor]:
            for _, rows in self.stretches():
                yield spread(self.tile(rows, "selection"))

        samples = torch.stack([self.sample(index) for index in range(len(self.weights))])
        near = bracket(spread(samples), (entries - count + 1) / entries)
        bound = order_statistic(variances, entries - count + 1, near)
        energy = torch.zeros(len(self.weights), dtype=torch.float64)
        for _, rows in self.stretches():
            tile = self.tile(rows, "selection")
            chosen = tile * (spread(tile) >= bound)
            energy += chosen.square_().sum(2).to("cpu", torch.float64).sum(1)  # not every device has float64
        total = float(energy.sum())
        return bound, [float(value) / total if total else 0.0 for value in energy]


def combine_tiles(
    module: DenseModule,
    method: Method,
    settings: Mapping[str, object],
    generator: Callable[[int, int], torch.Generator],
    bounds: Sequence[float] | None = None,
) -> Tensor:
    """Apply a dense method to one module.

    Args:
        module: the weighted sources.
        method: its function maps Float[source rows in] to Float[rows in].
        settings: the method's knobs.
        generator: (source, band) -> generator of that band's mask.
        bounds: thresholds per source over the whole LoRA, where the recipe asks for a global trim.
    Returns:
        Float[out in], float32, on the CPU.
    """
    result = torch.empty((module.out, module.columns), dtype=torch.float32)

    def threshold(source: int, fraction: float) -> float:
        return bounds[source] if bounds is not None else module.threshold(source, fraction)

    for bands, rows in module.stretches():
        # methods ask for thresholds, and so for other tiles, while this one is in use
        tile = module.tile(rows, "tile")

        def uniform(source: int, bands: range = bands) -> Tensor:
            return module.uniform(partial(generator, source), bands)

        given = DenseInput(
            weights=module.weights,
            deltas=tile,
            threshold=threshold,
            largest=module.largest,
            selection=module.selection,
            random=uniform,
        )
        result[rows] = method.tile(given, settings).to("cpu")
    return result
