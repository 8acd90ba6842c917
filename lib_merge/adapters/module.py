"""One module of a LoRA file: what its tensors are, and ΔW built from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lib_merge.adapters.kind import VECTORS, BaseWeight, Layout, LayoutError, MergeableKind, check_size
from lib_merge.errors import ModuleError
from lib_merge.files.header import FLOATS, TensorInfo
from lib_merge.files.reader import TensorFile
from lib_merge.linalg import Delta, Dense, LowRank, Term, add, norm, rows_of
from lib_merge.linalg.delta import among_rows

# what the role of an fp8 factor's scale ends in
SCALE = ".scale"


class BaseWeights(Protocol):
    """The unchanged weights of a base model, wherever they come from."""

    def weight(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        """Read the weight of one module, Float[out in …].

        Args:
            name: canonical module name.
            rows: (first, last + 1) where only these are meant.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module as one file has it.

    name    canonical name, kohya's spelling
    roles   role -> key in the file
    layout  kind, size and rank of ΔW; kind "vectors" when only biases or norms are there
    kind    builds ΔW; None when only vectors are there
    scale   overrides alpha/rank, from a PEFT configuration
    swap    the two halves of the out axis change places (Flux' last adaLN)
    base    reads the unchanged weight in the file's own order of rows; for kinds that need it
    """

    name: str
    roles: Mapping[str, str]
    layout: Layout
    kind: MergeableKind | None
    scale: float | None = None
    swap: bool = False
    base: BaseWeight | None = None

    @property
    def vectors(self) -> tuple[str, ...]:
        """Roles of the one-dimensional tensors that ride along."""
        return tuple(role for role in self.roles if role in VECTORS)

    def load(self, file: TensorFile) -> Delta:
        """Read the tensors and build ΔW, Float[out in·kh·kw].

        Raises:
            FileFormatError: the file cannot be read any more.
        """
        if self.kind is None:
            message = f"{self.name} has no matrix"
            raise LayoutError(message)
        delta = self.kind.load(self._tensors(file), self.scale, self.base)
        return swap_halves(delta) if self.swap else delta

    def norm(self, file: TensorFile) -> float:
        """Read the tensors and return ‖ΔW‖; 0 where there are only vectors.

        Raises:
            FileFormatError: the file cannot be read any more.
        """
        if self.kind is None:
            return 0.0
        known = self.kind.norm(self._tensors(file), self.scale)
        return norm(self.load(file)) if known is None else known

    def _tensors(self, file: TensorFile) -> dict[str, Tensor]:
        """Read the tensors of the matrix; those in scaled fp8 are multiplied with their scales."""
        keys = {role: key for role, key in self.roles.items() if role not in VECTORS}
        read = file.read_many(list(keys.values()))
        tensors = {role: _computable(read[key]) for role, key in keys.items()}
        for role in [role for role in tensors if role.endswith(SCALE)]:
            scale, factor = tensors.pop(role).float(), role.removesuffix(SCALE)
            axes = (-1, *(1 for _ in tensors[factor].shape[1:])) if scale.numel() > 1 else ()
            tensors[factor] = tensors[factor].float() * scale.reshape(axes)
        return tensors

    def load_vectors(self, file: TensorFile) -> dict[str, Tensor]:
        """Read the one-dimensional tensors as float32; a PEFT bias becomes `diff_b`, scaled like its LoRA."""
        vectors = {}
        for role in self.vectors:
            value = file.read(self.roles[role]).float().flatten()
            if role == "lora_bias" and self.scale is not None:
                value = value * self.scale
            vectors[_saved_as(role)] = torch.roll(value, value.numel() // 2) if self.swap else value
        return vectors

    def vector_sizes(self, file: TensorFile) -> dict[str, int]:
        """Return role -> numbers of what `load_vectors` reads."""
        return {_saved_as(role): math.prod(file.tensors[self.roles[role]].shape) for role in self.vectors}


def _saved_as(role: str) -> str:
    return "diff_b" if role == "lora_bias" else role


def _computable(value: Tensor) -> Tensor:
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


def describe(
    name: str,
    roles: Mapping[str, str],
    kind: MergeableKind | None,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    *,
    known: tuple[int, ...] = (),
) -> Layout:
    """Return the layout of a module from the shapes of its roles.

    Args:
        name: the module, for messages.
        roles: role -> key.
        kind: of the module; None where its tensors are of none.
        shapes: role -> shape.
        where: the file's name, for messages.
        known: shape of the layer that the family's model has there; () where no table says.
    Raises:
        ModuleError: a half is missing, the shapes do not fit together, or make what no layer can have.
    """
    matrix = [role for role in roles if role not in VECTORS and role != "alpha"]
    if not matrix:
        vectors = [role for role in roles if role in VECTORS]
        if not vectors:
            message = f"{where}: {name} has an alpha but no weights; the file is incomplete."
            raise ModuleError(message)
        return Layout("vectors", shapes[vectors[0]][0] if shapes[vectors[0]] else 1, 0, (), 0)
    try:
        if kind is None:
            message = f"no adapter kind has the tensors {', '.join(sorted(matrix))}"
            raise LayoutError(message)
        _check_scales(shapes)
        layout = kind.layout(shapes)
        check_size(layout, known)
    except LayoutError as error:
        message = f"{where}: {name} does not fit together: {error}."
        raise ModuleError(message) from error
    return layout


def _check_scales(shapes: Mapping[str, tuple[int, ...]]) -> None:
    for role, shape in shapes.items():
        factor = role.removesuffix(SCALE)
        if factor != role and math.prod(shape) not in (1, *shapes.get(factor, ())[:1]):
            message = f"the fp8 scale of {factor} has shape {list(shape)}"
            raise LayoutError(message)
        if factor != role and factor not in shapes:
            message = f"there is an fp8 scale of {factor}, and no {factor}"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedModule(Module):
    """A fused module that a file has in pieces: their ΔW, each among its own rows.

    pieces  (module, its first row)
    """

    pieces: tuple[tuple[Module, int], ...] = ()

    @classmethod
    def of(cls, name: str, out: int, pieces: Sequence[tuple[Module, int]]) -> JoinedModule:
        """Join pieces.

        Args:
            name: canonical, of the fused module.
            out: its rows.
            pieces: (module, its first row).
        """
        layouts = [piece.layout for piece, _ in pieces]
        rank = sum(layout.rank or min(layout.out, layout.columns) for layout in layouts)
        return cls(
            name=name,
            roles={
                f"{number} {role}": key
                for number, (piece, _) in enumerate(pieces)
                for role, key in piece.roles.items()
            },
            layout=layouts[0]._replace(out=out, rank=rank, own_factors=False),
            kind=pieces[0][0].kind,
            pieces=tuple(pieces),
        )

    def load(self, file: TensorFile) -> Delta:
        """Read the pieces and build ΔW, Float[out in]."""
        out = self.layout.out
        return add([among_rows(piece.load(file), first, out) for piece, first in self.pieces])

    def norm(self, file: TensorFile) -> float:
        """Return ‖ΔW‖: the pieces have no row in common."""
        return math.hypot(*(piece.norm(file) for piece, _ in self.pieces))

    def load_vectors(self, file: TensorFile) -> dict[str, Tensor]:
        """Read the pieces' biases, each at its place."""
        vectors: dict[str, Tensor] = {}
        for piece, first in self.pieces:
            for role, value in piece.load_vectors(file).items():
                whole = vectors.setdefault(role, value.new_zeros(self.layout.out))
                whole[first : first + value.numel()] = value
        return vectors

    def vector_sizes(self, file: TensorFile) -> dict[str, int]:
        """Return role -> numbers of what `load_vectors` reads."""
        return {role: self.layout.out for piece, _ in self.pieces for role in piece.vector_sizes(file)}


@dataclass(frozen=True, slots=True)
class ModulePart:
    """Where one module of the result comes from in one file: a module of the file, or rows of it."""

    module: Module
    kernel: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def out(self) -> int:
        """Rows of ΔW."""
        return self.module.layout.out if self.rows is None else self.rows[1] - self.rows[0]

    @property
    def columns(self) -> int:
        """Columns of ΔW; 0 when there are only vectors."""
        return self.module.layout.columns

    @property
    def rank(self) -> int:
        """Rank of the exact low-rank form; min(out, in) where there is none."""
        layout = self.module.layout
        return (
            min(layout.rank or min(layout.out, layout.columns), self.out, max(self.columns, 1))
            if self.columns
            else 0
        )

    def load(self, file: TensorFile) -> Delta:
        """Read ΔW, Float[out in·kh·kw]."""
        return self.module.load(file) if self.rows is None else rows_of(self.module.load(file), *self.rows)

    def load_vectors(self, file: TensorFile) -> dict[str, Tensor]:
        """Read biases and norm weights; those of a cut module are cut alike."""
        vectors = self.module.load_vectors(file)
        if self.rows is None:
            return vectors
        return {role: value[slice(*self.rows)] for role, value in vectors.items()}

    def vector_sizes(self, file: TensorFile) -> dict[str, int]:
        """Return role -> numbers of what `load_vectors` reads; no tensor is read for it."""
        sizes = self.module.vector_sizes(file)
        if self.rows is None:
            return sizes
        return {role: len(range(size)[slice(*self.rows)]) for role, size in sizes.items()}
