"""What is wrong? Every usual complaint, what the numbers of this merge say to it, and what to try.

Where to start: ratios that guides teach, by role, as one-click changes. Starting points, not findings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lib_merge.analysis.evidence import Evidence, both, evidence, percent, plus, tidy
from lib_merge.analysis.model import Advice, AnalysisReport, Symptom
from lib_merge.analysis.outcome import Prospect
from lib_merge.analysis.strength import balanced, compared
from lib_merge.families import family_of
from lib_merge.linalg import tolerances
from lib_merge.methods import DEFAULT_METHOD, METHODS, Complaint, Method, Space, get_method
from lib_merge.recipe import Recipe
from lib_merge.recipe_edits import PER_SOURCE

# ------------------------------------------------------------------------ trouble

Says = Callable[[Evidence], Iterator[str]]
Tries = Callable[[Evidence], Iterator[Advice]]


def symptoms(report: AnalysisReport, prospect: Prospect, advice: Sequence[Advice]) -> tuple[Symptom, ...]:
    """Return the table of complaints, filled in for this merge.

    Args:
        report: complete but for the table itself.
        prospect: the recipe looked at.
        advice: what was advised; the entries that belong to a complaint come first among its tries.
    """
    known = evidence(report, prospect)
    table = []
    for name, title, says, tries, advised in TABLE:
        first = [item for item in advice if item.id.split("-")[0] in advised or item.id in advised]
        seen = {_about(item) for item in first}
        more = [item for item in tries(known) if _about(item) not in seen and _changes(known, item)]
        table.append(Symptom(name, title, tuple(says(known)), (*first, *more)))
    return tuple(table)


def _about(item: Advice) -> str:
    """Return what a change is about: `Balance`, `Lower the total`; once is enough."""
    return item.title.split(" →")[0]


def _changes(known: Evidence, item: Advice) -> bool:
    """Tell whether a try makes another merge than the recipe does."""
    recipe, change = known.recipe, item.apply
    same_method = change.get("method", recipe.method) == recipe.method and not change.get("knobs")
    same_ratios = change.get("ratios", known.ratios) == known.ratios
    if same_method and same_ratios and not set(change) - {"method", "ratios", "knobs"}:
        return False
    return bool(set(change) & {"rank", "precision", "blocks"}) or known.worthwhile(change)


def _muddy(known: Evidence) -> Iterator[str]:
    yield from _likeness(known)
    yield from _bases(known)
    outcome = known.outcome
    if outcome is not None and not math.isnan(outcome.whole.cancel):
        yield (
            f"the merge has {outcome.whole.cancel:.2f} × the strength of unrelated sources (below "
            "0.8 they cancel)"
        )


def _try_muddy(known: Evidence) -> Iterator[Advice]:
    yield from _methods(known, Complaint.MUDDY)


def _dominates(known: Evidence) -> Iterator[str]:
    outcome = known.outcome
    if outcome is None or len(known.names) < 2:
        return
    shares = outcome.whole.shares
    top = int(np.argmax(shares))
    each = ", ".join(f"{name} {share:.0%}" for name, share in zip(known.names, shares))
    yield f"shares of the merge: {each} (even would be {1 / len(shares):.0%})"
    blocks = [block for block, part in outcome.blocks.items() if part.shares[top] > 0.8]
    if blocks:
        yield f"{known.names[top]} holds more than 80 % in {', '.join(blocks)}"


def _try_dominates(known: Evidence) -> Iterator[Advice]:
    if len(known.names) < 2 or not known.flat or not (known.heard > 0).any():
        return
    field = compared(known)
    ratios = balanced(known.ratios, field.each)
    before, after = field.shares(known.ratios), field.shares(ratios)
    if before and max(before) - max(after) >= tolerances.EVENED and not known.copies:
        why = f"what they bring is then {' / '.join(percent(value) for value in after)}."
        yield Advice("try-balance", f"Balance → {both(ratios)}", why, {}, {"ratios": ratios})
    top = int(np.argmax(known.heard))
    if top in known.held:
        return
    lower = [tidy(ratio * (0.5 if index == top else 1.0)) for index, ratio in enumerate(known.ratios)]
    yield Advice(
        "try-lower",
        f"Halve {known.names[top]} → {both(lower)}",
        f"lower it further than feels needed{_share_then(known, top, {'ratios': lower})}.",
        {},
        {"ratios": lower},
    )


def _share_then(known: Evidence, place: int, change: Mapping[str, Any]) -> str:
    """Say what share of the merge a source has after a change, as the end of a sentence."""
    trial = known.tried(change)
    return "" if trial is None else f": {percent(trial.outcome.shares[place])} of the merge would be its"


def _artefacts(known: Evidence) -> Iterator[str]:
    outcome = known.outcome
    total = sum(abs(ratio) for ratio in known.ratios)
    yield f"ratios add up to {total:.2g} (a weighted sum usually has 1)"
    if outcome is None:
        return
    if not math.isnan(outcome.whole.growth):
        yield (
            f"the strongest direction grows to {outcome.whole.growth:.2f} × that of the strongest "
            "source in the worst module "
            "(above 1.5 pictures tend to over-bake)"
        )
    talk = [value for value in outcome.whole.crosstalk if not math.isnan(value)]
    if talk:
        chance = max(_chance_talk(known, index) for index in range(len(known.names)))
        yield (
            f"the others add up to {percent(max(talk))} of a source's own work on its inputs "
            f"(chance: {percent(chance)})"
        )
    if outcome.error > 0.05:
        yield f"{percent(1 - outcome.error**2, 1)} of the merge is kept: the rank cuts the rest away"


def _chance_talk(known: Evidence, index: int) -> float:
    """Return √(Σ ‖wⱼΔWⱼ‖²·k/n)/‖wᵢΔWᵢ‖, the crosstalk that unrelated sources of these strengths and ranks
    have.
    """
    own = float(known.heard[index])
    square = sum(
        float(known.heard[pair.second if pair.first == index else pair.first]) ** 2 * pair.whole.chance_in
        for pair in known.report.pairs
        if index in (pair.first, pair.second) and not math.isnan(pair.whole.chance_in)
    )
    return math.sqrt(square) / own if own > 0 else 0.0


def _try_artefacts(known: Evidence) -> Iterator[Advice]:
    node = known.prospect.tree.root
    if known.flat and any(known.ratios) and not node.method.normalised(node.settings):
        total = sum(abs(ratio) for ratio in known.ratios)
        ratios = [tidy(ratio * 0.8 / total) for ratio in known.ratios] if total > 0.8 else known.ratios
        if total <= 0.8:
            ratios = [tidy(ratio * 0.8) for ratio in known.ratios]
        ratios = known.keeping(ratios)
        yield Advice(
            "try-total", f"Lower the total → {both(ratios)}", "less of everything.", {}, {"ratios": ratios}
        )
    if known.flat:
        for side in family_of(known.report.family).sides:
            weights = {block: 0.0 for block in known.prospect.bench.blocks() if block.startswith(side)}
            if weights:
                yield Advice(
                    f"try-without-{side.lower()}",
                    f"Switch off {side}",
                    f"finds out whether the artefacts come from {side} blocks.",
                    {},
                    {"blocks": [dict(weights) for _ in known.names]},
                )
    yield from _methods(known, Complaint.ARTEFACTS)


def _loading(known: Evidence) -> Iterator[str]:
    yield f"all sources are {known.report.family}; their modules have the same sizes where they meet"
    broken = sum(len(source.broken) for source in known.report.sources)
    yield f"{broken} tensors hold NaN or infinity" if broken else "no tensor holds NaN or infinity"
    yield from known.report.notes
    room = min((source.headroom for source in known.report.sources), default=math.inf)
    yield (
        f"numbers could grow {f'{room:.3g}' if room < 1000 else 'more than 1000'} × before fp16 ends"
        if math.isfinite(room)
        else "every number is zero"
    )


def _nothing(_: Evidence) -> Iterator[Advice]:
    yield from ()


def _worse(known: Evidence) -> Iterator[str]:
    outcome = known.outcome
    if outcome is not None and get_method(outcome.method).stacks and outcome.error < 0.01:
        yield (
            "this merge is the stack of its sources at these ratios, number by number; only other "
            "ratios would change it"
        )
    elif outcome is not None:
        row = next((row for row in known.report.methods if row.chosen), None)
        if row is not None and not math.isnan(row.cosine):
            yield f"it is at cosine {row.cosine:.3f} to the stack and {row.to_sum:.2f} × as strong"
        if outcome.error > 0.01:
            yield f"{percent(1 - outcome.error**2, 1)} of the merge is kept: the rank cuts the rest away"
    yield from _bases(known)


def _try_worse(known: Evidence) -> Iterator[Advice]:
    outcome = known.outcome
    if not known.recipe.declared().stacks:
        yield _method(METHODS[DEFAULT_METHOD], "is the stack in one file")
    if outcome is not None and outcome.error > 0.01 and known.recipe.declared().space is not Space.DENSE:
        yield Advice("try-lossless", "Save lossless", "nothing is cut.", {}, {"rank": "lossless"})
    if len(known.names) == 2 and known.flat and not known.held:
        for ratios in ([0.7, 0.3], [0.3, 0.7]):
            yield Advice(
                "try-ratios", f"Try {both(ratios)}", "quite different weights.", {}, {"ratios": ratios}
            )
    yield from _methods(known, Complaint.WORSE)


def _regions(_: Evidence) -> Iterator[str]:
    yield (
        "no single file can keep two characters apart in one picture: its blocks are layers, not places; "
        "that takes regions or masks while the picture is made, with both LoRAs loaded"
    )


def _lost(known: Evidence) -> Iterator[str]:
    outcome = known.outcome
    if outcome is None:
        return
    for name, kept, share in zip(known.names, outcome.whole.retention, outcome.whole.shares):
        others = ", for others push the same way" if kept > 1.05 else ""
        yield (
            f"{name}: {percent(kept)} of what was asked of it is in{others}, {share:.0%} of the merge is its"
        )


def _try_lost(known: Evidence) -> Iterator[Advice]:
    if not known.flat or len(known.names) < 2:
        return
    bench = known.prospect.bench
    for index, name in enumerate(known.names):
        if index in known.held:
            continue
        up = [tidy(ratio * (1.3 if i == index else 1.0)) for i, ratio in enumerate(known.ratios)]
        more = f"more of it{_share_then(known, index, {'ratios': up})}."
        yield Advice(f"try-raise-{index}", f"Raise {name} → {both(up)}", more, {}, {"ratios": up})
        energy = {
            block: float(bench.products[places, index, index].sum())
            for block, places in bench.blocks().items()
        }
        total = sum(energy.values())
        main = [block for block in sorted(energy, key=lambda b: -energy[b])[:4] if energy[block] > 0]
        if not total or not main:
            continue
        share = sum(energy[block] for block in main) / total
        blocks = [dict.fromkeys(main, 1.5) if i == index else None for i in range(len(known.names))]
        yield Advice(
            f"try-blocks-{index}",
            f"Raise {name} where it lives",
            f"{', '.join(main)} hold {share:.0%} of its energy.",
            {},
            {"blocks": blocks},
        )


def _likeness(known: Evidence) -> Iterator[str]:
    for pair in known.report.pairs:
        part = pair.whole
        if math.isnan(part.cosine):
            continue
        text = (
            f"{known.names[pair.first]} and {known.names[pair.second]}: {pair.relation} (cosine "
            f"{plus(part.cosine)})"
        )
        if not math.isnan(part.conflict):
            text += (
                f", signs disagree in {percent(part.conflict, 1)} where "
                f"{percent(part.expected, 1)} is expected"
            )
        yield text


def _bases(known: Evidence) -> Iterator[str]:
    warnings = known.report.training.warnings
    yield from warnings or ("the files name no diverging base models",)


def _methods(known: Evidence, complaint: Complaint) -> Iterator[Advice]:
    """Advise the methods that are declared to help, take these sources, and make another merge of them."""
    for method in METHODS.values():
        if complaint not in method.helps or len(known.names) < 2 or not method.takes(len(known.names)):
            continue
        trial = known.tried({"method": method.name})
        if trial is None or trial.rescales or math.isnan(trial.sum_cosine):
            continue  # a ratio makes a merge stronger or weaker as well
        beside = f"at cosine {trial.sum_cosine:.2f} to the weighted sum and {trial.to_sum:.2f} × as strong"
        yield _method(method, f"{method.helps[complaint]}; {beside}")


def _method(method: Method, why: str) -> Advice:
    return Advice(
        f"try-{method.name.replace('_', '-')}", method.title, f"{why}.", {}, {"method": method.name}
    )


# id, title, what the numbers say, what to try, ids of advice that belong to it
TABLE: tuple[tuple[str, str, Says, Tries, tuple[str, ...]], ...] = (
    ("muddy", "Muddy, undefined", _muddy, _try_muddy, ("conflict", "opposed", "bases", "related", "epochs")),
    ("dominates", "One source dominates", _dominates, _try_dominates, ("balance", "uneven")),
    (
        "artefacts",
        "Artefacts that no source has",
        _artefacts,
        _try_artefacts,
        ("strength", "crowded", "text", "cut"),
    ),
    ("loading", "Errors when loading", _loading, _nothing, ("broken", "range")),
    ("worse", "Worse than the stack", _worse, _try_worse, ("unfounded", "cut", "bases")),
    ("lost", "A source lost its character", _lost, _try_lost, ("balance", "empty", "negated")),
    ("regions", "Two characters run into each other", _regions, _nothing, ()),
)


# ------------------------------------------------------------------------ starts

# role -> the range that guides give; a start is its middle
ROLES: Mapping[str, tuple[float, float]] = {
    "style": (0.6, 0.8),
    "character": (0.4, 0.6),
    "concept": (0.3, 0.5),
}
# what methods call a role -> what people call it
ALIASES = {"subject": "character"}
PRESETS = {"style": "STYLE", "character": "CHARACTER"}


def starting_points(
    recipe: Recipe, family: str = "", held: Collection[int] = frozenset()
) -> tuple[Advice, ...]:
    """Return starting points for a recipe's sources; none for one source or for groups.

    Args:
        recipe: its sources' roles count where they are set.
        family: of the sources; decides whether block presets are offered.
        held: places of sources that keep their ratio.
    """
    free = [index for index in range(len(recipe.sources)) if index not in held]
    if len(free) < 2 or not recipe.flat:
        return ()
    others = replace(recipe, sources=tuple(recipe.sources[index] for index in free))
    return tuple(_spread(start, free, len(recipe.sources)) for start in _starts(others, family))


def _spread(start: Advice, free: Sequence[int], count: int) -> Advice:
    """Return a starting point of some of the sources as one of all, which leaves the others as they are."""
    if len(free) == count:
        return start
    change: dict[str, Any] = dict(start.apply)
    for name in PER_SOURCE.keys() & change.keys():
        given = dict(zip(free, change[name]))
        change[name] = [given.get(index) for index in range(count)]
    numbers: dict[str, Any] = dict(start.numbers)
    if "source" in numbers:
        numbers["source"] = free[numbers["source"]]
        start = replace(start, id=f"start-role-{numbers['source']}-{numbers['role']}")
    return replace(start, numbers=numbers, apply=change)


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
