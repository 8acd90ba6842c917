"""The modules of a family's models as data, and the other names that trainers and loaders have for them.

A table has a line for each pattern: `"blocks.{0-39}.self_attn.{q,k,v,o}": (5120, 5120)` stands for 160
modules of that shape, Float[rows columns …]. Other spellings are one line each, too, with `{n}` for a number:
`"transformer_blocks.{n}.attn.to_q": Piece("double_blocks.{n}.img_attn.qkv", 0, 1)`. Rows are counted in the
columns of the module itself, so a width is written down once, in the table of its model.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from lib_merge.families.placement import ModuleFacts, Pieces, Placement, Rows

Shape = tuple[int, ...]
_CHOICE = re.compile(r"\{([^{}]+)\}")
_NUMBER = re.compile(r"\d+")
_RANGE = re.compile(r"(\d+)-(\d+)")
_PLACE = re.compile(r"\{\d\}")
_SLOT = re.compile(r"\{\d\}|\d+")


def expand(pattern: str) -> Iterator[str]:
    """Yield every name that a pattern stands for: `{0-3}` is a range of numbers, `{q,k}` one of these."""
    parts = _CHOICE.split(pattern)
    choices = [list(_options(part)) if place % 2 else [part] for place, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _options(text: str) -> Iterator[str]:
    for option in text.split(","):
        bounds = _RANGE.fullmatch(option)
        if bounds:
            yield from map(str, range(int(bounds[1]), int(bounds[2]) + 1))
        else:
            yield option


def flat(path: str) -> str:
    """Return a dotted path as kohya's names have it."""
    return path.replace(".", "_")


def _form(path: str) -> str:
    """Return a path with # for every number: what a pattern is looked up by."""
    return _NUMBER.sub("#", path)


@dataclass(frozen=True, eq=False)
class Size:
    """One model of a family: its modules and their sizes.

    name     for people, as in "Klein 4B"
    weights  pattern -> shape of the weight
    """

    name: str
    weights: Mapping[str, Shape]

    @cached_property
    def modules(self) -> Mapping[str, Shape]:
        """Every module by its dotted path -> shape of its weight."""
        return {path: shape for pattern, shape in self.weights.items() for path in expand(pattern)}

    @cached_property
    def by_flat_name(self) -> Mapping[str, str]:
        """Path with underscores -> dotted path."""
        return {flat(path): path for path in self.modules}

    @cached_property
    def _by_form(self) -> Mapping[str, Shape]:
        return {_form(path): shape for path, shape in reversed(tuple(self.modules.items()))}

    @cached_property
    def _numbered(self) -> Mapping[str, frozenset[str]]:
        """Form -> every module of it, for those with a number."""
        found: dict[str, set[str]] = {}
        for path in self.modules:
            if "#" in _form(path):
                found.setdefault(_form(path), set()).add(path)
        return {form: frozenset(paths) for form, paths in found.items()}

    def shape(self, path: str) -> Shape:
        """Return the shape of a module; of a block that the model lacks, that of its like; else ()."""
        return self.modules.get(path) or self._by_form.get(_form(path), ())

    def covered_by(self, paths: frozenset[str]) -> bool:
        """Tell whether modules are in every block of the model that has their like.

        Args:
            paths: dotted paths of the model's own modules.
        """
        touched = [self._numbered[form] for form in {_form(path) for path in paths} if form in self._numbered]
        return any(len(like) > 1 for like in touched) and all(like <= paths for like in touched)


class Piece(NamedTuple):
    """Rows of a module, counted in its own columns.

    whole  the module
    first  multiple of its columns at which they begin
    last   multiple of its columns at which they end; None = its end
    """

    whole: str
    first: Fraction | int = 0
    last: Fraction | int | None = None

    @property
    def cuts(self) -> bool:
        """True where not all rows are meant."""
        return bool(self.first) or self.last is not None

    def rows(self, shape: Shape) -> Rows:
        """Return (first, last + 1) of a weight of this shape."""
        last = shape[0] if self.last is None else int(self.last * shape[1])
        return int(self.first * shape[1]), last


Aliases = Mapping[str, str | Piece]


def cut(whole: str, *names: str) -> dict[str, Piece]:
    """Return pieces that are as many rows each as the module has columns, in this order."""
    return {name: Piece(whole, place, place + 1) for place, name in enumerate(names)}


class Spot(NamedTuple):
    """Where a spelling leads.

    module  dotted path of the model's own module
    shape   of its weight; () where no model of the family has its like
    rows    of it that are meant; None = all
    swap    the two halves of the out axis change places on the way
    """

    module: str
    shape: Shape
    rows: Rows | None
    swap: bool

    def fits(self, facts: ModuleFacts) -> bool:
        """Tell whether a module of a file has the size that it must have here; 0 fits everything."""
        rows = self.shape[0] if self.rows is None else self.rows[1] - self.rows[0]
        if facts.rows not in (0, rows):
            return False
        columns = flattened = self.shape[1] if len(self.shape) > 1 else 1
        for side in self.shape[2:]:
            flattened *= side
        return facts.columns in (0, columns, flattened)


class _Spelling(NamedTuple):
    """A name with {0} and {1} for its numbers.

    name   as it is spelt
    means  where it leads, with the same numbers
    alias  the other spelling; "" for the model's own
    """

    name: str
    means: Piece
    alias: str

    def numbers(self, path: str) -> list[str] | None:
        """Return the numbers that stand in a path for {0}, {1}; None where one of the name's own is another.

        Args:
            path: of the same form as the name.
        """
        slots, numbers = _slots(self.name), _NUMBER.findall(path)
        if len(slots) != len(numbers) or any(slot not in ("", own) for slot, own in zip(slots, numbers)):
            return None
        return [number for slot, number in zip(slots, numbers) if not slot]


@dataclass(frozen=True, eq=False, kw_only=True)
class Layers:
    """The modules of a family's models, and under which names they are read and saved.

    sizes    the models, the usual one first
    aliases  other spelling -> module, or a Piece of one; of several spellings of a piece the first is saved
    front    what the saved name of a piece begins with; after a dot the rest has dots, too
    swapped  aliases that have the two halves of an adaLN of two parts (scale, shift) in the other order
    native   path with underscores in another spelling -> the model's own, where rules say it
    saved    the model's own path with underscores -> how loaders know it
    dotted   beginning of the paths that are saved with dots under diffusion_model., as every host knows them
    """

    sizes: tuple[Size, ...]
    aliases: Aliases = field(default_factory=dict)
    front: str = "lora_transformer_"
    swapped: frozenset[str] = frozenset()
    native: Callable[[str], str] = str
    saved: Callable[[str], str] = str
    dotted: str = ""

    @cached_property
    def _heads(self) -> tuple[str, ...]:
        """What comes before the first number or choice of every spelling, with underscores."""
        patterns = (*(pattern for size in self.sizes for pattern in size.weights), *self.aliases)
        return tuple({head for pattern in patterns for head in _heads_of(pattern)})

    @cached_property
    def _spellings(self) -> Mapping[str, tuple[_Spelling, ...]]:
        own = dict.fromkeys(
            path for size in self.sizes for pattern in size.weights for path in _open(pattern)
        )
        listed = [(path, Piece(path), "") for path in own]
        for alias, means in self.aliases.items():
            piece = means if isinstance(means, Piece) else Piece(means)
            listed.append((_open_alias(alias), piece._replace(whole=_open_alias(piece.whole)), alias))
        found: dict[str, dict[str, _Spelling]] = {}
        for name, piece, alias in listed:
            spelling = _Spelling(flat(name), piece, alias)
            found.setdefault(_form(_PLACE.sub("#", flat(name))), {}).setdefault(flat(name), spelling)
        return {form: tuple(spellings.values()) for form, spellings in found.items()}

    @cached_property
    def _cuts(self) -> Mapping[str, tuple[_Spelling, ...]]:
        """Form of a module -> its smallest pieces, each with the spelling that is saved."""
        found: dict[str, dict[Piece, _Spelling]] = {}
        for alias, means in self.aliases.items():
            if isinstance(means, Piece) and means.cuts:
                piece = means._replace(whole=_open_alias(means.whole))
                pieces = found.setdefault(_form(_PLACE.sub("#", piece.whole)), {})
                pieces.setdefault(piece, _Spelling(piece.whole, piece, _open_alias(alias)))
        return {form: tuple(_smallest(pieces)) for form, pieces in found.items()}

    def find(self, path: str, size: Size | None = None) -> Spot | None:
        """Return where a denoiser's path leads, or None for one that no model of the family has.

        Args:
            path: with underscores.
            size: the model whose sizes count; the usual one if None.
        """
        return _find(self, path, size or self.sizes[0])

    def place(self, path: str, spelt: str = "", size: Size | None = None) -> Placement:
        """Return where a module goes: a name that loaders know; of a piece also of what it is one.

        Args:
            path: with underscores.
            spelt: how the file spells the module, for one that is not known here: it keeps its name.
            size: the model whose sizes count.
        """
        spot = self.find(path, size)
        if spot is None:
            return Placement(spelt or f"lora_unet_{self.saved(path)}")
        whole = self._name(spot.module)
        if spot.rows is None:
            return Placement(whole, swap_halves=spot.swap)
        named = {rows: name for name, rows in self._pieces(spot.module, spot.shape)}
        return Placement(named.get(spot.rows, f"{self.front}{path}"), whole, spot.rows)

    def split(self, fused: str, size: Size | None = None) -> Pieces | None:
        """Return the pieces of a fused module with their rows, or None for one that is never cut.

        Args:
            fused: its saved name.
            size: the model whose sizes count.
        """
        spot = self.find(fused.removeprefix("lora_unet_"), size)
        if spot is None or spot.rows is not None or not spot.shape:
            return None
        return tuple(self._pieces(spot.module, spot.shape)) or None

    def fitting(self, modules: Iterable[ModuleFacts]) -> tuple[Size, ...]:
        """Return the models that have every module of a denoiser in the size that a file shows."""
        modules = [module for module in modules if module.component == "unet"]
        if modules and not self.native(modules[0].path).startswith(self._heads):
            return ()  # without the tables, which take their time: nearly every file is of another family
        return tuple(size for size in self.sizes if all(self.has(module, size) for module in modules))

    def likeliest(self, modules: Iterable[ModuleFacts]) -> Size:
        """Return the model that has most of a file's modules in their size; the usual one where none has."""
        modules = [module for module in modules if module.component == "unet"]
        return max(self.sizes, key=lambda size: sum(self.has(module, size) for module in modules))

    def share(self, modules: Sequence[ModuleFacts]) -> float:
        """Return how much of a denoiser's modules the likeliest model has in their size, 0 to 1.

        A block that it lacks says that it is another model: 0.
        """
        size = self.likeliest(modules)
        spots = [self.find(module.path, size) for module in modules]
        if any(spot is not None and spot.shape and spot.module not in size.modules for spot in spots):
            return 0.0
        return sum(self.has(module, size) for module in modules) / len(modules)

    def has(self, module: ModuleFacts, size: Size) -> bool:
        """Tell whether a model has a file's module, in the size that the file shows."""
        spot = self.find(module.path, size)
        return spot is not None and spot.module in size.modules and spot.fits(module)

    def covered(self, modules: Iterable[ModuleFacts], size: Size) -> bool:
        """Tell whether a file is in every block of a model that has the like of its modules."""
        spots = (self.find(module.path, size) for module in modules if module.component == "unet")
        return size.covered_by(frozenset(spot.module for spot in spots if spot is not None))

    def _name(self, module: str) -> str:
        if self.dotted and module.startswith(self.dotted):
            return f"diffusion_model.{module}"
        return f"lora_unet_{self.saved(flat(module))}"

    def _pieces(self, module: str, shape: Shape) -> Iterator[tuple[str, Rows]]:
        for cut_off in self._cuts.get(_form(module), ()):
            numbers = cut_off.numbers(module)
            if numbers is not None:
                name = cut_off.alias.format(*numbers)
                yield (
                    f"{self.front}{name if self.front.endswith('.') else flat(name)}",
                    cut_off.means.rows(shape),
                )


@functools.lru_cache(maxsize=1 << 15)
def _find(layers: Layers, path: str, size: Size) -> Spot | None:
    path = layers.native(path)
    return _spot(layers, path, size) or (
        _spot(layers, f"{path}_0", size) if path.endswith("_to_out") else None
    )


def _spot(layers: Layers, path: str, size: Size) -> Spot | None:
    for spelling in layers._spellings.get(_form(path), ()):
        numbers = spelling.numbers(path)
        if numbers is None:
            continue
        module = spelling.means.whole.format(*numbers)
        shape = size.shape(module)
        if spelling.means.cuts and not shape:
            return None
        two_parts = len(shape) == 2 and shape[0] == 2 * shape[1]
        return Spot(
            module,
            shape,
            spelling.means.rows(shape) if spelling.means.cuts else None,
            spelling.alias in layers.swapped and (two_parts or not shape),
        )
    return None


def _heads_of(pattern: str) -> Iterator[str]:
    """Yield what the names of a pattern or an alias may begin with; "" where that is a number."""
    head, brace, rest = pattern.partition("{")
    words = [head] if head or not brace else rest.partition("}")[0].split(",")
    return ("" if word in ("n", "m") or _RANGE.fullmatch(word) else flat(word) for word in words)


def _open(pattern: str) -> Iterator[str]:
    """Yield a table's pattern with {0}, {1} for its ranges of numbers: deeper models are understood, too."""
    parts = _CHOICE.split(pattern)
    place = itertools.count()
    choices = [
        [f"{{{next(place)}}}"]
        if index % 2 and "-" in part and part[0].isdigit()
        else list(_options(part))
        if index % 2
        else [part]
        for index, part in enumerate(parts)
    ]
    return map("".join, itertools.product(*choices))


def _open_alias(pattern: str) -> str:
    """Return an alias with {0} and {1} for its numbers {n} and {m}."""
    return pattern.replace("{n}", "{0}").replace("{m}", "{1}")


@functools.cache
def _slots(name: str) -> tuple[str, ...]:
    """Return the numbers of a name, "" for {0} and {1}."""
    return tuple("" if slot[0] == "{" else slot for slot in _SLOT.findall(name))


def _smallest(pieces: Mapping[Piece, _Spelling]) -> Iterator[_Spelling]:
    """Yield the pieces that no other one is a part of, in order."""

    def end(piece: Piece) -> Fraction | float:
        return math.inf if piece.last is None else Fraction(piece.last)

    for piece in sorted(pieces, key=lambda piece: piece.first):
        parts = [other for other in pieces if other.first >= piece.first and end(other) <= end(piece)]
        if parts == [piece]:
            yield pieces[piece]
