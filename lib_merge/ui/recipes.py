"""Requests about recipes that are kept by name, and finding a recipe by whatever name a person uses for
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_merge import metadata
from lib_merge.adapters.source import open_lora
from lib_merge.errors import RecipeError
from lib_merge.kept.history import History
from lib_merge.library.library import Library
from lib_merge.library.recipebook import RecipeBook
from lib_merge.recipe import Recipe, Source, from_json, loads
from lib_merge.ui.state import state_of, to_recipe


class Recipes:
    """The part of `Actions` that keeps and finds recipes."""

    book: RecipeBook
    history: History
    library: Library
    locate: Callable[[Source], str]

    def op_recipes(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the saved recipes, and every name that `<merge:NAME:1>` takes."""
        del request
        return {"names": self.book.names(), "all": self.recipe_names()}

    def op_recipe_save(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what is set up under a name."""
        recipe = to_recipe(state_of(request), self.library.resolve)
        name = self.book.save(
            str(request.get("name") or ""), recipe, overwrite=bool(request.get("overwrite"))
        )
        return {"name": name, "names": self.book.names()}

    def op_recipe_remove(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Move a saved recipe into the trash folder."""
        self.book.remove(str(request.get("name") or ""))
        return {"names": self.book.names()}

    def recipe_names(self) -> list[str]:
        """Return saved recipes, then merges of the history, then merged LoRAs; each name once."""
        names = self.book.names()
        names += [entry.name for entry in self.history.list() if entry.recipe and entry.status != "broken"]
        names += [item.name for item in self.library.items() if item.has_recipe]
        return list(dict.fromkeys(name for name in names if name))

    def recipe_named(self, name: str) -> Recipe:
        """Return a recipe with the paths of its sources: a saved one, a merge of the history, or a merged
        LoRA's.

        Raises:
            RecipeError: there is none of that name, or a source of it is gone.
        """
        if not self.library.items():
            self.library.refresh(wait=True)  # nobody has opened the tab since the start
        recipe = self.book.get(name)
        if recipe is None:
            entry = next((one for one in self.history.list() if one.name == name and one.recipe), None)
            recipe = from_json(entry.recipe, "the entry") if entry is not None else self._carried(name)
        if recipe is None:
            message = f"there is no recipe called {name[:80]!r}."
            raise RecipeError(message)
        return self.with_paths(recipe)

    def _carried(self, name: str) -> Recipe | None:
        item = self.library.find(name)
        if item is None or not item.has_recipe:
            return None
        path = self.library.resolve(item.key)
        with open_lora(path) as file:
            text = metadata.recipe_of(file.metadata)
        return loads(text, path.name) if text else None

    def with_paths(self, recipe: Recipe) -> Recipe:
        """Return the recipe with every source's path.

        Raises:
            RecipeError: a source is not in the LoRA folders.
        """
        return replace(recipe, sources=tuple(self._found(source) for source in recipe.sources))

    def _found(self, source: Source) -> Source:
        if source.recipe is not None:
            return replace(source, recipe=self.with_paths(source.recipe))
        key = self.locate(source)
        if not key:
            message = (
                f"{Path(source.name).name or 'a source'} is needed and is not in the LoRA folders any more."
            )
            raise RecipeError(message)
        return replace(source, path=self.library.resolve(key))
