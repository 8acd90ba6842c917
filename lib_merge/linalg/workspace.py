"""Scratch memory that a worker thread uses again for every module.

Fresh buffers of a few hundred kilobytes go back to the system when they are freed, and come back as pages
that must be faulted in one by one, under a lock that all threads share; with two workers that costs a sixth
of a truncated merge.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_local = threading.local()
# Scratch larger than this is not kept.
MOST = 6 << 20


def borrow(tag: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised CPU tensor; the next `borrow` of the same tag in this thread takes its memory
    back.

    Args:
        tag: names the use; two tensors in use at the same time need two tags.
        shape: wanted shape.
        dtype: wanted type.
    """
    count = math.prod(shape)
    if count * torch.finfo(dtype).bits > 8 * MOST:  # dtype.itemsize is newer than the torch of an older WebUI
        return torch.empty(tuple(shape), dtype=dtype)
    kept: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("kept", {})
    flat = kept.get((tag, dtype))
    if flat is None or flat.numel() < count:
        flat = kept[tag, dtype] = torch.empty(count, dtype=dtype)
    return flat[:count].view(tuple(shape))


def like(tag: str, value: Tensor) -> Tensor:
    """Return an uninitialised tensor like `value`: borrowed on the CPU, fresh elsewhere, where allocators
    keep memory.
    """
    return borrow(tag, value.shape, value.dtype) if value.device.type == "cpu" else torch.empty_like(value)
