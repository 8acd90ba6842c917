"""What a merge was developed from, and what was asked for that its recipe does not say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lib_merge.errors import MergeError
from lib_merge.kept.history import Entry
from lib_merge.recipe import Recipe, from_json
from lib_merge.ui.desk import Desk
from lib_merge.ui.state import as_asked

AUTOMATIC, OWN = "auto", "own"


def developed_from(desk: Desk, identity: str, recipe: Recipe) -> Entry | None:
    """Return the entry that a merge is developed from; None where it shares no source with it.

    A merge that is itself a source counts, too. The same name and size are the same file; one that was
    renamed since is told by its hash.

    Args:
        desk: history and library.
        identity: the entry that the tab calls "based on", "" for none.
        recipe: with paths.
    """
    if not identity:
        return None
    try:
        entry = desk.history.get(identity)
        before = from_json(entry.recipe, "the entry")
    except MergeError:
        return None
    files = [leaf for leaf in recipe.leaves() if leaf.path is not None]
    keys = {desk.library.key_of(leaf.path) for leaf in files if leaf.path is not None} - {""}
    if entry.key in keys:
        return entry
    names = {(Path(leaf.name).name, leaf.size) for leaf in files}
    leaves = before.leaves()
    if any((leaf.name, leaf.size) in names for leaf in leaves):
        return entry
    if any(desk.locator.locate(leaf, before.family) in keys for leaf in leaves):
        return entry
    return None


def asked_for(recipe: Recipe) -> dict[str, str]:
    """Return what an entry keeps beside its recipe: whether the rank was left to the method."""
    return {"rank": AUTOMATIC if recipe.rank is None else OWN}


def recipe_of(entry: Entry) -> Recipe:
    """Return an entry's recipe as it was asked for: `Automatic` is no rank of its own.

    Entries of earlier versions do not say which it was; a rank that the method takes by itself then counts as
    automatic, which makes the same merge.

    Raises:
        RecipeError: it has none that can be read.
    """
    recipe = from_json(entry.recipe, "the entry")
    asked = as_asked(recipe)
    kept = entry.asked.get("rank")
    if kept == OWN:
        return replace(asked, rank=recipe.rank)
    return replace(asked, rank=None) if kept == AUTOMATIC else asked
