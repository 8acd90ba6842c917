"""Recipes that are kept under a name of their own, so that `<merge:NAME:1>` and the tab find them again.

One JSON file per recipe, as a recipe is written everywhere: versioned, without paths. A deleted one goes
    into the trash
folder beside the others.
"""

from __future__ import annotations

import re
from pathlib import Path

from lib_merge.errors import FileFormatError, OutputError, RecipeError
from lib_merge.files import store
from lib_merge.files.names import check_output_name
from lib_merge.recipe import Recipe, from_json

MOST_BYTES = 4 << 20
MOST_NAME = 80


class RecipeBook:
    """A folder of named recipes."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made when the first recipe is saved."""
        self._folder = folder
        self._trash = folder / "trash"

    def names(self) -> list[str]:
        """Return every name, sorted as people sort."""
        try:
            found = [
                path.stem
                for path in self._folder.iterdir()
                if path.suffix == ".json" and path.stem[:1] != "."
            ]
        except OSError:
            return []
        return sorted(found, key=lambda name: (name.lower(), name))

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
        with store.held(path):
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
        wanted = name.strip()
        known = self.names()
        found = next((one for one in known if one == wanted), None) or next(
            (one for one in known if one.lower() == wanted.lower()), None
        )
        if found is None:
            return None
        path = self._folder / f"{found}.json"
        try:
            data = store.read_json(path, MOST_BYTES)
        except FileFormatError as error:
            message = f"the file of the recipe {found!r} is broken: {error}"
            raise RecipeError(message) from error
        return from_json(data, f"the recipe {found!r}")

    def remove(self, name: str) -> None:
        """Move a recipe into the trash folder.

        Raises:
            RecipeError: there is none of that name.
        """
        path = self._folder / f"{_checked(name)}.json"
        if not path.is_file():
            message = f"there is no recipe called {name!r}."
            raise RecipeError(message)
        try:
            store.to_trash(path, self._trash)
        except OSError as error:
            raise store.write_error(error, path, f"the recipe {name!r}") from error


def _checked(name: str) -> str:
    name = re.sub(r"\s+", " ", name).strip()
    try:
        check_output_name(Path(f"{name}.safetensors"))
    except OutputError as error:
        message = (
            f"a recipe cannot be called {name[:40]!r}: choose a name that a file could have, "
            "without : < and >."
        )
        raise RecipeError(message) from error
    if len(name) > MOST_NAME or name.startswith("."):
        message = f"the name of a recipe has at most {MOST_NAME} characters and does not begin with a dot."
        raise RecipeError(message)
    return name
