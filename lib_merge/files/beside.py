"""What WebUIs and people keep beside a LoRA under its name: cards, notes, pictures."""

from __future__ import annotations

import os
from pathlib import Path

PICTURES = ("png", "jpg", "jpeg", "webp", "gif")
CARD = ".json"
ENDINGS = (
    CARD,
    ".txt",
    ".description.txt",
    ".civitai.info",
    ".metadata.json",
    *(f"{before}.{kind}" for kind in PICTURES for before in ("", ".preview")),
)


def beside(lora: Path) -> list[Path]:
    """Return what lies beside a LoRA under its name, links included; the LoRA need not be there."""
    return [path for path in (lora.with_suffix(ending) for ending in ENDINGS) if os.path.lexists(path)]
