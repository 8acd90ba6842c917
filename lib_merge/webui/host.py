"""The WebUI as the tab sees it; everything is looked up when it is needed and by what is there, never by
version.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import urllib.parse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from lib_merge.webui import lora_code
from lib_merge.webui.caches import forget_loras
from lib_merge.webui.checkpoint import loaded_family
from lib_merge.webui.keymap import checkpoint_name, known_names

log = logging.getLogger("lib_merge")
PICTURES = ("png", "jpg", "jpeg", "webp", "gif")


def make_picture_folder() -> None:
    """Make the folder for pictures that are shown and not saved: Neo names one that nobody has made yet."""
    from modules import shared

    folder = getattr(shared.opts, "temp_dir", "")
    if folder:
        with contextlib.suppress(OSError):
            Path(folder).mkdir(parents=True, exist_ok=True)


def _loader() -> str:
    """Return the name of the table of what this WebUI loads, told by the LoRA code that it has."""
    if _has("modules_forge.packages.comfy"):
        return "neo"
    if _has("backend.patcher.lora"):
        return "forge"
    if _has("ldm_patched.modules.lora"):
        return "reforge" if _has("ldm_patched.hooks") else "classic"
    return "a1111" if _has("modules.extra_networks") else ""


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


class WebuiHost:
    """Automatic1111, Forge, reForge, Classic, Neo and SD.Next."""

    def __init__(self, extension: Path) -> None:
        """Stand in the WebUI whose `extensions` folder holds `extension`."""
        self._extension = extension
        self.name = "Forge" if importlib.util.find_spec("backend") else "A1111"
        self.loader = _loader()

    def lora_folders(self) -> list[Path]:
        """Return --lora-dir(s), then LyCORIS' own folder where one is known."""
        from modules import shared

        options = shared.cmd_opts
        values: list[Any] = []
        for name in ("lora_dir", "lora_dirs", "lyco_dir_backcompat", "lyco_dir"):
            value = getattr(options, name, None)
            values += value if isinstance(value, (list, tuple)) else [value] if value else []
        folders = [Path(value) for value in dict.fromkeys(map(str, values))]
        if not folders:
            from modules import paths

            folders = [Path(paths.models_path) / "Lora"]
        return [folder for index, folder in enumerate(folders) if index == 0 or folder.is_dir()]

    def data_folder(self) -> Path:
        """Return a folder beside the WebUI's own data: an update of the extension does not touch it."""
        from modules import paths

        return Path(paths.data_path) / "lora-merge"

    def extension_folders(self) -> list[Path]:
        """Return the folder of all extensions."""
        from modules import paths

        return [Path(paths.extensions_dir), Path(paths.data_path) / "scripts"]

    def device(self) -> torch.device:
        """Return the WebUI's device where the engine can use it, else the CPU."""
        from modules import devices

        device = getattr(devices, "device", None) or torch.device("cpu")
        return device if isinstance(device, torch.device) else torch.device(str(device))

    def busy_lock(self) -> contextlib.AbstractContextManager[Any]:
        """Return the queue's lock: a merge never races a generation."""
        from modules import call_queue

        return getattr(call_queue, "queue_lock", None) or contextlib.nullcontext()

    def refresh_loras(self, changed: Sequence[Path]) -> None:
        """List the LoRAs anew and forget what is cached of any of them."""
        del changed
        try:
            lora_code.relist()
        except Exception as error:
            log.warning("the WebUI's list of LoRAs could not be renewed: %s", error)
        forget_loras()

    def alias_of(self, path: Path) -> str:
        """Return what the WebUI itself would write into the prompt: alias or file name, after its setting."""
        entry = self._entries().get(path.stem)
        with contextlib.suppress(Exception):
            if entry is not None and Path(entry.filename).resolve() == path.resolve():
                return str(entry.get_alias())
        return path.stem

    def _entries(self) -> dict[str, Any]:
        with contextlib.suppress(Exception):
            return dict(lora_code.tables().available_networks)
        return {}

    def preview_url(self, path: Path) -> str:
        """Return the address of the card's picture."""
        for suffix in PICTURES:
            for picture in (path.with_suffix(f".preview.{suffix}"), path.with_suffix(f".{suffix}")):
                if picture.is_file():
                    quoted = urllib.parse.quote(str(picture).replace("\\", "/"))
                    return f"./sd_extra_networks/thumb?filename={quoted}&mtime={picture.stat().st_mtime}"
        return ""

    def can_generate(self) -> bool:
        """Return True: there is a txt2img tab."""
        return True

    def option(self, name: str, default: Any) -> Any:  # noqa: ANN401
        """Return a setting, or its default where it was never registered."""
        from modules import shared

        return shared.opts.data.get(name, default)

    def known_names(self, stems: Collection[str]) -> set[str] | None:
        """Return the names that the loaded checkpoint has a weight for, by the WebUI's own table."""
        return known_names(stems)

    def checkpoint(self) -> tuple[str, str]:
        """Return the loaded checkpoint's name and base family."""
        return checkpoint_name(), loaded_family()

    def claims_name(self, stem: str) -> Path | None:
        """Return the LoRA that answers to this stem or alias."""
        for name, entry in self._entries().items():
            if stem in (name, getattr(entry, "alias", None)):
                return Path(entry.filename)
        return None
