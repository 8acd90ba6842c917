"""What prompts and pictures say: `<lora:NAME:1>` tags to sources and back, recipes in infotexts.

Tags have text-encoder and UNet strengths and LoRA Block Weight's arguments. A WebUI writes the infotext into
a PNG's text, a JPEG's or WebP's EXIF comment.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lib_merge.errors import MergeError, RecipeError
from lib_merge.families import USUAL, family_of
from lib_merge.recipe import Recipe, loads

_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_NEGATIVE = re.compile(r"\nNegative prompt:|\nSteps: \d+")
_LIST = re.compile(r"^[-+.\d]+(?:,[-+.\dRUXrux]+)+$")
_UNBAKED = {"start": "start", "stop": "stop", "step": "step range", "dyn": "dynamic rank"}
_IDENT = re.compile(r"^[A-Za-z][\w .-]*$")
_RECIPE = re.compile(r'\bMerge recipe(?: \d+)?: ("(?:\\.|[^\\"])*")')
TEXT_LIMIT = 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_MOST_ENTRIES = 512


@dataclass(slots=True, kw_only=True)
class PromptSource:
    """A LoRA as a tag has it.

    ratio     of the UNet
    te_ratio  of the text encoder where it differs
    blocks    as the tag names them, or {block: weight}
    elements  name of element rules
    notes     sentences on what cannot be baked
    family, present   of the file, for writing: its base model and the blocks it has
    """

    name: str
    ratio: float
    te_ratio: float | None = None
    blocks: str | Mapping[str, float] | None = None
    elements: str | None = None
    notes: list[str] = field(default_factory=list)
    family: str = ""
    present: Sequence[str] = ()


@dataclass(slots=True)
class PromptSources:
    """What a prompt holds.

    rest   the prompt without its tags
    notes  sentences on tags that could not be read
    """

    sources: list[PromptSource] = field(default_factory=list)
    rest: str = ""
    notes: list[str] = field(default_factory=list)


def read_prompt(text: str) -> PromptSources:
    """Return the sources of a prompt, or of a whole infotext, whose positive part is taken."""
    if len(text) > TEXT_LIMIT:
        text = text[:TEXT_LIMIT]
    cut = _NEGATIVE.search(text)
    prompt = text[: cut.start()] if cut else text
    result = PromptSources(rest=re.sub(r"\s*,\s*(?:,\s*)+", ", ", _TAG.sub("", prompt)).strip(" ,\n"))
    for match in _TAG.finditer(prompt):
        source = _source(match[1])
        if source is None:
            result.notes.append(f"the tag <lora:{match[1][:60]}> could not be read")
        else:
            result.sources.append(source)
    return result


def _source(body: str) -> PromptSource | None:
    name, *arguments = body.split(":")
    if not name.strip():
        return None
    placed: list[str] = []
    named: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            named[key.strip().lower()] = value.strip()
        else:
            placed.append(argument.strip())
    notes: list[str] = []
    te = _number(named.get("te", placed[0] if placed else "1"), notes)
    second = placed[1] if len(placed) > 1 and _is_number(placed[1]) else None
    unet = _number(named.get("unet", second if second is not None else str(te)), notes)
    blocks = named.get("lbw", named.get("w"))
    if blocks is None:
        blocks = next(
            (
                word
                for word in placed[1:]
                if word and not _is_number(word) and (_LIST.match(word) or _IDENT.match(word))
            ),
            None,
        )
    if blocks is not None and "x" in named:
        blocks = f"{blocks} x={named['x']}"
    for key, what in _UNBAKED.items():
        if key in named:
            notes.append(f"{what} ({key}={named[key][:40]}) cannot be baked into a file and was left out")
    return PromptSource(
        name=name.strip(),
        ratio=unet,
        te_ratio=None if te == unet else te,
        blocks=blocks,
        elements=named.get("lbwe"),
        notes=notes,
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text) is not None


def _number(text: str, notes: list[str]) -> float:
    if _is_number(text.strip()):
        return max(-1e4, min(1e4, float(text)))
    notes.append(f"the strength {text[:20]!r} is no number; 1 is taken")
    return 1.0


def recipes_of(text: str) -> list[Recipe]:
    """Return the merge recipes that an infotext carries; one that is damaged is passed over."""
    recipes = []
    for match in _RECIPE.finditer(text[:TEXT_LIMIT]):
        try:
            recipes.append(loads(json.loads(match[1]), "the picture's recipe"))
        except (ValueError, TypeError, MergeError):
            continue
    return recipes


def write_prompt(sources: Sequence[PromptSource]) -> tuple[str, list[str]]:
    """Return sources as tags, the inverse of `read_prompt`, and what tags cannot say.

    Args:
        sources: their `blocks` as {block: weight}.
    """
    tags, notes = [], []
    for source in sources:
        name = source.name
        if set(name) & set("<>:"):
            notes.append(f"{name}: a name with <, > or : cannot stand in a tag; rename the file")
            continue
        ratio, te = source.ratio, source.te_ratio
        strength = f"{ratio:.6g}" if te is None or te == ratio else f"{te:.6g}:{ratio:.6g}"
        weights_of = source.blocks if isinstance(source.blocks, Mapping) else {}
        weights, lost = _list(weights_of, source.family or USUAL, source.present)
        if lost:
            notes.append(f"{name}: no list of block weights says {', '.join(lost)}, so that was left out")
        tags.append(f"<lora:{name}:{strength}{f':lbw={weights}' if weights else ''}>")
    return " ".join(tags), notes


def _list(blocks: Mapping[str, float], family: str, present: Sequence[str]) -> tuple[str, list[str]]:
    """Return the shortest list of the family that says the same of a file's blocks, and the blocks that none
    says.
    """
    told = {
        block: float(value)
        for block, value in blocks.items()
        if value != 1 and (block in present or not present)
    }
    if not told:
        return "", []
    best = ""
    lists = family_of(family).lists
    for order in (listed.blocks for listed in lists):
        best = ",".join(f"{float(blocks.get(block, 1)):.6g}" for block in order)
        # a block that a list does not name weighs 0; what is in no block at all stays as it is
        silent = [block for block in (present or told) if block not in order and block != "OTHER"]
        if "OTHER" not in told and not any(blocks.get(block, 1) for block in silent):
            return best, []
    named = set(lists[-1].blocks) if lists else set()
    return best, sorted(set(told) - named)


# -------------------------------------------------------------------------------------------- pictures


def infotext(data: bytes) -> str:
    """Return the generation parameters of a picture; "" when there are none.

    Raises:
        RecipeError: not a PNG, JPEG or WebP, or damaged.
    """
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _comment(_jpeg_exif(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _comment(_webp_exif(data))
    message = "that picture is not a PNG, JPEG or WebP."
    raise RecipeError(message)


def _png(data: bytes) -> str:
    at = len(_PNG)
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            break
        if kind in (b"tEXt", b"iTXt", b"zTXt"):
            key, _, rest = body.partition(b"\x00")
            if key == b"parameters":
                return _chunk(kind, rest)
        if kind == b"IEND":
            return ""
        at += 12 + size
    message = "that PNG is damaged."
    raise RecipeError(message)


def _chunk(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        return _decoded(rest)
    if kind == b"zTXt":
        return _decoded(_unpacked(rest[1:]))
    packed = rest[:1] == b"\x01"
    text = rest[2:].split(b"\x00", 2)[-1]
    return _decoded(_unpacked(text) if packed else text)


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, TEXT_LIMIT)
    except zlib.error as error:
        message = "that PNG's text is damaged."
        raise RecipeError(message) from error


def _decoded(data: bytes) -> str:
    data = data[:TEXT_LIMIT]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _jpeg_exif(data: bytes) -> bytes:
    """Return the TIFF part of a JPEG's first EXIF segment."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xD9, 0xDA):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        if data[at + 1] == 0xE1 and body.startswith(b"Exif\0\0"):
            return body[6:]
        at += 2 + max(size, 2)
    return b""


def _webp_exif(data: bytes) -> bytes:
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            body = data[at + 8 : at + 8 + size]
            return body.removeprefix(b"Exif\0\0")
        at += 8 + size + size % 2
    return b""


def _comment(tiff: bytes) -> str:
    """Return the user comment of a TIFF structure; "" where there is none or it is damaged."""
    if tiff[:2] not in (b"II", b"MM"):
        return ""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        pointer = _entry(tiff, order, first, _EXIF_IFD)
        if pointer is None:
            return ""
        comment = _entry(tiff, order, struct.unpack(f"{order}I", pointer)[0], _USER_COMMENT)
    except struct.error:
        return ""
    return _text(comment) if comment else ""


def _entry(tiff: bytes, order: str, at: int, which: int) -> bytes | None:
    """Return the value of one tag of a directory."""
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for index in range(min(count, _MOST_ENTRIES)):
        place = at + 2 + 12 * index
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, place)
        if tag != which:
            continue
        size = length * {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}.get(kind, 1)
        start = place + 8
        if size > 4:
            (start,) = struct.unpack_from(f"{order}I", tiff, place + 8)
        return tiff[start : start + size]
    return None


def _text(comment: bytes) -> str:
    """Return a user comment's text: its first eight bytes name the encoding."""
    code, body = comment[:8], comment[8 : 8 + TEXT_LIMIT]
    if code != b"UNICODE\0":
        return _decoded(body if code in (b"ASCII\0\0\0", bytes(8)) else comment[:TEXT_LIMIT]).rstrip("\0")
    # most write it big-endian, whatever the rest of the file is; the wrong way round, letters become rare
    # signs
    body = body[: len(body) // 2 * 2]
    big, little = body.decode("utf-16-be", "ignore"), body.decode("utf-16-le", "ignore")
    return max(big, little, key=lambda text: sum(character < "\u0250" for character in text)).rstrip("\0")
