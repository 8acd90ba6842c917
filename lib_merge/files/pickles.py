"""A restricted reader for pickled LoRAs (.pt, .bin, .ckpt): it rebuilds tensors and nothing else.

`machine` runs the program and yields inert records; here the tensors are cut from the file's bytes, with
every bound checked. Each storage is read once and tensors are views of it, so memory is bounded by the file's
size.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lib_merge.errors import FileFormatError, MergeError, UnsafePickleError
from lib_merge.files.header import ITEM_BYTES, MAX_AXES, display_name, torch_dtype
from lib_merge.files.machine import MAX_PROGRAM, Machine, Storage, TensorRecord

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled file by key; a list of tensors gets the keys "0", "1", …

    Tensors may share memory with one another, as they did where they were saved.

    Raises:
        UnsafePickleError: the pickle names anything but tensors, as malicious files do.
        FileFormatError: damaged, or nothing but other objects inside.
    """
    name = display_name(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            size = path.stat().st_size
            tensors = _from_zip(file, size, name) if zipped else _from_legacy(file, size, name)
    except UnsafePickleError as error:
        message = (
            f"{name} is refused: it is a pickle that would run {ascii(str(error))[1:-1]}; do "
            "not load it anywhere."
        )
        raise UnsafePickleError(message) from None
    except MergeError:
        raise
    except (Exception, RecursionError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        message = f"{name} is damaged or not a pickled LoRA: {ascii(reason)[1:-1]}."
        raise FileFormatError(message) from error
    if not tensors:
        message = f"{name} holds no tensors."
        raise FileFormatError(message)
    return tensors


def _from_zip(file: BinaryIO, size: int, name: str) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        program = [entry for entry in entries if entry.endswith("/data.pkl") or entry == "data.pkl"]
        if len(program) != 1:
            message = _archive(name, list(entries))
            raise FileFormatError(message)
        root = program[0][: -len("data.pkl")]
        for info in entries.values():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                message = f"the entry {info.filename} is compressed or larger than the file"
                raise ValueError(message)
        if entries[program[0]].file_size > MAX_PROGRAM:
            message = "its program is too long"
            raise ValueError(message)
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder").strip() == b"big":
            message = "it was saved on a big-endian computer"
            raise ValueError(message)
        records = _flatten(Machine(io.BytesIO(archive.read(program[0]))).load())
        wanted = {record.storage.key: record.storage for record in records.values()}
        if (
            sum(storage.size for storage in wanted.values()) > size
        ):  # entries may overlap in a hostile archive
            message = "its tensors need more data than the file has"
            raise ValueError(message)
        return _build_all(records, lambda storage: archive.read(entries[f"{root}data/{storage.key}"]), name)


def _archive(name: str, entries: list[str]) -> str:
    """Return what a ZIP archive is that torch did not save."""
    inside = [entry for entry in entries if entry.lower().endswith((".safetensors", ".pt", ".bin", ".ckpt"))]
    if inside:
        return (
            f"{name} is a ZIP archive: unpack it and give {ascii(inside[0][:120])[1:-1]}, which lies inside."
        )
    return f"{name} is a ZIP archive without a LoRA in it."


def _from_legacy(file: BinaryIO, size: int, name: str) -> dict[str, Tensor]:
    """Read the format before torch 1.6: magic, version, system, program, list of keys, raw storages."""
    if Machine(file).load() != _LEGACY_MAGIC:
        message = "it is a pickle, but not one that torch saved"
        raise ValueError(message)
    Machine(file).load()
    system = Machine(file).load()
    if isinstance(system, dict) and system.get("little_endian") is False:
        message = "it was saved on a big-endian computer"
        raise ValueError(message)
    machine = Machine(file)
    records = _flatten(machine.load())
    keys = Machine(file).load()
    wanted = {record.storage.key for record in records.values()}
    found: dict[str, bytes] = {}
    for key in keys:
        numel = struct.unpack("<q", file.read(8))[0]
        storage = machine.storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.numel != numel or storage.size > size - file.tell() or key in found:
            message = "its list of storages does not match its tensors"
            raise ValueError(message)
        if key in wanted:
            found[key] = file.read(storage.size)
        else:  # an optimizer's state, say
            file.seek(storage.size, 1)
    return _build_all(records, lambda storage: found[storage.key], name)


def _flatten(content: object) -> dict[str, TensorRecord]:
    """Return key -> record from a dict, a dict inside a dict (`state_dict`), or a list."""
    found: dict[str, TensorRecord] = {}
    for key, record in _records(content):
        if key in found:
            message = f"it has two tensors named {key}"
            raise ValueError(message)
        found[key] = record
    return found


def _records(content: object) -> Iterator[tuple[str, TensorRecord]]:
    if isinstance(content, (list, tuple)):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        message = "it holds neither a table nor a list of tensors"
        raise ValueError(message)  # noqa: TRY004
    for key, value in content.items():
        inner: Mapping[Any, Any] = value if isinstance(value, dict) else {key: value}
        yield from ((str(k), v) for k, v in inner.items() if isinstance(v, TensorRecord))


def _build_all(
    records: Mapping[str, TensorRecord], storage: Callable[[Storage], bytes], name: str
) -> dict[str, Tensor]:
    cache: dict[str, Tensor] = {}
    found = {}
    for key, record in records.items():
        if record.storage.key not in cache:
            raw = storage(record.storage)
            if len(raw) != record.storage.size:
                message = f"the data of {key} has {len(raw)} bytes for {record.storage.numel} numbers"
                raise ValueError(message)
            cache[record.storage.key] = torch.from_numpy(np.frombuffer(bytearray(raw), dtype=np.uint8))
        data = cache[record.storage.key]
        whole = data.numel() - data.numel() % ITEM_BYTES[record.dtype]
        found[key] = _cut(data[:whole].view(torch_dtype(record.dtype, name)), record, key)
    return found


def _cut(flat: Tensor, record: TensorRecord, key: str) -> Tensor:
    elements = math.prod(record.size)
    last = record.offset + sum((size - 1) * step for size, step in zip(record.size, record.stride) if size)
    if (
        len(record.size) != len(record.stride)
        or len(record.size) > MAX_AXES
        or elements > flat.numel()
        or (elements and last >= flat.numel())
    ):
        message = f"{key} reaches outside of its data"
        raise ValueError(message)
    if not elements:
        return torch.empty(record.size, dtype=flat.dtype)
    return flat.as_strided(record.size, record.stride, record.offset)
