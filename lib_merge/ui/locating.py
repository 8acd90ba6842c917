"""Where a recipe's sources are now: candidates by size, name and family from the list of LoRAs, and only
those are hashed.
"""

from __future__ import annotations

import logging

from lib_merge.errors import MergeError
from lib_merge.files.hashes import file_hash
from lib_merge.library.library import Item, Library
from lib_merge.recipe import Recipe, Source, same_hash

log = logging.getLogger("lib_merge")


class Locator:
    """Finds the files of recipes; a hash is taken once per file and remembered while the file stays as it
    is.
    """

    def __init__(self, library: Library) -> None:
        """Look in `library`."""
        self._library = library
        self._hashes: dict[tuple[str, int, int], str] = {}

    def locate(self, source: Source, family: str | None = None) -> str:
        """Return the key of a recipe's source; "" when it is gone or has changed since."""
        if source.path is not None:
            return self._library.key_of(source.path)
        fitting = self._candidates(source, family)
        if not source.sha256:
            named = [item for item in fitting if _file(item) == source.name]
            best = named or (fitting if source.size and len(fitting) == 1 else [])
            return best[0].key if best else ""
        return next((item.key for item in fitting if same_hash(self._hash(item), source.sha256)), "")

    def missing(self, recipe: Recipe) -> list[str]:
        """Return a sentence for every source that is not there as it was."""
        notes = []
        for source in recipe.leaves():
            if self.locate(source, recipe.family):
                continue
            same = [item for item in self._library.items() if _file(item) == source.name]
            if same:
                notes.append(
                    f"{source.label} has changed since: {same[0].key.partition('/')[2]} holds "
                    "something else now"
                )
            else:
                notes.append(f"{source.label} is not in the LoRA folders any more")
        return notes

    def _candidates(self, source: Source, family: str | None) -> list[Item]:
        """Return what may be the source: of its size and family, its own name first."""
        items = [item for item in self._library.items() if not source.size or item.size == source.size]
        if not source.size:
            items = [item for item in items if _file(item) == source.name]
        if family:
            items = [item for item in items if item.family in ("", family)]
        return sorted(items, key=lambda item: _file(item) != source.name)

    def _hash(self, item: Item) -> str:
        try:
            path = self._library.resolve(item.key)
            state = path.stat()
            stamp = (str(path), state.st_size, state.st_mtime_ns)
            if stamp not in self._hashes:
                self._hashes[stamp] = file_hash(path)
            return self._hashes[stamp]
        except (OSError, MergeError) as error:
            log.info("%s could not be hashed: %s", item.key, error)
            return ""


def _file(item: Item) -> str:
    return item.key.rpartition("/")[2]
