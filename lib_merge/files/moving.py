"""Files that change their place: never over another one, whole or not at all, and kept under a second name
before they are replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lib_merge.errors import OutputError
from lib_merge.files.store import Temporary, patiently, rename_new


def move(source: Path, target: Path) -> None:
    """Move a file, to another disk if need be, and never over one that is there.

    Raises:
        FileExistsError: there is one.
        OSError: it is gone, in use, or cannot be written there.
    """
    try:
        patiently(lambda: rename_new(source, target))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
        source.unlink()


def move_all(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Move files, all of them or none: what was moved goes back when a later one cannot be.

    Args:
        pairs: (from, to).
    Raises:
        OutputError: a file has one of the names already, or one cannot be moved.
    """
    taken = next((target for _, target in pairs if os.path.lexists(target)), None)
    if taken is not None:
        message = f"{taken.name} exists already; choose another name."
        raise OutputError(message)
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in pairs:
            move(source, target)
            done.append((source, target))
    except OSError as error:
        move_back(done)
        message = f"{source.name} cannot be moved, perhaps because it is in use: {error.strerror or error}."
        raise OutputError(message) from error


def move_back(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Undo `move_all`; what cannot go back stays where it is."""
    for source, target in reversed(pairs):
        with contextlib.suppress(OSError):
            move(target, source)


def keep(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the disk knows no second names; it stays where it is.

    Raises:
        FileExistsError: a file has that name.
        OSError: it is gone, or there is no room for a copy.
    """
    if not source.is_symlink():
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:
            pass  # another disk, or one without hard links
        else:
            return
    _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    with Temporary(target) as temporary:
        with source.open("rb") as file:
            while piece := file.read(1 << 20):
                temporary.write(piece)
        temporary.sync()
        temporary.rename_new(target)
    with contextlib.suppress(OSError):  # not before: its own time protects a temporary from being swept
        shutil.copystat(source, target)


def to_trash(path: Path, folder: Path, name: str = "") -> Path:
    """Move a file into a trash folder, made when it is not there; return where it lies.

    Args:
        path: the file.
        folder: the trash.
        name: its name there, `path`'s own by default; one that is taken gets four random bytes.
    Raises:
        OSError: it is gone, in use, or the trash cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (name or path.name)
    while True:
        try:
            move(path, target)
        except FileExistsError:
            target = folder / f"{Path(name or path.name).stem}.{secrets.token_hex(4)}{path.suffix}"
            continue
        return target


# ----------------------------------------------------------------------------------------- beside itself


def set_aside(path: Path, copy: bytes | None = None, *, stays: bool = False) -> Path:
    """Keep a broken file as `name.broken-1.json`, or the next free number, and return that path.

    Args:
        path: the file, which is renamed.
        copy: its bytes, when it is going to be replaced and must not be missing meanwhile: they are copied
            instead.
        stays: the file gets that name beside its own.
    Raises:
        OutputError: it can be neither renamed nor copied.
    """
    return _aside(path, lambda number: f"{path.stem}.broken-{number}{path.suffix}", copy, stays=stays)


def back_up(path: Path, copy: bytes | None = None) -> Path:
    """Keep a file that is somebody else's as `name.json.bak`, then `name.json.2.bak`, …; see `set_aside`."""
    return _aside(path, lambda number: _bak(path, number), copy)


def backed_up(path: Path) -> Path | None:
    """Return the last of the files that `back_up` has kept of `path`; None where there is none."""
    number = 0
    while os.path.lexists(path.with_name(_bak(path, number + 1))):
        number += 1
    return path.with_name(_bak(path, number)) if number else None


def _bak(path: Path, number: int) -> str:
    return f"{path.name}.bak" if number == 1 else f"{path.name}.{number}.bak"


def _aside(path: Path, name: Callable[[int], str], copy: bytes | None, *, stays: bool = False) -> Path:
    number = 1
    while True:
        aside = path.with_name(name(number))
        try:
            if stays:
                keep(path, aside)
            elif copy is None:
                move(path, aside)
            else:
                with Temporary(aside) as temporary:
                    temporary.write(copy)
                    temporary.sync()
                    temporary.rename_new(aside)
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            why = error.strerror or error
            message = f"{path.name} cannot be set aside as {aside.name} ({why}); rename it by hand."
            raise OutputError(message) from error
        return aside
