"""Progress on stderr: tqdm's bar where tqdm is there, a plain line every few seconds where it is not."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import Any

QUIET = 1.0  # nothing is shown for work that takes less than this many seconds
EVERY = 2.0


class ProgressLine:
    """A progress callback for the engine; shows nothing for the first second."""

    def __init__(self) -> None:
        """Note the start."""
        self._start = self._said = time.monotonic()
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take the engine's progress."""
        now = time.monotonic()
        if now - self._start < QUIET:
            return
        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = self._new_bar(stage, total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif now - self._said >= EVERY:
            self._said = now
            sys.stderr.write(f"{stage}: {done} of {total} modules\n")

    @staticmethod
    def _new_bar(stage: str, total: int) -> Any:  # noqa: ANN401
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            return tqdm(total=total, desc=stage, unit="module", leave=False, file=sys.stderr, mininterval=0.2)
        return None

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressLine:
        """Return the callback."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self._close()
