"""The tab's state and a recipe: one into the other.

The state is what the browser keeps: plain JSON, sources by the library's keys, block weights as {block:
    weight} with
blocks that are not named at 1, groups by letter. A recipe is what the engine merges and what the file
carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_merge.blocks.weights import parse_elements
from lib_merge.errors import RecipeError
from lib_merge.methods import DEFAULT_METHOD, METHODS, get_method
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe import Recipe, Source

Find = Callable[[str], Path]


def to_recipe(state: Mapping[str, Any], find: Find) -> Recipe:
    """Return the recipe that the tab's state asks for.

    Args:
        state: sources, method, knobs, rank, output settings.
        find: key -> path.
    Raises:
        RecipeError: no source is switched on, an unknown key, a number that is none.
    """
    rows = [row for row in state.get("sources") or [] if row.get("on", True) and row.get("key")]
    if not rows:
        message = "there is nothing to merge: pick a LoRA first."
        raise RecipeError(message)
    method = str(state.get("method") or DEFAULT_METHOD)
    sources: list[Source] = []
    done: set[str] = set()
    for row in rows:
        letter = str(row.get("group") or "")
        if not letter:
            sources.append(_source(row, find, method))
        elif letter not in done:
            done.add(letter)
            members = [other for other in rows if str(other.get("group") or "") == letter]
            sources.append(_group(letter, members, (state.get("groups") or {}).get(letter) or {}, find))
    recipe = Recipe(
        tuple(sources),
        method,
        knobs_of(state, method),
        policy_of(state.get("rank")),
        _whole(state.get("conv_rank"), "the rank of convolutions"),
        _number(state.get("prune") or 0.0, "prune"),
        str(state.get("precision") or "fp16"),
        _whole(state.get("seed"), "the seed") or 0,
        state.get("family") or None,
    )
    recipe.check()
    return recipe


def letters_of(state: Mapping[str, Any]) -> list[str]:
    """Return the letters that the tab shows for the recipe's files, in the recipe's order: groups stand
    together.
    """
    rows = [
        (index, row)
        for index, row in enumerate(state.get("sources") or [])
        if row.get("on", True) and row.get("key")
    ]
    groups = [str(row.get("group") or "") for _, row in rows]
    first = {group: place for place, group in reversed(list(enumerate(groups))) if group}
    order = sorted(range(len(rows)), key=lambda place: (first.get(groups[place], place), place))
    return [chr(ord("A") + rows[place][0] % 26) for place in order]


def state_of(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tab's state that a request of the browser carries.

    Raises:
        RecipeError: it carries none.
    """
    state = request.get("state")
    if not isinstance(state, Mapping):
        message = "the request has no state."
        raise RecipeError(message)
    return state


def knobs_of(state: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the settings of one method; those that other methods left in the state stay there."""
    known = {knob.name for knob in get_method(method).knobs}
    given = (state.get("knobs") or {}).get(method) or {}
    return {name: value for name, value in given.items() if name in known}


def policy_of(rank: Any) -> Any:  # noqa: ANN401
    """Return the rank policy of {"mode", "value"}; None for the method's own default."""
    mode = str((rank or {}).get("mode") or "auto")
    if mode == "auto":
        return None
    if mode == "lossless":
        return parse_policy("lossless")
    value = (rank or {}).get("value")
    texts = {
        "rank": f"{value}",
        "energy": f"energy:{value}",
        "error": f"error:{value}",
        "budget": f"budget:{value}MB",
    }
    return parse_policy(texts.get(mode, mode))


def _group(letter: str, rows: Sequence[Mapping[str, Any]], group: Mapping[str, Any], find: Find) -> Source:
    method = str(group.get("method") or DEFAULT_METHOD)
    inner = Recipe(tuple(_source(row, find, method) for row in rows), method, knobs_of(group, method))
    return Source(
        recipe=inner,
        ratio=_number(group.get("ratio", 1.0), f"the ratio of group {letter}"),
        name=f"group {letter}",
    )


def _source(row: Mapping[str, Any], find: Find, method: str) -> Source:
    path = find(str(row["key"]))
    blocks = {
        str(block): _number(value, f"the weight of {block}")
        for block, value in (row.get("blocks") or {}).items()
        if value != 1
    }
    te = row.get("te")
    if isinstance(te, (list, tuple)):
        ratio = _number(row.get("ratio", 1.0), f"the ratio of {path.stem}")
        values = tuple(ratio if value is None else _number(value, "the text-encoder ratio") for value in te)
        te = None if all(value is None for value in row["te"]) else values if len(values) > 1 else values[0]
    return Source(
        path=path,
        name=path.name,
        ratio=_number(row.get("ratio", 1.0), f"the ratio of {path.stem}"),
        te_ratio=te if te is None or isinstance(te, tuple) else _number(te, "the text-encoder ratio"),
        blocks=blocks or None,
        elements=parse_elements(str(row["elements"])) if row.get("elements") else (),
        role=(row.get("role") or None) if METHODS[method].roles else None,
        size=path.stat().st_size,
    )


def _number(value: Any, what: str) -> float:  # noqa: ANN401
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        message = f"{what} is {str(value)[:40]!r}; it takes a number."
        raise RecipeError(message)
    return number


def _whole(value: Any, what: str) -> int | None:  # noqa: ANN401
    if value in (None, ""):
        return None
    number = _number(value, what)
    if number != int(number):
        message = f"{what} is {value!r}; it takes a whole number."
        raise RecipeError(message)
    return int(number)


def from_recipe(
    recipe: Recipe, locate: Callable[[Source], str], expand: Callable[[Any], dict[str, float]]
) -> dict[str, Any]:
    """Return the state that would make this recipe again; a source that is not there has an empty key and
    its name.

    Args:
        recipe: of a merged file, or of the history.
        locate: source -> key, "" when it is gone.
        expand: block weights of any form -> {block: weight}.
    """
    rows: list[dict[str, Any]] = []
    groups: dict[str, Any] = {}
    for source in recipe.sources:
        if source.recipe is None:
            rows.append(_row(source, locate, expand, ""))
            continue
        letter = chr(ord("A") + len(groups))
        inner = source.recipe
        groups[letter] = {
            "method": inner.method,
            "knobs": {inner.method: dict(inner.knobs)},
            "ratio": source.ratio,
        }
        rows.extend(_row(item, locate, expand, letter) for item in inner.sources if item.recipe is None)
    policy = recipe.rank
    return {
        "sources": rows,
        "groups": groups,
        "method": recipe.method,
        "knobs": {recipe.method: dict(recipe.knobs)},
        "rank": _rank(policy),
        "conv_rank": recipe.conv_rank,
        "prune": recipe.prune,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "family": recipe.family or "",
    }


def unshown(recipe: Recipe) -> list[str]:
    """Return a sentence for everything of a recipe that the tab has no control for, so that nothing goes
    unsaid.
    """
    found = []
    for source in recipe.sources:
        inner = source.recipe
        if inner is None:
            continue
        label = source.label
        if any(item.recipe is not None for item in inner.sources):
            found.append(f"{label} holds groups of its own, which the tab cannot show; they were left out")
        if source.blocks or source.elements or source.te_ratio is not None:
            found.append(f"{label} has block weights or a text-encoder ratio of its own; they were left out")
        if inner.rank is not None or inner.conv_rank is not None or inner.prune:
            found.append(f"{label} is cut to a rank of its own; that was left out")
        if inner.seed:
            found.append(f"{label} has the seed {inner.seed} of its own; it was left out")
    return found


def _rank(policy: Any) -> dict[str, Any]:  # noqa: ANN401
    if policy is None or policy.kind == "sum":
        return {"mode": "auto", "value": None}
    if policy.kind == "lossless":
        return {"mode": "lossless", "value": None}
    return {"mode": policy.kind, "value": policy.value / 1e6 if policy.kind == "budget" else policy.value}


def _row(
    source: Source, locate: Callable[[Source], str], expand: Callable[[Any], dict[str, float]], letter: str
) -> dict[str, Any]:
    te = source.te_ratio
    return {
        "key": locate(source),
        "name": source.label,
        "ratio": source.ratio,
        "te": None if te is None else list(te) if isinstance(te, tuple) else [te],
        "blocks": expand(source.blocks),
        "elements": ", ".join(f"{rule.blocks}:{rule.elements}:{rule.ratio!r}" for rule in source.elements),
        "role": source.role or "",
        "group": letter,
        "on": True,
    }
