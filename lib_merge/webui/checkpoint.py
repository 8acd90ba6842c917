"""Which family of base model is loaded, told by what the loaded model says of itself."""

from __future__ import annotations

import sys
from typing import Any

from lib_merge.errors import RecipeError


def loaded_family() -> str:
    """Return SD1, SD2, SDXL, SD3 or Flux; "" where no model is loaded or it does not say."""
    models = sys.modules.get("modules.sd_models")
    model: Any = getattr(getattr(models, "model_data", None), "sd_model", None)
    if model is None:
        return ""
    kind = type(model).__name__.lower()
    if "flux" in kind or "chroma" in kind:
        return "Flux" if "flux" in kind else ""
    for name, family in (("is_sd3", "SD3"), ("is_sdxl", "SDXL"), ("is_sd2", "SD2"), ("is_sd1", "SD1")):
        if getattr(model, name, False) is True:
            return family
    return ""


def check_family(family: str) -> None:
    """Raise `RecipeError` where a merge is for another base model than the one that is loaded.

    Args:
        family: of the merge; "" is not judged.
    """
    loaded = loaded_family()
    known = ("SD1", "SD2", "SDXL", "SD3", "Flux")
    if loaded and family in known and family != loaded:
        message = (
            f"this merge is for {family} and the loaded checkpoint is {loaded}: choose a "
            "checkpoint of its family."
        )
        raise RecipeError(message)


def load() -> None:
    """Have the chosen checkpoint loaded, where the WebUI only does so at the first picture."""
    models = sys.modules.get("modules.sd_models")
    reload = getattr(models, "forge_model_reload", None)
    if callable(reload):
        reload()
