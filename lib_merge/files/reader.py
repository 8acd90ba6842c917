"""Lazy reading: one tensor, or one run of neighbouring tensors, at a time.

Tensors are read into memory of their own and never are views of a mapped file: a WebUI may replace a mapped
file under a reader, and pages of a map would count as memory.
"""

from __future__ import annotations

import abc
import functools
import math
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lib_merge.errors import FileFormatError
from lib_merge.files.hashes import file_hash, stream_hash
from lib_merge.files.header import Header, TensorInfo, display_name, read_header, torch_dtype

__all__ = ["PickleFile", "SafetensorsFile", "TensorFile", "TensorInfo", "open_tensors"]

# Neighbours closer than this are fetched in one read; what lies between is thrown away.
GAP = 4096
# macOS refuses reads of 2 GiB and more.
_MAX_READ = 1 << 30
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


class TensorFile(abc.ABC):
    """An opened file of named tensors; reading is safe from several threads.

    path      where it lies
    state     what it looked like when it was opened
    size      bytes on disk
    tensors   key -> dtype and shape
    metadata  texts from the header
    """

    path: Path
    state: State
    size: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    @property
    def origin(self) -> TensorFile:
        """The file as it was opened first; the same object for all that was opened again from it."""
        return self

    @functools.cached_property
    def found(self) -> dict[object, Any]:
        """What others found out about the tensors, by a key of theirs; of the origin, kept as long as it."""
        return {}

    def read(self, key: str) -> Tensor:
        """Return one tensor on the CPU, in the file's dtype."""
        return self.read_many([key])[key]

    def beginning(self, key: str, count: int) -> tuple[float, ...]:
        """Return the first numbers of a tensor, at most `count` of them."""
        return tuple(self.read(key).flatten()[:count].double().tolist())

    @abc.abstractmethod
    def read_many(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return several tensors on the CPU; neighbours in the file come with one read and share its memory.

        Raises:
            FileFormatError: the file became shorter or unreadable since it was opened.
        """

    @abc.abstractmethod
    def again(self) -> TensorFile:
        """Open the same file once more; a header is not read anew.

        Raises:
            FileFormatError: it is not there any more, or unreadable.
        """

    @abc.abstractmethod
    def sha256(self) -> str:
        """Return the sha256 of the whole file as it was opened, hex.

        Raises:
            FileFormatError: it was written to since, or is unreadable.
        """

    @abc.abstractmethod
    def check_unchanged(self) -> None:
        """Raise FileFormatError where the file's bytes may be others than when it was opened."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file; further reads fail."""

    def __enter__(self) -> TensorFile:
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


# device, number, size, time of change in nanoseconds
State = tuple[int, int, int, int]


def state_of(status: os.stat_result) -> State:
    """Return what changes when a file is written to or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check(path: Path, before: State, status: Callable[[], os.stat_result]) -> None:
    try:
        same = state_of(status()) == before
    except (OSError, ValueError) as error:
        message = f"{display_name(path)} cannot be read any more: {error}."
        raise FileFormatError(message) from error
    if not same:
        message = f"{display_name(path)} was changed while it was read; start again when it stays as it is."
        raise FileFormatError(message)


class SafetensorsFile(TensorFile):
    """A safetensors file behind a checked header."""

    def __init__(
        self, path: Path, file: BinaryIO, header: Header, begun: dict[str, tuple[float, ...]] | None = None
    ) -> None:
        """Take over an open, unbuffered file; `begun` holds the beginnings that are known of its tensors."""
        self.path = path
        self.state = state_of(os.fstat(file.fileno()))
        self._header = header
        self.size = header.size
        self.tensors = header.tensors
        self.metadata = header.metadata
        self.data_start = header.data_start
        self._file = file
        self._lock = threading.Lock()
        self._begun = {} if begun is None else begun
        self._positional = hasattr(os, "preadv")

    def again(self) -> TensorFile:
        """Open the same file once more, under the header that is known."""
        return SafetensorsFile(self.path, _open(self.path), self._header, self._begun)

    def read_many(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return several tensors; see `TensorFile.read_many`."""
        found: dict[str, Tensor] = {}
        run: list[tuple[str, TensorInfo]] = []
        # an empty tensor begins where its neighbour does: the end decides which of them closes a run
        for key, info in sorted(((key, self.tensors[key]) for key in keys), key=lambda item: item[1][2:]):
            if run and info.start - run[-1][1].end > GAP:
                self._read_run(run, found)
                run = []
            run.append((key, info))
        if run:
            self._read_run(run, found)
        return found

    def beginning(self, key: str, count: int) -> tuple[float, ...]:
        """Return the first numbers of a tensor; nothing else of it is read, and not twice."""
        known = self._begun.get(key)
        if known is not None and len(known) >= min(count, math.prod(self.tensors[key].shape)):
            return known[:count]
        info = self.tensors[key]
        dtype = torch_dtype(info.dtype, display_name(self.path))
        numbers = math.prod(info.shape)
        few = min(count, numbers)
        buffer = np.empty((info.end - info.start) // max(numbers, 1) * few, dtype=np.uint8)
        if few:
            self._fill(memoryview(buffer), info.start)  # type: ignore[arg-type]
        self._begun[key] = tuple(torch.from_numpy(buffer).view(dtype).double().tolist())
        return self._begun[key]

    def _read_run(self, run: Sequence[tuple[str, TensorInfo]], found: dict[str, Tensor]) -> None:
        start, end = run[0][1].start, run[-1][1].end
        buffer = np.empty(end - start, dtype=np.uint8)
        if end > start:
            self._fill(memoryview(buffer), start)  # type: ignore[arg-type]
        for key, info in run:
            dtype = torch_dtype(info.dtype, display_name(self.path))
            found[key] = _tensor(buffer, info.start - start, info, dtype)

    def _fill(self, view: memoryview, start: int) -> None:
        try:
            done = 0
            while done < len(view):
                count = self._read_at(view[done : done + _MAX_READ], start + done)
                if not count:
                    message = (
                        f"{display_name(self.path)} became shorter while it was read; is it "
                        "still being downloaded?"
                    )
                    raise FileFormatError(message)
                done += count
        except (OSError, ValueError) as error:
            message = f"{display_name(self.path)} cannot be read any more: {error}."
            raise FileFormatError(message) from error

    def _read_at(self, view: memoryview, start: int) -> int:
        if self._positional:
            return os.preadv(self._file.fileno(), [view], start)
        with self._lock:
            self._file.seek(start)
            return self._file.readinto(view) or 0  # type: ignore[attr-defined]

    def sha256(self) -> str:
        """Return the sha256; see `TensorFile.sha256`. A file that has taken its place does not count."""
        at = 0

        def read(view: memoryview) -> int:
            nonlocal at
            count = self._read_at(view, at)
            at += count
            return count

        try:
            digest = stream_hash(read)
        except (OSError, ValueError) as error:
            message = f"{display_name(self.path)} cannot be read any more: {error}."
            raise FileFormatError(message) from error
        self.check_unchanged()
        return digest

    def check_unchanged(self) -> None:
        """Refuse a file that was written to; one that has taken its place is not read here."""
        _check(self.path, self.state, lambda: os.fstat(self._file.fileno()))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _tensor(buffer: np.ndarray, offset: int, info: TensorInfo, dtype: torch.dtype) -> Tensor:
    if info.start == info.end:
        return torch.empty(info.shape, dtype=dtype)
    piece = buffer[offset : offset + info.end - info.start]
    if offset % dtype.itemsize if hasattr(dtype, "itemsize") else offset % 8:
        piece = piece.copy()  # a run that starts at an odd byte: torch wants aligned elements
    return torch.from_numpy(piece).view(dtype).reshape(info.shape)


class PickleFile(TensorFile):
    """A pickled checkpoint, read whole through the restricted reader."""

    def __init__(
        self, path: Path, tensors: Mapping[str, Tensor], state: State, names: Mapping[torch.dtype, str]
    ) -> None:
        """Keep the tensors; pickles are small and cannot be read in parts."""
        self.path = path
        self.state, self.size = state, state[2]
        self.metadata: Mapping[str, str] = {}
        self._tensors: dict[str, Tensor] | None = dict(tensors)
        self.tensors = {
            key: TensorInfo(names[value.dtype], tuple(value.shape), 0, 0) for key, value in tensors.items()
        }

    def again(self) -> TensorFile:
        """Read the pickle once more."""
        return open_tensors(self.path)

    def read_many(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return several tensors; each is a copy, so that changing one changes no other."""
        tensors = self._tensors
        if tensors is None:
            message = f"{display_name(self.path)} cannot be read any more: it was closed."
            raise FileFormatError(message)
        return {key: tensors[key].clone(memory_format=torch.contiguous_format) for key in keys}

    def sha256(self) -> str:
        """Return the sha256; see `TensorFile.sha256`."""
        digest = file_hash(self.path)
        self.check_unchanged()
        return digest

    def check_unchanged(self) -> None:
        """Refuse a file that was written to or replaced since its tensors were read."""
        _check(self.path, self.state, self.path.stat)

    def close(self) -> None:
        """Forget the tensors."""
        self._tensors = None


def open_tensors(path: Path | str) -> TensorFile:
    """Open a file of tensors by what it holds, whatever its extension says.

    Raises:
        FileFormatError: missing, unreadable, damaged, or of no known format.
        UnsafePickleError: a pickle that asks for more than tensors.
    """
    path = Path(path)
    file = _open(path)
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            message = f"{display_name(path)} cannot be read: it is no plain file."
            raise FileFormatError(message)
        start = file.read(4)
        if (start in _ZIP or start[:1] == b"\x80") and not _plausible_header(file):
            file.close()
            return _open_pickle(path)
        return SafetensorsFile(path, file, read_header(file, display_name(path)))
    except OSError as error:
        file.close()
        message = f"{display_name(path)} cannot be read: {error.strerror or error}."
        raise FileFormatError(message) from error
    except BaseException:
        file.close()
        raise


def _plausible_header(file: BinaryIO) -> bool:
    """A safetensors file may begin like a zip or a pickle when its header's length does; its ninth byte is a
    brace.
    """
    file.seek(8)
    return file.read(1) == b"{"


def _open(path: Path) -> Any:  # noqa: ANN401 - FileIO
    try:
        return open(path, "rb", buffering=0, opener=_at_once)
    except FileNotFoundError as error:
        message = f"{display_name(path)} does not exist."
        raise FileFormatError(message) from error
    except (OSError, ValueError) as error:
        folder = os.path.isdir(path)  # noqa: PTH112 - pathlib's raises for names that no system could have
        reason = "it is a folder" if folder else getattr(error, "strerror", None) or str(error)
        message = f"{display_name(path)} cannot be opened: {reason}."
        raise FileFormatError(message) from error


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe would block for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open_pickle(path: Path) -> PickleFile:
    from lib_merge.files import pickles
    from lib_merge.files.header import name_of

    state = state_of(path.stat())
    tensors = pickles.read_pickle(path)
    _check(path, state, path.stat)
    names = {value.dtype: name_of(value.dtype) for value in tensors.values()}
    return PickleFile(path, tensors, state, names)
