"""Computing beside a WebUI: wait for its turn, use its device, give everything back."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lib_merge.engine.job import Job
from lib_merge.errors import Cancelled
from lib_merge.ui.jobs import Task

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lib_merge.ui.host import Host

log = logging.getLogger("lib_merge")
Result = TypeVar("Result")
ON_CPU = "the GPU ran out of memory, so this was computed on the CPU; the result is the same"
_FULL = ("out of memory", "not enough gpu video memory", "alloc_failed")
POLL = 0.05


def compute(
    host: Host,
    task: Task,
    work: Callable[[Job], Result],
    **options: Any,  # noqa: ANN401
) -> tuple[Result, list[str]]:
    """Run `work` on the host's device as soon as no generation uses it; once more on the CPU when its memory
    is full.

    Args:
        host: gives device and lock.
        task: reports progress and is asked whether to stop.
        work: takes the job to run with.
        options: further fields of the job.
    Returns:
        What `work` returned, and sentences on what had to be done differently.
    Raises:
        Cancelled: while waiting, or while working.
    """
    device = host.device()
    job = Job(device=device, progress=task.progress, cancelled=task.stop.is_set, **options)
    with in_turn(host.busy_lock(), task):
        try:
            return work(job), []
        except RuntimeError as error:
            if torch.device(device).type == "cpu" or not memory_is_full(error):
                raise
            log.warning("%s: %s", ON_CPU, str(error).splitlines()[0])
        finally:
            give_back(torch.device(device))
        job.device = torch.device("cpu")
        return work(job), [ON_CPU]


def memory_is_full(error: BaseException) -> bool:
    """Tell whether a device refused because its memory is full, whatever its maker calls that."""
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in text for words in _FULL)


def give_back(device: torch.device) -> None:
    """Return the device memory that is not used any more, so that the next picture finds it."""
    if device.type == "cpu":
        return
    gc.collect()
    module = getattr(torch, device.type, None)
    with contextlib.suppress(Exception):  # a device without a cache has nothing to give back
        module.empty_cache()


@contextlib.contextmanager
def in_turn(lock: AbstractContextManager[Any], task: Task) -> Iterator[None]:
    """Hold the host's lock; while somebody else has it, the task says so and can be cancelled.

    A thread of its own waits for the lock and holds it, since the host's lock may know no time limit.

    Raises:
        Cancelled: the task was stopped before its turn came.
    """
    held, over = threading.Event(), threading.Event()
    trouble: list[BaseException] = []

    def hold() -> None:
        try:
            with lock:
                held.set()
                over.wait()
        except Exception as error:
            trouble.append(error)
            held.set()

    keeper = threading.Thread(target=hold, name="lora-merge-turn", daemon=True)
    keeper.start()
    try:
        while not held.wait(POLL):
            task.progress("queue", 0, 0)
            if task.stop.is_set():
                message = "stopped by the user; nothing was written."
                raise Cancelled(message)
        if trouble:
            raise trouble[0]
        task.progress("", 0, 0)
        yield
    finally:
        over.set()  # one that is still waiting lets go as soon as it has the lock
        if held.is_set():
            keeper.join()
