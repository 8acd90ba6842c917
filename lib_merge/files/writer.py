"""Writing a safetensors file in one pass, under a temporary name, published by one rename.

Shapes are only known when a module is done, and the header stands in front; so room for it is reserved, the
data is streamed behind, and the header is written last, padded with blanks as the format allows. Until
`publish` the output path is untouched; a crash leaves at most a hidden temporary file that the next merge in
that folder sweeps away.
"""

from __future__ import annotations

import errno
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lib_merge.errors import OutputError
from lib_merge.files.header import ITEM_BYTES, MAX_HEADER, TensorInfo, first_byte, header_bytes, header_room
from lib_merge.files.names import check_output_name
from lib_merge.files.store import Temporary, sweep, write_error

# Windows: another process maps the file. Python does not know this one as a PermissionError.
_MAPPED = 1224


# Blanks that a header may end in; beyond it the data is moved.
SPARE = 4000
_PIECE = 8 << 20


def _accepted(length: int, target: Path) -> int:
    """Return the length of a header, where readers accept it."""
    if length > MAX_HEADER:
        message = (
            f"the header of {target.name} would take {length / 1e6:.0f} MB (metadata of sources, names of "
            f"tensors), and no program reads more than {MAX_HEADER / 1e6:.0f}."
        )
        raise OutputError(message)
    return length


class StreamWriter:
    """Streams tensors into a temporary file beside `target`."""

    def __init__(self, target: Path, reserve: int) -> None:
        """Open the temporary file.

        Args:
            target: the output path; its folder must exist.
            reserve: bytes kept for the header; see `header_room`.
        Raises:
            OutputError: bad name, no such folder, not writable.
        """
        check_output_name(target)
        self.target = target
        self.data_start = first_byte(_accepted(reserve, target))
        self.entries: dict[str, TensorInfo] = {}
        self._at = self.data_start
        sweep(target.parent)
        try:
            self._temporary = Temporary(target)
            self._temporary.file.seek(self.data_start)
        except OSError as error:
            raise write_error(error, target) from error
        self.temp = self._temporary.path

    def add(self, name: str, dtype: str, shape: Sequence[int], data: Iterable[Any]) -> None:
        """Append one tensor.

        Args:
            name: its key.
            dtype: safetensors' name of its type.
            shape: its shape.
            data: buffers whose bytes, one after the other, are the tensor in row-major order.
        Raises:
            OutputError: no space left, or another failure of the disk.
        """
        start = self._at
        if name in self.entries:
            message = f"{name} was given twice"
            raise ValueError(message)
        for buffer in data:
            self._write(memoryview(buffer).cast("B"))
        expected = ITEM_BYTES[dtype] * math.prod(shape)
        if self._at - start != expected:
            message = f"{name} was given {self._at - start} bytes for {dtype} {list(shape)}"
            raise ValueError(message)
        self.entries[name] = TensorInfo(dtype, tuple(shape), start, self._at)

    def _write(self, view: memoryview) -> None:
        try:
            self._at += self._temporary.write(view)
        except OSError as error:
            raise write_error(error, self.target) from error

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._at

    def fit(self, metadata: Mapping[str, str], reserve: int | None = None) -> None:
        """Move the data to where a header with this metadata ends, where more than `SPARE` bytes were kept
        for it, or too few.

        Args:
            metadata: of the header.
            reserve: the bytes that would be kept by now; as many as were by default.
        Raises:
            OutputError: the header is longer than what readers accept; or a failure of the disk.
        """
        needed = len(header_bytes(self.entries, metadata, self.data_start))
        start = self.data_start if reserve is None else first_byte(_accepted(reserve, self.target))
        if not needed <= start - 8 <= needed + SPARE:
            start = first_byte(_accepted(needed, self.target))
        shift = start - self.data_start
        if not shift:
            return
        try:
            self._move(shift)
        except OSError as error:
            raise write_error(error, self.target) from error
        self.data_start, self._at = start, self._at + shift
        self.entries = {
            key: info._replace(start=info.start + shift, end=info.end + shift)
            for key, info in self.entries.items()
        }

    def _move(self, shift: int) -> None:
        """Move the data by `shift` bytes, piece by piece, and end the file behind it."""
        file, size = self._temporary.file, self._at - self.data_start
        starts = range(0, size, _PIECE)
        for start in starts if shift < 0 else reversed(starts):
            at = self.data_start + start
            file.seek(at)
            piece = bytearray()
            while len(piece) < min(_PIECE, size - start):
                piece += file.read(min(_PIECE, size - start) - len(piece)) or _gone()
            file.seek(at + shift)
            self._temporary.write(memoryview(piece))
        file.truncate(self._at + shift)
        file.seek(self._at + shift)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header; the temporary file is then complete. May be called again with other metadata.

        Raises:
            OutputError: the metadata outgrew the room reserved for it.
        """
        raw = header_bytes(self.entries, metadata, self.data_start)
        room = self.data_start - 8
        if len(raw) > room:
            message = f"the header of {self.target.name} needs {len(raw)} bytes and {room} were kept for it."
            raise OutputError(message)
        try:
            self._temporary.file.seek(0)
            self._temporary.write(room.to_bytes(8, "little") + raw + b" " * (room - len(raw)))
            self._temporary.file.seek(self._at)
        except OSError as error:
            raise write_error(error, self.target) from error

    def sync(self) -> None:
        """Wait until the bytes are on the disk, so that a power cut after `publish` cannot lose them.

        Raises:
            OutputError: there is no room for them.
        """
        try:
            self._temporary.sync()
        except OSError as error:
            raise write_error(error, self.target) from error

    def publish(self, *, overwrite: bool) -> Path:
        """Give the file its name.

        Args:
            overwrite: replace an existing file.
        Returns:
            The path it got: the target, or its next version when another process holds the target (Windows).
        Raises:
            OutputError: the target exists and `overwrite` is off.
        """
        target = self.target
        try:
            if overwrite:
                target = self._replace(target)
            else:
                self._temporary.rename_new(target)
        except FileExistsError as error:
            message = f"{target.name} exists already; choose another name or allow overwriting."
            raise OutputError(message) from error
        except OSError as error:
            raise write_error(error, target) from error
        return target

    def _replace(self, target: Path) -> Path:
        try:
            self._temporary.replace(target)
        except OSError as error:
            in_use = isinstance(error, PermissionError) or getattr(error, "winerror", None) == _MAPPED
            if not in_use or (sys.platform != "win32" and not target.exists()):
                raise
            # Windows: the WebUI still maps the old file. The merge is kept under the next free name instead.
            while True:
                version = next_version(target)
                try:
                    self._temporary.rename_new(version)
                except FileExistsError:
                    continue
                return version
        return target

    def discard(self) -> None:
        """Remove the temporary file unless it was published."""
        self._temporary.discard()

    def __enter__(self) -> StreamWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Discard what was not published."""
        self.discard()


def _gone() -> bytes:
    raise OSError(errno.EIO, "the temporary file became shorter")


def write_safetensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], *, overwrite: bool = True
) -> Path:
    """Write a whole file at once, atomically, in safetensors' own order (larger types first, then names).

    Args:
        path: the output.
        tensors: key -> torch tensor on the CPU.
        metadata: texts for the header.
        overwrite: replace an existing file.
    """
    from lib_merge.files.header import ORDER, name_of

    keys = sorted(tensors, key=lambda key: (-ORDER[name_of(tensors[key].dtype)], key))
    entries = [(key, name_of(tensors[key].dtype), tuple(tensors[key].shape)) for key in keys]
    room = header_room(entries, len(header_bytes({}, metadata, 0)))
    with StreamWriter(path, room) as writer:
        for key, dtype, shape in entries:
            writer.add(key, dtype, shape, [tensor_bytes(tensors[key])])
        writer.finish(metadata)
        return writer.publish(overwrite=overwrite)


def tensor_bytes(tensor: Any) -> memoryview:  # noqa: ANN401 - a torch tensor; this file does not need torch
    """Return the bytes of a CPU tensor, row-major, without a copy where it is contiguous."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def next_version(path: Path) -> Path:
    """Return `stem_v2`, `stem_v3`, … beside `path`: the first that does not exist; an existing _vN is
    counted up.
    """
    match = re.fullmatch(r"(.*)_v(\d{1,6})", path.stem)
    stem, number = (match[1], int(match[2])) if match else (path.stem, 1)
    while True:
        number += 1
        candidate = path.with_name(f"{stem}_v{number}{path.suffix}")
        if not candidate.exists():
            return candidate
