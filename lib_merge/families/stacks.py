"""Blocks of transformers: stacks of layers, each told by a word and a number in a module's path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lib_merge.families.record import REST, Hint, bare, numbered

CODE = "the model's code"


@dataclass(frozen=True)
class Stack:
    """Layers that follow each other.

    letter  of their block ids
    count   how many the largest model has; a file shows which are there
    words   what stands before their number, in every spelling
    carries what they are for, for people
    """

    letter: str
    count: int
    words: tuple[str, ...]
    carries: str


@dataclass(frozen=True)
class Stacks:
    """The blocks of a model.

    stacks  in the order of the model
    texts   block id of each text encoder -> what it is
    """

    stacks: tuple[Stack, ...]
    texts: Mapping[str, str]

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Block ids in order, OTHER last."""
        layers = (block for stack in self.stacks for block in numbered(stack.letter, *range(stack.count)))
        return (*self.texts, *layers, "OTHER")

    @cached_property
    def parts(self) -> dict[str, Hint]:
        """What each kind of block carries."""
        texts = {
            block: Hint(f"text encoder {name}: what words mean", CODE) for block, name in self.texts.items()
        }
        return {**REST, **{stack.letter: Hint(stack.carries, CODE) for stack in self.stacks}, **texts}

    @cached_property
    def _letters(self) -> dict[str, Stack]:
        return {word: stack for stack in self.stacks for word in stack.words}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = "|".join(map(re.escape, sorted(self._letters, key=len, reverse=True)))
        return re.compile(rf"^(?P<word>{words})_(?P<number>\d+)_")

    def block(self, name: str, encoder: int) -> str:
        """Return the block of a module by its canonical name."""
        if encoder:
            texts = tuple(self.texts)
            return "OTHER" if name.endswith("_text_projection") else texts[min(encoder, len(texts)) - 1]
        match = self._pattern.match(bare(name))
        if match is None:
            return "OTHER"
        stack = self._letters[match["word"]]
        number = int(match["number"])
        return f"{stack.letter}{number:02d}" if number < stack.count else "OTHER"
