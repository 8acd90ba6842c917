"""The hashes kohya's tools and the WebUIs expect, over the bytes as saved (after the cast)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from lib_merge.errors import FileFormatError
from lib_merge.files.header import TensorInfo, display_name, header_bytes

_CHUNK = 1 << 20
_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000


def file_hash(path: Path, start: int = 0) -> str:
    """Return sha256 over a file from byte `start` on, hex.

    Raises:
        FileFormatError: the file cannot be read (any more).
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            return stream_hash(file.readinto)
    except OSError as error:
        message = f"{display_name(path)} cannot be read any more: {error.strerror or error}."
        raise FileFormatError(message) from error


def stream_hash(read: Callable[[memoryview], int | None]) -> str:
    """Return sha256 over what `read` puts into one buffer after the other until it is 0 bytes, hex."""
    digest = hashlib.sha256()
    view = memoryview(bytearray(_CHUNK))
    while count := read(view):
        digest.update(view[:count])
    return digest.hexdigest()


def data_hash(path: Path, data_start: int) -> str:
    """Return sha256 over everything behind the header, hex: kohya's `sshs_model_hash`.

    It equals what kohya computes when the tensors lie in safetensors' own order, as the engine writes them.
    """
    return file_hash(path, data_start)


def legacy_hash(
    path: Path, entries: Mapping[str, TensorInfo], data_start: int, metadata: Mapping[str, str]
) -> str:
    """Return kohya's `sshs_legacy_hash`: 8 hex digits over bytes 0x100000…0x110000 of a minimal
    serialisation.

    That serialisation has the same data behind a header holding only the `ss_` entries; its bytes are found
    by shifting, not by writing it.

    Args:
        path: the finished file.
        entries: its tensors in file order.
        data_start: where its data begins.
        metadata: its metadata; only keys that begin with `ss_` count.
    """
    minimal = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    raw = header_bytes(entries, minimal, data_start)
    front = 8 + (len(raw) + 7) // 8 * 8
    head = ((front - 8).to_bytes(8, "little") + raw).ljust(front, b" ")
    piece = head[_LEGACY_START : _LEGACY_START + _LEGACY_LENGTH]
    with path.open("rb") as file:
        file.seek(data_start + max(0, _LEGACY_START - front))
        piece += file.read(_LEGACY_LENGTH - len(piece))
    return hashlib.sha256(piece).hexdigest()[:8]
