"""How one merge runs: where, with whom it speaks, its workers, numerics and clocks.

Modules are independent, so they run side by side, each with one BLAS thread: two workers with one thread
each are up to twice as fast as one worker with two (small products do not split well), and a product that
never splits gives the same bytes on every machine. torch keeps its thread count per process; it is put back
when the work is done.

More workers than the work feeds make it slower: each call from Python waits for the one interpreter lock, and
handing that over costs more than a small product. Measured on 16 cores (SDXL cut to half of R, seconds for
1 … 8 workers): R = 32 0.77, 0.80, 1.05; R = 64 1.23, 0.99, 1.11, 1.31, … 3.6; R = 128 2.16, 1.46, 1.21, 1.16,
1.23; R = 256 3.36, 2.28, 1.71, 1.54, … 1.12; dense TIES 3.42, 2.47, … 2.01 (4), 2.50. `gainful` follows that.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from lib_merge.adapters import LoraFile, open_lora
from lib_merge.errors import Cancelled, OutputError
from lib_merge.files.names import check_output_name
from lib_merge.files.store import write_error
from lib_merge.recipe import Recipe

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_WORKERS = 8
# Two gain everywhere, or lose nothing.
FEW_WORKERS = 2
# Bands of a whole matrix are small work in many calls.
DENSE_WORKERS = 4
# R²·(out + in) of a module that keeps one worker busy.
BUSY = 3e6
BATCH = 8


class Clock:
    """Seconds per stage, summed over workers."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    def time(self, stage: str) -> _Timing:
        """Add the time spent inside to `stage`."""
        return _Timing(self, stage)

    def add(self, stage: str, spent: float) -> None:
        """Add seconds to `stage`."""
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


class _Timing:
    """Adds the time between entering and leaving to a stage; a generator would take three times as long."""

    __slots__ = ("_clock", "_stage", "_start")

    def __init__(self, clock: Clock, stage: str) -> None:
        self._clock, self._stage, self._start = clock, stage, 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._stage, time.perf_counter() - self._start)


@contextlib.contextmanager
def exact_numerics(device: torch.device) -> Iterator[None]:
    """float32 means float32: TF32 off while the work runs, one BLAS thread per worker, everything put back
    after.
    """
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


class _Rare:
    """What `no_full_gc` has changed, and for how many."""

    lock = threading.Lock()
    users = 0
    before = (0, 0, 0)


@contextlib.contextmanager
def no_full_gc() -> Iterator[None]:
    """Let Python look through all of its objects for garbage on request only, while the work runs.

    A merge makes thousands of small objects that stay, and Python takes that for a reason to look through
    those of torch and a WebUI: 0.1 s and more each time. `gc.collect()` works as ever.
    """
    with _Rare.lock:
        _Rare.users += 1
        if _Rare.users == 1:
            _Rare.before = gc.get_threshold()
            gc.set_threshold(*_Rare.before[:2], 1 << 20)
    try:
        yield
    finally:
        with _Rare.lock:
            _Rare.users -= 1
            if not _Rare.users:
                gc.set_threshold(*_Rare.before)


def worker_count(device: torch.device) -> int:
    """Return how many modules run side by side: one per core on the CPU, one on an accelerator."""
    if device.type != "cpu":
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, usable))


def gainful(sizes: Sequence[tuple[int, int]]) -> int:
    """Return how many workers gain on modules, √(R²·(out + in) / `BUSY`) in the mean, at least two.

    Args:
        sizes: (R, out + in) of every module, R being the Σ of its sources' ranks.
    """
    work = sum(rank * rank * lines for rank, lines in sizes) / max(len(sizes), 1)
    return max(FEW_WORKERS, min(MAX_WORKERS, round(math.sqrt(work / BUSY))))


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    device: torch.device,
    cancelled: Callable[[], bool],
    most: int = FEW_WORKERS,
) -> Iterator[Result]:
    """Run `work` on every item in worker threads and yield the results in the items' order.

    Small batches go to a worker at a time, so that threads hand over seldom, and smaller ones where there are
    few items, so that nobody is idle; at most workers + 1 batches wait, so memory stays at a few modules
    whatever the file's size.

    Args:
        work: called once per item, in a worker.
        items: in the order wanted.
        device: workers are set up for it.
        cancelled: asked before every item.
        most: at most this many workers, `gainful` of the modules; 1 where the work is copying, which two
            threads only hinder.
    Raises:
        Cancelled: `cancelled()` became true; running items end, waiting ones are dropped.
    """
    workers = min(worker_count(device), most)
    if most == 1:
        yield from _alone(work, items, device, cancelled)
        return

    def several(part: Sequence[Item]) -> list[Result]:
        done: list[Result] = []
        for item in part:
            _go_on(cancelled)  # a batch of large dense modules takes seconds
            done.append(work(item))
        return done

    waiting: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="lora-merge", initializer=_prepare, initargs=(device,)
    )
    try:
        size = max(1, min(BATCH, len(items) // (2 * workers)))
        for start in range(0, len(items), size):
            waiting.append(pool.submit(several, items[start : start + size]))
            if len(waiting) > workers + 1:
                yield from _checked(waiting, cancelled)
        while waiting:
            yield from _checked(waiting, cancelled)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(
    work: Callable[[Item], Result], items: Sequence[Item], device: torch.device, cancelled: Callable[[], bool]
) -> Iterator[Result]:
    """Do the work in this thread: handing copies over to another costs a fifth more CPU time and gains
    nothing.
    """
    for item in items:
        _go_on(cancelled)
        # entered around every item: between two of them this thread belongs to the caller
        with contextlib.ExitStack() as states:
            _quiet(states, device)
            result = work(item)
        yield result


def _checked(waiting: deque[Future[list[Result]]], cancelled: Callable[[], bool]) -> Iterator[Result]:
    _go_on(cancelled)
    yield from waiting.popleft().result()


def _go_on(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        message = "stopped by the user; nothing was written."
        raise Cancelled(message)


def _prepare(device: torch.device) -> None:
    """Set up a worker: one BLAS thread, no autograd, no autocast.

    All three are kept per thread; a new thread starts without the autocast that a WebUI has on around its
    own work, and the states entered here end with the worker.
    """
    torch.set_num_threads(1)
    _quiet(contextlib.ExitStack(), device)


def _quiet(states: contextlib.ExitStack, device: torch.device) -> None:
    # not inference_mode: its tensors may not be written to outside of it, and scratch memory is used on both
    # sides
    states.enter_context(torch.no_grad())
    for kind in {device.type, "cpu"}:
        if _may_cast(kind):
            with contextlib.suppress(RuntimeError):  # devices without autocast have none to switch off
                states.enter_context(torch.autocast(kind, enabled=False))


def _may_cast(kind: str) -> bool:
    """Tell whether autocast is on in this thread; an older torch cannot be asked for every kind of device."""
    try:
        return bool(torch.is_autocast_enabled(kind))
    except (TypeError, RuntimeError):
        return True


# ---------------------------------------------------------------- the job

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Job:
    """How a merge runs; nothing here changes the bytes.

    device            "auto", "cpu", "cuda", "mps", … or a torch.device
    progress          called with (stage, done, total)
    cancelled         asked between modules
    proof             hold the file against what was asked, hash it and wait for the disk before it gets its
                      name; off only for files that are thrown away after a look
    trash             where a file is kept that is replaced and no merge of its name; .lora-merge/trash beside
                      the output by default
    card              what the side-car is to say -> what is written of it
    recipe_file       what the recipe was read from; whatever its name is, it is never written
    """

    device: str | torch.device = "cpu"
    overwrite: bool = False
    drop_unsupported: bool = False
    progress: Progress | None = None
    cancelled: Callable[[], bool] = field(default=lambda: False)
    side_car: bool = True
    proof: bool = True
    open_file: Callable[[Path], LoraFile] = open_lora
    trash: Path | None = None
    card: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    recipe_file: Path | None = None

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(stage, done, total)

    def spares(self, path: Path) -> bool:
        """Tell whether a path is the recipe's own file: by name, whatever the case, or through a link."""
        recipe = self.recipe_file
        if recipe is None:
            return False
        with contextlib.suppress(OSError):
            if path.samefile(recipe):
                return True
        one, other = (Path(os.path.realpath(place.parent)) / place.name for place in (path, recipe))
        return str(one).casefold() == str(other).casefold()


def pick_device(device: str | torch.device) -> torch.device:
    """Return the torch device; "auto" is CUDA where there is one, else the CPU.

    Raises:
        OutputError: torch does not know the device or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        float(torch.ones(1, device=chosen).sum())  # a device that cannot count ("meta") is none
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = f"the device {str(device)!r} is not available here: {str(error).splitlines()[0]}"
        raise OutputError(message) from error
    return chosen


def check_target(target: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Raise `OutputError` where the output has a bad name, no folder, is a source, or exists and may not be
    replaced.
    """
    check_output_name(target)
    try:
        there = stat.S_IFMT(target.lstat().st_mode)
    except FileNotFoundError:
        there = 0
    except OSError as error:
        raise write_error(error, target) from error
    if not target.parent.is_dir():
        message = f"the folder {target.parent.name or target.parent} does not exist."
        raise OutputError(message)
    if there and there not in (stat.S_IFREG, stat.S_IFLNK):
        message = f"{target.name} is there and is no file: choose another name."
        raise OutputError(message)
    for source in recipe.leaves():
        with contextlib.suppress(
            OSError, ValueError
        ):  # a path that no system could have is said when it is opened
            if target.exists() and source.path is not None and source.path.samefile(target):
                message = f"{target.name} is one of the sources; choose another output name."
                raise OutputError(message)
    if there and not overwrite:
        message = f"{target.name} exists already; choose another name or allow overwriting."
        raise OutputError(message)
