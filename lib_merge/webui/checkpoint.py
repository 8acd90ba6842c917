"""Which family of base model is loaded, told by what the loaded model says of itself."""

from __future__ import annotations

import sys
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.families import FAMILIES, Family, family_of


def loaded_family() -> str:
    """Return the family of the loaded model; "" where none is loaded or none is told or judged."""
    models = sys.modules.get("modules.sd_models")
    model: Any = getattr(getattr(models, "model_data", None), "sd_model", None)
    family = _family_of(model) if model is not None else None
    return family.name if family is not None and family.hosts is not None and family.hosts.judged else ""


def _family_of(model: object) -> Family | None:
    """Return the family that a model's class names, else the newest whose flag is set."""
    kind = type(model).__name__.lower()
    told = [(family, family.hosts) for family in FAMILIES.values() if family.hosts is not None]
    for family, host in told:
        if host.class_word and host.class_word in kind:
            return family
    for family, host in reversed(told):
        if host.flag and getattr(model, host.flag, False) is True:
            return family
    return None


def check_family(family: str) -> None:
    """Raise `RecipeError` where a merge is for another base model than the one that is loaded.

    Args:
        family: of the merge; "" is not judged, nor is one whose models are not recognised.
    """
    loaded = loaded_family()
    host = family_of(family).hosts
    if loaded and host is not None and host.judged and family != loaded:
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
