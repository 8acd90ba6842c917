"""Renaming and deleting a merge with everything beside it; a deleted one goes into a trash folder, never
away.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from lib_merge.errors import OutputError
from lib_merge.files.names import check_output_name

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

# what the WebUI keeps beside a LoRA
PICTURES = ("png", "jpg", "jpeg", "webp", "gif")
BESIDE = (".json", ".txt", *(f"{before}.{kind}" for kind in PICTURES for before in ("", ".preview")))
# Seconds to wait for a generation before the WebUI is told of a moved file later, by itself.
PATIENCE = 2.0


def rename_merge(desk: Actions, entry_id: str, name: str) -> str:
    """Give a merge of the history another name; return its new key.

    Raises:
        MergeError: the file is gone, the name is taken or impossible.
    """
    entry = desk.history.get(entry_id)
    old = desk.library.resolve(entry.key)
    new = old.with_name(f"{name.strip().removesuffix('.safetensors')}.safetensors")
    check_output_name(new)
    if new.exists():
        message = f"{new.name} exists already; choose another name."
        raise OutputError(message)
    _move(old, new)
    desk.history.update(entry_id, name=new.stem, key=desk.library.key_of(new))
    _tell(desk, [old, new])
    desk.library.refresh(wait=True)
    return desk.library.key_of(new)


def remove_merge(desk: Actions, entry_id: str) -> None:
    """Move a merge of the history and its entry into trash folders; a file that is gone already is no error.

    Raises:
        MergeError: no such entry, or the file is in use.
    """
    entry = desk.history.get(entry_id)
    path = next(
        (
            found
            for item in desk.library.items()
            if item.key == entry.key
            for found in [desk.library.resolve(item.key)]
        ),
        None,
    )
    if path is not None:
        trash = desk.host.data_folder() / "trash"
        trash.mkdir(parents=True, exist_ok=True)
        _move(path, trash / f"{entry.id}-{path.name}")
        _tell(desk, [path])
        desk.library.refresh(wait=True)
    desk.history.remove(entry_id)
    desk.reports.remove(entry_id, desk.host.data_folder() / "trash")


def _tell(desk: Actions, changed: list[Path]) -> None:
    """Tell the WebUI of moved files in our turn: what a running generation has loaded must not go from under
    it.
    """

    def tell() -> None:
        with desk.host.busy_lock():
            desk.host.refresh_loras(changed)

    thread = threading.Thread(target=tell, name="lora-merge-moved", daemon=True)
    thread.start()
    thread.join(PATIENCE)


def _move(old: Path, new: Path) -> None:
    """Move the LoRA first, then what lies beside it: half a move leaves pictures behind, never a LoRA."""
    try:
        _one(old, new)
        for suffix in BESIDE:
            side = old.with_suffix(suffix)
            if side.is_file():
                _one(side, new.with_suffix(suffix))
    except OSError as error:
        message = f"{old.name} cannot be moved, perhaps because it is in use: {error.strerror or error}."
        raise OutputError(message) from error


def _one(old: Path, new: Path) -> None:
    try:
        os.replace(old, new)
    except OSError:
        shutil.move(str(old), str(new))  # another disk
