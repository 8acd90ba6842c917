"""Requests that turn something written into the tab's state: a recipe, a history entry, a prompt, a
generated picture.
"""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from lib_merge.blocks import PresetStore
from lib_merge.blocks.weights import resolve_blocks
from lib_merge.errors import MergeError, RecipeError
from lib_merge.families.blocks import BLOCKS
from lib_merge.kept.history import History
from lib_merge.library.library import Item, Library
from lib_merge.recipe import Recipe, Source, from_json, loads
from lib_merge.ui import merging
from lib_merge.ui.host import Host
from lib_merge.ui.infotext import infotext
from lib_merge.ui.locating import Locator
from lib_merge.ui.prompt import read_prompt, recipes_of, write_prompt
from lib_merge.ui.state import from_recipe, unshown

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions


class Reopening:
    """The part of `Actions` that fills the tab from recipes and prompts, and writes prompts."""

    host: Host
    library: Library
    presets: PresetStore
    history: History
    locator: Locator

    def op_open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state that made a merged LoRA, or a history entry, and what differs from then."""
        recipe = self._recipe(request)
        notes = [*self.locator.missing(recipe), *unshown(recipe)]
        return {"state": self.state_of(recipe), "notes": notes}

    def _recipe(self, request: Mapping[str, Any]) -> Recipe:
        if request.get("recipe"):
            return cast("Actions", self).recipe_named(str(request["recipe"]))
        if request.get("entry"):
            return from_json(self.history.get(str(request["entry"])).recipe, "the entry")
        if request.get("text"):
            return loads(str(request["text"]), "the recipe")
        path = self.library.resolve(str(request.get("key")))
        recipe = merging.carried_recipe(path)
        if recipe is None:
            message = f"{path.name} was not made by this program: there is no recipe in it."
            raise RecipeError(message)
        return recipe

    def state_of(self, recipe: Recipe) -> dict[str, Any]:
        """Return the tab's state for a recipe."""
        family = recipe.family
        return from_recipe(
            recipe, lambda source: self.locator.locate(source, family), lambda b: self.expand(b, family)
        )

    def op_again(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a merge of the history again: under its own name (the same bytes) or under another (the same
        tensors).
        """
        entry = self.history.get(str(request.get("entry")))
        recipe = from_json(entry.recipe, "the entry")
        lost = self.locator.missing(recipe)
        if lost:
            message = f"it cannot be run again: {'; '.join(lost)}."
            raise RecipeError(message)
        return merging.start_again(cast("Actions", self), entry, recipe, str(request.get("name") or ""))

    def locate(self, source: Source) -> str:
        """Return the key of a recipe's source; "" when it is gone."""
        return self.locator.locate(source)

    # ---------------------------------------------------------------- block weights and prompts

    def expand(self, blocks: Any, family: str | None, draw: random.Random | None = None) -> dict[str, float]:  # noqa: ANN401
        """Return block weights of any form as {block: weight}; `draw` draws R and U, always alike where
        there is none.
        """
        if not blocks:
            return {}
        if isinstance(blocks, Mapping):
            return {str(name): float(value) for name, value in blocks.items()}
        known = family or {12: "SDXL", 20: "SDXL", 61: "Flux"}.get(
            len(blocks) if isinstance(blocks, list) else 0, "SD1"
        )
        if known not in BLOCKS:
            message = f"there is no table of blocks for {known}: set its blocks in the grid."
            raise RecipeError(message)
        return resolve_blocks(
            blocks, known, BLOCKS[known], draw or random.Random(0), "the source", store=self.presets
        )[0]

    def op_blocks(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return {block: weight} of a list, preset or notation typed beside a row."""
        family = str(request.get("family") or "SD1")
        return {"weights": self.expand(str(request.get("text") or "").strip(), family, random.Random())}

    def op_prompt(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return rows from a prompt or from a generated picture's text."""
        text = str(request.get("text") or "")
        if request.get("image"):
            try:
                text = infotext(base64.b64decode(str(request["image"]).rpartition(",")[2], validate=True))
            except (binascii.Error, ValueError) as error:
                message = "that picture cannot be read."
                raise RecipeError(message) from error
            if not text:
                message = (
                    "that picture carries no generation parameters; it was saved without them "
                    "or lost them on its way."
                )
                raise RecipeError(message)
        carried = recipes_of(text)
        if carried:  # a picture of a live merge holds the whole recipe, which says more than tags
            notes = [*self.locator.missing(carried[0]), *unshown(carried[0])]
            return {"rows": [], "state": self.state_of(carried[0]), "notes": notes}
        found = read_prompt(text)
        notes = list(found.notes)
        return {"rows": [self._row(source, notes) for source in found.sources], "notes": notes}

    def _row(self, source: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
        name = source["name"]
        item = self.library.find(name)
        if item is None:
            notes.append(f"there is no LoRA called {name!r} here")
        notes += [f"{name}: {note}" for note in source.get("notes") or []]
        te = source.get("te_ratio")
        return {
            "key": item.key if item else "",
            "name": name,
            "ratio": source["ratio"],
            "te": None if te is None else [te],
            "blocks": self._weights(source, item, notes),
            "elements": self._elements(source, item, notes),
            "on": True,
        }

    def _weights(self, source: Mapping[str, Any], item: Item | None, notes: list[str]) -> dict[str, float]:
        try:
            return self.expand(source.get("blocks"), item.family if item else None, random.Random())
        except MergeError as error:  # one bad argument must not cost the other rows
            notes.append(f"{source['name']}: its block weights were not taken over, since {error}")
            return {}

    def _elements(self, source: Mapping[str, Any], item: Item | None, notes: list[str]) -> str:
        """Return the element rules that `lbwe=` names."""
        text = source.get("elements")
        if not text:
            return ""
        try:
            preset = self.presets.get(text, (item.family if item else "") or "SD1")
            rules = preset.elements if preset is not None else ()
        except MergeError:
            rules = ()
        if not rules:
            notes.append(
                f"{source['name']}: the element rules {text[:40]!r} are not known here and are left out"
            )
        return ", ".join(f"{rule.blocks}:{rule.elements}:{rule.ratio!r}" for rule in rules)

    def op_prompt_write(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rows as prompt tags, and what tags cannot say."""
        state = request.get("state")
        rows = (state.get("sources") or []) if isinstance(state, Mapping) else []
        sources, notes = [], []
        for row in (row for row in rows if row.get("on", True) and row.get("key")):
            te = [value for value in row.get("te") or [] if value is not None]
            path = self.library.resolve(str(row["key"]))
            name = self.host.alias_of(path)
            item = next((one for one in self.library.items() if one.key == row["key"]), None)
            if len(set(te)) > 1:
                notes.append(f"{name}: a tag has one text-encoder strength, so TE2's was left out")
            if row.get("elements"):
                notes.append(f"{name}: the element rules were left out")
            sources.append(
                {
                    "name": name,
                    "ratio": float(row.get("ratio", 1.0)),
                    "te_ratio": te[0] if te else None,
                    "blocks": row.get("blocks") or None,
                    "family": item.family if item else "",
                    "present": item.blocks if item else (),
                }
            )
        text, unsaid = write_prompt(sources)
        return {"text": text, "notes": [*notes, *unsaid]}
