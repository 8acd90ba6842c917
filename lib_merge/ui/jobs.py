"""Work that takes longer than a click: one thread each, one at a time, progress and cancel by number.

Beside a WebUI it waits for its turn, uses the host's device, and gives everything back.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import torch

from lib_merge.engine.threads import Job
from lib_merge.errors import Cancelled, MergeError, RecipeError
from lib_merge.ui.host import Host
from lib_merge.ui.protocol import About, sentence

log = logging.getLogger("lib_merge")
Result = TypeVar("Result")
KEEP = 50
POLL = 0.05
MOST_WAITING = 20  # each is a thread; a program that asks in a loop must not take them all
# work for later, which lets everything else go first
YIELDING: tuple[str, ...] = ("report",)
# how the stages of a merge usually share its time; only their proportions matter
SHARES: Mapping[str, tuple[tuple[str, float], ...]] = {
    "merge": (("survey", 0.5), ("merge", 6.0), ("verify", 4.0)),
    "verify": (("verify", 1.0),),
    "sweep": (("survey", 0.5), ("merge", 6.0), ("verify", 4.0)),
}


What = Literal["merge", "verify", "analyze", "report", "sweep"]
State = Literal["waiting", "running", "done", "failed", "cancelled"]
ON_CPU = "the GPU ran out of memory, so this was computed on the CPU; the result is the same"
_FULL = ("out of memory", "not enough gpu video memory", "alloc_failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReply:
    """How far a job is."""

    job: Annotated[int, About("its number", example=7)]
    what: What
    state: Annotated[State, About(example="running")]
    stage: Annotated[str, About("queue while the host is busy, survey, merge, verify, save")]
    done: Annotated[int, About("modules of this stage")]
    total: int
    share: Annotated[float, About("of the whole, 0 to 1; never goes back", example=0.25)]
    left: Annotated[float | None, About("seconds, null while it cannot be told")]
    error: Annotated[str, About("why it failed, one sentence")]
    seconds: float
    result: Annotated[dict[str, Any] | None, About("of a merge the report, its key, its prompt tag")]


@dataclass(slots=True)
class Task:
    """One piece of work; see `JobReply` for what is told of it.

    partial  what there is of its result before it has ended
    window   id of the page's window that asked for it, "" where none did
    told     somebody has asked for it after its end
    part     (which, of how many) like merges it is at
    """

    id: int
    what: What
    state: State = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    result: dict[str, Any] | None = None
    partial: Any = None
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    window: str = ""
    told: bool = False
    part: tuple[int, int] = (0, 1)
    share: float = 0.0
    working: float = 0.0

    @property
    def waits(self) -> bool:
        """True until its turn has come, or it was stopped."""
        return self.state == "waiting" and not self.stop.is_set()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Note how far it is; called from any thread."""
        if stage != "queue" and not self.working:
            self.working = time.monotonic()
        self.stage, self.done, self.total = stage, done, total
        before, stages = 0.0, SHARES.get(self.what, ())
        whole = sum(part for _, part in stages)
        for name, part in stages:
            if name == stage and total:
                index, count = self.part
                now = min(1.0, (before + part * done / total) / whole)
                self.share = max(self.share, (index + now) / count)
            before += part
        if not stages and total:
            self.share = min(1.0, done / total)

    def left(self) -> float | None:
        """Return the seconds left, None while too little is done to tell."""
        spent = time.monotonic() - self.working
        if not self.working or self.share < 0.04 or spent < 0.4 or self.ended:
            return None
        return spent * (1.0 - self.share) / self.share

    def reply(self) -> JobReply:
        """Return how far it is."""
        left = self.left()
        return JobReply(
            job=self.id,
            what=self.what,
            state=self.state,
            stage=self.stage,
            done=self.done,
            total=self.total,
            share=round(self.share, 4),
            left=None if left is None else round(left, 1),
            error=self.error,
            seconds=round((self.ended or time.monotonic()) - self.started, 2),
            result=self.result,
        )


# the window of the page whose request is being answered
WINDOW: ContextVar[str] = ContextVar("WINDOW", default="")


class Jobs:
    """Starts tasks and remembers the last ones."""

    def __init__(self) -> None:
        """Start empty."""
        self._number = itertools.count(1)
        self._tasks: dict[int, Task] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def start(self, what: What, work: Callable[[Task], dict[str, Any]]) -> Task:
        """Run `work` in a thread as soon as the one before it has ended; return its task at once.

        Raises:
            RecipeError: so many wait already; work for later is counted by itself.
        """
        with self._lock:
            later = what in YIELDING
            waiting = [one for one in self._tasks.values() if one.waits and (one.what in YIELDING) is later]
            if len(waiting) >= MOST_WAITING:
                message = f"{MOST_WAITING} jobs are waiting already: wait for one to end, or stop one."
                raise RecipeError(message)
            task = Task(next(self._number), what, window=WINDOW.get())
            self._tasks[task.id] = task
            for old in [number for number, one in self._tasks.items() if one.ended][:-KEEP]:
                del self._tasks[old]
        threading.Thread(target=self._run, args=(task, work), name=f"lora-merge-{what}", daemon=True).start()
        return task

    def get(self, number: int) -> Task:
        """Return a task.

        Raises:
            RecipeError: no such task, as after a restart.
        """
        task = self._tasks.get(number)
        if task is None:
            message = "that job is not known any more: the program was restarted since."
            raise RecipeError(message)
        return task

    def asked_in(self, window: str) -> list[Task]:
        """Return the tasks that a window of the page asked for and has not seen the end of, oldest first."""
        with self._lock:
            return [
                task for task in self._tasks.values() if window and task.window == window and not task.told
            ]

    def of(self, what: What) -> list[Task]:
        """Return the tasks of a kind that are remembered, the oldest first."""
        with self._lock:
            return [task for task in self._tasks.values() if task.what == what]

    def cancel(self, number: int) -> Task:
        """Ask a task to stop; it ends between two modules and leaves nothing behind."""
        task = self.get(number)
        task.stop.set()
        return task

    def stop(self, what: What) -> None:
        """Ask every task of a kind that is not done yet to stop."""
        for task in self.of(what):
            if not task.ended:
                task.stop.set()

    def _run(self, task: Task, work: Callable[[Task], dict[str, Any]]) -> None:
        if not self._wait(task):
            task.state, task.ended = "cancelled", time.monotonic()
            return
        try:
            task.state, task.started = "running", time.monotonic()
            try:
                task.result = work(task)
                task.state = "done"
            except Cancelled:
                task.state = "cancelled"
            except MergeError as error:
                task.state, task.error = "failed", sentence(error)
            except Exception as error:
                # Python ends and gives no more threads: nobody waits for an answer, and a traceback would
                # only alarm
                if "interpreter shutdown" not in str(error):
                    log.exception("the job %s failed", task.what)
                task.state, task.error = "failed", sentence(f"{type(error).__name__}: {error}")
            finally:
                task.ended = time.monotonic()
        finally:
            self._turn.release()

    def _wait(self, task: Task) -> bool:
        """Wait for the task's turn; False when it was stopped before."""
        while not task.stop.is_set():
            later = task.what in YIELDING
            # work for later does not stand in line: it looks now and then whether nobody does
            if (later and self._awaited()) or not self._turn.acquire(timeout=0 if later else POLL):
                time.sleep(POLL if later else 0)
                continue
            if not task.stop.is_set():
                return True
            self._turn.release()
        return False

    def _awaited(self) -> bool:
        """Tell whether somebody waits for work that is not for later."""
        with self._lock:
            return any(task.state == "waiting" and task.what not in YIELDING for task in self._tasks.values())


# ------------------------------------------------------------------------------------------- beside a WebUI


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
    with contextlib.suppress(Exception):  # a device without a cache has nothing to give back
        getattr(torch, device.type).empty_cache()


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
