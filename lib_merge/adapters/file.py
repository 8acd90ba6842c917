"""One LoRA file as the engine sees it: family, modules, what is copied, what cannot be merged."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lib_merge.adapters.keys import Parsed, RawModule, kind_of, parse_keys, sides
from lib_merge.adapters.kind import VECTORS, BaseWeight, Layout, LayoutError, MergeableKind
from lib_merge.adapters.peft_config import PeftConfig, find_config
from lib_merge.adapters.settle import likely_families, refuse_by_name, settle_family
from lib_merge.errors import ModuleError, UnsupportedKindError
from lib_merge.families import (
    FamilyGuess,
    ModuleFacts,
    Placement,
    Size,
    family_in_metadata,
    family_in_name,
    family_of,
    tell_family,
)
from lib_merge.files.header import FLOATS, TensorInfo
from lib_merge.files.reader import TensorFile, open_tensors
from lib_merge.linalg import Delta, Dense, LowRank, Term, rows_of

# ---------------------------------------------------------------- one module


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
        keys = {role: key for role, key in self.roles.items() if role not in VECTORS}
        read = file.read_many(list(keys.values()))
        tensors = {role: _computable(read[key]) for role, key in keys.items()}
        delta = self.kind.load(tensors, self.scale, self.base)
        return swap_halves(delta) if self.swap else delta

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
) -> Layout:
    """Return the layout of a module from the shapes of its roles.

    Args:
        name: the module, for messages.
        roles: role -> key.
        kind: of the module; None where its tensors are of none.
        shapes: role -> shape.
        where: the file's name, for messages.
    Raises:
        ModuleError: a half is missing or the shapes do not fit together.
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
        return kind.layout(shapes)
    except LayoutError as error:
        message = f"{where}: {name} does not fit together: {error}."
        raise ModuleError(message) from error


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


@dataclass(slots=True)
class LoraFile:
    """An opened LoRA.

    family     None until settled when shapes alone cannot tell
    model      the model of the family whose sizes the file has; None where the family has no table
    guess      the families the shapes allow, and why
    facts      what each module says of the family
    modules    canonical name -> module, filled by `settled`
    fused_in   split name -> (fused name, rows), for modules that another layout fuses (Flux q/k/v)
    notes      sentences for the report
    """

    path: Path
    file: TensorFile
    parsed: Parsed
    config: PeftConfig | None
    guess: FamilyGuess
    facts: Sequence[ModuleFacts] = ()
    family: str | None = None
    model: Size | None = None
    modules: dict[str, Module] = field(default_factory=dict)
    fused_in: dict[str, tuple[str, tuple[int, int]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _sha256: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """File name for messages."""
        return self.path.name

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.file.size

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's metadata."""
        return self.file.metadata

    @property
    def sha256(self) -> str:
        """sha256 of the whole file, computed once when first asked for."""
        with self._lock:
            if not self._sha256:
                self._sha256.append(self.file.sha256())
            return self._sha256[0]

    @property
    def said(self) -> str | None:
        """The family that a configuration or the header names; it breaks ties and never overrules shapes."""
        told = family_in_name(self.config.base) if self.config else None
        return told or family_in_metadata(self.metadata)

    @property
    def split_modules(self) -> set[str]:
        """Names of fused modules that this file has in pieces."""
        return {fused for fused, _ in self.fused_in.values()}

    def settled(
        self, family: str, *, drop_unsupported: bool = False, base: BaseWeights | None = None
    ) -> LoraFile:
        """Return the file with its modules placed for `family`.

        Args:
            family: the base family.
            drop_unsupported: leave modules that cannot be merged out, instead of refusing the file.
            base: the base model's weights, bound here to the modules whose kind needs them.
        Raises:
            ModuleError: two keys land on one module, shapes do not fit.
            UnsupportedKindError: a kind that needs base weights, unless `drop_unsupported`.
        """
        if family == self.family and not self.left_out and base is None:
            return self  # opened as this family already, and nothing is refused: nothing would change
        record = family_of(family)
        model = record.layers.likeliest(self.facts) if record.layers else None
        done = replace(self, family=family, model=model, modules={}, fused_in={}, left_out={}, notes=[])
        done._sha256, done._lock = self._sha256, self._lock
        for raw in self.parsed.modules:
            _add_module(done, raw, record.place(raw.component, raw.path, raw.spelt, model), base)
        _refuse_twice(done)
        _refuse(done, drop_unsupported)
        if self.parsed.unknown:
            for key in self.parsed.unknown:
                done.left_out[key] = "no known meaning"
            listed = ", ".join(self.parsed.unknown[:3])
            done.notes.append(
                f"{self.name}: {len(self.parsed.unknown)} keys have no known meaning and were left: {listed}"
            )
        return done

    def parts(self, split: Sequence[str] | set[str] = ()) -> dict[str, ModulePart]:
        """Return module name -> part, fused modules cut into the pieces named by `split` (sets of fused
        names).
        """
        parts: dict[str, ModulePart] = {}
        family = family_of(self.family or "")
        for name, module in self.modules.items():
            kernel = module.layout.kernel or family.kernel(name, module.layout.columns)
            fused, (first, last) = self.fused_in.get(name, (name, (0, module.layout.out)))
            pieces = family.split(fused, self.model) if fused != name or name in split else None
            # a piece of several others is cut, too: no loader has a name for it
            inside = [(n, rows) for n, rows in pieces or () if rows[0] >= first and rows[1] <= last]
            if not inside or inside[0][0] == name:
                parts[name] = ModulePart(module, kernel)
            for piece, rows in inside if name not in parts else ():
                parts[piece] = ModulePart(module, kernel, (rows[0] - first, rows[1] - first))
        return parts

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> LoraFile:
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def open_lora(path: Path | str, family: str | None = None) -> LoraFile:
    """Open a LoRA: header, key names, family; no tensor is read.

    Args:
        path: a .safetensors, or a pickled .pt/.bin/.ckpt.
        family: settles the family at once; else it stays open where shapes allow several.
    Raises:
        FileFormatError: damaged or not a LoRA.
        ModuleError: key names that do not fit together.
    """
    path = Path(path)
    file = open_tensors(path)
    try:
        return _understand(path, file, family)
    except BaseException:
        file.close()
        raise


def _understand(path: Path, file: TensorFile, family: str | None) -> LoraFile:
    config = find_config(path, file.metadata)
    parsed = parse_keys(file.tensors, file.metadata, config, path.name)
    if not parsed.modules and not parsed.embeddings:
        message = f"{path.name} has no LoRA weights: none of its {len(file.tensors)} keys is a module's."
        raise ModuleError(message)
    facts = facts_of(parsed, file.tensors)
    opened = LoraFile(path, file, parsed, config, tell_family(facts), facts)
    refuse_by_name(opened)
    if family is not None:
        return opened.settled(settle_family([opened], family), drop_unsupported=True)
    likely = likely_families(opened)
    return opened.settled(likely[0], drop_unsupported=True) if len(likely) == 1 else opened


def guess_family(parsed: Parsed, tensors: Mapping[str, TensorInfo]) -> FamilyGuess:
    """Return the families a file fits.

    Args:
        parsed: its modules.
        tensors: its header table.
    """
    return tell_family(facts_of(parsed, tensors))


def facts_of(parsed: Parsed, tensors: Mapping[str, TensorInfo]) -> list[ModuleFacts]:
    """Return what each module of a file says of its family.

    Args:
        parsed: the file's modules.
        tensors: its header table.
    """
    return [
        ModuleFacts(
            module.component,
            module.path,
            *sides({role: tensors[key].shape for role, key in module.roles.items()}),
        )
        for module in parsed.modules
    ]


def _add_module(file: LoraFile, raw: RawModule, placed: Placement, base: BaseWeights | None) -> None:
    shapes = {role: tuple(file.file.tensors[key].shape) for role, key in raw.roles.items()}
    kind = kind_of(raw.roles)
    merged = kind if isinstance(kind, MergeableKind) else None
    refused = kind is not None and (merged is None or (kind.needs_base and base is None))
    layout = None if refused else describe(placed.name, raw.roles, merged, shapes, file.name)
    if placed.name in file.modules or placed.name in file.left_out:
        message = f"{file.name}: two groups of keys both mean {placed.name}; the file is ambiguous."
        raise ModuleError(message)
    if layout is None:
        file.left_out[placed.name] = kind.name if kind is not None else ""
        return
    check_numbers(raw.roles, file.file.tensors, file.name)
    file.modules[placed.name] = Module(
        name=placed.name,
        roles=raw.roles,
        layout=layout,
        kind=merged,
        scale=raw.scale,
        swap=placed.swap_halves,
        base=_bound(base, placed) if base is not None and kind is not None and kind.needs_base else None,
    )
    if placed.fused and placed.rows:
        file.fused_in[placed.name] = (placed.fused, placed.rows)


def _refuse_twice(file: LoraFile) -> None:
    """Refuse a file that has a module whole and in pieces: loaders take both, or whichever comes last."""
    for name, (fused, _) in file.fused_in.items():
        if fused in file.modules:
            message = f"{file.name}: {fused} and {name} are the same rows twice; the file is ambiguous."
            raise ModuleError(message)


def _bound(base: BaseWeights, placed: Placement) -> BaseWeight:
    """Return what reads a module's base weight, its rows in the order in which the file has them."""

    def weight() -> Tensor:
        value = base.weight(placed.fused or placed.name, placed.rows)
        return torch.roll(value, value.shape[0] // 2, 0) if placed.swap_halves else value

    return weight


def _refuse(file: LoraFile, drop: bool) -> None:
    kinds: dict[str, int] = {}
    for kind in file.left_out.values():
        kinds[kind] = kinds.get(kind, 0) + 1
    if not kinds:
        return
    named = " and ".join(f"{count} {kind} modules" for kind, count in kinds.items())
    if not drop:
        message = (
            f"{file.name} has {named}: this kind depends on the base model and cannot be merged "
            "from the file alone; "
            "--drop_unsupported merges the rest."
        )
        raise UnsupportedKindError(message)
    file.notes.append(f"{file.name}: {named} depend on the base model and were left out")
