"""alpha of PEFT files, which lives beside the tensors: in adapter_config.json, or in the header.

scale = alpha/r, or alpha/√r with rank-stabilised LoRA (arXiv:2312.03732); `rank_pattern` and `alpha_pattern`
give single modules their own numbers. A configuration beside a file counts only where it is the file's own:
by the file's name, and where ranks and target modules agree. Metadata in a header is what the file's own
trainer wrote, but no WebUI applies it (Forge, ComfyUI and A1111 load such files at scale 1): it is told, and
not applied, so that a merge is as strong as its sources in a prompt.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lib_merge.errors import FileFormatError
from lib_merge.files import store

MAX_CONFIG = 8 << 20
# Stems of files that PEFT and diffusers write beside an adapter_config.json.
_OWN_STEMS = ("adapter_model", "pytorch_lora_weights")
_COMPONENTS = {
    "unet": ("unet", "transformer"),
    "te": ("text_encoder",),
    "te2": ("text_encoder_2",),
    "te3": ("text_encoder_3",),
}
_MISSING = object()


class PeftModule(NamedTuple):
    """A module in PEFT's spelling without an alpha of its own.

    component  unet, te, te2, te3
    path       dotted, without the PEFT prefixes
    rank       from its shape
    """

    component: str
    path: str
    rank: int


class Configured(NamedTuple):
    """What a configuration means for a file.

    scales  module -> alpha/rank, of those it speaks for
    notes   sentences for the report
    config  itself; None where it is another file's, or broken
    """

    scales: Mapping[PeftModule, float]
    notes: tuple[str, ...]
    config: PeftConfig | None


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A configuration as found.

    values   what it says
    source   names where, for messages
    applies  False where no loader applies it: it is only told
    problem  a sentence where it cannot be used at all
    """

    values: Mapping[str, Any]
    source: str
    applies: bool = True
    problem: str = ""

    def scales(self, modules: Sequence[PeftModule]) -> Configured:
        """Return the scale of every module that the configuration speaks for, and what is to be told of it.

        Args:
            modules: all modules of the file in PEFT's spelling.
        """
        if not modules:
            return Configured({}, (), None)
        why = self.problem or (self._disagrees(modules) if self.applies else "")
        try:
            found = {module: self._scale(module) for module in modules} if not why else {}
        except (ValueError, ArithmeticError) as error:
            why = str(error)
        if why:
            return Configured({}, (f"{self.source} was not used: {why}",), None)
        scales = {module: scale for module, scale in found.items() if scale is not None}
        if not self.applies:
            return Configured({}, self._not_applied(scales.values()), self)
        said = (f"alpha/rank = {_span(scales.values())} comes from {self.source}",) if scales else ()
        return Configured(scales, said, self)

    def _not_applied(self, scales: Collection[float]) -> tuple[str, ...]:
        if all(scale == 1.0 for scale in scales):
            return ()
        return (
            f"{self.source} asks for alpha/rank = {_span(scales)}; Forge, ComfyUI and A1111 load the file at "
            "scale 1, and so does the merge",
        )

    @property
    def alpha(self) -> str:
        """What it says of alpha, for people; "" where it says nothing."""
        alphas = {str(value)[:40] for key, value in self.values.items() if key.endswith("lora_alpha")}
        where = f"from {self.source}" if self.applies else f"{self.source}; loaded as rank"
        return f"{' and '.join(sorted(alphas))} ({where})" if alphas else ""

    def _said(self, component: str, name: str) -> Any:  # noqa: ANN401
        """Return what is said under a name, for one component or for all; `_MISSING` where nothing is."""
        for prefix in (*(f"{part}." for part in _COMPONENTS.get(component, ())), ""):
            if (value := self.values.get(f"{prefix}{name}")) is not None:
                return value
        return _MISSING

    def _scale(self, module: PeftModule) -> float | None:
        """Return one module's scale, or None when the configuration does not say.

        Raises:
            ValueError: alpha is no finite number.
        """
        alpha = self._said(module.component, "lora_alpha")
        if alpha is _MISSING or not module.rank:
            return None
        alpha = _pattern(self._said(module.component, "alpha_pattern"), module.path, alpha)
        if isinstance(alpha, str) and not self.applies:
            alpha = float(alpha)  # flat metadata are texts
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= _LARGEST:
            message = f"lora_alpha is {str(alpha)[:40]!r}, not a number"
            raise ValueError(message)
        stable = self._said(module.component, "use_rslora")
        root = stable is not _MISSING and str(stable).lower() not in ("false", "0", "")
        return float(alpha) / (math.sqrt(module.rank) if root else module.rank)

    def _disagrees(self, modules: Sequence[PeftModule]) -> str:
        """Return why the configuration is another file's; "" where it fits."""
        for module in modules:
            rank = self._said(module.component, "r")
            rank = _pattern(self._said(module.component, "rank_pattern"), module.path, rank)
            if rank != module.rank or isinstance(rank, bool):
                told = "no rank" if rank is _MISSING else f"rank {str(rank)[:20]}"
                return f"it says {told}, and {module.path} has rank {module.rank}"
            if not _is_target(self._said(module.component, "target_modules"), module.path):
                return f"{module.path} is none of its target modules"
        return ""

    @property
    def base(self) -> str:
        """Name of the base model, or an empty text."""
        return str(self.values.get("base_model_name_or_path") or "")


# beyond it an alpha is no number that a scale could be made of
_LARGEST = 1e30


def _span(scales: Collection[float]) -> str:
    low, high = min(scales), max(scales)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _is_target(targets: object, path: str) -> bool:
    """Tell whether a module is among `target_modules`: ends of names, a pattern for whole names, or all."""
    if isinstance(targets, list):
        return any(path == str(name) or path.endswith(f".{name}") for name in targets)
    if isinstance(targets, str) and targets != "all-linear":
        try:
            return re.fullmatch(targets, path) is not None
        except re.error:
            return False
    return True


def _pattern(table: object, module: str, default: Any) -> Any:  # noqa: ANN401
    if isinstance(table, Mapping):
        for pattern, value in table.items():
            plain = str(pattern).removeprefix("^").removesuffix("$")
            if module == plain or module.endswith(f".{plain}"):
                return value
            try:
                if re.fullmatch(rf"(.*\.)?({plain})", module):
                    return value
            except re.error:
                continue
    return default


def places(path: Path) -> tuple[Path, ...]:
    """Return where a configuration of a file may lie beside it; the first that is there counts."""
    named = path.with_name(f"{path.stem}.adapter_config.json")
    stem = path.stem.lower()
    return (named, path.with_name("adapter_config.json")) if stem.startswith(_OWN_STEMS) else (named,)


def find_config(path: Path, metadata: Mapping[str, str]) -> PeftConfig | None:
    """Return the PEFT configuration that belongs to a file: from its header, else from beside it.

    One that cannot be read has a `problem`; it never stands in the way of the file.
    """
    inside = metadata.get("lora_adapter_metadata")
    if inside:
        return _parse(inside, f"lora_adapter_metadata in the header of {path.name}", applies=False)
    flat = {key: value for key, value in metadata.items() if _FLAT.search(key)}
    if any(key.endswith("lora_alpha") for key in flat):
        return PeftConfig(flat, f"the header of {path.name}", applies=False)
    for beside in places(path):
        where = f"{beside.name} beside {path.name}"
        try:
            text = store.read_text(beside, MAX_CONFIG)
        except FileFormatError as error:
            return PeftConfig({}, where, problem=str(error))
        if text is not None:
            return _parse(text, where, applies=True)
    return None


_FLAT = re.compile(r"^(?:[a-z_0-9]+\.)?(?:lora_alpha|r|use_rslora)$")


def _parse(text: str, where: str, *, applies: bool) -> PeftConfig:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return PeftConfig({}, where, applies, "it is not valid JSON")
    if not isinstance(values, dict):
        return PeftConfig({}, where, applies, "it is not a JSON object")
    return PeftConfig(values, where, applies)
