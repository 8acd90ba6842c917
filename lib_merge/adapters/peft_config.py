"""alpha of PEFT files, which lives beside the tensors: in the header's `lora_adapter_metadata` or in
adapter_config.json.

scale = alpha/r, or alpha/√r with rank-stabilised LoRA (arXiv:2312.03732); `rank_pattern` and `alpha_pattern`
give single modules their own numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_merge.errors import FileFormatError

MAX_CONFIG = 16 << 20
_COMPONENTS = {
    "unet": ("unet", "transformer"),
    "te": ("text_encoder",),
    "te2": ("text_encoder_2",),
    "te3": ("text_encoder_3",),
}


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A configuration as found; `source` names where, for messages."""

    values: Mapping[str, Any]
    source: str

    def scale(self, component: str, module: str, rank: int) -> float | None:
        """Return the scale of one module, or None when the configuration does not say.

        Args:
            component: unet, te, te2, te3.
            module: dotted path without the PEFT prefixes.
            rank: the module's rank, from its shape.
        Raises:
            FileFormatError: alpha is no finite number.
        """
        for prefix in (*(f"{name}." for name in _COMPONENTS.get(component, ())), ""):
            alpha = self.values.get(f"{prefix}lora_alpha")
            if alpha is None:
                continue
            alpha = _pattern(self.values.get(f"{prefix}alpha_pattern"), module, alpha)
            stable = bool(self.values.get(f"{prefix}use_rslora"))
            if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
                message = f"{self.source}: lora_alpha is {alpha!r}, not a number."
                raise FileFormatError(message)
            return float(alpha) / (math.sqrt(rank) if stable else rank)
        return None

    @property
    def base(self) -> str:
        """Name of the base model, or an empty text."""
        return str(self.values.get("base_model_name_or_path") or "")


def _pattern(table: object, module: str, default: object) -> Any:  # noqa: ANN401
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
    """Return where a configuration beside a file may lie; the first that is there counts."""
    return path.with_name(f"{path.stem}.adapter_config.json"), path.with_name("adapter_config.json")


def find_config(path: Path, metadata: Mapping[str, str]) -> PeftConfig | None:
    """Return the PEFT configuration that belongs to a file: from its header, else from beside it.

    Raises:
        FileFormatError: it is there and is not valid JSON.
    """
    inside = metadata.get("lora_adapter_metadata")
    if inside:
        return PeftConfig(_parse(inside, f"lora_adapter_metadata of {path.name}"), path.name)
    for beside in places(path):
        if beside.is_file() and beside.stat().st_size <= MAX_CONFIG:
            try:
                text = beside.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                message = f"{beside.name} beside {path.name} cannot be read: {error}."
                raise FileFormatError(message) from error
            return PeftConfig(_parse(text, f"{beside.name} beside {path.name}"), beside.name)
    return None


def _parse(text: str, where: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{where} is not valid JSON; remove or mend it."
        raise FileFormatError(message) from error
    if not isinstance(values, dict):
        message = f"{where} is not a JSON object; remove or mend it."
        raise FileFormatError(message)
    return values
