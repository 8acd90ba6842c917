"""One writer at a time, whichever process it lives in."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib_merge.errors import OutputError

_PAUSE = 0.03
_HELD = frozenset(
    {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK, getattr(errno, "EDEADLOCK", -1)}
)


@contextlib.contextmanager
def held(target: Path, timeout: float) -> Iterator[None]:
    """Hold the lock of `target` for as long as the block runs.

    The lock is the system's, on a small hidden file that stays; it ends with the process, so a killed one
    leaves nothing locked.

    Args:
        target: the file that is going to be written; its folder must exist.
        timeout: seconds to wait for another writer.
    Raises:
        OutputError: another process keeps the lock for longer.
        OSError: the lock file cannot be made.
    """
    with target.with_name(f".{target.name}.lock").open("a+b") as file:
        deadline = time.monotonic() + timeout
        while not _take(file):
            if time.monotonic() >= deadline:
                message = f"{target.name} has been held by another program for {timeout:g} s; try again."
                raise OutputError(message)
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            _give_back(file)


def _take(file: Any) -> bool:  # noqa: ANN401
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD  # a network folder without locks: no worse than having none
    return True


def _give_back(file: Any) -> None:  # noqa: ANN401
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_UN)
