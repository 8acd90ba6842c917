"""Requests about what is kept on this machine: presets and the history of merges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lib_merge.blocks import Preset, PresetStore, find_preset_files, import_file, import_presets
from lib_merge.blocks.weights import parse_elements
from lib_merge.errors import RecipeError
from lib_merge.kept.history import History
from lib_merge.ui import catalog
from lib_merge.ui.host import Host
from lib_merge.ui.moving import remove_merge, rename_merge

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

HISTORY_PAGE = 100


class Keeping:
    """The part of `Actions` that reads and writes presets and history."""

    host: Host
    presets: PresetStore
    history: History

    # ---------------------------------------------------------------- presets

    def op_preset_save(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Save a row's weights, and its element rules where it has some, under a name."""
        weights = {str(block): float(value) for block, value in dict(request.get("weights") or {}).items()}
        rules = parse_elements(str(request["elements"])) if request.get("elements") else ()
        self.presets.save(
            Preset(str(request.get("name") or ""), str(request.get("family") or "SD1"), weights, rules)
        )
        return {"presets": catalog.presets(self.presets)}

    def op_preset_rename(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Rename one of the user's presets."""
        self.presets.rename(str(request.get("name")), str(request.get("to")))
        return {"presets": catalog.presets(self.presets)}

    def op_preset_delete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Delete one of the user's presets."""
        self.presets.delete(str(request.get("name")))
        return {"presets": catalog.presets(self.presets)}

    def op_preset_import(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Import a file of another tool, uploaded or found beside us, with a line for every line."""
        family = str(request["family"]) if request.get("family") else None
        if request.get("found"):
            known = {str(index): found for index, found in enumerate(self._neighbours())}
            if str(request["found"]) not in known:
                message = "that file is not there any more."
                raise RecipeError(message)
            report = import_file(Path(known[str(request["found"])].path), family)
        else:
            report = import_presets(
                str(request.get("text") or ""), str(request.get("name") or "presets.txt"), family
            )
        notes = list(self.presets.add(report.entries))
        lines = [{"number": line.number, "outcome": line.outcome, "says": line.says} for line in report.lines]
        return {
            "lines": lines,
            "notes": notes,
            "presets": catalog.presets(self.presets),
            "count": len(report.entries),
        }

    def _neighbours(self) -> list[Any]:
        return list(find_preset_files(self.host.extension_folders()))

    def op_preset_find(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return preset files of neighbouring extensions."""
        del request
        return {"found": [{"id": str(i), "title": item.title} for i, item in enumerate(self._neighbours())]}

    # ---------------------------------------------------------------- history

    def op_history(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the newest entries of the history, as many as `count`, and how many there are in all."""
        found = self.history.list(str(request.get("search") or ""))
        count = request.get("count")
        count = count if isinstance(count, int) and count > 0 else HISTORY_PAGE
        return {"entries": [entry.to_json() for entry in found[:count]], "total": len(found)}

    def op_history_update(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Change an entry's verdict, notes or status."""
        allowed = {
            name: request[name] for name in ("verdict", "notes", "status", "rating") if name in request
        }
        self.history.update(str(request.get("entry")), **allowed)
        return {}

    def op_rename(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Rename a merge and what lies beside it."""
        return {
            "key": rename_merge(
                cast("Actions", self), str(request.get("entry")), str(request.get("to") or "")
            )
        }

    def op_remove(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Move a merge into the trash folder."""
        remove_merge(cast("Actions", self), str(request.get("entry")))
        return {}

    def op_history_diff(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changed between two entries."""
        return {"lines": list(self.history.diff(str(request.get("entry")), str(request.get("other"))))}
