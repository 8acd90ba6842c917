"""What the tensors of a LoRA file mean: key styles, adapter kinds (one file per kind), the file itself."""

from __future__ import annotations

from lib_merge.adapters.file import BaseWeights, LoraFile, Module, ModulePart, open_lora
from lib_merge.adapters.settle import settle_family

__all__ = ["BaseWeights", "LoraFile", "Module", "ModulePart", "open_lora", "settle_family"]
