"""The recipe: everything that decides the bytes of a merge, and nothing else.

A recipe goes from tab or command line through the engine into the file's metadata and back without loss. As
JSON it is versioned, holds file names instead of paths, and every named or random value in it has become a
number.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Union

from lib_merge.errors import RecipeError
from lib_merge.loaders import NAMINGS
from lib_merge.methods import DEFAULT_METHOD, METHODS, Method, Space, get_method
from lib_merge.methods.words import understood
from lib_merge.ranks.policy import PolicyKind, RankPolicy, parse_policy

FORMAT = "lora-merge-recipe"
VERSION = 1
_FLOATS = sys.float_info.max
PRECISIONS = ("fp16", "bf16", "float")
MAX_DEPTH = 8
SHORT_HASH = 16
# whole numbers that every reader of JSON keeps exactly, the browser's included
MOST_WHOLE = 2**53 - 1
Blocks = Union[str, Sequence[object], Mapping[str, float], None]


@dataclass(frozen=True, slots=True)
class ElementRule:
    """`blocks:elements:ratio`: in these blocks, modules whose name contains one of the words get this block
    weight.

    Empty blocks or words match everything; the later rule wins. `shared_only` among the words asks for
    modules that every source of the merge has, `unique_only` for those that no other has.
    """

    blocks: str
    elements: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Source:
    """One input: a LoRA file, or a recipe whose result is merged like a file.

    path       the file, when its place is known (never written to JSON)
    recipe     the nested recipe instead of a file
    ratio      scales the whole delta
    te_ratio   replaces `ratio` for text encoders: one number, or (TE1, TE2)
    blocks     multiplies the ratio per block: preset name, list, `OUT00-OUT05=0.5,M00=1`, or {block: weight}
    elements   rules that replace the block weight
    role       where the method asks for one (style, subject)
    name, sha256, size   how the file is found again
    handle     how the tab calls it: A, B, … or 1, 2, … of a group (decides nothing, never written to JSON)
    """

    path: Path | None = None
    recipe: Recipe | None = None
    ratio: float = 1.0
    te_ratio: float | tuple[float, ...] | None = None
    blocks: Blocks = None
    elements: tuple[ElementRule, ...] = ()
    role: str | None = None
    name: str = ""
    sha256: str = ""
    size: int = 0
    handle: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """What people call it: the file's stem, or the group's name."""
        if self.path is not None:
            return self.path.stem
        return Path(self.name).stem if self.name else "group"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sources, method and how the result is cut and saved.

    rank       None = the method's default: lossless for scalar and core methods, Σ of the sources' ranks for
               dense
    conv_rank  rank of k×k convolutions where it differs
    prune      drop ranks and modules below this share of the largest (0 = none)
    prune_below  drop ranks whose singular value is below this number, and modules without another (0 = none)
    precision  fp16, bf16 or float
    family     None = told from the files
    names      how modules are called in the file: a spelling (kohya, diffusers, …), or a host that must know
               them; "" = as every host of the family knows them, split where a source is split
    said       what was understood of other tools' words (decides nothing, never written to JSON)
    trainable  factors as large as trainers begin them, and the sources' alpha, so that training can go on
    """

    sources: tuple[Source, ...]
    method: str = DEFAULT_METHOD
    knobs: Mapping[str, Any] = field(default_factory=dict)
    rank: RankPolicy | None = None
    conv_rank: int | None = None
    prune: float = 0.0
    precision: str = "fp16"
    seed: int = 0
    family: str | None = None
    names: str = ""
    trainable: bool = False
    prune_below: float = 0.0
    said: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Take other tools' words for the method's settings, too.

        Raises:
            RecipeError: a word that means nothing to the method.
        """
        method = METHODS.get(self.method)
        if method is None:
            return
        mine = understood(method, self.knobs)
        if not mine.said and mine.threshold is None:
            return
        object.__setattr__(self, "knobs", mine.knobs)
        object.__setattr__(self, "said", tuple(dict.fromkeys((*self.said, *mine.said))))
        if mine.threshold is not None:
            object.__setattr__(self, "prune_below", mine.threshold)

    @property
    def prunes(self) -> bool:
        """True where a threshold may leave ranks and modules out."""
        return self.prune > 0 or self.prune_below > 0

    @property
    def flat(self) -> bool:
        """True where every source is a file."""
        return all(source.recipe is None for source in self.sources)

    def declared(self) -> Method:
        """Return the method's registry entry."""
        return get_method(self.method)

    def policy(self) -> RankPolicy:
        """Return the rank policy in force.

        Raises:
            RecipeError: lossless asked of a dense method.
        """
        dense = self.declared().space is Space.DENSE
        if self.rank is None:
            return RankPolicy(PolicyKind.SUM if dense else PolicyKind.LOSSLESS)
        if dense and self.rank.exact:
            message = (
                f"{self.method} has no lossless form as a LoRA: give a rank, energy:0.99, "
                "error:0.01 or budget:50MB."
            )
            raise RecipeError(message)
        return self.rank

    def check(self, depth: int = 0) -> None:
        """Raise `RecipeError` for anything that can be seen wrong before a file is opened."""
        if depth > MAX_DEPTH:
            message = f"groups are nested more than {MAX_DEPTH} deep."
            raise RecipeError(message)
        if depth and self.rank is not None and self.rank.kind is PolicyKind.BUDGET:
            message = "a budget is for the saved file; give the group a rank, energy:0.99 or error:0.01."
            raise RecipeError(message)
        method = self.declared()
        if not self.sources:
            message = "there is nothing to merge: give at least one LoRA."
            raise RecipeError(message)
        method.check_sources(len(self.sources))
        method.settings(self.knobs, len(self.sources))
        check_roles(method, [source.role for source in self.sources])
        self.policy()
        if self.precision not in PRECISIONS:
            message = f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}."
            raise RecipeError(message)
        if self.names and self.names not in NAMINGS:
            message = f"the names {self.names!r} are none of {', '.join(NAMINGS)}."
            raise RecipeError(message)
        if self.trainable and self.names == "diffusers":
            message = "diffusers' names have no alpha: leave --trainable out, or choose kohya's names."
            raise RecipeError(message)
        if type(self.seed) is not int or abs(self.seed) > MOST_WHOLE:
            message = f"the seed is {reprlib.repr(self.seed)}; it takes a whole number up to {MOST_WHOLE}."
            raise RecipeError(message)
        check_word("the family", self.family)
        check_number("prune", self.prune, 0.0, 1.0)
        check_number("prune_below", self.prune_below, 0.0)
        if self.conv_rank is not None and not 1 <= self.conv_rank <= 1 << 16:
            message = f"conv_rank is {self.conv_rank}; it takes a whole number from 1."
            raise RecipeError(message)
        for source in self.sources:
            check_source(source)
            if source.recipe is not None:
                source.recipe.check(depth + 1)

    def leaves(self) -> list[Source]:
        """Return the sources that are files, those of groups too, in order."""
        return [
            leaf
            for source in self.sources
            for leaf in (source.recipe.leaves() if source.recipe is not None else [source])
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready objects: versioned, without any path."""
        return {"format": FORMAT, "version": VERSION, **_recipe_json(self)}

    def dumps(self) -> str:
        """Return `to_json` as compact text with a stable key order."""
        return json.dumps(self.to_json(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    def brief(self) -> str:
        """Return `dumps` without what reading it fills in, hashes cut to their beginning.

        For places where people see it, such as a picture's text; `loads` reads it back as the same merge.
        """
        data = {"format": FORMAT, "version": VERSION, **_brief(self)}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _recipe_json(recipe: Recipe) -> dict[str, Any]:
    settings = recipe.declared().settings(recipe.knobs, len(recipe.sources))
    return {
        "sources": [_source_json(source) for source in recipe.sources],
        "method": recipe.method,
        "knobs": {name: _knob_json(value) for name, value in settings.items()},
        "rank": recipe.policy().text,
        "conv_rank": recipe.conv_rank,
        "prune": recipe.prune,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "family": recipe.family,
        **({"names": recipe.names} if recipe.names else {}),
        **({"trainable": True} if recipe.trainable else {}),
        **({"prune_below": recipe.prune_below} if recipe.prune_below else {}),
    }


def _brief(recipe: Recipe) -> dict[str, Any]:
    """Leave out what has the value that `_parse_recipe` gives it; the method always says itself."""
    plain = Recipe(recipe.sources, recipe.method)
    usual, data = _recipe_json(plain), _recipe_json(recipe)
    kept = {
        name: value
        for name, value in data.items()
        if name not in ("sources", "knobs") and (value != usual[name] or name == "method")
    }
    knobs = {name: value for name, value in data["knobs"].items() if value != usual["knobs"].get(name)}
    sources = [_brief_source(source, item) for source, item in zip(recipe.sources, data["sources"])]
    return {**kept, **({"knobs": knobs} if knobs else {}), "sources": sources}


def _brief_source(source: Source, data: dict[str, Any]) -> dict[str, Any]:
    if source.recipe is not None:
        data["recipe"] = _brief(source.recipe)
    elif source.sha256:
        data["sha256"] = source.sha256[:SHORT_HASH]
    return {name: value for name, value in data.items() if value or name not in ("name", "sha256", "size")}


def same_hash(whole: str, given: str) -> bool:
    """Tell whether a sha256 is the one that a recipe names, whole or by its beginning."""
    return len(given) >= SHORT_HASH and whole.startswith(given)


def _knob_json(value: object) -> object:
    """A value per source is a list only where the sources differ in it."""
    if not isinstance(value, tuple):
        return value
    return value[0] if len(set(value)) == 1 else list(value)


def _source_json(source: Source) -> dict[str, Any]:
    data: dict[str, Any] = {"ratio": source.ratio}
    if source.recipe is not None:
        data["recipe"] = _recipe_json(source.recipe)
        if source.name:
            data["name"] = Path(source.name).name
    else:
        data["name"] = source.path.name if source.path is not None else Path(source.name).name
        data["sha256"], data["size"] = source.sha256, source.size
    if source.te_ratio is not None:
        data["te_ratio"] = list(source.te_ratio) if isinstance(source.te_ratio, tuple) else source.te_ratio
    if source.blocks:
        blocks = source.blocks
        data["blocks"] = dict(blocks) if isinstance(blocks, Mapping) else blocks
    if source.elements:
        data["elements"] = [[rule.blocks, rule.elements, rule.ratio] for rule in source.elements]
    if source.role:
        data["role"] = source.role
    return data


def loads(text: str, where: str = "the recipe") -> Recipe:
    """Read a recipe from JSON text.

    Raises:
        RecipeError: not JSON, not a recipe, a newer version, or a field of the wrong type.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{where} is not valid JSON: {error}."
        raise RecipeError(message) from error
    return from_json(data, where)


def from_json(data: object, where: str = "the recipe") -> Recipe:
    """Read a recipe from JSON objects, as `to_json` wrote them; see `loads` for the errors."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        message = f"{where} is not a recipe of this program (no format {FORMAT!r})."
        raise RecipeError(message)
    version = data.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        shown = reprlib.repr(version)
        message = f"{where} has version {shown}; this program reads versions up to {VERSION}: update it."
        raise RecipeError(message)
    try:
        return _parse_recipe(data, 0)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        told = f" ({error})" if isinstance(error, (ValueError, OverflowError)) else ""
        message = f"{where} is damaged: a field is missing or holds what it cannot{told}; make it anew."
        raise RecipeError(message) from error


def _parse_recipe(data: Mapping[str, Any], depth: int) -> Recipe:
    if depth > MAX_DEPTH:
        message = f"groups are nested more than {MAX_DEPTH} deep."
        raise RecipeError(message)
    knobs = data.get("knobs") or {}
    return Recipe(
        sources=tuple(_parse_source(item, depth) for item in data["sources"]),
        method=str(data.get("method", DEFAULT_METHOD)),
        knobs={
            str(name): tuple(value) if isinstance(value, list) else value for name, value in knobs.items()
        },
        rank=parse_policy(data["rank"]) if data.get("rank") else None,
        conv_rank=None if data.get("conv_rank") is None else _whole(data, "conv_rank"),
        prune=_number(data, "prune"),
        precision=str(data.get("precision", "fp16")),
        seed=_whole(data, "seed"),
        family=data.get("family") or None,
        names=str(data.get("names") or ""),
        trainable=bool(data.get("trainable")),
        prune_below=_number(data, "prune_below"),
    )


def _number(data: Mapping[str, Any], name: str) -> float:
    """Return a field that is a number; 0 where it is not given."""
    value = data.get(name)
    return 0.0 if value is None else _float(value, name)


def _float(value: object, name: str) -> float:
    """Return a number of JSON; neither a text nor true is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _FLOATS:
        message = f"{name} is {reprlib.repr(value)}; a number belongs there"
        raise ValueError(message)
    return float(value)


def _whole(data: Mapping[str, Any], name: str) -> int:
    value = _number(data, name)
    if value != int(value) or abs(value) > MOST_WHOLE:
        message = f"{name} is {reprlib.repr(data[name])}; a whole number up to {MOST_WHOLE} belongs there"
        raise ValueError(message)
    return int(value)


def _parse_source(data: Mapping[str, Any], depth: int) -> Source:
    te_ratio = data.get("te_ratio")
    if te_ratio is not None:
        listed = te_ratio if isinstance(te_ratio, list) else [te_ratio]
        numbers = tuple(_float(number, "te_ratio") for number in listed)
        te_ratio = numbers if isinstance(te_ratio, list) else numbers[0]
    nested = data.get("recipe")
    rules = data.get("elements") or ()
    # a name from the internet is a name, never a place: no folder part survives
    return Source(
        recipe=None if nested is None else _parse_recipe(nested, depth + 1),
        ratio=_float(data.get("ratio", 1.0), "ratio"),
        te_ratio=te_ratio,
        blocks=data.get("blocks"),
        elements=tuple(ElementRule(str(a), str(b), _float(c, "an element rule")) for a, b, c in rules),
        role=data.get("role"),
        name=str(data.get("name", "")).replace("\\", "/").rsplit("/", 1)[-1],
        sha256=str(data.get("sha256", "")),
        size=_whole(data, "size"),
    )


def with_paths(recipe: Recipe, find: Any) -> Recipe:  # noqa: ANN401 - a callable Source -> Path
    """Return the recipe with every file source's path filled in by `find(source)`."""
    sources = []
    for source in recipe.sources:
        if source.recipe is not None:
            sources.append(replace(source, recipe=with_paths(source.recipe, find)))
        else:
            sources.append(source if source.path is not None else replace(source, path=find(source)))
    return replace(recipe, sources=tuple(sources))


def check_roles(method: Method, roles: Sequence[str | None]) -> None:
    """Raise `RecipeError` unless every role of the method is given to one source; other methods ignore
    roles.
    """
    for role in roles:
        check_word("a role", role)
    given = [role for role in roles if role]
    if method.roles and sorted(given) != sorted(method.roles):
        message = f"{method.name} needs the roles {' and '.join(method.roles)}, one source each."
        raise RecipeError(message)


def check_source(source: Source) -> None:
    """Raise `RecipeError` for a ratio or rule of the source that is no finite number in range."""
    check_number(f"the ratio of {source.label}", source.ratio)
    _check_blocks(f"the block weights of {source.label}", source.blocks)
    ratios = source.te_ratio if isinstance(source.te_ratio, tuple) else (source.te_ratio,)
    if not 1 <= len(ratios) <= 3:
        message = (
            f"the text-encoder ratio of {source.label} has {len(ratios)} numbers; it takes "
            "one for each encoder."
        )
        raise RecipeError(message)
    for ratio in ratios:
        if ratio is not None:
            check_number(f"the text-encoder ratio of {source.label}", ratio)
    for rule in source.elements:
        check_number(f"an element rule of {source.label}", rule.ratio)


def _check_blocks(what: str, value: object) -> None:
    """Raise `RecipeError` unless `value` may be block weights."""
    if value is not None and not isinstance(value, (str, Mapping, Sequence)):
        message = f"{what} are {reprlib.repr(value)}; they are a list, a text or blocks by name."
        raise RecipeError(message)
    for block, weight in value.items() if isinstance(value, Mapping) else ():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) <= _FLOATS:
            message = f"{what}: {reprlib.repr(weight)} at {reprlib.repr(block)} is not a number."
            raise RecipeError(message)


def check_word(what: str, value: object) -> None:
    """Raise `RecipeError` unless `value` is a text or None; `what` names it."""
    if value is not None and not isinstance(value, str):
        message = f"{what} is {reprlib.repr(value)}; it takes a word."
        raise RecipeError(message)


def check_number(what: str, value: float, least: float = -1e4, most: float = 1e4) -> None:
    """Raise `RecipeError` unless `value` is a number from `least` to `most`; `what` names it."""
    # comparing is exact for whole numbers of any size, and false for what is not a number
    if isinstance(value, bool) or not (isinstance(value, (int, float)) and least <= value <= most):
        message = f"{what} is {reprlib.repr(value)}; it takes a number from {least:g} to {most:g}."
        raise RecipeError(message)
