"""What a merged file says of itself: in its header for the WebUIs and kohya's tools, beside it for the cards.

Written are only things that are true of the merge: a new unique output name, the family, ranks, the recipe
once, the trigger tags of every source kept apart. Training keys (steps, losses, session, clock) are not
carried over.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_merge.errors import FileFormatError, OutputError
from lib_merge.families import family_of
from lib_merge.files import store
from lib_merge.files.moving import back_up, backed_up, move_back
from lib_merge.recipe import Recipe, Source

RECIPE_KEY = "merge_recipe"
WRITTEN_KEY = "written by merge"
# Of one source and of a merge, in characters; of a value that all sources share.
MAX_TAGS, MAX_ALL_TAGS, MAX_VALUE = 4 << 20, 16 << 20, 1000
MAX_TRIGGER = 4000


def describe_recipe(recipe: Recipe) -> str:
    """Return the recipe in words: `merged: a@0.6 + b@0.4 (weighted_sum, lossless)`."""
    parts = []
    for source in recipe.sources:
        name = f"({describe_recipe(source.recipe)})" if source.recipe is not None else source.label
        te = source.te_ratio
        ratios = f"{source.ratio:g}" if te is None else f"{source.ratio:g}/te {_ratios(te)}"
        parts.append(f"{name}@{ratios}{' with block weights' if source.blocks else ''}")
    return f"merged: {' + '.join(parts)} ({recipe.method}, {recipe.policy().text})"


def _ratios(ratios: float | tuple[float, ...]) -> str:
    return " ".join(f"{ratio:g}" for ratio in ratios) if isinstance(ratios, tuple) else f"{ratios:g}"


def build(
    recipe: Recipe,
    family: str,
    title: str,
    sources: Sequence[tuple[Source, Mapping[str, str]]],
    ranks: Sequence[int],
) -> dict[str, str]:
    """Return the header's metadata, without the hashes.

    Args:
        recipe: resolved and stamped.
        family: the base family.
        title: stem of the output.
        sources: every leaf with its file's metadata.
        ranks: ranks of the saved modules.
    """
    known = family_of(family)
    rank = str(max(ranks)) if ranks and len(set(ranks)) == 1 else "Dynamic"
    table = {
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_base_model_version": known.base_version,
        "ss_v2": str(known.v2),
        "ss_training_comment": describe_recipe(recipe),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title,
        "modelspec.architecture": known.architecture,
        "modelspec.implementation": known.implementation,
        "modelspec.merged_from": ", ".join(source.label for source, _ in sources),
        "format": "pt",
        RECIPE_KEY: recipe.dumps(),
    }
    tags = merged_tags(sources)
    if tags:
        table["ss_tag_frequency"] = tags
    words = trigger_words(sources)
    if words:
        table["modelspec.trigger_phrase"] = ", ".join(words)[:MAX_TRIGGER]
    for key in ("ss_sd_model_name", "ss_clip_skip", "modelspec.prediction_type"):
        values = {metadata.get(key) for _, metadata in sources}
        if len(values) == 1 and (value := values.pop()) and len(value) <= MAX_VALUE:
            table[key] = value
    return {name: whole(text) for name, text in table.items()}


def unsealed(table: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata with hashes of the length that they will have, for a header's length."""
    return {**table, "sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}


def merged_tags(sources: Sequence[tuple[Source, Mapping[str, str]]]) -> str:
    """Return `ss_tag_frequency` of all sources as JSON, each folder named after its source so that none hides
    another's; "" where there is none, or more than `MAX_ALL_TAGS`.
    """
    text = _all_tags(sources)
    return text if len(text) <= MAX_ALL_TAGS else ""


def too_many_tags(sources: Sequence[tuple[Source, Mapping[str, str]]]) -> str:
    """Return a sentence where the tags of all sources are too many to be copied, else ""."""
    size = len(_all_tags(sources))
    if size <= MAX_ALL_TAGS:
        return ""
    return f"the training tags of the sources take {size / 1e6:.0f} MB and were left out of the header"


def _all_tags(sources: Sequence[tuple[Source, Mapping[str, str]]]) -> str:
    merged: dict[str, str] = {}
    for number, (source, metadata) in enumerate(sources, 1):
        for folder, tags in _tags_by_folder(metadata.get("ss_tag_frequency", "")):
            name = re.sub(r"^\d+_", "", folder)
            merged[f"{number}_{source.label}_{name}"] = tags
    text = ",".join(f"{_compact(whole(name))}:{tags}" for name, tags in merged.items())
    return f"{{{text}}}" if text else ""


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@functools.lru_cache(maxsize=16)
def _tags_by_folder(text: str) -> tuple[tuple[str, str], ...]:
    """Return (folder, its tags as JSON); kept, as every look at a set-up asks for it."""
    found = read_tags({"ss_tag_frequency": text})
    return tuple((str(folder), _compact(tags)) for folder, tags in found.items())


def read_tags(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Return kohya's tag counts by folder; empty where they are absent, damaged or absurdly long."""
    text = metadata.get("ss_tag_frequency", "")
    if not text.startswith("{") or len(text) > MAX_TAGS:
        return {}
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {
        whole(folder): {whole(tag): count for tag, count in tags.items() if isinstance(count, (int, float))}
        for folder, tags in folders.items()
        if isinstance(tags, dict)
    }


def whole(text: str) -> str:
    """Return a text with halves of characters escaped: JSON may hold one, and no file could take it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def trigger_words(sources: Sequence[tuple[Source, Mapping[str, str]]]) -> list[str]:
    """Return the sources' trigger phrases and side-car activation texts, each once, in order."""
    words: list[str] = []
    for source, metadata in sources:
        side = read_side_car(source.path) if source.path is not None else {}
        for text in (side.get("activation text"), metadata.get("modelspec.trigger_phrase")):
            for word in whole(str(text or "")).split(","):
                if word.strip() and word.strip() not in words:
                    words.append(word.strip())
    return words


def recipe_of(metadata: Mapping[str, str]) -> str | None:
    """Return the recipe's JSON text from a merged file's metadata."""
    return metadata.get(RECIPE_KEY)


def side_car_path(lora: Path) -> Path:
    """Return the place of the WebUI's user metadata: the same name with .json."""
    return lora.with_suffix(".json")


def read_side_car(lora: Path) -> dict[str, Any]:
    """Return the WebUI's user metadata of a LoRA; empty where there is none or it is not readable."""
    try:
        data = store.read_json(side_car_path(lora))
    except FileFormatError:
        return {}
    return data if isinstance(data, dict) else {}


class NewCard:
    """The side-car of a merge whose file is about to get its name; see `new_card`.

    path   where it is going to lie
    error  why it cannot be written, or None
    notes  what is to be told of it, once it was put
    """

    def __init__(self, lora: Path, change: Callable[[dict[str, Any]], dict[str, Any]], *, anew: bool) -> None:
        """Prepare nothing yet."""
        self.path = side_car_path(lora)
        self.error: OutputError | None = None
        self.notes: list[str] = []
        self._title = f"the file of notes beside {lora.name}"
        self._change, self._anew, self._ours = change, anew, anew
        self._temporary: store.Temporary | None = None
        self._aside: Path | None = None
        self._stays = ""

    def prepare(self) -> None:
        """Write it, and set aside what lies in its place; what cannot be read stays."""
        if not self._anew:
            _put_back(self.path)
        linked = self.path.is_symlink()
        try:
            data = None if self._anew else store.read(self.path)
        except FileFormatError as error:
            self.error = OutputError(str(error))
            return
        card = Card.of(data)
        self._ours = self._anew or (card.ours and not linked)  # what a link leads to is not this folder's
        new = store.json_bytes(self._change(dict(card.fields)), indent=4)
        if self._ours and new == data:
            return
        if self.error is None:
            self._write(new)
        # our own goes where no new one can be written, too: it would describe another merge
        if (self._ours or self.error is None) and os.path.lexists(self.path):
            self._make_way(linked=linked)

    def _write(self, data: bytes) -> None:
        try:
            self._temporary = store.Temporary(self.path)
            self._temporary.write(data)
            self._temporary.sync()
        except OSError as error:
            self._give_up(store.write_error(error, self.path, self._title))

    def _make_way(self, *, linked: bool) -> None:
        try:
            self._aside = back_up(self.path)
        except OutputError as error:
            if self._ours:
                self._stays = f"{self.path.name} describes an earlier merge: {error}"
            else:
                self._give_up(error)
            return
        if not self._ours:
            why = "was a link" if linked else "was not written by a merge"
            self.notes.append(f"{self.path.name} {why}; it is kept as {self._aside.name}")

    def _give_up(self, error: OutputError) -> None:
        self.error = error
        if self._temporary is not None:
            self._temporary.discard()
            self._temporary = None

    def put(self) -> None:
        """Give it its name: its merge has its own. What is in the way for good is kept and named."""
        if self._temporary is not None:
            try:
                self._temporary.replace(self.path)
            except OSError as error:
                self._give_up(store.write_error(error, self.path, self._title))
        if self.error is not None:
            self.notes[:0] = [str(self.error), *([self._stays] if self._stays else [])]
        aside, self._aside = self._aside, None
        if aside is None or not self._ours:
            return
        if self._anew or self.error is None:  # it lies in the trash; or what a person wrote is in the new one
            with contextlib.suppress(OSError):
                aside.unlink()
        else:
            self.notes.append(f"{self.path.name} described an earlier merge; it is kept as {aside.name}")

    def take_back(self) -> None:
        """Leave everything as it was found, unless it was put."""
        if self._temporary is not None:
            self._temporary.discard()
        if self._aside is not None:
            move_back([(self.path, self._aside)])


def _put_back(path: Path) -> None:
    """Give a side-car that a killed merge has left set aside its own name again."""
    kept = None if os.path.lexists(path) else backed_up(path)
    if kept is not None and card_at(kept).ours:
        move_back([(path, kept)])


@contextlib.contextmanager
def new_card(
    lora: Path, change: Callable[[dict[str, Any]], dict[str, Any]], *, anew: bool = False
) -> Iterator[NewCard]:
    """Write the side-car of a LoRA that has no name yet, alone among all writers; `put` gives it its name.

    It is written and synced before its LoRA is published, so that no full disk comes between the two. Then
    follow three renames: what lies in its place goes aside, the LoRA gets its name, the side-car gets its
    own. Either order of two renames would leave, killed in between, a LoRA beside the side-car of another
    merge. Of three, a kill leaves one without a side-car, and the earlier one, with whatever a person wrote
    into it, as `NAME.json.bak`; the next merge of that name takes it up.

    Args:
        lora: the LoRA.
        change: what the side-car says (empty where there is none) -> what it is to say.
        anew: what lies there is another LoRA's, and kept elsewhere: nothing of it is carried over.
    Yields:
        The card; where it cannot be written it says so when it is put. Without `put` all is as it was.
    """
    card = NewCard(lora, change, anew=anew)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(store.locked(card.path))
        except OutputError as error:
            card.error = error
        held.callback(card.take_back)
        card.prepare()
        yield card


@dataclass(frozen=True, slots=True)
class Card:
    """A side-car: the fields that have the type that WebUIs give them, and whether a merge wrote it.

    ours   all of it was understood, and a merge has written it or filled it in
    known  some field is one of a LoRA's card
    """

    fields: Mapping[str, Any]
    ours: bool = False
    known: bool = False

    @classmethod
    def of(cls, data: bytes | None) -> Card:
        """Return what the bytes of a side-car say; nothing where they are no card's."""
        marked = bool(data) and not (data or b"").startswith(codecs.BOM_UTF8)
        try:
            fields = json.loads((data or b"{}").decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return cls({})
        if not isinstance(fields, dict):
            return cls({})
        sound = {name: value for name, value in fields.items() if _fits(name, value)}
        ours = marked and len(sound) == len(fields) and WRITTEN_KEY in sound
        return cls(sound, ours, any(name in sound for name in (*_TYPES, WRITTEN_KEY)))


_TYPES: Mapping[str, tuple[type, ...]] = {
    "description": (str,),
    "sd version": (str,),
    "activation text": (str,),
    "preferred weight": (int, float),
    "negative text": (str,),
    "notes": (str,),
}


def _fits(name: str, value: object) -> bool:
    if name == WRITTEN_KEY:
        return isinstance(value, dict)
    return value is None or name not in _TYPES or (type(value) in _TYPES[name] and value == value)  # noqa: PLR0124


def card_at(path: Path) -> Card:
    """Return what a .json beside a LoRA says; nothing where it cannot be read or is another program's."""
    try:
        return Card.of(store.read(path))
    except FileFormatError:
        return Card({})


def card_change(
    recipe: Recipe,
    family: str,
    words: Sequence[str],
    notes: str,
    *,
    finish: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return how a merge changes the WebUI's side-car: activation text, weight 1, notes in words.

    Fields a user has filled in an existing side-car are kept; only empty ones are filled.

    Args:
        recipe: stamped.
        family: the base family.
        words: trigger words.
        notes: what is told of the merge.
        finish: what all of it is to say -> what is written.
    Returns:
        what the side-car says -> what it is to say.
    """
    negatives = []
    for source in recipe.sources:
        text = read_side_car(source.path).get("negative text") if source.path is not None else None
        if text and (negative := whole(str(text))) not in negatives:
            negatives.append(negative)
    ours = {
        "description": describe_recipe(recipe),
        "sd version": family_of(family).card_version,
        "activation text": ", ".join(words)[:MAX_TRIGGER],
        "preferred weight": 1.0,
        "negative text": ", ".join(negatives)[:MAX_TRIGGER],
        "notes": notes,
    }

    def change(before: dict[str, Any]) -> dict[str, Any]:
        # what an earlier merge of this name wrote may be renewed; what a person wrote may not
        written = before.pop(WRITTEN_KEY, None) or {}
        empty = ("", None, 0, 0.0, "Unknown")
        own = {
            key: value
            for key, value in before.items()
            if key not in ours or (value not in empty and value != written.get(key))
        }
        if finish is None:
            return {**ours, **own, WRITTEN_KEY: ours}
        return {**finish({**ours, **own}), WRITTEN_KEY: finish(dict(ours))}

    return change
