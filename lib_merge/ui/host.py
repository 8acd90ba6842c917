"""What the tab needs of the place it runs in: a WebUI, or a plain machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch


class Host(Protocol):
    """The place the tab runs in; `lib_merge.webui` and `lib_merge.ui.app` implement it.

    name    "A1111", "Forge", …, "standalone"
    loader  what it loads, by the name of its table (`lib_merge.loaders`); "" where there is none
    """

    name: str
    loader: str

    def lora_folders(self) -> list[Path]:
        """Return the folders that LoRAs are looked for in; merges are saved in the first."""
        ...

    def data_folder(self) -> Path:
        """Return a writable folder for presets, history and caches that updates do not touch."""
        ...

    def extension_folders(self) -> list[Path]:
        """Return the folders of neighbouring extensions, where preset files are looked for."""
        ...

    def device(self) -> torch.device:
        """Return the device the WebUI computes on."""
        ...

    def busy_lock(self) -> AbstractContextManager[Any]:
        """Return what is held while a merge computes, so that it does not race a generation."""
        ...

    def refresh_loras(self, changed: Sequence[Path]) -> None:
        """List the LoRAs anew and forget what is cached of the changed files."""
        ...

    def alias_of(self, path: Path) -> str:
        """Return the name that `<lora:NAME:1>` takes for this file."""
        ...

    def preview_url(self, path: Path) -> str:
        """Return the address of the card's preview picture, or ""."""
        ...

    def can_generate(self) -> bool:
        """Return True where there is a txt2img tab to send things to."""
        ...

    def option(self, name: str, default: Any) -> Any:  # noqa: ANN401
        """Return a setting."""
        ...

    def known_names(self, stems: Collection[str]) -> set[str] | None:
        """Return the names that the loaded checkpoint has a weight for; None where nobody can say."""
        ...

    def checkpoint(self) -> tuple[str, str]:
        """Return the loaded checkpoint's name and base family, "" where there is none or none is told."""
        ...

    def claims_name(self, stem: str) -> Path | None:
        """Return the LoRA that already answers to this name or alias, wherever it lies."""
        ...
