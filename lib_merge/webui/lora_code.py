"""The WebUI's own LoRA code: its table of names, its loaders; wherever a WebUI keeps it.

A1111, Forge, reForge, Classic and Neo have the top-level modules `networks` and `network`, put on `sys.path`
by their built-in extension. SD.Next has `modules.lora`, whose loader knows nothing of files outside its
folders: merging and listing work there, live merges do not.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lib_merge.errors import RecipeError

log = logging.getLogger("lib_merge")
ELSEWHERE = "modules.lora.lora_load"  # SD.Next


def tables() -> Any:  # noqa: ANN401
    """Return the module that has the tables of LoRAs and lists them anew; None outside a WebUI."""
    for name in ("networks", ELSEWHERE):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def loads_live() -> bool:
    """Tell whether the WebUI can load a LoRA that only its table of names knows."""
    try:
        importlib.import_module("networks")
        importlib.import_module("network")
    except ImportError:
        return False
    return True


def check_live() -> None:
    """Raise `RecipeError` where live merges cannot work: in a WebUI whose LoRA code is another one."""
    if not loads_live() and tables() is not None:
        message = (
            "live merges (`<merge:NAME>`, Preview and Compare) do not work in this WebUI, whose LoRA code "
            "loads files of its own folders only: merge and save, then use the LoRA."
        )
        raise RecipeError(message)


def entry_of(name: str) -> Any:  # noqa: ANN401
    """Return what `<lora:NAME:…>` would load, as the WebUI looks it up; None where it knows no such name."""
    networks = tables()
    if name.lower() in getattr(networks, "forbidden_network_aliases", ()):
        return networks.available_networks.get(name)
    return networks.available_network_aliases.get(name)


def relist() -> None:
    """Have the WebUI look into its LoRA folders again; names that were only lent to it are forgotten."""
    networks = tables()
    if networks is not None:
        networks.list_available_networks()


def live_entry(name: str, path: Path) -> Any:  # noqa: ANN401
    """Return an entry for the WebUI's table that leaves no trace: not in the cache of headers, no hash."""
    network = importlib.import_module("network")

    class LiveNetwork(network.NetworkOnDisk):  # type: ignore[misc,name-defined]
        """A LoRA outside the LoRA folders."""

        def __init__(self, name: str, filename: str) -> None:
            self.name = self.alias = name
            self.filename = filename
            self.metadata: dict[str, str] = {}
            self.is_safetensors = True
            self.hash, self.shorthash = name, ""
            self.sd_version = getattr(getattr(network, "SdVersion", None), "Unknown", None)

        def read_hash(self) -> None:
            """Keep the hash empty."""

    return LiveNetwork(name, str(path))


# ------------------------------------------------------------------------------------------ names in prompts

_TAG = re.compile(r"<(\w+):([^>]+)>")


def name_in(items: Iterable[object]) -> str:
    """Return the name among a tag's arguments as the WebUI tells it: the first that is no `key=value`."""
    return next((text for text in map(str, items) if "=" not in text), "")


def kinds() -> set[str]:
    """Return the words of tags that load LoRAs: lora, and what an extension made an alias of it."""
    found = {"lora"}
    with contextlib.suppress(Exception):
        from modules import extra_networks

        registry = extra_networks.extra_network_registry
        for alias, network in extra_networks.extra_network_aliases.items():
            if network is registry.get("lora"):
                found.add(alias)
    return found


def settle(texts: list[str], show: Callable[[], None]) -> list[str]:
    """Leave out of prompts, in place, every tag whose LoRA the WebUI cannot find.

    A name that a WebUI does not know makes it list its folders anew in the middle of a lookup, which forgets
    the names of live merges; Forge and its relatives then load no LoRA at all.

    Args:
        texts: prompts, with `<lora:…>` tags.
        show: puts the live merges into the WebUI's table again.
    Returns:
        the names that were left out.
    """
    ours = kinds()

    def names() -> list[str]:
        found = (
            name_in(match[2].split(":"))
            for text in texts
            for match in _TAG.finditer(text)
            if match[1] in ours
        )
        return list(dict.fromkeys(found))

    unknown = unknown_of(names(), show)
    if unknown:

        def kept(match: re.Match[str]) -> str:
            return "" if match[1] in ours and name_in(match[2].split(":")) in unknown else match[0]

        texts[:] = [_TAG.sub(kept, text) for text in texts]
    return unknown


def unknown_of(names: Iterable[str], show: Callable[[], None]) -> list[str]:
    """Return the names that no LoRA has, also after the folders were listed anew; see `settle`."""
    if tables() is None:
        return []
    names = list(names)
    if any(entry_of(name) is None for name in names):
        relist()
        show()
    return [name for name in names if entry_of(name) is None]
