"""The one way a file comes to be or changes: whole, in one step, or not at all.

Everything that people share (presets, recipes, side-cars, reports, prompts, previews) goes through `write`
and its two kin, and is read through `read`. Merged LoRAs are too large to be held in memory and are
streamed by `files.writer`, into the same temporary file (`Temporary`): hidden, beside its target, locked
for as long as its process lives, renamed when it is complete. After a crash `sweep` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lib_merge.errors import FileFormatError, OutputError

T = TypeVar("T")

# the largest file that is read whole
LIMIT = 8 << 20
SUFFIX = ".merging"
_OURS = re.compile(r"\..+\.[0-9a-f]{12}\.merging(-journal)?", re.DOTALL)
_LOCK = re.compile(r"\..+\.(safetensors|json|sqlite3)\.lock", re.DOTALL)
# how a file of a name that others can guess is opened: no link is followed, no pipe waited for
_ITSELF = 0
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"):
    _ITSELF |= getattr(os, _flag, 0)
# Seconds after its last byte at which a temporary that nobody locks counts as left behind: some network
# folders grant every lock, and there this alone protects a merge that another machine is proving.
LEFT_BEHIND = 3600.0
# seconds between attempts, while another program has the file open
PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)
_LOCK_PAUSE = 0.03
_TAKEN = frozenset(
    {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK, getattr(errno, "EDEADLOCK", -1)}
)
_NO_ROOM = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
# bytes: some pages of a database and its journal
_LITTLE = 32 << 10
# Windows without long paths allows 260 characters, our temporary name included.
_LONG = 200


# -------------------------------------------------------------------------------------------- reading


def read(path: Path, limit: int = LIMIT) -> bytes | None:
    """Return a file's bytes; None where there is no file.

    Args:
        path: what to read; a link is followed.
        limit: the most bytes it may have.
    Raises:
        FileFormatError: it is no plain file (a folder, a pipe, a device), is larger than `limit`, or the
            system refuses it.
    """
    try:
        data = patiently(lambda: _bytes(path, limit))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file can have such a name
            return None
        message = f"{path.name} cannot be read: {error.strerror or error}."
        raise FileFormatError(message) from error
    if len(data) > limit:
        message = f"{path.name} cannot be read: it is larger than {_size(limit)}."
        raise FileFormatError(message)
    return data


def read_text(path: Path, limit: int = LIMIT) -> str | None:
    """Return a file's text without a byte-order mark; None where there is no file.

    Raises:
        FileFormatError: as `read`, or it is not UTF-8.
    """
    data = read(path, limit)
    try:
        return None if data is None else data.decode("utf-8-sig")
    except ValueError as error:
        message = f"{path.name} cannot be read: it is not a text in UTF-8."
        raise FileFormatError(message) from error


def read_json(path: Path, limit: int = LIMIT) -> Any:  # noqa: ANN401
    """Return what a JSON file says; None where there is no file.

    Raises:
        FileFormatError: as `read`, or it is not valid JSON.
    """
    text = read_text(path, limit)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{path.name} is not valid JSON."
        raise FileFormatError(message) from error


def _bytes(path: Path, limit: int) -> bytes:
    # a pipe would block the opening for ever
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        with open(number, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(number)


def _size(limit: int) -> str:
    return f"{limit >> 20} MB" if limit >= 1 << 20 else f"{limit} bytes"


def signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file changes: time, size, identity; None where there is no file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


# -------------------------------------------------------------------------------------------- writing


def write(path: Path, data: bytes, *, title: str = "", follow: bool = True) -> None:
    """Replace a file's content in one step; whoever reads sees the old or the new one, and a failure keeps
    the old.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
        title: how sentences call it; its name by default.
        follow: a link stays a link, and what it points to is replaced; else the link itself is.
    Raises:
        OutputError: no room, no right to write, no such folder, or held open by another program.
    """
    try:
        target = path.resolve() if follow else path
        sweep(target.parent)
        with Temporary(target) as temporary:
            temporary.write(data)
            temporary.sync()
            temporary.replace(target)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise write_error(error, path, title) from error


def write_text(path: Path, text: str, *, title: str = "") -> None:
    """Write a text as UTF-8, as `write` does; what is no text (half a character of a file name) is
    escaped.
    """
    write(path, text.encode("utf-8", "backslashreplace"), title=title)


def write_json(
    path: Path,
    value: Any,  # noqa: ANN401
    *,
    indent: int | None = 1,
    title: str = "",
    follow: bool = True,
) -> None:
    """Write a value as JSON, as `write` does."""
    write(path, json_bytes(value, indent=indent), title=title, follow=follow)


def json_bytes(value: Any, *, indent: int | None = 1) -> bytes:  # noqa: ANN401
    """Return a value as JSON in UTF-8."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8")
    except UnicodeEncodeError:  # half a character, as names of files may have them: JSON can escape it
        return json.dumps(value, indent=indent).encode("ascii")


def temporary_name(target: Path) -> Path:
    """Return a new hidden name beside a target; what a killed process leaves under it is swept."""
    return target.with_name(f".{target.stem[:40]}.{secrets.token_hex(6)}{SUFFIX}")


class Temporary:
    """A new hidden file beside a target; locked while it is open, removed when it was not published.

    path  where it lies
    file  unbuffered, for writing and reading
    """

    def __init__(self, target: Path) -> None:
        """Make it.

        Raises:
            OSError: the folder is not there or cannot be written.
        """
        while True:
            self.path = temporary_name(target)
            self.file: io.FileIO = _made(lambda: self.path.open("x+b", buffering=0))
            _lock(self.file)
            if self.path.exists():
                break
            self.file.close()  # a sweep took it between its making and its lock
        self._published = False

    def write(self, data: bytes | memoryview) -> int:
        """Append data, all of it; return its bytes."""
        view = memoryview(data)
        count = len(view)
        while view:
            view = view[self.file.write(view) :]
        return count

    def sync(self) -> None:
        """Wait until the bytes are on the disk, so that a power cut after the rename cannot lose them.

        Raises:
            OSError: there is no room for them: quotas and folders of a network may say so only now.
        """
        try:
            os.fsync(self.file.fileno())
        except OSError as error:  # some network folders cannot; the rename is still atomic
            if error.errno in _NO_ROOM:
                raise

    def replace(self, target: Path) -> None:
        """Give it its name, in place of a file that has it."""
        self._publish(lambda: os.replace(self.path, target))

    def rename_new(self, target: Path) -> None:
        """Give it its name; FileExistsError where a file has it."""
        self._publish(lambda: rename_new(self.path, target))

    def _publish(self, rename: Callable[[], None]) -> None:
        if sys.platform == "win32":
            # an open file cannot be renamed there; elsewhere its lock keeps it until it has its name
            self.close()
        patiently(rename)
        self._published = True
        self.close()

    def close(self) -> None:
        """Close the file, which gives its lock back."""
        with contextlib.suppress(OSError):
            self.file.close()

    def discard(self) -> None:
        """Remove it unless it was published."""
        self.close()
        if not self._published:
            self._published = True
            with contextlib.suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Temporary:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Discard what was not published."""
        self.discard()


def sweep(folder: Path) -> int:
    """Remove temporaries that a killed writer left in a folder; return how many.

    Only files with the very names that `Temporary` and `locked` give go, and of them only those that no
    process holds (POSIX: their lock is free; Windows: nobody has them open) and that nobody has written to
    for `LEFT_BEHIND` seconds; a lock is without a byte.
    """
    removed = 0
    try:
        # names alone: thousands of pictures may lie there
        names = [name for name in os.listdir(folder) if name[0] == "." and _is_ours(name)]  # noqa: PTH208
    except OSError:
        return 0
    for name in names:
        path = folder / name
        with contextlib.suppress(OSError):
            state = path.lstat()
            lock = name.endswith(".lock")
            if time.time() - state.st_mtime > LEFT_BEHIND and not (lock and state.st_size):
                remove_unheld(path)
                removed += 1
    return removed


def _is_ours(name: str) -> bool:
    return bool(_OURS.fullmatch(name) or _LOCK.fullmatch(name))


def remove_unheld(path: Path) -> None:
    """Remove a temporary unless a living process holds it; raise OSError when one does."""
    if sys.platform == "win32":
        path.unlink()
        return
    import fcntl

    with io.FileIO(os.open(path, os.O_RDONLY | _ITSELF), "rb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()  # while the lock is held: nobody can have begun to use it


def _lock(file: io.FileIO) -> None:
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):  # network folders without locks
            # waits for a sweep that has just begun to look at the file
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)


# -------------------------------------------------------------------------------------------- moving


def rename_new(source: Path, target: Path) -> None:
    """Rename, failing with FileExistsError when the target exists: atomically where the system can."""
    if sys.platform == "win32":
        source.rename(target)
        return
    try:
        if source.is_symlink():  # a hard link would be made of what it points to
            raise OSError(errno.EPERM, "a link")
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # file systems without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "it exists already", str(target)) from None
        source.rename(target)
        return
    source.unlink()


# -------------------------------------------------------------------------------------------- one at a time


@contextlib.contextmanager
def locked(target: Path, timeout: float = 5.0) -> Iterator[None]:
    """Be the only one that changes `target` for as long as the block runs, among all threads and processes.

    The lock is the system's, on a small hidden file beside the target that goes when the block ends; it
    ends with the process, so a killed one leaves nothing locked. Reading needs no lock.

    Args:
        target: the file that is going to be read and written; its folder must exist.
        timeout: seconds to wait for another writer.
    Raises:
        OutputError: another process keeps the lock for longer, or the folder cannot be written.
    """
    path = target.with_name(f".{target.name}.lock")
    deadline = time.monotonic() + timeout
    while True:
        try:
            file = _made(lambda: patiently(lambda: _own(path)))
        except OSError as error:
            raise write_error(error, target) from error
        if taken := _take(file):
            if _lies_at(file, path):
                break
        elif time.monotonic() >= deadline:
            file.close()
            message = f"{target.name} has been held by another program for {timeout:g} s; try again."
            raise OutputError(message)
        file.close()
        if not taken:
            time.sleep(_LOCK_PAUSE)
    try:
        yield
    finally:
        _give_back(file, path)


def _own(path: Path) -> io.FileIO:
    """Open a lock file, made where there is none; never what a link or a pipe of its name leads to."""
    return io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | _ITSELF, 0o666), "r+b")


def _take(file: io.FileIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN  # a network folder without locks: no worse than having none
    return True


def _lies_at(file: io.FileIO, path: Path) -> bool:
    """Tell whether an open lock file is still the one that others find; its last holder may have removed
    it.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except OSError:
        return False


def _give_back(file: io.FileIO, path: Path) -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
            file.close()
        path.unlink()  # elsewhere while it is locked: whoever waits for it finds that it is another one now
    file.close()


# -------------------------------------------------------------------------------------------- what goes wrong


def is_full(folder: Path) -> bool:
    """Tell whether a folder has no room for a few more kilobytes: its disk is full, or a quota is reached."""
    try:
        with contextlib.suppress(OSError):  # some network folders do not say
            if shutil.disk_usage(folder).free < _LITTLE:
                return True
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(_LITTLE))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _NO_ROOM
    return False


def patiently(action: Callable[[], T]) -> T:
    """Try again for a second while another program has the file open."""
    for pause in PAUSES:
        try:
            return action()
        except PermissionError:
            time.sleep(pause)
    return action()


def _made(make: Callable[[], T]) -> T:
    """Make a new file; a refusal is the folder's, whatever the system calls it."""
    try:
        return make()
    except PermissionError as error:
        raise OSError(errno.EROFS, error.strerror) from error


def write_error(error: Exception, path: Path, title: str = "") -> OutputError:
    """Return the sentence for a failure to write.

    Args:
        error: what the system said.
        path: the file that was to be written.
        title: how the sentence calls it; its name by default.
    """
    title = title or path.name
    folder = path.parent.name or path.parent
    number = getattr(error, "errno", None)
    if number in _NO_ROOM:
        return OutputError(f"no space is left for {title}: free some room or choose another disk.")
    length = len(os.fsencode(path.absolute()))
    if number == errno.ENAMETOOLONG:
        return OutputError(f"the path of {title} is too long for this system ({length} bytes).")
    if number == errno.ENOENT:
        if not path.parent.is_dir():
            return OutputError(f"the folder {folder} does not exist.")
        if length > _LONG:
            return OutputError(f"the path of {title} is too long for this system ({length} bytes).")
        return OutputError(f"{title} cannot be written: its temporary file was removed meanwhile; try again.")
    if number == errno.EROFS or (isinstance(error, PermissionError) and not os.access(path.parent, os.W_OK)):
        return OutputError(f"{title} cannot be written: the folder {folder} is read-only.")
    if isinstance(error, PermissionError):
        return OutputError(f"{title} is held open by another program: close it there and save again.")
    return OutputError(f"{title} cannot be written: {getattr(error, 'strerror', None) or error}.")
