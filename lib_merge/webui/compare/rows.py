"""The rows of a comparison: prompts × seeds, and where asked × samplers, CFG scales and sizes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lib_merge.adapters import open_lora
from lib_merge.errors import RecipeError
from lib_merge.metadata import trigger_words
from lib_merge.recipe import Recipe, Source
from lib_merge.recipe_edits import number
from lib_merge.ui import validating
from lib_merge.webui.compare.columns import words

MOST = 400
PROMPTS = tuple(validating.lines())
# a prompt without a word, and what parts a prompt from what is to be kept out of the picture
EMPTY, NEGATIVE = "{empty}", "{negative}"
_EDGES = re.compile(r"^[\s,]+|[\s,]+$")


@dataclass(frozen=True, slots=True)
class Row:
    """One row; what is None stays as the tab has it."""

    label: str
    prompt: str
    seed: int
    sampler: str | None = None
    cfg: float | None = None
    size: tuple[int, int] | None = None
    negative: str | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """What the script's controls say of rows."""

    prompts: str = ""
    seeds: str = ""
    samplers: Sequence[str] = ()
    cfgs: str = ""
    sizes: str = ""


def plan_rows(lines: Lines, recipe: Recipe, prompt: str, seed: int) -> list[Row]:
    """Return the rows asked for.

    Args:
        lines: prompts one per line, where `{trigger}` becomes the sources' trigger words, `{empty}` is a
            prompt without a word and `{negative}` stands before what is to be kept out; seeds, CFG scales and
            sizes (`512x768`) separated by commas; names of samplers.
        recipe: for the trigger words.
        prompt: of the tab, where no prompts are given.
        seed: of the tab, never −1, where no seeds are given.
    Raises:
        RecipeError: a seed, scale or size that is none, or too many rows.
    """
    given = [line.strip() for line in lines.prompts.splitlines() if line.strip()]
    texts = given or [prompt]
    seeds = [_seed(word) for word in words(lines.seeds)] or [seed]
    samplers: list[str | None] = [name for name in lines.samplers if name] or [None]
    cfgs: list[float | None] = [number(word) for word in words(lines.cfgs)] or [None]
    sizes: list[tuple[int, int] | None] = [_size(word) for word in words(lines.sizes)] or [None]
    count = len(texts) * len(seeds) * len(samplers) * len(cfgs) * len(sizes)
    if count > MOST:
        message = f"{count} rows are too many; {MOST} is the limit."
        raise RecipeError(message)
    trigger = ", ".join(_triggers(recipe)) if any("{trigger}" in text for text in texts) else ""
    pairs = [_prompt(text.replace("{trigger}", trigger)) for text in texts]
    rows = []
    for (text, negative), one, sampler, cfg, size in itertools.product(pairs, seeds, samplers, cfgs, sizes):
        parts = [
            text[:60] if text or not given else "(empty)",
            str(one) if len(seeds) > 1 else "",
            sampler or "",
            "" if cfg is None else f"CFG {cfg:g}",
        ]
        parts.append("" if size is None else f"{size[0]}×{size[1]}")
        rows.append(
            Row(
                label=" · ".join(part for part in parts if part),
                prompt=text,
                seed=one,
                sampler=sampler,
                cfg=cfg,
                size=size,
                negative=negative,
            )
        )
    return rows


def _prompt(line: str) -> tuple[str, str | None]:
    """Return a line's prompt, and what is to be kept out where it says so."""
    text, mark, negative = line.partition(NEGATIVE)
    text, negative = (_EDGES.sub("", part.replace(EMPTY, "")) for part in (text, negative))
    return text, negative if mark else None


def _seed(word: str) -> int:
    value = number(word)
    if value != int(value) or value < 0:
        message = f"the seed {word!r} is not a whole number from 0."
        raise RecipeError(message)
    return int(value)


def _size(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d{2,5})\s*[x×*]\s*(\d{2,5})\s*", word, re.IGNORECASE)
    if match is None:
        message = f"the size {word!r} is not written as 512x768."
        raise RecipeError(message)
    return int(match[1]) // 8 * 8 or 8, int(match[2]) // 8 * 8 or 8


def _triggers(recipe: Recipe) -> list[str]:
    headers: list[tuple[Source, Mapping[str, str]]] = []
    for source in recipe.leaves():
        if source.path is not None:
            with open_lora(source.path) as file:
                headers.append((source, file.metadata))
    return trigger_words(headers)
