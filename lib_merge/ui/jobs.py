"""Work that takes longer than a click: one thread each, one merge at a time, progress and cancel by id."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lib_merge.errors import Cancelled, MergeError, RecipeError

log = logging.getLogger("lib_merge")
KEEP = 50


@dataclass(slots=True)
class Task:
    """One piece of work.

    state   waiting, running, done, failed or cancelled
    stage   what it is at: survey, merge, verify, save, …
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

    def progress(self, stage: str, done: int, total: int) -> None:
        """Note how far it is; called from any thread."""
        self.stage, self.done, self.total = stage, done, total

    def to_json(self) -> dict[str, Any]:
        """Return the state for the browser."""
        seconds = (self.ended or time.monotonic()) - self.started
        return {
            "job": self.id,
            "what": self.what,
            "state": self.state,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
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
        with self._turn:
            if task.stop.is_set():
                task.state, task.ended = "cancelled", time.monotonic()
                return
            task.state, task.started = "running", time.monotonic()
            try:
                task.result = work(task)
                task.state = "done"
            except Cancelled:
                task.state = "cancelled"
            except MergeError as error:
                task.state, task.error = "failed", str(error)
            except Exception as error:
                log.exception("the job %s failed", task.what)
                task.state, task.error = "failed", f"{type(error).__name__}: {error}"
            finally:
                task.ended = time.monotonic()
