"""Bundled textual inversions: copied through, each under a name of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lib_merge.adapters import LoraFile
from lib_merge.files.dtypes import name_of
from lib_merge.files.writer import StreamWriter, tensor_bytes


def possible_keys(files: Sequence[LoraFile]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield keys at least as long as those that `copy` writes: for the header's room."""
    for file in files:
        for keys in file.parsed.embeddings.values():
            for key in keys:
                yield (
                    f"bundle_emb.{key}.string_to_param.*.{file.path.stem}",
                    "F32",
                    file.file.tensors[key].shape,
                )


def copy(
    files: Sequence[LoraFile], dtype: torch.dtype, writer: StreamWriter, warnings: list[str]
) -> list[str]:
    """Write every embedding of every file; return the keys.

    Args:
        files: the sources.
        dtype: of the result.
        writer: receives the tensors, sorted by key.
        warnings: is told about renamed embeddings.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        for name, keys in file.parsed.embeddings.items():
            for key in keys:
                new, note = _free_key(key, name, file.path.stem, found)
                found[new] = file.file.read(key).to(dtype)
                if note and note not in warnings:
                    warnings.append(note)
    for key in sorted(found):
        value = found[key]
        writer.add(key, name_of(value.dtype), tuple(value.shape), [tensor_bytes(value)])
    return sorted(found)


def _free_key(key: str, name: str, stem: str, taken: dict[str, Tensor]) -> tuple[str, str]:
    """Return the key of a copied embedding and a note when it had to be renamed."""
    plain = name.strip("<>")
    wanted = key if key.startswith("bundle_emb.") else f"bundle_emb.{plain}.string_to_param.*"
    if wanted not in taken:
        return wanted, ""
    renamed = wanted.replace(f".{plain}.", f".{plain}-{stem}.", 1)
    return renamed, f"the embedding {name} is in two sources; the second is now called {plain}-{stem}"
