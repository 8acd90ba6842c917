"""Temporary files beside an output: made, locked while their merge lives, swept when it was killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any

SUFFIX = ".merging"


def create(target: Path) -> tuple[Path, Any]:
    """Open a new hidden file beside `target`, locked for as long as it is open.

    Returns:
        its path, and the unbuffered file.
    """
    while True:
        path = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(6)}{SUFFIX}")
        file = path.open("x+b", buffering=0)
        _lock(file)
        if path.exists():
            return path, file
        file.close()  # another merge swept the file between its making and its lock


def sweep_stale(folder: Path) -> int:
    """Remove temporary files of merges that no longer run; return how many.

    A running merge holds a lock on its file (POSIX) or has it open (Windows refuses the removal), so only
    those of killed ones go.
    """
    removed = 0
    try:
        found = [
            path for path in folder.iterdir() if path.name.startswith(".") and path.name.endswith(SUFFIX)
        ]
    except OSError:
        return 0
    for path in found:
        with contextlib.suppress(OSError):
            remove_unheld(path)
            removed += 1
    return removed


def rename_new(source: Path, target: Path) -> None:
    """Rename, failing with FileExistsError when the target exists: atomically where the system can."""
    if sys.platform == "win32":
        source.rename(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # file systems without hard links
        if target.exists():
            raise FileExistsError(str(target)) from None
        source.rename(target)
        return
    source.unlink()


def _lock(file: Any) -> None:  # noqa: ANN401
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):  # network folders without locks
            fcntl.flock(
                file.fileno(), fcntl.LOCK_EX
            )  # waits for a sweep that has just begun to look at the file


def remove_unheld(path: Path) -> None:
    """Remove a file unless a living merge holds it; raise OSError when one does."""
    if sys.platform == "win32":
        path.unlink()
        return
    import fcntl

    with path.open("rb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()  # while the lock is held: nobody can have begun to use it
