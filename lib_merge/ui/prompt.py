"""Prompt tags to rows and back: `<lora:NAME:1>` with text-encoder and UNet strengths and LoRA Block Weight's
arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib_merge.errors import MergeError
from lib_merge.families.blocks import BLOCK_ORDERS, LENGTHS
from lib_merge.recipe import Recipe, loads

_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_NEGATIVE = re.compile(r"\nNegative prompt:|\nSteps: \d+")
_LIST = re.compile(r"^[-+.\d]+(?:,[-+.\dRUXrux]+)+$")
_IDENT = re.compile(r"^[A-Za-z][\w .-]*$")
_RECIPE = re.compile(r'\bMerge recipe(?: \d+)?: ("(?:\\.|[^\\"])*")')
TEXT_LIMIT = 1 << 20


@dataclass(slots=True)
class PromptSources:
    """What a prompt holds.

    sources  {name, ratio, te_ratio, blocks, elements, notes}; ratio is the UNet's, te_ratio the text
             encoder's where it differs
    rest     the prompt without its tags
    notes    sentences on what cannot be baked
    """

    sources: list[dict[str, Any]] = field(default_factory=list)
    rest: str = ""
    notes: list[str] = field(default_factory=list)


def read_prompt(text: str) -> PromptSources:
    """Return the sources of a prompt, or of a whole infotext, whose positive part is taken."""
    if len(text) > TEXT_LIMIT:
        text = text[:TEXT_LIMIT]
    cut = _NEGATIVE.search(text)
    prompt = text[: cut.start()] if cut else text
    found = PromptSources(rest=re.sub(r"\s*,\s*(?:,\s*)+", ", ", _TAG.sub("", prompt)).strip(" ,\n"))
    for match in _TAG.finditer(prompt):
        source = _source(match[1])
        if source is None:
            found.notes.append(f"the tag <lora:{match[1][:60]}> could not be read")
        else:
            found.sources.append(source)
    return found


def _source(body: str) -> dict[str, Any] | None:
    name, *arguments = body.split(":")
    if not name.strip():
        return None
    plain: list[str] = []
    named: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            named[key.strip().lower()] = value.strip()
        else:
            plain.append(argument.strip())
    notes: list[str] = []
    te = _number(named.get("te", plain[0] if plain else "1"), notes)
    second = plain[1] if len(plain) > 1 and _is_number(plain[1]) else None
    unet = _number(named.get("unet", second if second is not None else str(te)), notes)
    blocks = named.get("lbw", named.get("w"))
    if blocks is None:
        blocks = next(
            (
                word
                for word in plain[1:]
                if word and not _is_number(word) and (_LIST.match(word) or _IDENT.match(word))
            ),
            None,
        )
    if blocks is not None and "x" in named:
        blocks = f"{blocks} x={named['x']}"
    for key, what in (
        ("start", "start"),
        ("stop", "stop"),
        ("step", "step range"),
        ("dyn", "dynamic rank"),
    ):
        if key in named:
            notes.append(f"{what} ({key}={named[key][:40]}) cannot be baked into a file and was left out")
    return {
        "name": name.strip(),
        "ratio": unet,
        "te_ratio": None if te == unet else te,
        "blocks": blocks,
        "elements": named.get("lbwe"),
        "notes": notes,
    }


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text) is not None


def _number(text: str, notes: list[str]) -> float:
    if _is_number(text.strip()):
        return max(-1e4, min(1e4, float(text)))
    notes.append(f"the strength {text[:20]!r} is no number; 1 is taken")
    return 1.0


def recipes_of(text: str) -> list[Recipe]:
    """Return the merge recipes that an infotext carries; one that is damaged is passed over."""
    found = []
    for match in _RECIPE.finditer(text[:TEXT_LIMIT]):
        try:
            found.append(loads(json.loads(match[1]), "the picture's recipe"))
        except (ValueError, TypeError, MergeError):
            continue
    return found


def write_prompt(sources: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Return sources as tags, the inverse of `read_prompt`, and what tags cannot say.

    Args:
        sources: {name, ratio, te_ratio or None, blocks: {block: weight} or None, family, present: blocks of
            the file}.
    """
    tags, notes = [], []
    for source in sources:
        name = str(source["name"])
        if set(name) & set("<>:"):
            notes.append(f"{name}: a name with <, > or : cannot stand in a tag; rename the file")
            continue
        ratio, te = float(source["ratio"]), source.get("te_ratio")
        strength = f"{ratio:.6g}" if te is None or te == ratio else f"{float(te):.6g}:{ratio:.6g}"
        weights, lost = _list(
            source.get("blocks") or {}, str(source.get("family") or "SD1"), source.get("present") or ()
        )
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
    for length in LENGTHS.get(family, ()):
        order = BLOCK_ORDERS[length]
        best = ",".join(f"{float(blocks.get(block, 1)):.6g}" for block in order)
        # a block that a list does not name weighs 0; what is in no block at all stays as it is
        silent = [block for block in (present or told) if block not in order and block != "OTHER"]
        if "OTHER" not in told and not any(blocks.get(block, 1) for block in silent):
            return best, []
    named = set(BLOCK_ORDERS[LENGTHS[family][-1]]) if family in LENGTHS else set()
    return best, sorted(set(told) - named)
