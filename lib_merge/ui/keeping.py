"""What is kept on this machine: presets, recipes by name, and the history of merges with their files."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from lib_merge import metadata
from lib_merge.blocks import ImportLine, NeighbourFile, Preset, find_preset_files, import_file, import_presets
from lib_merge.blocks.weights import parse_elements
from lib_merge.engine.report import choice_words, proof_words
from lib_merge.errors import MergeError, OutputError, RecipeError
from lib_merge.families import USUAL
from lib_merge.files.beside import beside
from lib_merge.files.moving import move_all, move_back
from lib_merge.files.names import SUFFIX, check_stem
from lib_merge.kept.history import Entry
from lib_merge.kept.labels import labels
from lib_merge.ui.catalog import PresetsReply, presets
from lib_merge.ui.desk import Desk, Nothing, operation, trash_of
from lib_merge.ui.protocol import About, write
from lib_merge.ui.reopening import OpenReply, open_recipe
from lib_merge.ui.state import TabState, as_asked, to_recipe
from lib_merge.ui.understanding import EntryRequest, PairRequest

HISTORY_PAGE = 100
Able = Literal["again", "verify", "rename", "use", "changes"]
# Seconds to wait for a generation before the WebUI is told of a moved file later, by itself.
PATIENCE = 2.0


# -------------------------------------------------------------------------------------------- presets


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetSaveRequest:
    """A row's block weights under a name."""

    name: Annotated[str, About(example="my faces")]
    family: str = USUAL
    weights: dict[str, float] = field(default_factory=dict)
    elements: Annotated[str, About("element rules, `blocks:elements:ratio`")] = ""


@operation("preset_save")
def preset_save(desk: Desk, request: PresetSaveRequest) -> PresetsReply:
    """Save a row's weights, and its element rules where it has some, under a name."""
    rules = parse_elements(request.elements) if request.elements else ()
    desk.presets.save(Preset(request.name, request.family, request.weights, rules))
    return PresetsReply(presets=presets(desk.presets))


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetRenameRequest:
    """A preset's name and its new one."""

    name: str
    to: str


@operation("preset_rename")
def preset_rename(desk: Desk, request: PresetRenameRequest) -> PresetsReply:
    """Rename one of the user's presets."""
    desk.presets.rename(request.name, request.to)
    return PresetsReply(presets=presets(desk.presets))


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRequest:
    """A name."""

    name: str


@operation("preset_delete")
def preset_delete(desk: Desk, request: NameRequest) -> PresetsReply:
    """Delete one of the user's presets."""
    desk.presets.delete(request.name)
    return PresetsReply(presets=presets(desk.presets))


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetImportRequest:
    """A preset file of another tool: its text, or one that `preset_find` found."""

    text: str = ""
    name: Annotated[str, About("of the file, which tells what it is")] = "presets.txt"
    family: str | None = None
    found: Annotated[str, About("id of a file found beside this extension")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetImportReply(PresetsReply):
    """What an import understood, line by line."""

    lines: list[ImportLine]
    notes: list[str]
    count: Annotated[int, About("presets that were read")]
    said: Annotated[str, About("how many were read and refused", example="2 presets were read.")]


@operation("preset_import")
def preset_import(desk: Desk, request: PresetImportRequest) -> PresetImportReply:
    """Import a preset file of another tool, with a sentence for every line."""
    family = request.family or None
    if request.found:
        files = {str(index): one for index, one in enumerate(_neighbours(desk))}
        if request.found not in files:
            message = "that file is not there any more."
            raise RecipeError(message)
        report = import_file(Path(files[request.found].path), family)
    else:
        report = import_presets(request.text, request.name or "presets.txt", family)
    notes = list(desk.presets.add(report.entries))
    return PresetImportReply(
        lines=list(report.lines),
        notes=notes,
        presets=presets(desk.presets),
        count=len(report.entries),
        said=_imported(len(report.entries), sum(line.outcome == "refused" for line in report.lines)),
    )


def _imported(read: int, refused: int) -> str:
    presets_read = "1 preset was read" if read == 1 else f"{read} presets were read"
    if not refused:
        return f"{presets_read}."
    return f"{presets_read}, {'1 line was' if refused == 1 else f'{refused} lines were'} refused."


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetFile:
    """A preset file of another extension."""

    id: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetFindReply:
    """Preset files of other extensions."""

    found: list[PresetFile]


@operation("preset_find")
def preset_find(desk: Desk) -> PresetFindReply:
    """Return preset files of neighbouring extensions."""
    files = [PresetFile(id=str(index), title=one.title) for index, one in enumerate(_neighbours(desk))]
    return PresetFindReply(found=files)


def _neighbours(desk: Desk) -> list[NeighbourFile]:
    return list(find_preset_files(desk.host.extension_folders()))


# -------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipesRequest:
    """Asks for the names of recipes, or for one of them."""

    name: Annotated[str, About("of the recipe to return, as plan and merge take it")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipesReply:
    """Names of recipes."""

    names: Annotated[list[str], About("saved ones")]
    all: Annotated[list[str], About("every name that <merge:NAME:1> takes")]


@operation("recipes", rest="GET /recipes")
def recipes(desk: Desk, request: RecipesRequest) -> RecipesReply | OpenReply:
    """Names of saved recipes; with ?name= one of them, as plan and merge take it."""
    if request.name:
        return open_recipe(desk, as_asked(desk.recipe_named(request.name)))
    return RecipesReply(names=desk.book.names(), all=desk.recipe_names())


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSaveRequest:
    """What is set up, under a name."""

    name: str
    state: TabState
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSaveReply:
    """The name it has now, and all names."""

    name: str
    names: list[str]


@operation("recipe_save")
def recipe_save(desk: Desk, request: RecipeSaveRequest) -> RecipeSaveReply:
    """Keep what is set up under a name."""
    recipe = to_recipe(request.state, desk.library.resolve)
    name = desk.book.save(request.name, recipe, overwrite=request.overwrite)
    return RecipeSaveReply(name=name, names=desk.book.names())


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesReply:
    """Names of saved recipes."""

    names: list[str]


@operation("recipe_remove")
def recipe_remove(desk: Desk, request: NameRequest) -> NamesReply:
    """Move a saved recipe into the trash folder."""
    desk.book.remove(request.name)
    return NamesReply(names=desk.book.names())


# -------------------------------------------------------------------------------------------- history


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRequest:
    """Asks for what was merged."""

    search: Annotated[str, About("words in names, sources, methods and notes")] = ""
    count: Annotated[int, About("how many entries", least=1)] = HISTORY_PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReply:
    """Entries, newest first."""

    entries: list[Entry]
    total: Annotated[int, About("how many there are in all")]
    can: Annotated[
        dict[str, list[Able]], About("by id: what works beside Load; nothing of a file that is not there")
    ]
    labels: Annotated[dict[str, str], About("by id: for menus, short and unlike every other")]


@operation("history", rest="GET /history")
def history(desk: Desk, request: HistoryRequest) -> HistoryReply:
    """What was merged, newest first (?search=)."""
    entries = desk.history.list(request.search)
    page = entries[: request.count]
    there = {item.key for item in desk.library.items()}
    return HistoryReply(
        entries=[_told(one) for one in page],
        total=len(entries),
        can={one.id: _able(one, there) for one in page},
        labels=labels(page),
    )


def _able(entry: Entry, there: Collection[str]) -> list[Able]:
    """Return what works on an entry: a merge that was judged and never saved has no file to verify."""
    able: list[Able] = ["again"] if entry.recipe and entry.key else []
    able += ["verify", "rename", "use"] if entry.key in there else []
    return [*able, "changes"] if entry.based_on else able


def _told(entry: Entry) -> Entry:
    """Return an entry with its proof and its choice in words, which the history does not keep."""
    words = {"proof": proof_words(entry.report), "choice": choice_words(entry.report)}
    return replace(entry, report={**entry.report, **{name: text for name, text in words.items() if text}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a person thinks of a merge."""

    preserved: Annotated[dict[str, Literal["yes", "partly", "no"]], About("by source", most=64)] = field(
        default_factory=dict
    )
    artefacts: Annotated[bool | None, About("there are new ones", omit=True)] = None
    consistent: Annotated[bool | None, About("over prompts and seeds", omit=True)] = None
    against: Annotated[Literal["", "better", "equal", "worse"], About("beside the stack of tags")] = ""
    decision: Annotated[Literal["", "keep", "discard", "next"], About("next: try again")] = ""

    @property
    def failed(self) -> bool:
        """True where the merge is to be tried again, or something was lost that nobody accepted."""
        if self.decision:
            return self.decision == "next"
        lost = "no" in self.preserved.values()
        return lost or self.against == "worse" or self.artefacts is True or self.consistent is False


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryUpdateRequest:
    """What is to be changed of an entry; null leaves it as it is."""

    entry: str
    verdict: Verdict | None = None
    notes: str | None = None
    status: Literal["ok", "revise", None] = None
    rating: int | None = None


@operation("history_update")
def history_update(desk: Desk, request: HistoryUpdateRequest) -> Nothing:
    """Change an entry's verdict, notes or status."""
    given: dict[str, Any] = {
        "verdict": write(request.verdict),
        "notes": request.notes,
        "status": request.status,
        "rating": request.rating,
    }
    desk.history.update(request.entry, **{name: value for name, value in given.items() if value is not None})
    return Nothing()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesReply:
    """Sentences."""

    lines: list[str]


@operation("history_diff")
def history_diff(desk: Desk, request: PairRequest) -> LinesReply:
    """Return what changed from the merge `other` to the merge `entry`."""
    return LinesReply(lines=list(desk.history.diff(request.entry, request.other)))


# -------------------------------------------------------------------------------------------- files of merges


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameRequest:
    """A merge of the history and its new name."""

    entry: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReply:
    """The key of a LoRA."""

    key: str


@operation("rename")
def rename(desk: Desk, request: RenameRequest) -> KeyReply:
    """Rename a merge and what lies beside it."""
    entry = desk.history.get(request.entry)
    old = desk.library.resolve(entry.key)
    stem = request.to.strip(" ").removesuffix(SUFFIX)
    check_stem(stem)
    new = old.with_name(f"{stem}{SUFFIX}")
    taken = [path for path in (new, *beside(new)) if os.path.lexists(path)]
    if taken:  # a picture or a config.json would become the merge's, and go with it later
        message = f"{taken[0].name} exists already; choose another name."
        raise OutputError(message)
    pairs = [(old, new), *((path, _under(path, old, new)) for path in _belongings(old))]
    move_all(pairs)
    try:
        desk.history.update(entry.id, name=new.stem, key=desk.library.key_of(new))
    except MergeError:
        move_back(pairs)  # the list would name a file that is not there
        raise
    _tell(desk, [old, new])
    desk.library.refresh(wait=True)
    return KeyReply(key=desk.library.key_of(new))


@operation("remove")
def remove(desk: Desk, request: EntryRequest) -> Nothing:
    """Move a merge and its entry into trash folders; a file that is gone already is no error."""
    entry = desk.history.get(request.entry)
    if not any(item.key == entry.key for item in desk.library.items()):
        desk.history.remove(entry.id)
        return Nothing()
    trash, path = trash_of(desk), desk.library.resolve(entry.key)
    thrown = trash.take([path, *_belongings(path)], entry.id)
    try:
        desk.history.remove(entry.id)
    except MergeError:
        trash.restore(thrown)  # the list would name a file that is not there
        raise
    _tell(desk, [path])
    desk.library.refresh(wait=True)
    return Nothing()


def _belongings(lora: Path) -> list[Path]:
    """Return what goes where a LoRA goes; a .json that is no card is another program's and stays."""
    side_car = metadata.side_car_path(lora)
    return [path for path in beside(lora) if path != side_car or metadata.card_at(path).known]


def _under(path: Path, old: Path, new: Path) -> Path:
    """Return the name of what lies beside a LoRA under the LoRA's new name."""
    return new.with_name(f"{new.stem}{path.name[len(old.stem) :]}")


# -------------------------------------------------------------------------------------------- the trash


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrownLora:
    """A LoRA in the trash."""

    id: str
    name: Annotated[str, About("of its file")]
    time: Annotated[str, About("ISO 8601")]
    why: Annotated[str, About("deleted or replaced")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashReply:
    """What can go back, the newest first."""

    thrown: list[ThrownLora]


@operation("trash")
def trash(desk: Desk) -> TrashReply:
    """Return the LoRAs that were deleted, or replaced by a merge, and can go back."""
    things = [ThrownLora(id=t.id, name=t.name, time=t.time, why=t.why) for t in trash_of(desk).things()]
    return TrashReply(thrown=things)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """Names what is to go back."""

    thrown: Annotated[str, About("its id in the trash")]


@operation("restore")
def restore(desk: Desk, request: RestoreRequest) -> KeyReply:
    """Move a LoRA and what lay beside it from the trash to its place, and its entry into the history."""
    trash = trash_of(desk)
    thrown = trash.get(request.thrown)
    if not desk.library.key_of(Path(thrown.folder) / thrown.name):
        message = f"{thrown.name} lay outside of today's LoRA folders, in {thrown.folder}; move it by hand."
        raise RecipeError(message)
    back = trash.restore(thrown)
    desk.history.restore(thrown.id)
    _tell(desk, back[:1])
    desk.library.refresh(wait=True)
    return KeyReply(key=desk.library.key_of(back[0]))


def _tell(desk: Desk, changed: list[Path]) -> None:
    """Tell the WebUI of moved files in our turn: what a generation has loaded must not go from under it."""

    def tell() -> None:
        with desk.host.busy_lock():
            desk.host.refresh_loras(changed)

    thread = threading.Thread(target=tell, name="lora-merge-moved", daemon=True)
    thread.start()
    thread.join(PATIENCE)
