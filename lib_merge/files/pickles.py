"""A restricted reader for pickled LoRAs (.pt, .bin, .ckpt): it rebuilds tensors and nothing else.

A pickle is a program. torch's own `weights_only` loader has been made to run code before (up to 2.5.1), so this one
shares nothing with it: the stack machine is Python's own, with every instruction that could call or change an object
removed or replaced, and the five names that a tensor pickle needs mapped to inert records of ours. No name is ever
imported. Tensors are cut from the file's bytes afterwards, with every bound checked.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from lib_merge.errors import FileFormatError, MergeError, UnsafePickleError
from lib_merge.files.dtypes import torch_dtype
from lib_merge.files.header import display_name

MAX_PROGRAM = 64 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class _TensorRecord:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor_record(storage: object, offset: object, size: object, stride: object, *_: object) -> _TensorRecord:
    numbers = [
        offset,
        *(size if isinstance(size, tuple) else [None]),
        *(stride if isinstance(stride, tuple) else [None]),
    ]
    if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        message = "a tensor is described by something that is not whole numbers"
        raise ValueError(message)
    return _TensorRecord(storage, offset, size, stride)  # type: ignore[arg-type]


def _parameter_record(data: object, *_: object) -> _TensorRecord:
    if not isinstance(data, _TensorRecord):
        message = "a parameter holds no tensor"
        raise ValueError(message)  # noqa: TRY004 - one kind of error for damaged content
    return data


def _ordered(*pairs: object) -> dict[Any, Any]:
    return dict(*pairs) if pairs else {}  # type: ignore[call-overload]


_CALLABLE: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_record,
    ("torch._utils", "_rebuild_tensor"): _tensor_record,
    ("torch._utils", "_rebuild_parameter"): _parameter_record,
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): tuple,
}


class _Reader(pickle._Unpickler):
    """Python's pickle machine without the instructions that act on the world."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")  # type: ignore[call-arg]

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if (module, name) in _CALLABLE:
            return _CALLABLE[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        raise UnsafePickleError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:  # noqa: ANN401
        if not (
            isinstance(pid, tuple)
            and len(pid) >= 5
            and pid[0] == "storage"
            and isinstance(pid[1], _StorageType)
            and isinstance(pid[2], str)
            and type(pid[4]) is int
            and (len(pid) == 5 or pid[5] is None)
        ):
            message = "it refers to an object outside of itself"
            raise ValueError(message)
        return _Storage(pid[1].dtype, pid[2], pid[4])

    def _reduce(self) -> None:
        arguments = self.stack.pop()  # type: ignore[attr-defined]
        function = self.stack[-1]  # type: ignore[attr-defined]
        if not any(function is allowed for allowed in _CALLABLE.values()) or not isinstance(arguments, tuple):
            message = "it calls something that is not a tensor"
            raise ValueError(message)
        self.stack[-1] = function(*arguments)  # type: ignore[attr-defined]

    def _build(self) -> None:
        # a state dict carries `_metadata` as an attribute; nothing of it is needed, nothing is set
        self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(self.stack[-1], dict):  # type: ignore[attr-defined]
            message = "it sets attributes of an object"
            raise ValueError(message)  # noqa: TRY004

    def _forbidden(self) -> NoReturn:
        message = "it uses an instruction that builds objects"
        raise ValueError(message)

    dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]  # noqa: RUF012
    for _code in (
        "INST",
        "OBJ",
        "NEWOBJ",
        "NEWOBJ_EX",
        "EXT1",
        "EXT2",
        "EXT4",
        "BYTEARRAY8",
        "NEXT_BUFFER",
        "READONLY_BUFFER",
    ):
        if hasattr(pickle, _code):
            dispatch[getattr(pickle, _code)[0]] = _forbidden
    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.BUILD[0]] = _build
    del _code


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled file by key; a list of tensors gets the keys "0", "1", …

    Raises:
        UnsafePickleError: the pickle names anything but tensors, as malicious files do.
        FileFormatError: damaged, or nothing but other objects inside.
    """
    name = display_name(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            tensors = _from_zip(file, path.stat().st_size) if zipped else _from_legacy(file)
    except UnsafePickleError as error:
        message = (
            f"{name} is refused: it is a pickle that would run {ascii(str(error))[1:-1]}; do not load it anywhere."
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


def _from_zip(file: BinaryIO, size: int) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        program = [entry for entry in entries if entry.endswith("/data.pkl") or entry == "data.pkl"]
        if len(program) != 1:
            message = "the archive has no single data.pkl"
            raise ValueError(message)
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
        records = _flatten(_Reader(io.BytesIO(archive.read(program[0]))).load())

        def storage(wanted: _Storage) -> bytes:
            return archive.read(entries[f"{root}data/{wanted.key}"])

        return _build_all(records, storage)


def _from_legacy(file: BinaryIO) -> dict[str, Tensor]:
    """Read the format before torch 1.6: magic, version, system, program, list of keys, raw storages."""
    if _Reader(file).load() != _LEGACY_MAGIC:
        message = "it is a pickle, but not one that torch saved"
        raise ValueError(message)
    _Reader(file).load()
    system = _Reader(file).load()
    if isinstance(system, dict) and system.get("little_endian") is False:
        message = "it was saved on a big-endian computer"
        raise ValueError(message)
    records = _flatten(_Reader(file).load())
    keys = _Reader(file).load()
    wanted = {record.storage.key: record.storage for record in records.values()}
    found: dict[str, bytes] = {}
    for key in keys:
        numel = struct.unpack("<q", file.read(8))[0]
        if key not in wanted or not 0 <= numel < 1 << 40:
            message = "its list of storages does not match its tensors"
            raise ValueError(message)
        found[key] = file.read(numel * _BYTES[wanted[key].dtype])
    return _build_all(records, lambda storage: found[storage.key])


def _flatten(content: object) -> dict[str, _TensorRecord]:
    """Return key -> record from a dict, a dict inside a dict (`state_dict`), or a list."""
    if isinstance(content, (list, tuple)):
        content = {str(index): item for index, item in enumerate(content)}
    if not isinstance(content, dict):
        message = "it holds neither a table nor a list of tensors"
        raise ValueError(message)  # noqa: TRY004
    found: dict[str, _TensorRecord] = {}
    for key, value in content.items():
        if isinstance(value, _TensorRecord):
            found[str(key)] = value
        elif isinstance(value, dict):
            found.update({str(k): v for k, v in value.items() if isinstance(v, _TensorRecord)})
    return found


def _build_all(records: Mapping[str, _TensorRecord], storage: Callable[[_Storage], bytes]) -> dict[str, Tensor]:
    cache: dict[str, Tensor] = {}
    found = {}
    for key, record in records.items():
        if record.storage.key not in cache:
            raw = storage(record.storage)
            if len(raw) != record.storage.numel * _BYTES[record.storage.dtype]:
                message = f"the data of {key} has {len(raw)} bytes for {record.storage.numel} numbers"
                raise ValueError(message)
            buffer = np.frombuffer(bytearray(raw), dtype=np.uint8)
            cache[record.storage.key] = torch.from_numpy(buffer).view(torch_dtype(record.storage.dtype, key))
        found[key] = _cut(cache[record.storage.key], record, key)
    return found


def _cut(flat: Tensor, record: _TensorRecord, key: str) -> Tensor:
    elements = math.prod(record.size)
    last = record.offset + sum((size - 1) * step for size, step in zip(record.size, record.stride) if size)
    if (
        len(record.size) != len(record.stride)
        or len(record.size) > 16
        or elements > flat.numel()
        or (elements and last >= flat.numel())
    ):
        message = f"{key} reaches outside of its data"
        raise ValueError(message)
    return flat.as_strided(record.size, record.stride, record.offset).clone().contiguous()
