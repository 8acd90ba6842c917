"""Which family of base model is loaded, told by what the loaded model is: classes, configuration, flags."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.families import FAMILIES, Family, family_of
from lib_merge.families.registry import OTHER

# families without a record of their own here -> what their classes begin with
_ALSO = {
    "Cosmos": "cosmos",
    "HiDream": "hidream",
    "HunyuanDiT": "hunyuandit",
    "Mochi": "mochi",
    "PiD": "pid",
    "Stable Cascade": "stablecascade",
}
# what says nothing of a base model
_UNTOLD = ("", OTHER)


def loaded_family() -> str:
    """Return the family of the loaded model as it is called here; "" where none is loaded or none is told."""
    models = sys.modules.get("modules.sd_models")
    model: Any = getattr(getattr(models, "model_data", None), "sd_model", None)
    return "" if model is None else _of_classes(model) or _of_flags(model)


def _of_classes(model: Any) -> str:  # noqa: ANN401
    """Return the family that the name of a class begins with, the longest that fits."""
    words = {_ALSO[name]: name for name in _ALSO}
    for family in FAMILIES.values():
        if family.name != OTHER:
            words[_class_word(family)] = family.name
    for name in _classes(model):
        fitting = [word for word in words if word and name.startswith(word)]
        if fitting:
            return words[max(fitting, key=len)]
    return ""


def _class_word(family: Family) -> str:
    given = family.hosts.class_word if family.hosts is not None else ""
    return given or _plain(family.name)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _classes(model: Any) -> Iterator[str]:  # noqa: ANN401
    """Return the classes that may say it: the engine's (Forge), the configuration's (Neo, reForge)."""
    yield _plain(type(model).__name__)
    inner = getattr(getattr(getattr(model, "forge_objects", None), "unet", None), "model", None)
    for holder, name in ((model, "model_config"), (inner, "config"), (inner, "model_config")):
        config = getattr(holder, name, None)
        if config is not None:
            yield _plain(type(config).__name__)


def _of_flags(model: Any) -> str:  # noqa: ANN401
    """Return the newest family whose flag is set."""
    told = [(family, family.hosts) for family in FAMILIES.values() if family.hosts is not None]
    for family, host in reversed(told):
        if host.flag and getattr(model, host.flag, False) is True:
            return family.name
    return ""


def check_family(family: str) -> None:
    """Raise `RecipeError` where a merge is for another base model than the one that is loaded.

    Args:
        family: of the merge; "" is not judged, nor is the one of files that no family is told of.
    """
    loaded = loaded_family()
    if not loaded or family in _UNTOLD or family_of(family).refused or _plain(family) == _plain(loaded):
        return
    # LoRAs of a family that gives way to another pass for the other's
    if family_of(loaded).gives_way_to == family:
        return
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
