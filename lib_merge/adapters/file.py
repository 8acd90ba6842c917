"""One LoRA file as the engine sees it: family, modules, what is copied, what cannot be merged."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lib_merge.adapters.keys import Parsed, RawModule, kind_of, parse_keys, sides
from lib_merge.adapters.kind import BaseWeight, MergeableKind
from lib_merge.adapters.module import BaseWeights, JoinedModule, Module, ModulePart, check_numbers, describe
from lib_merge.adapters.peft_config import PeftConfig, find_config
from lib_merge.adapters.refused import UNREAD, refusal
from lib_merge.adapters.settle import likely_families, refuse_by_name, settle_family
from lib_merge.errors import FileFormatError, MergeError, ModuleError, UnsupportedKindError
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
from lib_merge.files.header import TensorInfo, display_name
from lib_merge.files.reader import TensorFile, open_tensors

__all__ = ["BaseWeights", "LoraFile", "Module", "ModulePart", "open_lora", "settle_family"]
log = logging.getLogger("lib_merge")
# the layer that takes a picture in, as BFL and diffusers call it
_INPUTS = frozenset({"img_in", "x_embedder"})


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
            spot = record.layers.find(raw.path, model) if record.layers and raw.component == "unet" else None
            placed = record.place(raw.component, raw.path, raw.spelt, model)
            _add_module(done, raw, placed, base, spot.shape if spot else ())
        _refuse_twice(done)
        done.notes.extend(self.parsed.notes)
        _refuse(done, drop_unsupported)
        _tell_unknown(done)
        return done

    def parts(self, split: Collection[str] = (), joined: Collection[str] = ()) -> dict[str, ModulePart]:
        """Return module name -> part.

        Args:
            split: names of fused modules that are cut into their pieces.
            joined: names of fused modules whose pieces are put together.
        """
        parts: dict[str, ModulePart] = {}
        together: dict[str, list[tuple[Module, int]]] = {}
        family = family_of(self.family or "")
        for name, module in self.modules.items():
            kernel = module.layout.kernel or family.kernel(name, module.layout.columns)
            fused, (first, last) = self.fused_in.get(name, (name, (0, module.layout.out)))
            if fused != name and fused in joined:
                together.setdefault(fused, []).append((module, first))
                continue
            pieces = family.split(fused, self.model) if fused != name or name in split else None
            # a piece of several others is cut, too: no loader has a name for it
            inside = [(n, rows) for n, rows in pieces or () if rows[0] >= first and rows[1] <= last]
            if not inside or inside[0][0] == name:
                parts[name] = ModulePart(module, kernel)
            for piece, rows in inside if name not in parts else ():
                parts[piece] = ModulePart(module, kernel, (rows[0] - first, rows[1] - first))
        for fused, pieces_of in together.items():
            out = max(rows[1] for _, rows in family.split(fused, self.model) or ())
            parts[fused] = ModulePart(JoinedModule.of(fused, out, pieces_of), ())
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
    except BaseException as error:
        file.close()
        if isinstance(error, MergeError) or not isinstance(error, Exception):
            raise
        log.warning("%s could not be understood", display_name(path), exc_info=error)
        message = f"{display_name(path)} cannot be understood: its keys and shapes do not go together."
        raise FileFormatError(message) from error


def _understand(path: Path, file: TensorFile, family: str | None) -> LoraFile:
    found = find_config(path, file.metadata)
    parsed = parse_keys(file.tensors, file.metadata, found, path.name)
    config = parsed.config
    if not parsed.modules and not parsed.embeddings:
        message = f"{path.name} has no LoRA weights: none of its {len(file.tensors)} keys is a module's."
        raise ModuleError(message)
    _refuse_control(parsed, path.name)
    facts = facts_of(parsed, file.tensors)
    opened = LoraFile(path, file, parsed, config, tell_family(facts), facts)
    refuse_by_name(opened)
    if family is not None:
        return opened.settled(settle_family([opened], family), drop_unsupported=True)
    likely = likely_families(opened)
    return opened.settled(likely[0], drop_unsupported=True) if len(likely) == 1 else opened


def _refuse_control(parsed: Parsed, name: str) -> None:
    """Refuse a control LoRA: it gives the model more inputs than it has, and norms of its own."""
    first = [module for module in parsed.modules if module.path in _INPUTS and module.component == "unet"]
    wider = any("reshape_weight" in module.roles for module in first)
    norms = any("set_weight" in module.roles and module.path.endswith("_norm") for module in parsed.modules)
    if first and (wider or norms):
        message = (
            f"{name} is a control LoRA: it widens the model's input layer for a picture that guides it, and "
            "replaces norm weights; such a LoRA cannot be merged, load it beside the merge instead."
        )
        raise UnsupportedKindError(message)


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


def _add_module(
    file: LoraFile, raw: RawModule, placed: Placement, base: BaseWeights | None, known: tuple[int, ...]
) -> None:
    shapes = {role: tuple(file.file.tensors[key].shape) for role, key in raw.roles.items()}
    kind = kind_of(raw.roles)
    merged = kind if isinstance(kind, MergeableKind) else None
    refused = kind is not None and (merged is None or (kind.needs_base and base is None))
    layout = None if refused else describe(placed.name, raw.roles, merged, shapes, file.name, known=known)
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
    for key in file.parsed.unread:
        file.left_out[key] = UNREAD
    if not file.left_out:
        return
    kinds = Counter(file.left_out.values())
    if not drop:
        first = ascii(file.parsed.unread[0][:120])[1:-1] if file.parsed.unread else ""
        raise UnsupportedKindError(refusal(file.name, kinds, first))
    named = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    file.notes.append(f"{file.name}: {named} cannot be merged and were left out")


def _tell_unknown(file: LoraFile) -> None:
    """Name what has no known meaning and is no adapter's weight."""
    rest = [key for key in file.parsed.unknown if key not in file.left_out]
    changes = [key for key in rest if key.endswith(".diff_m")]
    if changes:
        file.notes.append(
            f"{file.name}: {len(changes)} changes of modulations (diff_m) were left out; ComfyUI, Forge and "
            "A1111 do not load them either"
        )
    for key in rest:
        file.left_out[key] = "no known meaning"
    strange = [key for key in rest if key not in changes]
    if strange:
        listed = ", ".join(ascii(key[:120])[1:-1] for key in strange[:3])
        file.notes.append(f"{file.name}: {len(strange)} keys have no known meaning and were left: {listed}")
