"""The tab's server side inside a WebUI, and what scripts ask it for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lib_merge.webui.host import WebuiHost

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

_desks: dict[str, Actions] = {}


def desk_of(extension: Path) -> Actions:
    """Return the tab's server side, the same one after "Reload UI", so that running jobs go on."""
    from lib_merge.webui.compare.panel import WebuiActions

    key = str(extension)
    if key not in _desks:
        _desks[key] = WebuiActions(WebuiHost(extension))
    return _desks[key]
