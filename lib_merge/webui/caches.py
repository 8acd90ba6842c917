"""Making an overwritten LoRA count in the very next image.

Both WebUIs keep what they loaded under the LoRA's name and would go on using the old weights. Each of their
caches is emptied where it exists; one that does not is another WebUI's, so nothing here depends on a version.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

log = logging.getLogger("lib_merge")
_STALE = (("lora-merge: written anew",),)


def forget_loras() -> None:
    """Empty every cache that holds weights or conditionings of a LoRA that was written anew."""
    for clear in (_networks, _layers, _forge_loader, _forge_model, _conditionings):
        _quietly(clear)


def _quietly(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        # the file itself is safe; the person sees at worst the old weights until the next change of the
        # prompt
        log.warning("a cache of the WebUI could not be cleared (%s): %s", work.__name__, error)


def _networks() -> None:
    """A1111 and SD.Next keep loaded networks by name."""
    for module, name in (
        ("networks", "networks_in_memory"),
        ("networks", "loaded_networks"),
        ("modules.lora.lora_load", "lora_cache"),
    ):
        kept = getattr(sys.modules.get(module), name, None)
        if kept is not None:
            kept.clear()


def _layers() -> None:
    """A1111's layers compare only names and strengths with what is applied: make them differ, so that they
    apply anew.
    """
    model = _model()
    applied = getattr(model, "loaded_loras", None)
    if isinstance(applied, dict):  # SD.Next notes for the whole model what it has applied
        applied.clear()
    for layer in (getattr(model, "network_layer_mapping", None) or {}).values():
        # () means that nothing is applied and nothing was backed up: that is the truth, and stays
        if getattr(layer, "network_current_names", ()):
            layer.network_current_names = _STALE


def _forge_loader() -> None:
    """Forge reads a file once per name."""
    load = getattr(sys.modules.get("networks"), "load_lora_state_dict", None)
    clear = getattr(load, "cache_clear", None)
    if clear is not None:
        clear()


def _forge_model() -> None:
    """Forge remembers the set of LoRAs in the model and in both patchers."""
    model = _model()
    if not hasattr(model, "current_lora_hash"):
        return
    model.current_lora_hash = str(_STALE)
    for name in ("forge_objects", "forge_objects_original", "forge_objects_after_applying_lora"):
        objects = getattr(model, name, None)
        unet, clip = getattr(objects, "unet", None), getattr(objects, "clip", None)
        for patcher in (unet, getattr(clip, "patcher", None)):
            loader = getattr(patcher, "lora_loader", None)
            if loader is not None:
                loader.loaded_hash = str(_STALE)


def _conditionings() -> None:
    """Conditionings are kept by prompt; the text encoder may have changed under the same one."""
    processing = sys.modules.get("modules.processing")
    for owner, names in (
        ("StableDiffusionProcessing", ("cached_c", "cached_uc")),
        ("StableDiffusionProcessingTxt2Img", ("cached_hr_c", "cached_hr_uc")),
    ):
        for name in names:
            cache = getattr(getattr(processing, owner, None), name, None)
            if isinstance(cache, list):
                cache[:] = [None] * len(cache)


def _model() -> Any:  # noqa: ANN401
    """Return the model that is loaded, without loading one."""
    models = sys.modules.get("modules.sd_models")
    return getattr(getattr(models, "model_data", None), "sd_model", None)
