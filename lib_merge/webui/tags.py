"""`<merge:NAME:0.8>` in a prompt: a saved recipe, merged when the picture is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_TAG = re.compile(r"<merge:([^<>:]+)((?::[^<>:]*)*)>")


def names_in(texts: Iterable[str]) -> list[str]:
    """Return the recipes that prompts name, each once, in order."""
    found: dict[str, None] = {}
    for text in texts:
        for match in _TAG.finditer(text):
            found[match[1].strip()] = None
    return list(found)


def as_lora_tags(text: str, live: Mapping[str, str]) -> str:
    """Return a prompt with every `<merge:…>` as the `<lora:…>` that the WebUI can load.

    Args:
        text: the prompt.
        live: recipe name -> name of its live merge. What follows the name (`:0.8`, `:te=1:unet=0.5`) stays
            as it is.
    """
    return _TAG.sub(lambda match: _lora(match[1], match[2], live), text)


def _lora(name: str, rest: str, live: Mapping[str, str]) -> str:
    found = live.get(name.strip())
    return f"<lora:{found}{rest or ':1'}>" if found else ""
