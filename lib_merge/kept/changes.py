"""Recipes in words: titles of settings, what changed between two merges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.methods import METHODS
from lib_merge.ranks.policy import PolicyKind, parse_policy

# what people call settings whose names are letters or abbreviations
_TITLES: Mapping[str, str] = {
    "factor": "Factor (f)",
    "beta": "Memory of each step (β)",
    "t": "Place between the two (t)",
    "lam": "Clearness (λ)",
    "common": "Common directions (k/r)",
    "floor": "Least count (α)",
    "mu": "From separated to summed (μ)",
    "gamma": "Largest dropped (γ)",
    "epsilon": "Spread of the chances (ε)",
    "select": "Share kept (τ)",
    "elect": "Who decides the sign",
    "prune": "Prune below a share of the largest",
    "prune_below": "Prune below a number",
    "conv_rank": "Rank of convolutions",
    "te_ratio": "Text-encoder strength",
}


def title_of(name: str) -> str:
    """Return what people call a setting: `Drop rate` for drop_rate."""
    return _TITLES.get(name) or name.replace("_", " ").capitalize()


def method_title(name: object) -> str:
    """Return a method's title; what is none stays as it is."""
    return METHODS[name].title if isinstance(name, str) and name in METHODS else str(name)


def rank_title(rank: object) -> str:
    """Return a rank policy as the tab names it: Automatic, Lossless, Sum of ranks, 32, 99 % of the energy."""
    if rank is None:
        return "Automatic"
    try:
        policy = parse_policy(rank)  # type: ignore[arg-type]
    except RecipeError:
        return str(rank)
    plain = {PolicyKind.LOSSLESS: "Lossless", PolicyKind.SUM: "Sum of ranks"}
    return plain.get(policy.kind) or policy.words.removeprefix("rank ")


def value_title(value: object) -> str:
    """Return a setting's value in words: on, off, none, numbers without needless digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " / ".join(value_title(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


# -------------------------------------------------------------------------------------------- differences


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what changed between two recipes (JSON), in sentences."""
    lines = []
    for name in ("method", "rank", "conv_rank", "prune", "prune_below", "precision", "seed"):
        if before.get(name) != after.get(name):
            old, new = (_setting(name, recipe.get(name)) for recipe in (before, after))
            title = title_of(name) if name in _TITLES else name
            lines.append(f"{title}: {old} → {new}")
    lines += _knobs(before, after)
    one, other = _sources(before), _sources(after)
    lines += [f"{name} was taken out" for name in one if name not in other]
    lines += [
        f"{name} was added at {source.get('ratio')}" for name, source in other.items() if name not in one
    ]
    for name in one:
        if name in other:
            lines += _changed(name, one[name], other[name])
    return lines or ["nothing changed"]


def _setting(name: str, value: object) -> str:
    if name == "method":
        return method_title(value) if value is not None else "none"
    return rank_title(value) if name == "rank" else "none" if value is None else str(value)


def _knobs(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yield what changed of the settings that the later method has; what was not set was at its default."""
    method = METHODS.get(str(after.get("method")))
    same = before.get("method") == after.get("method")
    old, new = (_mapping(recipe.get("knobs")) for recipe in (before, after))
    for knob in method.knobs if method is not None else ():
        was = old.get(knob.name, knob.default) if same else knob.default
        now = new.get(knob.name, knob.default)
        if was != now:
            title = title_of(knob.name)
            told = f"{value_title(was)} → {value_title(now)}" if same else value_title(now)
            yield f"{title}: {told}"


def _changed(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what changed of one source, or of a group and what it holds."""
    lines = []
    for what, none in (("ratio", 1), ("te_ratio", "as the ratio"), ("role", "none")):
        old, new = before.get(what), after.get(what)
        if old != new:
            title = what.replace("te_ratio", "text-encoder ratio")
            told = [none if value is None else value_title(value) for value in (old, new)]
            lines.append(f"{name}, {title}: {told[0]} → {told[1]}")
    if before.get("blocks") != after.get("blocks"):
        lines.append(f"{name}, block weights: {_blocks(before.get('blocks'), after.get('blocks'))}")
    if before.get("elements") != after.get("elements"):
        lines.append(f"{name}, element rules: {_rules(before)} → {_rules(after)}")
    old, new = before.get("recipe"), after.get("recipe")
    if old != new and isinstance(old, Mapping) and isinstance(new, Mapping):
        lines += [f"{name}: {text}" for text in differences(old, new)]
    return lines


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rules(source: Mapping[str, Any]) -> int:
    rules = source.get("elements")
    return len(rules) if isinstance(rules, (list, tuple)) else 0


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _blocks(before: Any, after: Any) -> str:  # noqa: ANN401
    """Return the blocks whose weight changed, those that changed alike together; a block that is not named
    weighs 1.
    """
    if not all(isinstance(value, (Mapping, type(None))) for value in (before, after)):
        return f"{before} → {after}"
    old, new = before or {}, after or {}
    alike: dict[str, list[str]] = {}
    for block in sorted(set(old) | set(new)):
        pair = (old.get(block, 1), new.get(block, 1))
        if pair[0] != pair[1]:
            alike.setdefault(f"{_shown(pair[0])} → {_shown(pair[1])}", []).append(block)
    return "; ".join(f"{' '.join(blocks)} {change}" for change, blocks in alike.items()) or "the same"


def _sources(recipe: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    sources: dict[str, Mapping[str, Any]] = {}
    listed = recipe.get("sources")
    for source in listed if isinstance(listed, list) else ():
        if not isinstance(source, Mapping):  # an entry that somebody edited
            continue
        name = source_name(source)
        while name in sources:
            name += " (again)"
        sources[name] = source
    return sources


def source_name(source: Mapping[str, Any]) -> str:
    """Return what a source of a recipe (JSON) is called: a file's stem, or a group by its files."""
    inner = source.get("recipe")
    listed = inner.get("sources") if isinstance(inner, Mapping) else None
    if isinstance(listed, list):
        names = [source_name(one) for one in listed if isinstance(one, Mapping)]
        return f"({' + '.join(names)})"
    return str(source.get("name") or "group").removesuffix(".safetensors")
