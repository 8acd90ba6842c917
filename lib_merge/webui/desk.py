"""The tab's server side inside a WebUI: every operation of the tab, and those of the comparison's panel."""

from __future__ import annotations

from pathlib import Path

from lib_merge.ui.desk import Desk
from lib_merge.ui.operations import open_desk
from lib_merge.webui.compare import panel
from lib_merge.webui.host import WebuiHost

# importing a topic registers its operations
TOPICS = (panel,)

_desks: dict[str, Desk] = {}


def desk_of(extension: Path) -> Desk:
    """Return the tab's server side, the same one after "Reload UI", so that running jobs go on."""
    key = str(extension)
    if key not in _desks:
        _desks[key] = open_desk(WebuiHost(extension))
    return _desks[key]
