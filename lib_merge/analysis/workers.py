"""Modules side by side on several threads, with one BLAS thread each, and torch's own count left as it was.

torch keeps its thread count per thread and takes a new thread's from the count last set by anyone: every
worker sets its own to 1, then the caller sets its own again to what it was, so that threads started later see
no change.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from lib_merge.errors import Cancelled

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_WORKERS = 8
BATCH = 8
# Seconds a worker may take to start.
PATIENCE = 60.0


def side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], cancelled: Callable[[], bool] | None = None
) -> Iterator[Result]:
    """Run `work` on every item in worker threads and yield the results in the items' order.

    Args:
        work: called once per item.
        items: in the order wanted.
        cancelled: asked between batches.
    Raises:
        Cancelled: `cancelled()` became true.
    """
    count = max(1, min(MAX_WORKERS, _cores(), -(-len(items) // BATCH)))

    def several(part: Sequence[Item]) -> list[Result]:
        return [work(item) for item in part]

    waiting: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(count, thread_name_prefix="lora-analysis")
    try:
        _prepare(pool, count)
        for start in range(0, len(items), BATCH):
            waiting.append(pool.submit(several, items[start : start + BATCH]))
            if len(waiting) > count + 1:
                yield from _checked(waiting, cancelled)
        while waiting:
            yield from _checked(waiting, cancelled)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _checked(waiting: deque[Future[list[Result]]], cancelled: Callable[[], bool] | None) -> Iterator[Result]:
    if cancelled is not None and cancelled():
        message = "stopped by the user; nothing was changed."
        raise Cancelled(message)
    yield from waiting.popleft().result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(pool: ThreadPoolExecutor, count: int) -> None:
    """Start every worker: one BLAS thread, no autograd, no autocast; then put the caller's thread count
    back.
    """
    threads = torch.get_num_threads()
    gate = threading.Barrier(count)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread that never asked would take the shared count at its first product
        torch.inference_mode().__enter__()
        with contextlib.suppress(RuntimeError):
            torch.autocast("cpu", enabled=False).__enter__()
        gate.wait(PATIENCE)  # keeps this worker busy until all of them have started

    try:
        for started in [pool.submit(begin) for _ in range(count)]:
            started.result()
    finally:
        torch.set_num_threads(threads)
