"""One module of one file: what it is, where it goes, and how its ΔW is built from the file's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from lib_merge.adapters import full, loha, lokr, lora
from lib_merge.adapters.layout import Layout, LayoutError
from lib_merge.adapters.refused import refusal
from lib_merge.errors import ModuleError
from lib_merge.files.dtypes import FLOATS
from lib_merge.files.header import TensorInfo
from lib_merge.files.reader import TensorFile
from lib_merge.linalg import Delta, Dense, LowRank, Term, rows_of

_KINDS: tuple[ModuleType, ...] = (lora, loha, lokr, full)


@dataclass(frozen=True, slots=True)
class Module:
    """A module as one file has it.

    name      canonical name, kohya's spelling
    roles     role -> key in the file
    layout    kind, size and rank of ΔW; kind "vectors" when only biases or norms are there
    scale     overrides alpha/rank, from a PEFT configuration
    swap      the two halves of the out axis change places (Flux' last adaLN)
    refused   name of a kind that needs the base model, or None
    """

    name: str
    roles: Mapping[str, str]
    layout: Layout
    scale: float | None = None
    swap: bool = False
    refused: str | None = None

    @property
    def vectors(self) -> tuple[str, ...]:
        """Roles of the one-dimensional tensors that ride along."""
        return tuple(role for role in self.roles if role in full.VECTORS)

    def load(self, file: TensorFile) -> Delta:
        """Read the tensors and build ΔW [out, in·kh·kw].

        Raises:
            FileFormatError: the file cannot be read any more.
        """
        keys = {role: key for role, key in self.roles.items() if role not in full.VECTORS}
        read = file.read_many(list(keys.values()))
        delta = _kind_of(keys).load({role: _plain(read[key]) for role, key in keys.items()}, self.scale)
        return swap_halves(delta) if self.swap else delta

    def load_vectors(self, file: TensorFile) -> dict[str, Tensor]:
        """Read the one-dimensional tensors as float32; a PEFT bias becomes `diff_b`, scaled like its LoRA."""
        found = {}
        for role in self.vectors:
            value = file.read(self.roles[role]).float().flatten()
            if role == "lora_bias" and self.scale is not None:
                value = value * self.scale
            found["diff_b" if role == "lora_bias" else role] = (
                torch.roll(value, value.numel() // 2) if self.swap else value
            )
        return found


def describe(
    name: str, roles: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], where: str
) -> Layout:
    """Return the layout of a module from the shapes of its roles.

    Args:
        name: the module, for messages.
        roles: role -> key.
        shapes: role -> shape.
        where: the file's name, for messages.
    Raises:
        ModuleError: a half is missing or the shapes do not fit together.
    """
    matrix = [role for role in roles if role not in full.VECTORS and role != "alpha"]
    if not matrix:
        vectors = [role for role in roles if role in full.VECTORS]
        if not vectors:
            message = f"{where}: {name} has an alpha but no weights; the file is incomplete."
            raise ModuleError(message)
        return Layout("vectors", shapes[vectors[0]][0] if shapes[vectors[0]] else 1, 0, (), 0)
    try:
        return _kind_of(matrix).layout(shapes)
    except LayoutError as error:
        message = f"{where}: {name} does not fit together: {error}."
        raise ModuleError(message) from error


def _kind_of(roles: object) -> ModuleType:
    for kind in _KINDS:
        if kind.matches(roles):
            return kind
    message = f"no adapter kind has the tensors {', '.join(sorted(roles))}"  # type: ignore[call-overload]
    raise LayoutError(message)


def check_numbers(roles: Mapping[str, str], tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Refuse a module whose tensors are no weights: whole numbers, or an alpha that is not one number.

    Args:
        roles: role -> key.
        tensors: the header's table.
        where: the file's name, for messages.
    Raises:
        ModuleError: with the key, its type and its shape.
    """
    for role, key in roles.items():
        info = tensors[key]
        if role == "alpha":
            if math.prod(info.shape) != 1:
                message = f"{where}: {key} has shape {list(info.shape)}, and an alpha is one number."
                raise ModuleError(message)
        elif info.dtype not in FLOATS:
            message = (
                f"{where}: {key} holds {info.dtype} numbers {list(info.shape)}, which are no LoRA weights."
            )
            raise ModuleError(message)


def needs_base(roles: Mapping[str, str]) -> str | None:
    """Return the name of the kind when it cannot be merged without the base model."""
    return refusal(roles)


def _plain(value: Tensor) -> Tensor:
    """Return 8-bit floats as fp16, which holds all of them exactly: torch can do next to nothing with the
    former.
    """
    return value.half() if value.element_size() == 1 else value


def swap_halves(delta: Delta) -> Delta:
    """Exchange the upper and lower half of the out axis (diffusers orders adaLN as scale, shift; BFL as
    shift, scale).
    """
    half = delta.out // 2
    if isinstance(delta, Dense):
        return Dense(delta.scale, torch.roll(delta.matrix, half, 0))
    return LowRank(
        delta.out, delta.columns, tuple(Term(t.scale, torch.roll(t.up, half, 0), t.down) for t in delta.terms)
    )


def cut_rows(delta: Delta, rows: tuple[int, int] | None) -> Delta:
    """Return the rows of a fused ΔW that one split module covers."""
    return delta if rows is None else rows_of(delta, *rows)
