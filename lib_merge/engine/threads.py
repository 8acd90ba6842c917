"""Workers, numerics and clocks of one merge.

Modules are independent, so they run side by side, each with one BLAS thread: two workers with one thread each are up to
twice as fast as one worker with two (small products do not split well), and a product that never splits gives the same
bytes on every machine. torch keeps its thread count per process; it is put back when the work is done.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from lib_merge.errors import Cancelled

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_WORKERS = 8


class Clock:
    """Seconds per stage, summed over workers."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


@contextlib.contextmanager
def exact_numerics(device: torch.device) -> Iterator[None]:
    """float32 means float32: TF32 off while the work runs, one BLAS thread per worker, everything put back after."""
    threads = torch.get_num_threads()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@contextlib.contextmanager
def plain_tensors(device: torch.device) -> Iterator[None]:
    """No autograd, no autocast: both are per thread, and a WebUI switches autocast on around its own work."""
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        for kind in {device.type, "cpu"}:
            with contextlib.suppress(RuntimeError):  # devices without autocast have none to switch off
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def worker_count(device: torch.device) -> int:
    """Return how many modules run side by side: one per core on the CPU, one on an accelerator."""
    if device.type != "cpu":
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, usable))


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    device: torch.device,
    cancelled: Callable[[], bool],
) -> Iterator[Result]:
    """Run `work` on every item in worker threads and yield the results in the items' order.

    At most workers + 2 results wait at a time, so memory stays at a few modules whatever the file's size.

    Raises:
        Cancelled: `cancelled()` became true; running items end, waiting ones are dropped.
    """
    workers = worker_count(device)

    def guarded(item: Item) -> Result:
        with plain_tensors(device):
            return work(item)

    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lora-merge", initializer=_one_thread)
    try:
        for item in items:
            if cancelled():
                message = "stopped by the user; nothing was written."
                raise Cancelled(message)
            waiting.append(pool.submit(guarded, item))
            if len(waiting) > workers + 2:
                yield waiting.popleft().result()
        while waiting:
            if cancelled():
                message = "stopped by the user; nothing was written."
                raise Cancelled(message)
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)  # OpenMP keeps its count per thread
