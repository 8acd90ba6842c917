"""Work that takes longer than a click: one thread each, one merge at a time, progress and cancel by id."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lib_merge.errors import Cancelled, MergeError, RecipeError

log = logging.getLogger("lib_merge")
KEEP = 50
POLL = 0.05
# work for later, which lets everything else go first
YIELDING = ("report",)
# how the stages of a merge usually share its time; only their proportions matter
SHARES: Mapping[str, tuple[tuple[str, float], ...]] = {
    "merge": (("survey", 0.5), ("merge", 6.0), ("verify", 4.0)),
    "verify": (("verify", 1.0),),
}


@dataclass(slots=True)
class Task:
    """One piece of work.

    state   waiting, running, done, failed or cancelled
    stage   what it is at: queue (the host is busy), survey, merge, verify, save, …
    share   how much of the whole is done, 0 to 1; never goes back
    """

    id: int
    what: str
    state: str = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    result: dict[str, Any] | None = None
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    share: float = 0.0
    working: float = 0.0

    def progress(self, stage: str, done: int, total: int) -> None:
        """Note how far it is; called from any thread."""
        if stage != "queue" and not self.working:
            self.working = time.monotonic()
        self.stage, self.done, self.total = stage, done, total
        before, stages = 0.0, SHARES.get(self.what, ())
        whole = sum(part for _, part in stages)
        for name, part in stages:
            if name == stage and total:
                self.share = max(self.share, min(1.0, (before + part * done / total) / whole))
            before += part
        if not stages and total:
            self.share = min(1.0, done / total)

    def left(self) -> float | None:
        """Return the seconds left, None while too little is done to tell."""
        spent = time.monotonic() - self.working
        if not self.working or self.share < 0.04 or spent < 0.4 or self.ended:
            return None
        return spent * (1.0 - self.share) / self.share

    def to_json(self) -> dict[str, Any]:
        """Return the state for the browser."""
        seconds = (self.ended or time.monotonic()) - self.started
        left = self.left()
        return {
            "job": self.id,
            "what": self.what,
            "state": self.state,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "share": round(self.share, 4),
            "left": None if left is None else round(left, 1),
            "error": self.error,
            "seconds": round(seconds, 2),
            "result": self.result,
        }


class Jobs:
    """Starts tasks and remembers the last ones."""

    def __init__(self) -> None:
        """Start empty."""
        self._number = itertools.count(1)
        self._tasks: dict[int, Task] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def start(self, what: str, work: Callable[[Task], dict[str, Any]]) -> Task:
        """Run `work` in a thread as soon as the one before it has ended; return its task at once."""
        with self._lock:
            task = Task(next(self._number), what)
            self._tasks[task.id] = task
            for old in [number for number, found in self._tasks.items() if found.ended][:-KEEP]:
                del self._tasks[old]
        threading.Thread(target=self._run, args=(task, work), name=f"lora-merge-{what}", daemon=True).start()
        return task

    def get(self, number: object) -> Task:
        """Return a task.

        Raises:
            RecipeError: no such task, as after a restart.
        """
        task = self._tasks.get(number) if isinstance(number, int) else None
        if task is None:
            message = "that job is not known any more: the program was restarted since."
            raise RecipeError(message)
        return task

    def cancel(self, number: object) -> Task:
        """Ask a task to stop; it ends between two modules and leaves nothing behind."""
        task = self.get(number)
        task.stop.set()
        return task

    def stop(self, what: str) -> None:
        """Ask every task of a kind that is not done yet to stop."""
        with self._lock:
            for task in self._tasks.values():
                if task.what == what and not task.ended:
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
                task.state, task.error = "failed", str(error)
            except Exception as error:
                # Python ends and gives no more threads: nobody waits for an answer, and a traceback would
                # only alarm
                if "interpreter shutdown" not in str(error):
                    log.exception("the job %s failed", task.what)
                task.state, task.error = "failed", f"{type(error).__name__}: {error}"
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
