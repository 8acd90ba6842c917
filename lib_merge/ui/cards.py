"""The card of a result: whether its file is still there, under which name, and what may be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lib_merge import metadata
from lib_merge.adapters import open_lora
from lib_merge.errors import MergeError, RecipeError
from lib_merge.kept.history import Entry
from lib_merge.ui.desk import Desk, operation, trash_of
from lib_merge.ui.protocol import About


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRequest:
    """Names the merge that a card shows."""

    entry: Annotated[str, About("of the history; empty where the merge could not be written there")] = ""
    key: Annotated[str, About("of the file, as the merge's result had it")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardReply:
    """What has become of a merge's file; `prompt` is empty where there is nothing to load."""

    state: Annotated[
        Literal["there", "renamed", "replaced", "trash", "gone"],
        About("renamed: under another name or in another folder; replaced: another merge has its name now"),
    ]
    key: Annotated[str, About("of the file now, empty where there is none")]
    name: Annotated[str, About("its stem now")]
    prompt: Annotated[str, About("for *Use in txt2img*: ask for it then", example="<lora:m:1>")]
    triggers: str
    thrown: Annotated[str, About("id in the trash, for `restore`; empty elsewhere")]
    said: Annotated[str, About("one sentence; empty where nothing has changed")]


@operation("card")
def card(desk: Desk, request: CardRequest) -> CardReply:
    """Return whether a merge's file is still there: renamed, replaced by another, in the trash, or gone."""
    desk.library.refresh(wait=True)
    entry = _entry(desk, request.entry)
    keys = {item.key for item in desk.library.items()}
    key = entry.key if entry is not None else request.key
    if entry is None and request.entry and any(one.id == request.entry for one in trash_of(desk).things()):
        return _away(desk, request.entry, key)  # what has its name now is another file
    if key in keys:
        other = entry is not None and not _is_of(desk, entry, key)
        renamed = bool(request.key) and key != request.key
        state: Literal["there", "renamed", "replaced"] = (
            "replaced" if other else "renamed" if renamed else "there"
        )
        return _there(desk, state, key)
    found = next((one for one in keys if _is_of(desk, entry, one)), "") if entry is not None else ""
    if found:
        return _there(desk, "renamed", found)
    return _away(desk, request.entry, key)


def _entry(desk: Desk, identity: str) -> Entry | None:
    try:
        return desk.history.get(identity) if identity else None
    except RecipeError:
        return None


def _is_of(desk: Desk, entry: Entry, key: str) -> bool:
    """Tell whether a file is the one that an entry's merge wrote; one whose hash nobody noted is."""
    wanted = str(entry.report.get("tensor_hash") or "")
    if not wanted:
        return key == entry.key
    item = next((one for one in desk.library.items() if one.key == key), None)
    size = entry.report.get("bytes")
    if item is None or (key != entry.key and item.size != size):
        return False
    try:
        with open_lora(desk.library.resolve(key)) as file:
            return file.metadata.get("sshs_model_hash") == wanted
    except (MergeError, OSError):
        return False


def _there(desk: Desk, state: Literal["there", "renamed", "replaced"], key: str) -> CardReply:
    path = desk.library.resolve(key)
    said = {
        "there": "",
        "renamed": f"it is called {path.stem} now.",
        "replaced": f"another merge has replaced {path.stem}.",
    }
    return CardReply(
        state=state,
        key=key,
        name=path.stem,
        prompt=f"<lora:{desk.host.alias_of(path)}:1>",
        triggers=str(metadata.read_side_car(path).get("activation text") or ""),
        thrown="",
        said=said[state],
    )


def _away(desk: Desk, identity: str, key: str) -> CardReply:
    name = key.rpartition("/")[2]
    things = trash_of(desk).things()
    thrown = next((one for one in things if (identity and one.id == identity) or one.name == name), None)
    stem = name.rpartition(".")[0] or name
    return CardReply(
        state="gone" if thrown is None else "trash",
        key="",
        name=stem,
        prompt="",
        triggers="",
        thrown="" if thrown is None else thrown.id,
        said=f"{stem} is in the trash."
        if thrown is not None
        else f"{stem} is not in the LoRA folders any more.",
    )
