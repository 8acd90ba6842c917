"""Element types of safetensors files and their torch counterparts."""

from __future__ import annotations

import torch

from lib_merge.errors import FileFormatError

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


def name_of(dtype: torch.dtype) -> str:
    """Return safetensors' name of a torch type."""
    for name, (_, attribute) in _TABLE.items():
        if getattr(torch, attribute, None) is dtype:
            return name
    message = f"{dtype} has no safetensors name"
    raise ValueError(message)
