"""Preset files of other extensions, found where those keep them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PLACES = (
    ("scripts/lbwpresets.txt", "lbw", "LoRA Block Weight presets"),
    ("scripts/elempresets.txt", "elements", "LoRA Block Weight element presets"),
    ("scripts/mbwpresets.txt", "mbw", "SuperMerger presets"),
    ("data/mbwpresets.tsv", "mbw", "Model Mixer presets"),
    ("scripts/mbwpresets.tsv", "mbw", "Model Mixer presets"),
    ("resources/lbw-preset.txt", "inspire", "Inspire Pack presets"),
    ("resources/lbw-preset.custom.txt", "inspire", "Inspire Pack presets of your own"),
)
_OLD = ("lbw", "elements")  # once kept in the WebUI's own scripts folder
_MOST = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """A preset file on this machine.

    path   where it is
    kind   `lbw`, `elements`, `mbw` or `inspire`
    title  what it is and whose, for a list to choose from
    """

    path: Path
    kind: str
    title: str


def find_preset_files(extension_folders: Sequence[Path]) -> list[Found]:
    """Look for other tools' preset files at their usual places.

    Args:
        extension_folders: folders of single extensions, or folders that hold many (`extensions`,
            `custom_nodes`).
    Returns:
        What is there, each file once; folders that cannot be read count as empty.
    """
    found: dict[Path, Found] = {}
    for folder in _candidates(extension_folders):
        webui = folder.name.lower() != "extensions" and (folder / "extensions").is_dir()
        for place, kind, title in _PLACES:
            if webui and kind not in _OLD:
                continue
            path = folder / place
            try:
                if path.is_file():
                    found.setdefault(path.resolve(), Found(path, kind, f"{title} ({folder.name})"))
            except OSError:
                continue
    return list(found.values())


def _candidates(folders: Iterable[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for given in folders:
        folder = Path(given).absolute()
        above = [folder.parent] if folder.name == "extensions" else []
        if folder.parent.name == "extensions":
            above = [folder.parent.parent]
        for candidate in (folder, *_children(folder), *above):
            if candidate not in seen:
                seen.add(candidate)
                yield candidate


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())[:_MOST]
    except OSError:
        return []
