"""From what people type for block weights to one number per block.

    STYLE                              a preset
    1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0  one of the family's lists (12, 17, 20, 26 or 61 values, …); blocks
                                       without a place in it get 0
    OUT00-OUT05=0.5,M00=1              named blocks and ranges; blocks not named are 1
    {"IN04": 0.5}                      the same as an object

A list may hold LoRA Block Weight's tokens: R (random 0…1), U (random −0.5…1.5), X, X+0.1, X-0.2 (the value of
`x=`, which may follow the list or a preset's name after a blank; 1 without it). Random values are drawn once,
here, and written as numbers.

Element rules replace block weights:

    OUT00-OUT05:attn2:0.5              modules of these blocks whose names hold one of the words
    :NOT attn:0                        modules whose names hold none of them
    :unique_only:0                     modules that no other source of the merge has
    :attn shared_only:0.5              modules with the word that every source has
    shared_only                        the same as `:NOT shared_only:0`: only what every source has
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from lib_merge.blocks.notation import SCOPES, SHARED, UNIQUE, draw_weight, parse_rule, parse_weight
from lib_merge.blocks.presets import NamedPresets, find_preset, preset_names
from lib_merge.blocks.shipped import is_shipped
from lib_merge.errors import RecipeError
from lib_merge.families import expand_block_list, family_of
from lib_merge.recipe import Blocks, ElementRule

_X = re.compile(r"^(?P<body>.*?)\s+x\s*=\s*(?P<x>[-+.\deE]+)\s*$", re.DOTALL)
_PAIR = re.compile(
    r"\s*[A-Za-z]+\d*(?:-[A-Za-z]+\d*)?(?:\s+[A-Za-z]+\d*(?:-[A-Za-z]+\d*)?)*\s*=\s*[-+.\deE]+\s*"
)


def resolve_blocks(
    spec: Blocks,
    family: str,
    present: Sequence[str],
    draw: random.Random,
    where: str,
    *,
    store: NamedPresets | None = None,
) -> tuple[dict[str, float], list[str]]:
    """Turn a block specification into numbers.

    Args:
        spec: any of the forms above; None is "all 1".
        family: decides block names and accepted lengths.
        present: the blocks found in the source, for families without a table.
        draw: source of the random tokens.
        where: the source's name, for messages.
        store: the user's presets, known by name beside the shipped ones.
    Returns:
        ({block: weight}, notes for the report). Blocks missing from the mapping weigh 1.
    Raises:
        RecipeError: no such preset, block, or length; a value that is no number.
    """
    if spec is None or (not isinstance(spec, Mapping) and len(spec) == 0):
        return {}, []
    known = family_of(family).blocks or tuple(present)
    if isinstance(spec, Mapping):
        return {_block(name, known, where): _number(value, where) for name, value in spec.items()}, []
    if not isinstance(spec, str):
        return _from_list([str(value) for value in spec], 1.0, (family, present), draw, where)
    return _from_text(spec, (family, present), draw, where, store)


def _from_text(
    spec: str, base: tuple[str, Sequence[str]], draw: random.Random, where: str, store: NamedPresets | None
) -> tuple[dict[str, float], list[str]]:
    """Read a text; `base` is (family, blocks present in the source)."""
    family = base[0]
    known = family_of(family).blocks or tuple(base[1])
    match = _X.match(spec)
    text = match["body"] if match else spec
    if not _is_notation(text):
        for name in (spec, text):  # a name may look like anything, "x=" at its end included
            preset = find_preset(name, family, known, store)
            if preset is not None:
                said = _forgotten(name, family, store, where)
                if isinstance(preset, dict):
                    return preset, said
                x = _number(match["x"], where) if match and name is text else 1.0
                weights, notes = _from_list([str(weight) for weight in preset], x, base, draw, where)
                return weights, said + notes
    x = _number(match["x"], where) if match else 1.0
    if "=" in text:
        return _from_pairs(text, known, where), []
    values = [value.strip() for value in text.replace(";", ",").split(",")]
    if len(values) == 1 and not _is_value(values[0]):
        names = ", ".join(preset_names(family, store))
        message = f"{where}: there is no block preset {text.strip()!r} for {family}; presets: {names}."
        raise RecipeError(message)
    return _from_list(values, x, base, draw, where)


def _is_notation(text: str) -> bool:
    """Tell whether a text is a list of several values or of `BLOCK=NUMBER`, which no name is taken for."""
    parts = re.split(r"[,;]", text)
    return (len(parts) > 1 and all(_is_value(part.strip()) for part in parts)) or all(
        map(_PAIR.fullmatch, parts)
    )


def _forgotten(name: str, family: str, store: NamedPresets | None, where: str) -> list[str]:
    preset = store.get(name, family) if store is not None and not is_shipped(name) else None
    if preset is None or not preset.elements:
        return []
    return [
        (
            f"{where}: the element rules of the preset {preset.name} are not block weights; add them as "
            "element rules"
        )
    ]


def _from_pairs(text: str, known: Sequence[str], where: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        names, sign, value = pair.partition("=")
        if not sign:
            message = f"{where}: {pair.strip()!r} is not BLOCK=NUMBER."
            raise RecipeError(message)
        for block in expand_names(names.strip(), known, where):
            weights[block] = _number(value, where)
    return weights


def expand_names(text: str, known: Sequence[str], where: str) -> list[str]:
    """Return the blocks of `OUT00`, a range `OUT00-OUT05` (either direction), or several of both between
    blanks.

    Raises:
        RecipeError: a name that the family does not have.
    """
    blocks: list[str] = []
    for word in text.split():
        first, dash, last = word.partition("-")
        start = known.index(_block(first, known, where))
        stop = known.index(_block(last, known, where)) if dash else start
        blocks.extend(known[min(start, stop) : max(start, stop) + 1])
    return blocks


def _from_list(
    values: Sequence[str], x: float, base: tuple[str, Sequence[str]], draw: random.Random, where: str
) -> tuple[dict[str, float], list[str]]:
    """Expand a list; `base` is (family, blocks present in the source)."""
    numbers, notes = [], []
    for value in values:
        number, drawn = _token(value, x, draw, where)
        numbers.append(number)
        if drawn:
            notes.append(f"{where}: {value.strip()} was drawn as {number:g}")
    weights, unnamed = expand_block_list(numbers, base[0])
    silenced = [block for block in unnamed if block in base[1]]
    if silenced:
        notes.append(
            f"{where}: a list of {len(values)} has no place for {', '.join(silenced)}; they count as 0"
        )
    return weights, notes


def _token(value: str, x: float, draw: random.Random, where: str) -> tuple[float, bool]:
    token = parse_weight(value)
    return draw_weight(token, x, draw) if isinstance(token, str) else (_number(value, where), False)


def _is_value(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return parse_weight(text) is not None
    return True


def _number(value: object, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        message = f"{where}: block weight {str(value).strip()!r} is not a number."
        raise RecipeError(message)
    return number


def _block(name: object, known: Sequence[str], where: str) -> str:
    block = str(name).strip().upper()
    block = {"MID": "M00", "MID00": "M00"}.get(block, block)
    if block in known:
        return block
    message = f"{where}: there is no block {str(name).strip()!r}; blocks here: {known[0]} … {known[-1]}."
    raise RecipeError(message)


class ElementMatcher:
    """The element rules of one source, ready to be asked per module."""

    def __init__(self, rules: Sequence[ElementRule], known: Sequence[str], where: str) -> None:
        """Resolve block ranges once; raises `RecipeError` for unknown blocks."""
        self._rules = [
            _rule(*_negated(rule.blocks, lambda text: expand_names(text, known, where)), rule)
            for rule in rules
        ]
        self._others: tuple[Collection[str], ...] = ()

    @property
    def scoped(self) -> bool:
        """True where a rule asks which modules the other sources have."""
        return any(rule.scopes for rule in self._rules)

    def beside(self, others: Iterable[Collection[str]]) -> None:
        """Take the modules of each other source; one without others shares its own and has them alone."""
        self._others = tuple(others)

    def weight(self, name: str, block: str) -> float | None:
        """Return the weight that replaces the block weight of module `name`, or None; the last match wins."""
        rules = reversed(self._rules)
        return next((rule.ratio for rule in rules if rule.matches(name, block, self._others)), None)


class _Rule(NamedTuple):
    """An element rule with its words apart; a rule without blocks or words holds for all of them."""

    not_blocks: bool
    blocks: frozenset[str]
    not_words: bool
    words: frozenset[str]
    scopes: frozenset[str]
    ratio: float

    def matches(self, name: str, block: str, others: Sequence[Collection[str]]) -> bool:
        if self.blocks and (block in self.blocks) == self.not_blocks:
            return False
        if not self.words and not self.scopes:
            return True
        found = not self.words or any(word in name for word in self.words)
        if found and self.scopes:
            have = [name in other for other in others]
            found = (SHARED not in self.scopes or all(have)) and (UNIQUE not in self.scopes or not any(have))
        return found != self.not_words


def _rule(not_blocks: bool, blocks: frozenset[str], rule: ElementRule) -> _Rule:
    not_words, words = _negated(rule.elements, str.split)
    scopes = frozenset(word for word in words if word.lower() in SCOPES)
    return _Rule(
        not_blocks, blocks, not_words, words - scopes, frozenset(word.lower() for word in scopes), rule.ratio
    )


def _negated(text: str, parse: Callable[[str], Iterable[str]]) -> tuple[bool, frozenset[str]]:
    text = text.strip()
    negated = text.upper().startswith("NOT ")
    return negated, frozenset(parse(text[4:] if negated else text))


def parse_elements(text: str) -> tuple[ElementRule, ...]:
    """Read rules `blocks:elements:ratio`, `shared_only` or `unique_only`, separated by commas or line breaks.

    Raises:
        RecipeError: a rule without exactly two colons, or whose ratio is no number.
    """
    rules = []
    for item in re.split(r"[,\n]", text):
        if not item.strip():
            continue
        rules.append(parse_rule(item))
    return tuple(rules)
