"""The LoRAs of the folders: the list, what is measured of each, and one laid open."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from lib_merge.adapters import open_lora
from lib_merge.analysis.measure import FileInfo
from lib_merge.analysis.training import training
from lib_merge.analysis.triggers import Word, trigger_words
from lib_merge.errors import MergeError
from lib_merge.library.inspect import inspect_file
from lib_merge.library.library import Item
from lib_merge.metadata import describe_recipe
from lib_merge.recipe import from_json
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.protocol import About, write


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryRequest:
    """Asks for the list, or for what changed of it."""

    refresh: Annotated[bool, About("look at the folders again")] = False
    since: Annotated[str, About("what the answer before had in `since`, empty for everything")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryReply:
    """What is new, changed and gone; an item lacks what is empty or follows from the rest."""

    items: list[dict[str, Any]]
    gone: Annotated[list[str], About("keys")]
    full: Annotated[bool, About("this is the whole list")]
    since: str
    done: Annotated[int, About("headers looked at by the scan that runs or ran last")]
    total: int


@operation("library")
def library(desk: Desk, request: LibraryRequest) -> LibraryReply:
    """Return what changed of the list of LoRAs."""
    if request.refresh:
        desk.library.refresh()
    done, total = desk.library.scanning
    return LibraryReply(**desk.library.changes(request.since), done=done, total=total)


@dataclass(frozen=True, slots=True, kw_only=True)
class LorasReply:
    """Every LoRA."""

    items: list[Item]
    done: int
    total: int


@operation("loras", rest="GET /loras")
def loras(desk: Desk) -> LorasReply:
    """Every LoRA in the LoRA folders."""
    desk.library.refresh(wait=True)
    done, total = desk.library.scanning
    return LorasReply(items=desk.library.items(), done=done, total=total)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookRequest:
    """Asks for what is measured of LoRAs."""

    keys: Annotated[list[str], About(most=4096)] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookReply:
    """Norm and share of energy per block; what is not measured yet is absent."""

    found: Annotated[dict[str, dict[str, Any]], About("by key")]
    reading: Annotated[bool, About("some are being measured")]


@operation("look")
def look(desk: Desk, request: LookRequest) -> LookReply:
    """Return norm and share of energy per block of LoRAs."""
    keys = list(dict.fromkeys(request.keys))
    facts = {key: desk.energies.get(desk.library.resolve(key)) for key in keys}
    measured = {key: one for key, one in facts.items() if one is not None}
    return LookReply(found=measured, reading=len(measured) < len(keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsRequest:
    """Asks for the trigger words of LoRAs."""

    keys: Annotated[list[str], About("as `loras` lists them", most=64)] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsReply:
    """Likely trigger words, the surest first; nothing of a file that is gone or cannot be read."""

    found: Annotated[dict[str, list[Word]], About("by key")]


@operation("words")
def words(desk: Desk, request: WordsRequest) -> WordsReply:
    """Return the likely trigger words of LoRAs, each with where it comes from."""
    found: dict[str, list[Word]] = {}
    for key in dict.fromkeys(request.keys):
        try:
            path = desk.library.resolve(key)
            with open_lora(path) as file:
                found[key] = trigger_words(path, file.metadata)
        except (MergeError, OSError):
            found[key] = []
    return WordsReply(found=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRequest:
    """Names one LoRA."""

    key: Annotated[str, About("as `loras` lists it")] = ""
    name: Annotated[str, About("its stem or alias, where no key is given", example="ink")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReply:
    """What header, tensors and training notes of a LoRA say."""

    found: dict[str, Any]


@operation("inspect", rest="GET /inspect")
def inspect(desk: Desk, request: LoraRequest) -> InspectReply:
    """What is in one LoRA (?name=)."""
    return InspectReply(found=inspected(desk.path_of(request.key, request.name)))


def inspected(path: Path) -> dict[str, Any]:
    """Return what `inspect_file` says, the training notes as rows, and the recipe in words.

    Raises:
        MergeError: damaged or not a LoRA.
    """
    facts = inspect_file(path)
    with open_lora(path) as file:
        base = file.config.base if file.config is not None else ""
        info = FileInfo(
            path=path,
            name=file.name,
            label=path.stem,
            bytes=file.size,
            stamp=0,
            metadata=dict(file.metadata),
            base=base,
            kinds={},
            vectors=0,
        )
    rows = training([info], [(0, 0)]).rows
    facts["training"] = [[row.title, row.values[0]] for row in rows if row.field != "rank" and row.values[0]]
    facts["words"] = [write(word) for word in trigger_words(path, info.metadata)]
    facts["made_of"] = _in_words(facts["recipe"])
    return facts


def _in_words(recipe: object) -> str:
    if not isinstance(recipe, dict):
        return ""
    try:
        return describe_recipe(from_json(recipe, "the recipe"))
    except MergeError as error:
        return f"its recipe cannot be read: {error}"
