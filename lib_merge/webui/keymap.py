"""The loaded checkpoint's own table of names: which modules of a LoRA act on it.

Nothing is guessed from the family: the host's own mapping is asked with the model that is loaded. Forge, Neo,
reForge and Classic build a dictionary from it; A1111 hangs one on the model.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

log = logging.getLogger("lib_merge")
# where hosts of Forge's kind keep `model_lora_keys_unet` and `model_lora_keys_clip`
_TABLES = ("backend.patcher.lora", "ldm_patched.modules.lora")
_PROJECTION = re.compile(r"(.+)_[qkv]_proj$")


def known_names(stems: Collection[str]) -> set[str] | None:
    """Return those names of modules that the loaded checkpoint has a weight for; None where nobody can say.

    Args:
        stems: names of modules as the file has them: a key without its end.
    """
    models = sys.modules.get("modules.sd_models")
    model: Any = getattr(getattr(models, "model_data", None), "sd_model", None)
    if model is None:
        return None
    try:
        table = _forge_table(model)
        if table is not None:
            return {stem for stem in stems if stem in table or _anima(stem) in table}
        return _in_a1111(model, stems)
    except Exception as error:  # what a WebUI changes must not keep a merge from being saved
        log.warning("the loaded checkpoint's table of LoRA names could not be read: %s", error)
        return None


def checkpoint_name() -> str:
    """Return the loaded checkpoint's name, or ""."""
    models = sys.modules.get("modules.sd_models")
    model: Any = getattr(getattr(models, "model_data", None), "sd_model", None)
    info: Any = getattr(model, "sd_checkpoint_info", None)
    return str(getattr(info, "name_for_extra", "") or getattr(info, "name", "") or "")


def _forge_table(model: Any) -> Collection[str] | None:  # noqa: ANN401 - a WebUI's model
    """Return the names that a host of Forge's kind loads for its model and text encoders."""
    objects = getattr(model, "forge_objects", None)
    module = _table_module() if objects is not None else None
    if objects is None or module is None:
        return None
    names: dict[str, Any] = {}
    names.update(module.model_lora_keys_unet(objects.unet.model, {}))
    names.update(module.model_lora_keys_clip(objects.clip.cond_stage_model, {}))
    return names


def _table_module() -> ModuleType | None:
    for name in _TABLES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "model_lora_keys_unet"):
            return module
    return None


def _anima(stem: str) -> str:
    """Return where Neo keeps the adapter of Anima's language model: with the text encoder."""
    for mine, theirs in (
        ("diffusion_model.llm_adapter", "text_encoders.qwen3_06b.llm_adapter"),
        ("lora_unet_llm_adapter", "lora_te_llm_adapter"),
    ):
        if stem.startswith(mine):
            return theirs + stem[len(mine) :]
    return stem


def _in_a1111(model: Any, stems: Collection[str]) -> set[str] | None:  # noqa: ANN401 - a WebUI's model
    layers = getattr(model, "network_layer_mapping", None)
    networks = sys.modules.get("networks")
    if not layers or networks is None:
        return None
    convert: Callable[[str, bool], str] = networks.convert_diffusers_name_to_compvis
    sd2 = "model_transformer_resblocks" in layers
    return {stem for stem in stems if "." not in stem and _layer_of(stem, convert(stem, sd2), layers)}


def _layer_of(stem: str, converted: str, layers: Collection[str]) -> bool:
    """Tell whether A1111 finds a layer: by diffusers' name, as one of q, k, v, or by the model's own."""
    projection = _PROJECTION.match(converted)
    return (
        converted in layers
        or (projection is not None and projection[1] in layers)
        or stem.replace("lora_unet", "diffusion_model") in layers
        or stem.replace("lora_te1_text_model", "0_transformer_text_model") in layers
        or stem.replace("lora_te1_text_model", "transformer_text_model") in layers
    )
