"""Every operation of the tab, and a desk that has its stores: what a host is given."""

from __future__ import annotations

import contextlib

from lib_merge.blocks import PresetStore
from lib_merge.kept.archive import Archive
from lib_merge.library import inspect
from lib_merge.library import library as folders
from lib_merge.library.recipes import RecipeBook
from lib_merge.ui import (
    cards,
    catalog,
    comparing,
    keeping,
    listing,
    merging,
    planning,
    recording,
    renewing,
    reopening,
    sweeping,
    understanding,
    validating,
    windows,
)
from lib_merge.ui.desk import Desk
from lib_merge.ui.host import Host
from lib_merge.ui.locating import Locator

# importing a topic registers its operations
TOPICS = (
    cards,
    catalog,
    comparing,
    keeping,
    listing,
    merging,
    planning,
    recording,
    renewing,
    reopening,
    sweeping,
    understanding,
    validating,
    windows,
)


def open_desk(host: Host) -> Desk:
    """Return the tab's server side of a host: its library, and what is kept in its data folder."""
    data = host.data_folder()
    with contextlib.suppress(OSError):  # each store says what it cannot keep
        data.mkdir(parents=True, exist_ok=True)
    archive = Archive(data)
    library = folders.Library(
        host.lora_folders,
        archive.facts("header", folders.VERSION),
        host.preview_url,
        host.alias_of,
        scanned=lambda library: archive.rebuild(library.merges),
    )
    return Desk(
        host=host,
        library=library,
        presets=PresetStore(data / "presets.json"),
        archive=archive,
        book=RecipeBook(data / "recipes"),
        locator=Locator(library),
        energies=inspect.Energies(archive.facts("energy", inspect.VERSION, inspect.MOST_FILES)),
    )
