"""Where to start: ratios that guides teach, by role, as one-click changes. Starting points, not findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lib_merge.analysis.evidence import both
from lib_merge.analysis.model import Advice
from lib_merge.analysis.weights import flat
from lib_merge.families import family_of
from lib_merge.recipe import Recipe

# role -> the range that guides give; a start is its middle
ROLES: Mapping[str, tuple[float, float]] = {
    "style": (0.6, 0.8),
    "character": (0.4, 0.6),
    "concept": (0.3, 0.5),
}
# what methods call a role -> what people call it
ALIASES = {"subject": "character"}
PRESETS = {"style": "STYLE", "character": "CHARACTER"}


def starting_points(recipe: Recipe, family: str = "") -> tuple[Advice, ...]:
    """Return starting points for a recipe's sources; none for one source or for groups.

    Args:
        recipe: its sources' roles count where they are set.
        family: of the sources; decides whether block presets are offered.
    """
    if len(recipe.sources) < 2 or not flat(recipe):
        return ()
    return tuple(_starts(recipe, family))


def _starts(recipe: Recipe, family: str) -> Iterator[Advice]:
    count = len(recipe.sources)
    yield _start(
        "even", "All alike", [round(1 / count, 2)] * count, "ratios of a weighted sum usually add up to 1"
    )
    if count == 2:
        yield _start("lead-first", "The first leads", [0.7, 0.3], "0.7 to 0.3 lets one dominate")
        yield _start("lead-second", "The second leads", [0.3, 0.7], "0.7 to 0.3 lets one dominate")
    yield _start(
        "careful", "Careful", [round(0.8 / count, 2)] * count, "a lower total where artefacts appear"
    )
    roles = [ALIASES.get(source.role or "", source.role or "") for source in recipe.sources]
    if all(role in ROLES for role in roles):
        yield from by_role(recipe, roles, family)
    elif count == 2 and not any(roles):
        for pair in (("style", "character"), ("character", "style")):
            yield from by_role(recipe, pair, family)
    yield from _each_role(recipe)


def _each_role(recipe: Recipe) -> Iterator[Advice]:
    """Yield a role's usual ratio for each source, the others left as they are."""
    for index, source in enumerate(recipe.sources):
        for role, (low, high) in ROLES.items():
            ratio = round((low + high) / 2, 2)
            change = [ratio if place == index else None for place in range(len(recipe.sources))]
            yield Advice(
                f"start-role-{index}-{role}",
                f"{source.label} as {role}: {ratio:g}",
                f"A starting point: guides begin a {role} at {low:g} to {high:g}.",
                {"source": index, "role": role, "low": low, "high": high},
                {"ratios": change},
            )


def by_role(recipe: Recipe, roles: Sequence[str], family: str = "") -> Iterator[Advice]:
    """Yield the starting point for given roles: ratios, and with block presets where the family has them.

    Args:
        recipe: with as many sources as roles.
        roles: style, character or concept per source.
        family: of the sources.
    """
    ratios = [round(sum(ROLES[role]) / 2, 2) for role in roles]
    named = " and ".join(roles)
    taught = ", ".join(f"{role} {ROLES[role][0]:g} to {ROLES[role][1]:g}" for role in dict.fromkeys(roles))
    change: dict[str, Any] = {}
    if not recipe.declared().roles:
        change["roles"] = list(roles)
    name = "-".join(roles)
    yield _start(f"roles-{name}", f"As {named}", ratios, f"guides begin with {taught}", change)
    has_presets = set(PRESETS.values()) <= set(family_of(family).presets)
    if has_presets and any(role in PRESETS for role in roles):
        blocks = [PRESETS.get(role, "ALL") for role in roles]
        yield _start(
            f"roles-{name}-blocks",
            f"As {named}, by block",
            ratios,
            "a style lives mostly in OUT, a character in IN",
            {**change, "blocks": blocks},
        )


def _start(
    name: str, title: str, ratios: Sequence[float], why: str, more: Mapping[str, Any] | None = None
) -> Advice:
    change = {"ratios": list(ratios), **(more or {})}
    return Advice(f"start-{name}", f"{title}: {both(ratios)}", f"A starting point: {why}.", {}, change)
