"""Recipes that are kept under a name of their own, and where the sources of a recipe are now.

One JSON file per recipe, as a recipe is written everywhere: versioned, without paths; people read and share
them. A deleted one goes into the trash folder beside the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lib_merge.errors import FileFormatError, OutputError, RecipeError
from lib_merge.files import moving, store
from lib_merge.files.hashes import file_hash
from lib_merge.files.names import check_stem
from lib_merge.library.library import SUFFIXES
from lib_merge.recipe import Recipe, Source, from_json, same_hash

MOST_BYTES = 4 << 20
MOST_NAME = 80
_MOST_FILES = 200_000


class RecipeBook:
    """A folder of named recipes."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made when the first recipe is saved."""
        self._folder = folder
        self._trash = folder / "trash"

    def names(self) -> list[str]:
        """Return every name, sorted as people sort."""
        try:
            names = [
                path.stem
                for path in self._folder.iterdir()
                if path.suffix == ".json" and path.stem[:1] != "."
            ]
        except OSError:
            return []
        return sorted(names, key=lambda name: (name.lower(), name))

    def save(self, name: str, recipe: Recipe, *, overwrite: bool = False) -> str:
        """Keep a recipe.

        Args:
            name: as it will stand in `<merge:NAME:1>`.
            recipe: whole, as the engine takes it.
            overwrite: replace a recipe of that name.
        Returns:
            the name without blanks around it.
        Raises:
            RecipeError: a name that cannot be used, or that is taken.
            OutputError: the folder cannot be written.
        """
        name = _checked(name)
        path = self._folder / f"{name}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store.write_error(error, path, f"the recipe {name!r}") from error
        with store.locked(path):
            if path.exists() and not overwrite:
                message = f"there is a recipe called {name!r} already."
                raise RecipeError(message)
            store.write_json(path, recipe.to_json(), title=f"the recipe {name!r}")
        return name

    def get(self, name: str) -> Recipe | None:
        """Return a recipe by name, exact case first; None where there is none.

        Raises:
            RecipeError: its file is broken; it is left as it is.
        """
        name, names = name.strip(), self.names()
        if name not in names:
            alike = next((one for one in names if one.lower() == name.lower()), None)
            if alike is None:
                return None
            name = alike
        path = self._folder / f"{name}.json"
        try:
            data = store.read_json(path, MOST_BYTES)
        except FileFormatError as error:
            message = f"the file of the recipe {name!r} is broken: {error}"
            raise RecipeError(message) from error
        return from_json(data, f"the recipe {name!r}")

    def remove(self, name: str) -> None:
        """Move a recipe into the trash folder.

        Raises:
            RecipeError: there is none of that name.
        """
        path = self._folder / f"{name}.json"
        if name not in self.names():
            message = f"there is no recipe called {name!r}."
            raise RecipeError(message)
        try:
            moving.to_trash(path, self._trash)
        except OSError as error:
            raise store.write_error(error, path, f"the recipe {name!r}") from error


def _checked(name: str) -> str:
    name = re.sub(" +", " ", name).strip(" ")
    try:
        check_stem(name)
    except OutputError as error:
        message = f"a recipe cannot be called so: {error}"
        raise RecipeError(message) from error
    if len(name) > MOST_NAME:
        message = f"the name of a recipe has at most {MOST_NAME} characters."
        raise RecipeError(message)
    return name


# -------------------------------------------------------------------------------------------- sources


def finder(folders: Sequence[Path], exclude: Path) -> Callable[[Source], Path]:
    """Return a function that finds the file of a source.

    Args:
        folders: searched with their sub-folders, first match wins.
        exclude: the merged file itself.
    """
    listed: list[Path] = []

    def files() -> list[Path]:
        if not listed:
            listed.extend(
                path for folder in dict.fromkeys(folders) for path in _walk(folder) if path != exclude
            )
        return listed

    def find(source: Source) -> Path:
        named = [path for path in files() if path.name == source.name]
        if not source.sha256 and named:
            return named[0]
        same_size = [path for path in files() if _size(path) == source.size and path not in named]
        for path in (*named, *same_size):
            if _size(path) == source.size and same_hash(file_hash(path), source.sha256):
                return path
        where = "its file has changed since" if named else "no such file is in the folders searched"
        message = f"the source {source.name or source.sha256[:12]} was not found: {where}."
        raise RecipeError(message)

    return find


def _walk(folder: Path) -> Iterator[Path]:
    try:
        for count, path in enumerate(sorted(folder.rglob("*"))):
            if count > _MOST_FILES:
                return
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path
    except OSError:
        return


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
