"""Exact order statistics of more numbers than one wants to hold: in one pass with a good guess, in two
without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from lib_merge.linalg import tolerances

_BUCKETS = 1 << 16
# How far off a sample's quantile may be, as a share of all entries.
MARGIN = 0.015
# Numbers kept at most while an order statistic is looked for.
MOST = 1 << 22


def place_of(share: float, count: int) -> int:
    """Return ⌊share·count⌋; a share that is a whole number of entries but for its binary form stays one."""
    return math.floor(share * count + tolerances.COUNT_SLACK)


def smallest(values: Tensor, fraction: float) -> float:
    """Return the magnitude at or below which exactly ⌊fraction·N⌋ entries lie; −1 for none.

    numpy's partition takes a fifth of the time of `torch.kthvalue`.
    """
    count = place_of(fraction, values.numel())
    if not count:
        return -1.0
    sizes = values.abs().numpy().ravel()
    sizes.partition(count - 1)
    return float(sizes[count - 1])


def order_statistic(
    values: Callable[[], Iterable[Tensor]], count: int, near: tuple[float, float] | None = None
) -> float:
    """Return the `count`-th smallest of non-negative float32 numbers, exactly, in one pass or two and little
    memory.

    With a guess between which two numbers the answer lies, one pass counts what is below and keeps what is
    between. Where it
    lies elsewhere: the bits of such floats, read as integers, keep their order, so a histogram of the upper
        16 bits finds
    the bucket, and its members alone are sorted.

    Args:
        values: called once for each pass; yields the numbers in pieces.
        count: 1 for the smallest.
        near: the guess; see `bracket`.
    """
    statistic = None if near is None else _between(values(), count, *near)
    if statistic is not None:
        return statistic
    bucket, place = locate(histogram_of(values()), count)
    return float(torch.kthvalue(members_of(values(), bucket), place).values)


def bracket(sample: Tensor, share: float) -> tuple[float, float]:
    """Return two numbers of a sample between which the `share`-quantile of all should lie."""
    flat = sample.flatten().to("cpu").numpy()
    low, high = int((share - MARGIN) * flat.size), math.ceil((share + MARGIN) * flat.size)
    places = [min(max(place, 0), flat.size - 1) for place in (low, high)]
    ordered = np.partition(flat, places)
    # 0 and the largest number there is: beyond the sample's ends anything may follow
    return (
        float(ordered[places[0]]) if low >= 0 else 0.0,
        float(ordered[places[1]]) if high < flat.size else float(np.finfo(np.float32).max),
    )


def _between(pieces: Iterable[Tensor], count: int, low: float, high: float) -> float | None:
    """Return the `count`-th smallest number if it lies in low…high; numpy compares ten times as fast as
    torch.
    """
    below = total = 0
    inside = []
    for piece in pieces:
        flat = piece.flatten().to("cpu").numpy()
        less = flat < low
        below += np.count_nonzero(less)
        inside.append(flat.compress((flat <= high) ^ less))
        total += len(inside[-1])
        if total > MOST:  # a module of mostly one number, such as 0
            return None
    if not below < count <= below + total:
        return None
    return float(np.partition(np.concatenate(inside), count - below - 1)[count - below - 1])


def locate(histogram: Tensor, count: int) -> tuple[int, int]:
    """Return (bucket, place within the bucket) of the `count`-th smallest number."""
    below = torch.cumsum(histogram, 0)
    bucket = int(torch.searchsorted(below, count))
    return bucket, count - (int(below[bucket - 1]) if bucket else 0)


def histogram_of(values: Iterable[Tensor]) -> Tensor:
    """Return Int[65536], how many numbers fall into each bucket."""
    histogram = torch.zeros(_BUCKETS, dtype=torch.int64)
    for bits in _bits(values):
        histogram += torch.bincount(bits >> 15, minlength=_BUCKETS)
    return histogram


def members_of(values: Iterable[Tensor], bucket: int) -> Tensor:
    """Return Float[k], the numbers of one bucket."""
    parts = [bits[(bits >> 15) == bucket] for bits in _bits(values)]
    return torch.cat(parts).view(torch.float32) if parts else torch.empty(0)


def _bits(values: Iterable[Tensor]) -> Iterator[Tensor]:
    for piece in values:
        yield piece.flatten().to("cpu").view(torch.int32)
