"""What was written turned into rows and settings: a recipe, a history entry, a prompt, a picture."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated

from lib_merge.errors import MergeError, RecipeError
from lib_merge.families import USUAL
from lib_merge.library.library import Item
from lib_merge.recipe import Recipe, loads
from lib_merge.ui.desk import Desk, carried_recipe, operation
from lib_merge.ui.lineage import recipe_of
from lib_merge.ui.pictures import decoded
from lib_merge.ui.prompt import PromptSource, infotext, read_prompt, recipes_of, write_prompt
from lib_merge.ui.protocol import About
from lib_merge.ui.state import Row, Setup, TabState, as_asked, encoder_ratios, rules_text, unshown


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """Names what is to be opened, by one of these."""

    key: Annotated[str, About("of a merged LoRA")] = ""
    entry: Annotated[str, About("of the history")] = ""
    recipe: Annotated[str, About("name of a recipe")] = ""
    text: Annotated[str, About("a recipe as JSON text")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenReply:
    """What the tab is to be set to, and what differs from then."""

    state: Setup
    notes: list[str]


@operation("open")
def open_(desk: Desk, request: OpenRequest) -> OpenReply:
    """Return the set-up that made a merged LoRA, a history entry or a recipe."""
    if request.entry:
        return open_recipe(desk, recipe_of(desk.history.get(request.entry)))
    return open_recipe(desk, as_asked(_recipe(desk, request)))


def open_recipe(desk: Desk, recipe: Recipe) -> OpenReply:
    """Return the tab's set-up of a recipe, and what of it is missing or cannot be shown."""
    return OpenReply(state=desk.setup_of(recipe), notes=[*desk.locator.missing(recipe), *unshown(recipe)])


def _recipe(desk: Desk, request: OpenRequest) -> Recipe:
    if request.recipe:
        return desk.recipe_named(request.recipe)
    if request.text:
        return loads(request.text, "the recipe")
    path = desk.library.resolve(request.key)
    recipe = carried_recipe(path)
    if recipe is None:
        message = f"{path.name} was not made by this program: there is no recipe in it."
        raise RecipeError(message)
    return recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksRequest:
    """Block weights as people write them."""

    text: Annotated[str, About("a list, a preset's name, or OUT00-OUT05=0.5,M00=1")] = ""
    family: str = USUAL


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReply:
    """Block weights."""

    weights: dict[str, float]


@operation("blocks")
def blocks(desk: Desk, request: BlocksRequest) -> WeightsReply:
    """Return {block: weight} of a list, preset or notation; R and U are drawn."""
    return WeightsReply(weights=desk.expand(request.text.strip(), request.family or USUAL, random.Random()))


# -------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """A prompt, an infotext, or a generated picture."""

    text: str = ""
    image: Annotated[str, About("data: address of a PNG, JPEG or WebP")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptReply:
    """The rows of a prompt's tags; `state` where a picture carries a whole recipe, which says more."""

    rows: list[Row]
    notes: list[str]
    state: Annotated[Setup | None, About(omit=True)] = None


@operation("prompt")
def prompt(desk: Desk, request: PromptRequest) -> PromptReply:
    """Return rows from a prompt or from a generated picture's text."""
    text = _text_of(request.image) if request.image else request.text
    carried = recipes_of(text)
    if carried:
        opened = open_recipe(desk, as_asked(carried[0]))
        return PromptReply(rows=[], notes=opened.notes, state=opened.state)
    tags = read_prompt(text)
    notes = list(tags.notes)
    return PromptReply(rows=[_row(desk, source, notes) for source in tags.sources], notes=notes)


def _text_of(image: str) -> str:
    try:
        data = decoded(image)
    except RecipeError as error:
        message = "that picture cannot be read."
        raise RecipeError(message) from error
    text = infotext(data)
    if not text:
        message = (
            "that picture carries no generation parameters; it was saved without them "
            "or lost them on its way."
        )
        raise RecipeError(message)
    return text


def _row(desk: Desk, source: PromptSource, notes: list[str]) -> Row:
    item = desk.library.find(source.name)
    if item is None:
        notes.append(f"there is no LoRA called {source.name!r} here")
    notes += [f"{source.name}: {note}" for note in source.notes]
    return Row(
        key=item.key if item else "",
        name=source.name,
        ratio=source.ratio,
        te=None if source.te_ratio is None else [source.te_ratio],
        blocks=_weights(desk, source, item, notes),
        elements=_elements(desk, source, item, notes),
    )


def _weights(desk: Desk, source: PromptSource, item: Item | None, notes: list[str]) -> dict[str, float]:
    try:
        return desk.expand(source.blocks, item.family if item else None, random.Random())
    except MergeError as error:  # one bad argument must not cost the other rows
        notes.append(f"{source.name}: its block weights were not taken over, since {error}")
        return {}


def _elements(desk: Desk, source: PromptSource, item: Item | None, notes: list[str]) -> str:
    """Return the element rules that `lbwe=` names."""
    text = source.elements
    if not text:
        return ""
    try:
        preset = desk.presets.get(text, (item.family if item else "") or USUAL)
        rules = preset.elements if preset is not None else ()
    except MergeError:
        rules = ()
    if not rules:
        notes.append(f"{source.name}: the element rules {text[:40]!r} are not known here and are left out")
    return rules_text(rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptWriteRequest:
    """Carries what is set up."""

    state: TabState


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptWriteReply:
    """Tags, and what tags cannot say."""

    text: str
    notes: list[str]


@operation("prompt_write")
def prompt_write(desk: Desk, request: PromptWriteRequest) -> PromptWriteReply:
    """Return the rows as prompt tags, and what tags cannot say."""
    items = {item.key: item for item in desk.library.items()}
    sources, notes = [], []
    for row in request.state.sources:
        if not row.on or not row.key:
            continue
        name = desk.host.alias_of(desk.library.resolve(row.key))
        te = encoder_ratios(row)
        item = items.get(row.key)
        if len(set(te)) > 1:
            notes.append(f"{name}: a tag has one text-encoder strength, so TE2's was left out")
        if row.elements:
            notes.append(f"{name}: the element rules were left out")
        sources.append(
            PromptSource(
                name=name,
                ratio=row.ratio,
                te_ratio=te[0] if te else None,
                blocks=row.blocks or None,
                family=item.family if item else "",
                present=item.blocks if item else (),
            )
        )
    text, unsaid = write_prompt(sources)
    return PromptWriteReply(text=text, notes=[*notes, *unsaid])
