"""What is set up in the tab, and a recipe: one into the other.

`TabState` is the one place that says what a set-up is: the page keeps it in the browser as JSON, REST takes
it as a body, and `javascript/lora_merge/types.d.ts` is made from it. Sources are named by the library's keys,
block weights are {block: weight} with blocks that are not named at 1. A recipe is what the engine merges and
what the file carries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from lib_merge.blocks.weights import parse_elements
from lib_merge.errors import RecipeError
from lib_merge.methods import DEFAULT_METHOD, get_method
from lib_merge.methods.words import FOREIGN
from lib_merge.ranks.policy import PolicyKind, RankPolicy, parse_policy
from lib_merge.recipe import Blocks, ElementRule, Recipe, Source
from lib_merge.recipe_edits import letter
from lib_merge.ui.protocol import About, Stored, read

Find = Callable[[str], Path]
Locate = Callable[[Source], str]
Expand = Callable[[Blocks], dict[str, float]]
KnobValue = Union[float, bool, str, list[float]]
Knobs = Annotated[
    dict[str, dict[str, KnobValue]],
    About("settings by method and name; those of other methods are kept and change nothing"),
]
MethodName = Annotated[str, About("the merge method", example=DEFAULT_METHOD)]
Precision = Literal["fp16", "bf16", "float"]
# what reads like the letter of a source is no name for a group
_LIKE_LETTER = re.compile(r"[A-Za-z]{1,2}")


# -------------------------------------------------------------------------------------------- the state


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Stored):
    """A source: a LoRA, how strong it is, and where."""

    id: Annotated[int | None, About("the page's own number of the row", omit=True)] = None
    key: Annotated[str, About("of the LoRA, as `loras` lists it", example="0/ink.safetensors")] = ""
    name: Annotated[str, About("what to call it where the key is empty; REST finds a LoRA by it")] = ""
    ratio: Annotated[float, About("scales the whole LoRA, from -10000 to 10000", example=0.6)] = 1.0
    te: Annotated[
        float | list[float | None] | None,
        About("replaces the ratio for the text encoders, each; null where it does not"),
    ] = None
    on: bool = True
    group: Annotated[str, About("the group it is merged in first: 1, 2, … or a name")] = ""
    role: Annotated[str, About("where the method asks for one: style, subject")] = ""
    blocks: Annotated[
        dict[str, float], About("multiplies the ratio per block; 1 where a block is not named")
    ] = field(default_factory=dict)
    elements: Annotated[str, About("rules `blocks:elements:ratio`, which replace block weights")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Stored):
    """How the sources of a group are merged before they enter the merge as one."""

    method: MethodName = DEFAULT_METHOD
    ratio: float = 1.0
    knobs: Knobs = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank(Stored):
    """How many ranks are kept; `value` is a rank, a share of 1, an error of 1 or megabytes."""

    mode: Literal["auto", "lossless", "rank", "energy", "error", "budget"] = "auto"
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup(Stored):
    """What a recipe is made of."""

    sources: Annotated[
        list[Row], About(example=[{"name": "ink", "ratio": 0.6}, {"name": "mira", "ratio": 0.4}])
    ] = field(default_factory=list)
    groups: Annotated[dict[str, Group], About("by the name that rows have in `group`")] = field(
        default_factory=dict
    )
    method: MethodName = DEFAULT_METHOD
    knobs: Knobs = field(default_factory=dict)
    rank: Rank = Rank()
    conv_rank: Annotated[int | None, About("rank of k×k convolutions where it differs")] = None
    prune: Annotated[float, About("leave out ranks and modules below this share of the largest")] = 0.0
    prune_below: Annotated[float, About("leave out ranks whose singular value is below this number")] = 0.0
    precision: Precision = "fp16"
    names: Annotated[str, About("a spelling, or a host that must know them; empty: every host")] = ""
    seed: int = 0
    family: Annotated[str | None, About("the base model where the files fit several")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview(Stored):
    """The picture of the card: that of another LoRA, or one of the person's own."""

    like: Annotated[str, About("key of the LoRA whose picture is taken")] = ""
    data: Annotated[str, About("data: address of a PNG, JPEG, WebP or GIF")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Stored):
    """Where a merge is saved and what goes with it."""

    template: Annotated[
        str, About("{sources} {method} {weights} {rank} and {n}, which counts up", example="ink and mira")
    ] = ""
    folder: Annotated[str, About("below the first LoRA folder")] = ""
    overwrite: bool = False
    triggers: Annotated[str | None, About("null: those of the sources")] = None
    notes: str = ""
    based_on: Annotated[str, About("id of the merge that it was developed from")] = ""
    based_on_name: str = ""
    preview: Preview | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults(Stored):
    """The settings of the host when the set-up was begun: what was left so follows them."""

    template: str = ""
    folder: str = ""
    precision: str = ""
    names: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TabState(Setup):
    """Everything that is set up in the tab."""

    output: Output = Output()
    version: Annotated[int, About("of this record, as browsers keep it")] = 1
    next: Annotated[int, About("the number of the next row")] = 1
    defaults: Defaults | None = None
    preview: Annotated[bool, About("the generation that reads this is the tab's preview")] = False


def tab_state(data: object) -> TabState:
    """Return a set-up that a browser has kept, of this version or another.

    Raises:
        RecipeError: it is none, or a field holds what it cannot.
    """
    return read(TabState, data, dropped=[])


def named(names: Iterable[str]) -> dict[str, str]:
    """Return group -> the name it goes by: what could be a source's letter becomes the next free number."""
    given = list(dict.fromkeys(names))
    taken = {name for name in given if not _LIKE_LETTER.fullmatch(name)}
    free = (str(number) for number in range(1, len(given) + len(taken) + 2) if str(number) not in taken)
    return {name: name if name in taken else next(free) for name in given}


def arranged(state: Setup) -> list[tuple[str, list[tuple[str, Row]]]]:
    """Return the rows that are merged, in the recipe's order, under the letters that the tab shows.

    Returns:
        (group, its rows), each row as (letter, row); the group of a row alone is "". A group stands where its
        first row does.
    """
    units: dict[str | int, list[tuple[str, Row]]] = {}
    for index, row in enumerate(state.sources):
        if row.on and row.key:
            units.setdefault(row.group or index, []).append((letter(index), row))
    return [("" if isinstance(unit, int) else unit, rows) for unit, rows in units.items()]


def used(state: Setup) -> list[Row]:
    """Return the rows that are merged, in the recipe's order."""
    return [row for _, rows in arranged(state) for _, row in rows]


# -------------------------------------------------------------------------------------------- to a recipe


def to_recipe(state: Setup, find: Find) -> Recipe:
    """Return the recipe that a set-up asks for.

    Args:
        state: sources, method, knobs, rank, output settings.
        find: key -> path.
    Raises:
        RecipeError: no source is switched on, an unknown key, a setting out of its range.
    """
    units = arranged(state)
    if not units:
        message = "there is nothing to merge: pick a LoRA first."
        raise RecipeError(message)
    names = named(group for group, _ in units if group)
    method = get_method(state.method)
    recipe = Recipe(
        sources=tuple(
            _group(names[group], rows, state.groups.get(group, Group()), find)
            if group
            else _source(*rows[0], find, roles=bool(method.roles))
            for group, rows in units
        ),
        method=method.name,
        knobs=knobs_of(state, method.name),
        rank=policy_of(state.rank),
        conv_rank=state.conv_rank,
        prune=state.prune,
        prune_below=state.prune_below,
        precision=state.precision,
        names=state.names,
        seed=state.seed,
        family=state.family or None,
    )
    recipe.check()
    return recipe


def knobs_of(setup: Setup | Group, method: str) -> dict[str, Any]:
    """Return the settings of one method; those that other methods left in the set-up stay there."""
    names = {knob.name for knob in get_method(method).knobs} | FOREIGN
    return {name: value for name, value in setup.knobs.get(method, {}).items() if name in names}


def policy_of(rank: Rank) -> RankPolicy | None:
    """Return the rank policy; None for the method's own default.

    Raises:
        RecipeError: a value that the policy cannot have.
    """
    if rank.mode == "auto":
        return None
    if rank.mode == "lossless":
        return parse_policy("lossless")
    if rank.value is None:
        message = "the rank has no value: give a number."
        raise RecipeError(message)
    text = f"{rank.value:.15g}"
    return parse_policy({"rank": text, "budget": f"budget:{text}MB"}.get(rank.mode, f"{rank.mode}:{text}"))


def encoder_ratios(row: Row) -> tuple[float, ...]:
    """Return the ratio of each text encoder where one has its own; one that is left empty has the row's."""
    given = row.te if isinstance(row.te, list) else [row.te]
    if all(value is None for value in given):
        return ()
    return tuple(row.ratio if value is None else value for value in given)


def _group(name: str, rows: Sequence[tuple[str, Row]], group: Group, find: Find) -> Source:
    method = get_method(group.method)
    sources = tuple(_source(handle, row, find, roles=bool(method.roles)) for handle, row in rows)
    inner = Recipe(sources, method.name, knobs_of(group, method.name))
    return Source(recipe=inner, ratio=group.ratio, name=f"group {name}", handle=name)


def _source(handle: str, row: Row, find: Find, *, roles: bool) -> Source:
    path = find(row.key)
    te = encoder_ratios(row)
    return Source(
        path=path,
        name=path.name,
        ratio=row.ratio,
        te_ratio=te if len(te) > 1 else te[0] if te else None,
        blocks={block: value for block, value in row.blocks.items() if value != 1} or None,
        elements=parse_elements(row.elements) if row.elements else (),
        role=(row.role or None) if roles else None,
        size=path.stat().st_size,
        handle=handle,
    )


# -------------------------------------------------------------------------------------------- from a recipe


def from_recipe(recipe: Recipe, locate: Locate, expand: Expand) -> Setup:
    """Return the set-up that would make this recipe again.

    Args:
        recipe: of a merged file, or of the history.
        locate: source -> key, "" when it is gone; its row has an empty key and the source's name then.
        expand: block weights of any form -> {block: weight}.
    """
    rows: list[Row] = []
    groups: dict[str, Group] = {}
    names = _group_names(recipe)
    for index, source in enumerate(recipe.sources):
        inner = source.recipe
        if inner is None:
            rows.append(_row(source, locate, expand, ""))
            continue
        groups[names[index]] = Group(
            method=inner.method, knobs={inner.method: _listed(inner.knobs)}, ratio=source.ratio
        )
        rows.extend(_row(item, locate, expand, names[index]) for item in inner.sources if item.recipe is None)
    return Setup(
        sources=rows,
        groups=groups,
        method=recipe.method,
        knobs={recipe.method: _listed(recipe.knobs)},
        rank=_rank(recipe.rank),
        conv_rank=recipe.conv_rank,
        prune=recipe.prune,
        prune_below=recipe.prune_below,
        precision=recipe.precision,  # type: ignore[arg-type]
        names=recipe.names,
        seed=recipe.seed,
        family=recipe.family or "",
    )


def as_asked(recipe: Recipe) -> Recipe:
    """Return the recipe with no rank of its own where it has the one that its method takes by itself.

    A recipe as JSON always says a rank: the tab's *Automatic* becomes the rank that it came to.
    """
    sources = tuple(
        source if source.recipe is None else replace(source, recipe=as_asked(source.recipe))
        for source in recipe.sources
    )
    left = replace(recipe, sources=sources, rank=None)
    return left if recipe.rank == left.policy() else replace(left, rank=recipe.rank)


def _group_names(recipe: Recipe) -> dict[int, str]:
    """Return place in the recipe -> name of every group: its own where it has one, else a number."""
    given: dict[int, str] = {}
    for index, source in enumerate(recipe.sources):
        if source.recipe is not None:
            name = source.handle or source.name.removeprefix("group").strip() or "A"
            while name in given.values():
                name += "'"
            given[index] = name
    shown = named(given.values())
    return {index: shown[name] for index, name in given.items()}


def unshown(recipe: Recipe) -> list[str]:
    """Return a sentence for everything of a recipe that the tab has no control for: nothing goes unsaid."""
    notes = []
    for source in recipe.sources:
        inner = source.recipe
        if inner is None:
            continue
        label = source.label
        if any(item.recipe is not None for item in inner.sources):
            notes.append(f"{label} holds groups of its own, which the tab cannot show; they were left out")
        if source.blocks or source.elements or source.te_ratio is not None:
            notes.append(f"{label} has block weights or a text-encoder ratio of its own; they were left out")
        if inner.rank is not None or inner.conv_rank is not None or inner.prunes:
            notes.append(f"{label} is cut to a rank of its own; that was left out")
        if inner.seed:
            notes.append(f"{label} has the seed {inner.seed} of its own; it was left out")
    return notes


def _listed(knobs: Mapping[str, Any]) -> dict[str, KnobValue]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in knobs.items()}


def _rank(policy: RankPolicy | None) -> Rank:
    if policy is None or policy.kind is PolicyKind.SUM:
        return Rank()
    if policy.kind is PolicyKind.LOSSLESS:
        return Rank(mode="lossless")
    value = policy.value / 1e6 if policy.kind is PolicyKind.BUDGET else policy.value
    return Rank(mode=str(policy.kind), value=value)  # type: ignore[arg-type]


def _row(source: Source, locate: Locate, expand: Expand, group: str) -> Row:
    te = source.te_ratio
    return Row(
        key=locate(source),
        name=source.label,
        ratio=source.ratio,
        te=None if te is None else list(te) if isinstance(te, tuple) else [te],
        blocks=expand(source.blocks),
        elements=rules_text(source.elements),
        role=source.role or "",
        group=group,
    )


def rules_text(rules: Sequence[ElementRule]) -> str:
    """Return element rules as people type them."""
    return ", ".join(f"{rule.blocks}:{rule.elements}:{rule.ratio!r}" for rule in rules)
