"""The tab's server side inside a WebUI, and what scripts ask it for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lib_merge import metadata
from lib_merge.webui.columns import Place
from lib_merge.webui.host import WebuiHost

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

_desks: dict[str, Actions] = {}


def desk_of(extension: Path) -> Actions:
    """Return the tab's server side, the same one after "Reload UI", so that running jobs go on."""
    from lib_merge.webui.asking import WebuiActions

    key = str(extension)
    if key not in _desks:
        _desks[key] = WebuiActions(WebuiHost(extension))
    return _desks[key]


def place_of(desk: Actions) -> Place:
    """Return what columns need to know of this WebUI."""
    if not desk.library.items():
        desk.library.refresh(wait=True)  # nobody has opened the tab since the start

    def usual(path: Path) -> float:
        weight = metadata.read_side_car(path).get("preferred weight")
        return float(weight) if isinstance(weight, (int, float)) and weight else 1.0

    def tag(path: Path) -> str:
        # the WebUI knows LoRAs by name alone: where two files share one, the tag may mean the other
        same = [item for item in desk.library.items() if item.name == path.stem]
        name = desk.host.alias_of(path)
        return name if len(same) == 1 and not set(name) & set("<>:") else ""

    def blocks(path: Path) -> tuple[tuple[str, ...], str]:
        key = desk.library.key_of(path)
        item = next((one for one in desk.library.items() if one.key == key), None)
        return (item.blocks, item.family) if item is not None else ((), "")

    return Place(usual, tag, desk.expand, blocks)
