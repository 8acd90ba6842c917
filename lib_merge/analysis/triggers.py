"""Likely trigger words of a LoRA, ranked, each with where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_merge import metadata
from lib_merge.errors import FileFormatError
from lib_merge.files import store

MOST = 24
# a tag in this share of the pictures of one concept is one that its LoRA was trained to answer to
SHARE = 0.9
FEWEST = 4  # pictures from which a share says something
LONGEST = 80  # characters: what is longer is a caption, no word
LARGEST = 4 << 20  # bytes of another program's side-car
# what captions say of nearly every picture: in all of them, and no trigger of anything
_GENERAL_TEXT = """
1girl, 1boy, 1other, 2girls, 2boys, multiple girls, multiple boys, solo, solo focus, girl, boy,
woman, man, female, male, person, people, looking at viewer, simple background, white background,
grey background, gray background, black background, highres, absurdres, masterpiece, best quality,
high quality, score_9, score_8_up, score_7_up, general, sensitive, safe, nsfw, rating:safe, no
humans, photo, photorealistic, realistic, image, picture, a photo of a woman, a photo of a man,
anime, upper body, full body, portrait, cowboy shot, standing, breasts, blush, smile, open mouth,
closed mouth, bangs, long hair, short hair, shirt, signature, artist name
"""
GENERAL = frozenset(" ".join(word.split()) for word in _GENERAL_TEXT.split(","))
# folders and files that name no concept
_NO_CONCEPT_TEXT = """
img, image, images, train, training, data, dataset, input, concept, character, style, lora, pics,
reg, regularization, folder, new folder, untitled, last, model, test, output
"""
_NO_CONCEPT = frozenset(" ".join(word.split()) for word in _NO_CONCEPT_TEXT.split(","))
_REPEATS = re.compile(r"^\d+_")
_TAIL = re.compile(
    r"(?i)([-_ ](v?\d+(\.\d+)*[a-z]?|epoch\d*|e\d+|step\d*|final|lora|sdxl|sd15|sd1|xl|pony|il|flux))+$"
)


@dataclass(frozen=True, slots=True)
class Word:
    """A word that a LoRA may answer to.

    text   as it goes into a prompt
    origin side-car, phrase, civitai, concept, tags or name
    says   where it comes from, in words
    share  of the pictures of its concept whose caption has it; None where nobody counts
    sure   False where it is a guess
    """

    text: str
    origin: str
    says: str
    share: float | None = None
    sure: bool = True


def trigger_words(path: Path, header: Mapping[str, str]) -> list[Word]:
    """Return the likely trigger words of a LoRA, the surest first, each once.

    What a person or the trainer wrote down comes first, then what its captions say: tags in at least `SHARE`
    of the pictures of one folder, the folder's own concept before the others. The name that it was trained
    under is a guess, and given only where nothing else is known.

    Args:
        path: the file, for what lies beside it.
        header: its metadata.
    """
    found: dict[str, Word] = {}
    for word in (*_written(path, header), *_captioned(header)):
        found.setdefault(_plain(word.text), word)
    if not found:
        found = {_plain(word.text): word for word in _named(header)}
    return list(found.values())[:MOST]


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").lower().split())


def _split(text: object, origin: str, says: str) -> Iterator[Word]:
    for part in metadata.whole(str(text or "")).split(","):
        if part.strip():
            yield Word(part.strip()[:LONGEST], origin, says)


def _written(path: Path, header: Mapping[str, str]) -> Iterator[Word]:
    side = metadata.read_side_car(path)
    yield from _split(side.get("activation text"), "side-car", "the card's activation text")
    yield from _split(header.get("modelspec.trigger_phrase"), "phrase", "its trigger phrase")
    for ending in (".civitai.info", ".metadata.json"):
        for words in _trained(path.with_suffix(ending)):
            yield from _split(words, "civitai", f"the trained words in {path.stem}{ending}")


def _trained(path: Path) -> list[Any]:
    """Return `trainedWords` of what other programs keep beside a LoRA; nothing where there are none."""
    try:
        data = store.read_json(path, LARGEST)
    except FileFormatError:
        return []
    inner = data.get("civitai") if isinstance(data, dict) else None
    places = [place for place in (data, inner) if isinstance(place, dict)]
    return [word for place in places for word in _list(place.get("trainedWords")) if isinstance(word, str)]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


# -------------------------------------------------------------------------------------------- captions


def _captioned(header: Mapping[str, str]) -> list[Word]:
    """Return the tags that nearly all pictures of a concept have, the concept's own first."""
    folders = metadata.read_tags(header)
    known, beside = _pictures(header)
    words: list[Word] = []
    for folder, tags in folders.items():
        if folder in beside:
            continue
        most = max(tags.values(), default=0)
        count = known.get(folder) or most
        if not count >= FEWEST or most > 2 * count:
            continue
        concept = _plain(_REPEATS.sub("", folder))
        told = "" if folder in known else ", of as many as its commonest tag has"
        for tag, pictures in tags.items():
            text, share = tag.strip(), min(1.0, pictures / count)
            if share < SHARE or not 1 < len(text) <= LONGEST or _plain(text) in GENERAL:
                continue
            own = _is_concept(_plain(text), concept)
            says = f"in {share:.0%} of the captions of {_REPEATS.sub('', folder)[:40]}{told}"
            words.append(Word(text, "concept" if own else "tags", says, round(share, 4)))
    return sorted(words, key=lambda word: (word.origin != "concept", -(word.share or 0.0)))


def _is_concept(tag: str, concept: str) -> bool:
    """Tell whether a tag is its folder's concept, or words of it: `mira` of `mira woman`."""
    return tag not in _NO_CONCEPT and f" {tag} " in f" {concept} "


def _pictures(header: Mapping[str, str]) -> tuple[dict[str, int], set[str]]:
    """Return folder -> pictures where the trainer noted them, and the folders of regularisation."""
    counts: dict[str, int] = {}
    for folder, facts in _object(header, "ss_dataset_dirs").items():
        if isinstance(facts, dict) and isinstance(facts.get("img_count"), int):
            counts[str(folder)] = facts["img_count"]
    for dataset in _list(_json(header, "ss_datasets")):
        for subset in _list(dataset.get("subsets")) if isinstance(dataset, dict) else ():
            if isinstance(subset, dict) and isinstance(subset.get("img_count"), int):
                name = str(subset.get("image_dir") or "").replace("\\", "/").rpartition("/")[2]
                counts.setdefault(name, subset["img_count"])
    return {name: count for name, count in counts.items() if count > 0}, set(
        _object(header, "ss_reg_dataset_dirs")
    )


def _object(header: Mapping[str, str], key: str) -> dict[str, Any]:
    data = _json(header, key)
    return data if isinstance(data, dict) else {}


def _json(header: Mapping[str, str], key: str) -> object:
    text = header.get(key, "")
    try:
        return json.loads(text) if len(text) <= metadata.MAX_TAGS else None
    except (ValueError, RecursionError):
        return None


def _named(header: Mapping[str, str]) -> Iterator[Word]:
    """Yield the name that a LoRA was trained under, without versions: a guess."""
    if metadata.recipe_of(header) is not None or metadata.read_tags(header):
        return  # a merge's name is no word; where captions are known, no guess is needed
    name = _TAIL.sub("", metadata.whole(header.get("ss_output_name", "")).strip())
    if 1 < len(name) <= LONGEST and _plain(name) not in _NO_CONCEPT:
        yield Word(name, "name", "the name that it was trained under", sure=False)
