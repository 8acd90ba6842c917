"""The header of a safetensors file, checked before anything is allocated from what it says.

Layout: 8 bytes little-endian header length, that many bytes of JSON (padding blanks allowed at its end),
then the data. The tensors' byte ranges must cover the data exactly, without gap or overlap.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from lib_merge.errors import FileFormatError

MAX_HEADER = 100_000_000
MAX_AXES = 16
MAX_ELEMENTS = 1 << 48
MOST_SIDE = (1 << 63) - 1  # a number of torch
# how files begin that people take for LoRAs
_STRANGERS = (
    (b"GGUF", "a GGUF file, a quantised model or LoRA of llama.cpp; take the .safetensors file instead"),
    (b"\x89HDF", "an HDF5 file of Keras, not a LoRA for a WebUI"),
    (b"\x1f\x8b", "a gzip archive: unpack it and give the .safetensors file inside"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it and give the .safetensors file inside"),
    (b"Rar!", "a RAR archive: unpack it and give the .safetensors file inside"),
    (b"\x89PNG", "a picture, not a LoRA"),
    (b"\xff\xd8\xff", "a picture, not a LoRA"),
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class TensorInfo(NamedTuple):
    """What the header says of one tensor; `start` and `end` are offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """A checked header."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    size: int


def read_header(file: BinaryIO, name: str) -> Header:
    """Read and check the header of an open safetensors file.

    Args:
        file: positioned anywhere; seekable.
        name: the file's name, for messages.
    Raises:
        FileFormatError: anything that does not hold, with the key it was seen at.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if size == 0:
        raise _damaged(name, "it is empty (0 bytes)")
    start = file.read(8)
    if len(start) < 8:
        raise _damaged(name, f"it ends after {size} bytes")
    length = struct.unpack("<Q", start)[0]
    if length > MAX_HEADER or 8 + length > size:
        raise _not_safetensors(name, start + file.read(64), length, size)
    raw = _read_exactly(file, length, name)
    entries = _parse(raw, name)
    metadata = _metadata(entries.pop("__metadata__", None), name)
    data_start = 8 + length
    tensors = {key: _entry(key, value, data_start, size, name) for key, value in entries.items()}
    _check_cover(tensors, data_start, size, name)
    return Header(tensors, metadata, data_start, size)


def _read_exactly(file: BinaryIO, length: int, name: str) -> bytes:
    parts: list[bytes] = []
    while length:  # an unbuffered file may give less than asked for
        part = file.read(length)
        if not part:
            raise _damaged(name, "it became shorter while it was read")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _damaged(name: str, what: str) -> FileFormatError:
    return FileFormatError(f"{name} is damaged: {what}; download it again.")


def _not_safetensors(name: str, start: bytes, length: int, size: int) -> FileFormatError:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return FileFormatError(f"{name} is a web page, not a LoRA: the download went wrong (a login page?).")
    if text.startswith(b"version https://git-lfs"):
        return FileFormatError(
            f"{name} is a Git LFS pointer, not the file itself: fetch it with git lfs pull."
        )
    if text.startswith((b"{", b"[")):
        return FileFormatError(
            f"{name} is a JSON file, not a LoRA: an index, a recipe or a configuration; give the "
            ".safetensors file that it goes with."
        )
    for magic, what in _STRANGERS:
        if start.startswith(magic):
            return FileFormatError(f"{name} is {what}.")
    return _damaged(name, f"its header would be {length:,} bytes long and the file has {size:,}")


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            times = Counter(key for key, _ in pairs)
            twice = next(key for key, count in times.items() if count > 1)
            raise _damaged(name, f"its header has the key {_short(twice)} twice")
        return found

    try:
        entries = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=_no_constant,
            parse_int=_number,
            parse_float=_real,
        )
        if _SURROGATE.search(raw):  # half a character is text in JSON, and nothing could write it back
            json.dumps(entries, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise _damaged(name, "its header is not valid JSON") from error
    if not isinstance(entries, dict):
        raise _damaged(name, "its header is not a JSON object")
    return entries


def _no_constant(word: str) -> None:
    message = f"{word} is not JSON"
    raise ValueError(message)


def _number(digits: str) -> float:
    """Read a whole number; -0 is none where only naturals are, as safetensors' own reader has it, and one
    beyond the range of floats is none at all.
    """
    if len(digits) > 308:
        _real(digits)
    return -0.0 if digits == "-0" else int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        message = "a number is out of range"
        raise ValueError(message)
    return value


def _metadata(found: object, name: str) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _damaged(name, "its __metadata__ is not a table of texts")
    return found


def _entry(key: str, value: object, data_start: int, size: int, name: str) -> TensorInfo:
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise _damaged(name, f"the entry {_short(key)} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        message = (
            f"{name}: {_short(key)} has the type {_short(str(dtype))}, which is not one of "
            f"{', '.join(ITEM_BYTES)}."
        )
        raise FileFormatError(message)
    if isinstance(shape, list) and len(shape) > MAX_AXES:
        message = f"{name}: {_short(key)} has {len(shape)} axes; {MAX_AXES} are the most that can be read."
        raise FileFormatError(message)
    if not _naturals(shape, MAX_AXES) or not _naturals(offsets, 2) or len(offsets) != 2:
        raise _damaged(name, f"shape or offsets of {_short(key)} are not whole numbers")
    if max(shape, default=0) > MOST_SIDE:
        message = (
            f"{name}: {_short(key)} has a side of {max(shape):,}; {MOST_SIDE:,} is the most there can be."
        )
        raise FileFormatError(message)
    elements = 1
    for axis in shape:
        elements *= axis
    start, end = offsets
    if elements > MAX_ELEMENTS or start > end or data_start + end > size:
        raise _damaged(
            name, f"{_short(key)} would lie outside the file (bytes {start} to {end} of {size - data_start})"
        )
    if end - start != elements * ITEM_BYTES[dtype]:
        raise _damaged(
            name,
            (
                f"{_short(key)} has {end - start} bytes where {dtype} {shape} needs "
                f"{elements * ITEM_BYTES[dtype]}"
            ),
        )
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)


def _naturals(values: object, most: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(type(value) is int and 0 <= value < 1 << 64 for value in values)
    )


def _check_cover(tensors: Mapping[str, TensorInfo], data_start: int, size: int, name: str) -> None:
    at = data_start
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != at:
            what = "overlaps its neighbour" if info.start < at else "leaves a gap before it"
            raise _damaged(name, f"the data of {_short(key)} {what}")
        at = info.end
    if at != size:
        raise _damaged(name, f"its tensors end at byte {at:,} and the file at {size:,}")


def _short(key: str) -> str:
    """Return a key fit for a message: quoted, unprintable characters escaped, at most 80 characters."""
    text = key if len(key) <= 80 else key[:77] + "…"
    return ascii(text) if not text.isprintable() else f"'{text}'"


def header_bytes(entries: Mapping[str, TensorInfo], metadata: Mapping[str, str], data_start: int) -> bytes:
    """Return the JSON of a header, as compact as safetensors writes it; offsets become relative to
    `data_start`.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, info in entries.items():
        table[key] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start - data_start, info.end - data_start],
        }
    return json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def first_byte(reserve: int) -> int:
    """Return where the data begins behind a header that `reserve` bytes are kept for."""
    return (8 + reserve + 7) // 8 * 8


def header_room(entries: Iterable[tuple[str, str, Sequence[int]]], metadata_bytes: int) -> int:
    """Return a header's length; at most a few bytes more.

    Args:
        entries: (key, dtype, shape) of every tensor in the order in which they are written; with larger
            shapes, or more tensors, than what is written, it is an upper bound.
        metadata_bytes: length of a header that has only the metadata.
    """
    room, at = metadata_bytes + 8, 0
    for name, dtype, shape in entries:
        end = at + ITEM_BYTES[dtype] * math.prod(shape)
        text = f'":{{"dtype":"{dtype}","shape":[{",".join(map(str, shape))}],"data_offsets":[{at},{end}]}},'
        room += len(text) + len(json.dumps(name, ensure_ascii=False).encode("utf-8", "surrogatepass")) - 1
        at = end
    return room


def display_name(path: Path) -> str:
    """Return the file's name for messages, unprintable characters escaped."""
    return path.name if path.name.isprintable() else ascii(path.name)


# ---------------------------------------------------------------- element types

# name -> (bytes per element, torch attribute). Larger types come first in safetensors' own file order.
_TABLE: dict[str, tuple[int, str]] = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "I16": (2, "int16"),
    "U16": (2, "uint16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I32": (4, "int32"),
    "U32": (4, "uint32"),
    "F32": (4, "float32"),
    "F64": (8, "float64"),
    "I64": (8, "int64"),
    "U64": (8, "uint64"),
}
FLOATS = frozenset({"F8_E5M2", "F8_E4M3", "F16", "BF16", "F32", "F64"})
ORDER = {name: index for index, name in enumerate(_TABLE)}
ITEM_BYTES = {name: size for name, (size, _) in _TABLE.items()}
TORCH_NAMES = {attribute: name for name, (_, attribute) in _TABLE.items()}


def torch_dtype(name: str, where: str) -> torch.dtype:
    """Return torch's type for a safetensors type name.

    Raises:
        FileFormatError: this torch does not have the type.
    """
    found = getattr(torch, _TABLE[name][1], None)
    if isinstance(found, torch.dtype):
        return found
    message = f"{where} holds {name} numbers, which this version of torch ({torch.__version__}) cannot read."
    raise FileFormatError(message)


@functools.cache
def name_of(dtype: torch.dtype) -> str:
    """Return safetensors' name of a torch type."""
    for name, (_, attribute) in _TABLE.items():
        if getattr(torch, attribute, None) is dtype:
            return name
    message = f"{dtype} has no safetensors name"
    raise ValueError(message)
