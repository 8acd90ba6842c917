"""The stack machine behind the restricted pickle reader: it can describe tensors and nothing else.

A pickle is a program. torch's own `weights_only` loader has been made to run code before (up to 2.5.1), so
this one shares nothing with it: the machine is Python's own, with every instruction that could call or change
an object removed or replaced, and the few names that a tensor pickle needs mapped to inert records of ours.
No name is ever imported. What is merely expensive is bounded too: the program's length, the work of its
calls, and what may be hashed (the hash of a tuple of tuples can take for ever, or overflow the interpreter's
stack).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, NoReturn

from lib_merge.errors import UnsafePickleError
from lib_merge.files.header import ITEM_BYTES, TORCH_NAMES

# The program of a LoRA with 5,000 tensors takes a third of that; one byte of it may ask for a hundred.
MAX_PROGRAM = 2 << 20
MAX_WORK = 10_000_000
_MAX_NAME = 100
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
    "UntypedStorage": "U8",
}
_KEYS = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Dtype:
    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file: their type, the name of their record, how many."""

    dtype: str
    key: str
    numel: int

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What a program says of one tensor; nothing of it has been checked against the data yet."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor_record(storage: object, offset: object, size: object, stride: object, *_: object) -> TensorRecord:
    numbers = [
        offset,
        *(size if isinstance(size, tuple) else [None]),
        *(stride if isinstance(stride, tuple) else [None]),
    ]
    if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        message = "a tensor is described by something that is not whole numbers"
        raise ValueError(message)
    return TensorRecord(storage, storage.dtype, offset, size, stride)  # type: ignore[arg-type]


def _typed_tensor_record(*arguments: object) -> TensorRecord:
    """Types younger than torch's typed storages (8-bit floats, unsigned integers): the type is the seventh
    argument.
    """
    if len(arguments) < 7 or not isinstance(arguments[6], _Dtype):
        message = "a tensor of a newer type does not say which"
        raise ValueError(message)
    record = _tensor_record(*arguments[:4])
    return TensorRecord(record.storage, arguments[6].name, record.offset, record.size, record.stride)


def _parameter_record(data: object, *_: object) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        message = "a parameter holds no tensor"
        raise ValueError(message)  # noqa: TRY004 - one kind of error for damaged content
    return data


def _ordered(pairs: object = ()) -> dict[Any, Any]:
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(pair, (list, tuple)) for pair in pairs):
        message = "a table is built from something that is not pairs"
        raise ValueError(message)
    return {_key(key): value for key, value in pairs}


def _key(key: object) -> Any:  # noqa: ANN401
    if type(key) not in _KEYS:
        message = "a table has a key that is neither a text nor a number"
        raise ValueError(message)
    return key


_CALLABLE: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_record,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor_record,
    ("torch._utils", "_rebuild_tensor"): _tensor_record,
    ("torch._utils", "_rebuild_parameter"): _parameter_record,
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): tuple,
}


class _Bounded:
    """A program's bytes: asking for more than `MAX_PROGRAM` of them is refused before anything is
    allocated.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_PROGRAM

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            message = "its program is too long"
            raise ValueError(message)
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            message = "its program is too long"
            raise ValueError(message)
        return line


class Machine(pickle._Unpickler):
    """Python's pickle machine without the instructions that act on the world."""

    def __init__(self, file: BinaryIO) -> None:
        """Read one program from where `file` stands."""
        super().__init__(_Bounded(file), encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self._work = 0

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Return our record for a name; none is imported."""
        if (module, name) in _CALLABLE:
            return _CALLABLE[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and name in TORCH_NAMES:
            return _Dtype(TORCH_NAMES[name])
        raise UnsafePickleError(f"{module[:_MAX_NAME]}.{name[:_MAX_NAME]}")

    def persistent_load(self, pid: Any) -> Storage:  # noqa: ANN401
        """Return the record of a storage, the only thing that may lie outside the program."""
        if not (
            isinstance(pid, tuple)
            and len(pid) >= 5
            and pid[0] == "storage"
            and isinstance(pid[1], _StorageType)
            and isinstance(pid[2], str)
            and type(pid[4]) is int
            and 0 <= pid[4] < 1 << 48
            and (len(pid) == 5 or pid[5] is None)
        ):
            message = "it refers to an object outside of itself"
            raise ValueError(message)
        storage = Storage(pid[1].dtype, pid[2], pid[4])
        if self.storages.setdefault(storage.key, storage) != storage:
            message = f"it reads the data {storage.key} as two different types"
            raise ValueError(message)
        return storage

    def _reduce(self) -> None:
        arguments = self.stack.pop()  # type: ignore[attr-defined]
        function = self.stack[-1]  # type: ignore[attr-defined]
        if not any(function is allowed for allowed in _CALLABLE.values()) or not isinstance(arguments, tuple):
            message = "it calls something that is not a tensor"
            raise ValueError(message)
        self._spend(arguments)
        self.stack[-1] = function(*arguments)  # type: ignore[attr-defined]

    def _spend(self, arguments: Iterable[Any]) -> None:
        self._work += 1 + sum(
            len(item) if isinstance(item, (list, tuple, dict, str)) else 1 for item in arguments
        )
        if self._work > MAX_WORK:
            message = "its program asks for too much work"
            raise ValueError(message)

    def _build(self) -> None:
        # a state dict carries `_metadata` as an attribute; nothing of it is needed, nothing is set
        self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(self.stack[-1], dict):  # type: ignore[attr-defined]
            message = "it sets attributes of an object"
            raise ValueError(message)  # noqa: TRY004

    def _set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._set([key, value])

    def _set_many(self) -> None:
        self._set(self.pop_mark())  # type: ignore[attr-defined]

    def _set(self, items: list[Any]) -> None:
        table = self.stack[-1]  # type: ignore[attr-defined]
        if type(table) is not dict or len(items) % 2:
            message = "it sets an entry of something that is not a table"
            raise ValueError(message)
        table.update((_key(key), value) for key, value in zip(items[::2], items[1::2]))

    def _make_table(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})  # type: ignore[attr-defined]
        self._set(items)

    def _forbidden(self) -> NoReturn:
        message = "it uses an instruction that builds objects"
        raise ValueError(message)

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    for _names, _instruction in (
        ("INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER", _forbidden),
        ("EMPTY_SET ADDITEMS FROZENSET", _forbidden),
        ("REDUCE", _reduce),
        ("BUILD", _build),
        ("SETITEM", _set_one),
        ("SETITEMS", _set_many),
        ("DICT", _make_table),
    ):
        for _name in _names.split():
            dispatch[getattr(pickle, _name)[0]] = _instruction
    del _names, _name, _instruction
