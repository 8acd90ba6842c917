"""Every operation of the tab, and a desk that has its stores: what a host is given."""

from __future__ import annotations

from lib_merge.blocks import PresetStore
from lib_merge.kept.comparisons import Comparisons
from lib_merge.kept.energies import Looks
from lib_merge.kept.history import History
from lib_merge.kept.reports import Reports
from lib_merge.library.library import Library
from lib_merge.library.recipebook import RecipeBook
from lib_merge.ui import (
    catalog,
    comparing,
    keeping,
    listing,
    merging,
    planning,
    reopening,
    understanding,
)
from lib_merge.ui.desk import Desk
from lib_merge.ui.host import Host
from lib_merge.ui.locating import Locator

# importing a topic registers its operations
TOPICS = (catalog, comparing, keeping, listing, merging, planning, reopening, understanding)


def open_desk(host: Host) -> Desk:
    """Return the tab's server side of a host: its library, and what is kept in its data folder."""
    data = host.data_folder()
    data.mkdir(parents=True, exist_ok=True)
    library = Library(host.lora_folders, data / "library.json", host.preview_url, host.alias_of)
    return Desk(
        host=host,
        library=library,
        presets=PresetStore(data / "presets.json"),
        history=History(data / "history"),
        book=RecipeBook(data / "recipes"),
        comparisons=Comparisons(data / "comparisons"),
        reports=Reports(data / "history" / "reports"),
        locator=Locator(library),
        looks=Looks(data / "energies.json"),
    )
