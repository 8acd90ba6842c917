"""The tab's server side: a record of stores, and operations that work on it by name.

An operation is a function and its types; everything else comes from them: what the page may ask, what is
refused and how, REST's routes and OpenAPI, the JavaScript's types.

    @operation("rename")
    def rename(desk: Desk, request: RenameRequest) -> RenameReply:
        '''Rename a merge and what lies beside it.'''
"""

from __future__ import annotations

import hmac
import json
import logging
import random
import secrets
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lib_merge import metadata
from lib_merge.adapters import open_lora
from lib_merge.analysis import AnalysisReport
from lib_merge.blocks import PresetStore
from lib_merge.blocks.weights import resolve_blocks
from lib_merge.engine.headers import HeaderCache
from lib_merge.errors import MergeError, RecipeError
from lib_merge.families import USUAL, family_of, family_with_list
from lib_merge.files.trash import Trash
from lib_merge.kept.archive import Archive
from lib_merge.kept.history import History
from lib_merge.kept.reports import Comparisons, Reports
from lib_merge.kept.validations import Validations
from lib_merge.kept.windows import Windows
from lib_merge.library.inspect import Energies
from lib_merge.library.library import Library
from lib_merge.library.recipes import RecipeBook
from lib_merge.recipe import Blocks, Recipe, Source, from_json, loads
from lib_merge.ui.host import Host
from lib_merge.ui.jobs import WINDOW, Jobs
from lib_merge.ui.locating import Locator
from lib_merge.ui.protocol import dumps, read, sentence, write
from lib_merge.ui.state import Setup, from_recipe

log = logging.getLogger("lib_merge")
MAX_REQUEST = 32 << 20
MOST_WINDOW = 64  # characters of a window's id
# what requests of the page carry besides the operation's fields
ENVELOPE = ("token", "asked_in")
STALE = "the program was started anew since this page was opened: reload the page."


@dataclass(slots=True, kw_only=True)
class Desk:
    """One per process, shared by every browser; what a browser sets up stays in that browser.

    host         the WebUI or the plain machine
    library      the LoRAs in its folders
    presets      block weights by name
    archive      history, reports and comparisons
    book         recipes kept by name
    locator      finds the files of recipes
    energies     norms and energies by block
    jobs         work that takes longer than a click
    headers      what the headers of the files in use say
    measured     the last analysis with what it measured: another ratio needs no reading
    token        what requests of the page carry, so that no other page can ask (`ui.strangers`)
    """

    host: Host
    library: Library
    presets: PresetStore
    archive: Archive
    book: RecipeBook
    locator: Locator
    energies: Energies
    jobs: Jobs = field(default_factory=Jobs)
    headers: HeaderCache = field(default_factory=HeaderCache)
    measured: AnalysisReport | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def history(self) -> History:
        """What was merged."""
        return self.archive.history

    @property
    def reports(self) -> Reports:
        """Analyses kept with merges."""
        return self.archive.reports

    @property
    def windows(self) -> Windows:
        """What is set up in the page's windows."""
        return self.archive.windows

    @property
    def validations(self) -> Validations:
        """How far merges are validated."""
        return self.archive.validations

    @property
    def comparisons(self) -> Comparisons:
        """Grids that were made, for their verdict."""
        return self.archive.comparisons

    # -------------------------------------------------------------------------------------------- requests

    def handle(self, text: str) -> str:
        """Answer one request of the page: JSON text with `op`, `id`, `token` and the operation's fields.

        `asked_in` may be the id that the page has made for its browser window: jobs that are asked for
        belong to it, and `window_open` finds them again after a reload.

        One without our token is refused unread; `stale` tells the page to ask for the token once more.
        """
        request: object = None
        try:
            if len(text) > MAX_REQUEST:
                message = "the request is too large."
                raise RecipeError(message)
            request = json.loads(text)
            reply = self._admitted(request)
        except (ValueError, RecursionError):
            reply = {"ok": False, "error": "the request is not valid JSON."}
        except MergeError as error:
            reply = {"ok": False, "error": sentence(error)}
        number = request.get("id") if isinstance(request, dict) else None
        return dumps({"id": number if isinstance(number, (int, str)) else None, **reply})

    def _admitted(self, request: object) -> dict[str, Any]:
        given = request.get("token") if isinstance(request, dict) else None
        known = given.encode("utf-8", "replace") if isinstance(given, str) else b""
        if not isinstance(request, dict) or not hmac.compare_digest(known, self.token.encode()):
            return {"ok": False, "error": STALE, "stale": True}
        window = request.get("asked_in")
        asked = WINDOW.set(window[:MOST_WINDOW] if isinstance(window, str) else "")
        try:
            return self.handle_dict({name: request[name] for name in request if name not in ENVELOPE})
        finally:
            WINDOW.reset(asked)

    def handle_dict(self, request: object, *, strict: bool = False) -> dict[str, Any]:
        """Answer a request that is parsed already; errors become one sentence.

        Args:
            request: `op` and its fields.
            strict: refuse what another version has left in a set-up, instead of naming it in `dropped`.
        """
        name = request.get("op") if isinstance(request, Mapping) else None
        work = OPERATIONS.get(name) if isinstance(name, str) else None
        if work is None or not isinstance(request, Mapping):
            return {"ok": False, "error": f"there is no operation {str(name)[:40]!r}."}
        fields = {name: value for name, value in request.items() if name not in ("op", "id")}
        dropped: list[str] = []
        try:
            given: object = read(work.request, fields, dropped=None if strict else dropped)
            reply = {"ok": True, **write(work.run(self, given))}
        except MergeError as error:
            more = getattr(error, "reply", None)  # what mends it: see `remedies.Refusal`
            return {"ok": False, "error": sentence(error), **(more() if more is not None else {})}
        except Exception as error:
            log.exception("the operation %s failed", name)
            return {"ok": False, "error": sentence(f"{type(error).__name__}: {error}")}
        return {**reply, "dropped": dropped} if dropped else reply

    # -------------------------------------------------------------------------------------------- recipes

    def listed(self) -> Library:
        """Return the library, its folders looked at: nobody may have opened the tab since the start."""
        if not self.library.items():
            self.library.refresh(wait=True)
        return self.library

    def path_of(self, key: str, name: str = "") -> Path:
        """Return the file of a key, or of a LoRA's name where there is none.

        Raises:
            RecipeError: there is no such LoRA.
        """
        item = self.listed().find(name) if name and not key else None
        return self.library.resolve(item.key if item is not None else key or name)

    def recipe_names(self) -> list[str]:
        """Return saved recipes, then merges of the history, then merged LoRAs; each name once."""
        names = self.book.names()
        names += [entry.name for entry in self.history.list() if entry.recipe and entry.status != "broken"]
        names += [item.name for item in self.library.items() if item.has_recipe]
        return list(dict.fromkeys(name for name in names if name))

    def recipe_named(self, name: str) -> Recipe:
        """Return a recipe with the paths of its sources: a saved one, of the history, or a merged LoRA's.

        Raises:
            RecipeError: there is none of that name, or a source of it is gone.
        """
        self.listed()
        recipe = self.book.get(name)
        if recipe is None:
            entry = next((one for one in self.history.list() if one.name == name and one.recipe), None)
            recipe = from_json(entry.recipe, "the entry") if entry is not None else self._merged(name)
        if recipe is None:
            message = f"there is no recipe called {name[:80]!r}."
            raise RecipeError(message)
        return self.with_paths(recipe)

    def _merged(self, name: str) -> Recipe | None:
        item = self.library.find(name)
        if item is None or not item.has_recipe:
            return None
        return carried_recipe(self.library.resolve(item.key))

    def with_paths(self, recipe: Recipe) -> Recipe:
        """Return the recipe with every source's path.

        Raises:
            RecipeError: a source is not in the LoRA folders.
        """
        return replace(recipe, sources=tuple(self._at_its_place(source) for source in recipe.sources))

    def _at_its_place(self, source: Source) -> Source:
        if source.recipe is not None:
            return replace(source, recipe=self.with_paths(source.recipe))
        key = self.locator.locate(source)
        if not key:
            message = (
                f"{Path(source.name).name or 'a source'} is needed and is not in the LoRA folders any more."
            )
            raise RecipeError(message)
        return replace(source, path=self.library.resolve(key))

    def setup_of(self, recipe: Recipe) -> Setup:
        """Return what the tab is to be set to for a recipe; rows of sources that are gone have no key.

        Its rank is taken as it is: see `state.as_asked` for recipes that were read from JSON.
        """
        family = recipe.family
        return from_recipe(
            recipe, lambda source: self.locator.locate(source, family), lambda b: self.expand(b, family)
        )

    def expand(
        self, blocks: Blocks, family: str | None, draw: random.Random | None = None
    ) -> dict[str, float]:
        """Return block weights of any form as {block: weight}.

        Args:
            blocks: a list, a preset's name, a notation, or {block: weight}.
            family: the base model; told from the length of a list where it is not known.
            draw: draws R and U; always alike where there is none.
        Raises:
            RecipeError: a family without a table of blocks, or weights that cannot be read.
        """
        if not blocks:
            return {}
        if isinstance(blocks, Mapping):
            return {str(name): float(value) for name, value in blocks.items()}
        meant = family or (family_with_list(len(blocks)) if isinstance(blocks, list) else None) or USUAL
        table = family_of(meant).blocks
        if not table:
            message = f"there is no table of blocks for {meant}: set its blocks in the grid."
            raise RecipeError(message)
        return resolve_blocks(
            blocks, meant, table, draw or random.Random(0), "the source", store=self.presets
        )[0]


def carried_recipe(path: Path) -> Recipe | None:
    """Return the recipe that a file carries, None where there is none."""
    with open_lora(path) as file:
        text = metadata.recipe_of(file.metadata)
    return loads(text, path.name) if text else None


def trash_of(desk: Desk) -> Trash:
    """Return where deleted and replaced files go."""
    return Trash(desk.host.data_folder() / "trash")


# ------------------------------------------------------------------------------------------------ operations


@dataclass(frozen=True, slots=True)
class Nothing:
    """A request without fields, or a reply that says only that it is done."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is known of an operation.

    request  dataclass of its fields
    reply    what it returns, a dataclass or a union of some
    rest     method and path below the API's own, as "GET /jobs/{job}"; "" where only the page asks for it
    """

    name: str
    work: Callable[..., Any]
    request: type
    reply: Any
    rest: str = ""

    def run(self, desk: Desk, request: object) -> object:
        """Carry it out."""
        return self.work(desk) if self.request is Nothing else self.work(desk, request)


OPERATIONS: dict[str, Operation] = {}
Work = typing.TypeVar("Work", bound=Callable[..., Any])


def operation(name: str, rest: str = "") -> Callable[[Work], Work]:
    """Register the decorated function.

    It takes the desk and, where it has fields, a dataclass of them; the first line of its docstring is what
    REST says it does.

    Args:
        name: what the page asks for.
        rest: see `Operation`.
    """

    def register(work: Work) -> Work:
        hints = typing.get_type_hints(work, include_extras=True)
        OPERATIONS[name] = Operation(name, work, hints.get("request", Nothing), hints["return"], rest)
        return work

    return register
