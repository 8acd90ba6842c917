"""Advice on the method: another one only where evidence speaks for it, the plain sum where none speaks for
the chosen one.

What a method would make is looked at first: it is advised for what it then does, and not for its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lib_merge.analysis.evidence import Evidence, percent, tidy
from lib_merge.analysis.model import Advice, PairReport
from lib_merge.analysis.outcome import Outcomes
from lib_merge.analysis.sources import epoch_order, runs
from lib_merge.analysis.strength import APART
from lib_merge.analysis.trial import Trial, sum_at
from lib_merge.linalg import tolerances
from lib_merge.methods import METHODS, Method

# Share of a source's own work that others add on its inputs, and overlap beside chance, from which
# separating helps.
CROSSTALK, CROWDED = 0.35, 3.0
# Sign conflict beyond what the cosine brings: at least this much, and this many standard errors.
CONFLICT, SURE = 0.03, 4.0
# What may help where sources cancel, and where their signs disagree.
SEPARATING, ELECTING = ("decorrelated_sum",), ("core_ties", "knots_ties")

# ------------------------------------------------------------------------ epochs


def one_run(known: Evidence) -> Iterator[Advice]:
    """Advise a moving or a plain average for epochs of one run."""
    for members in runs(known.report.pairs, len(known.names)):
        order = epoch_order(known.prospect.bench, members)
        named = ", ".join(known.names[index] for index in order)
        pair = next(
            pair for pair in known.report.pairs if pair.relation == "epochs" and pair.first in members
        )
        everyone = known.flat and len(members) == len(known.names)
        numbers = {"cosine": pair.whole.cosine, "start": pair.start, "order": order}
        apply: dict[str, object] = {}
        more = "an average over them, oldest first, is smoother than the last one"
        if everyone:
            apply = {"method": "ema", "keep": order, "ratios": [1.0] * len(order)}
            more += _oldest(known, apply, order[0])
        if not everyone or _as_strong(known, apply):
            reason = f"{named} are epochs of one run ({pair.reason}); {more}."
            yield Advice("epochs", "Use EMA of epochs", reason, numbers, apply)
        yield from _mean(known, order, named, numbers)


def _oldest(known: Evidence, apply: Mapping[str, object], oldest: int) -> str:
    """Say how much of an average the oldest epoch is, as the end of a sentence."""
    trial = known.tried(apply)
    return (
        "" if trial is None else f"; {known.names[oldest]} is {percent(trial.outcome.shares[oldest])} of it"
    )


def _as_strong(known: Evidence, apply: Mapping[str, object]) -> bool:
    """Tell whether a change makes something else than is there now, about as strong as one of the sources."""
    trial = known.tried(apply)
    if trial is None or trial.nothing_new:
        return False
    least, most = float(known.each.min()), float(known.each.max())
    slack = tolerances.AS_STRONG
    return (1.0 - slack) * least <= trial.outcome.norm <= (1.0 + slack) * most


def _mean(
    known: Evidence, members: Sequence[int], named: str, numbers: Mapping[str, object]
) -> Iterator[Advice]:
    """Offer the plain mean of epochs, Σ ΔWᵢ/n, at the largest of their ratios where others are there."""
    recipe = known.recipe
    ratios = [known.ratios[index] for index in members]
    apply: dict[str, object] = {}
    if known.flat and len(members) == len(known.names):
        if recipe.method == "ema":
            return
        apply = {"method": "average", "ratios": [1.0] * len(members)}
        if not _as_strong(known, apply):
            return
    elif known.flat and recipe.declared().stacks:
        each = tidy(max(ratios, key=abs) / len(members))
        apply = {"ratios": [each if index in members else None for index in range(len(known.names))]}
        if not known.worthwhile(apply):
            return
    if apply:
        yield Advice(
            "epochs-mean",
            "Average the epochs",
            f"the plain mean of {named} counts each alike: smoother than one of them, and as strong.",
            numbers,
            apply,
        )


# ------------------------------------------------------------------------ what sources want


def shared(known: Evidence) -> Iterator[Advice]:
    """Advise an average where all sources want the same and their sum is too strong for it."""
    if not (known.recipe.declared().adds and known.all_related):
        return
    trial = known.tried({"method": "average"})
    top = float(known.each.max(initial=0.0))
    now = known.outcome.whole.norm if known.outcome is not None else 0.0
    if trial is None or now <= (1.0 + tolerances.AS_STRONG) * top:
        return  # counted twice, and yet not stronger than one of them alone: nothing is wrong
    if not trial.size * now <= (1.0 + tolerances.AS_STRONG) * top:
        return
    pair = max(known.free_pairs("related", "same start"), key=lambda one: one.whole.cosine)
    yield Advice(
        "related",
        f"Use the {METHODS['average'].title.lower()}",
        f"{_names(known, pair)} largely want the same (cosine {pair.whole.cosine:.2f}): at these ratios "
        f"the sum is {now / top:.1f} × as strong as the stronger of them alone; the average is the same "
        f"merge at {percent(trial.size)} of that strength.",
        {"cosine": pair.whole.cosine, "size": trial.size},
        {"method": "average"},
    )


def opposed(known: Evidence) -> Iterator[Advice]:
    """Say where two sources pull against each other, and advise a method only if it holds more of both."""
    against = known.free_pairs("opposed")
    if not against or not known.recipe.declared().adds:
        return
    pair = min(against, key=lambda one: one.whole.cosine)
    if _outside_encoders(known, pair) > APART:
        return  # only the text encoders quarrel, which has an advice of its own
    method = _holds_more(known, pair, SEPARATING)
    facts = (
        f"{_names(known, pair)} pull in opposite directions (cosine {pair.whole.cosine:.2f}) and cancel "
        f"where they meet{_left(known, pair)}"
    )
    if method is None:
        yield Advice(
            "opposed",
            "They cancel each other",
            f"{facts}; no method holds more of both: choose one, or give them different blocks.",
            {"cosine": pair.whole.cosine},
        )
        return
    yield Advice(
        "opposed",
        f"Use the {method.title.lower()}",
        f"{facts}; separating their inputs lets each keep more of its own.",
        {"cosine": pair.whole.cosine},
        {"method": method.name},
    )


def _outside_encoders(known: Evidence, pair: PairReport) -> float:
    """Return the cosine of two sources without their text encoders."""
    rest = known.prospect.bench.whole - known.encoders
    size = math.sqrt(max(float(rest[pair.first, pair.first] * rest[pair.second, pair.second]), 0.0))
    return float(rest[pair.first, pair.second]) / size if size > 0 else 0.0


def _left(known: Evidence, pair: PairReport) -> str:
    if known.outcome is None:
        return ""
    kept = [max(0.0, known.outcome.whole.retention[place]) for place in (pair.first, pair.second)]
    return f": {percent(kept[0])} and {percent(kept[1])} of them is in the merge"


def crowded(known: Evidence) -> Iterator[Advice]:
    """Advise the decorrelated sum where sources that read the same inputs disturb each other there, and it
    lowers that by more than a weaker sum would.
    """
    outcome = known.outcome
    if outcome is None or not known.recipe.declared().adds:
        return
    for pair in known.free_pairs("unrelated", "same start"):
        part, places = pair.whole, (pair.first, pair.second)
        talk = max((outcome.whole.crosstalk[i] for i in places), default=math.nan)
        if not (talk >= CROSSTALK and part.overlap_in >= CROWDED * part.chance_in > 0):
            continue
        trial = known.tried({"method": "decorrelated_sum"})
        if trial is None or trial.rescales:
            return
        after = max(trial.outcome.crosstalk[i] for i in places)
        weaker = max(sum_at(known.prospect, trial).crosstalk[i] for i in places)
        if not after <= tolerances.EASED * min(weaker, talk):
            return
        yield Advice(
            "crowded",
            f"Use the {METHODS['decorrelated_sum'].title.lower()}",
            f"{_names(known, pair)} read the same inputs ({part.overlap_in / part.chance_in:.1f} × chance) "
            f"and add up to {percent(talk)} of the other's work there; that would be {percent(after)}, "
            f"{_strength(trial)}.",
            {"crosstalk": talk, "after": after, "overlap": part.overlap_in, "chance": part.chance_in},
            {"method": "decorrelated_sum"},
        )
        return


def _strength(trial: Trial) -> str:
    return f"in a merge {trial.size:.2f} × as strong"


def fighting(known: Evidence) -> Iterator[Advice]:
    """Say where signs disagree more than chance and cosine explain, and advise an election of signs only if
    it holds more of both.
    """
    if not known.recipe.declared().adds:
        return
    for pair in known.free_pairs("unrelated", "same start", "related", "opposed"):
        part = pair.whole
        if not (part.excess > CONFLICT and part.excess > SURE * part.error):
            continue
        method = _holds_more(known, pair, ELECTING)
        facts = (
            f"the signs of {_names(known, pair)} disagree in {percent(part.conflict, 1)} of the entries, "
            f"{part.excess * 100:.1f} points more than their cosine explains (± {part.error * 100:.1f})"
        )
        none = "no election of signs holds more of both: give them different blocks, or other ratios"
        yield Advice(
            "conflict",
            f"Try {method.title}" if method else "Their signs disagree",
            f"{facts}; {f'{method.title} holds more of both' if method else none}.",
            {"conflict": part.conflict, "expected": part.expected, "error": part.error},
            {"method": method.name} if method else {},
        )
        return


def _holds_more(known: Evidence, pair: PairReport, names: Sequence[str]) -> Method | None:
    """Return the method of which the source that comes off worse has clearly more, at any strength."""
    places = [pair.first, pair.second]
    best, gained = None, tolerances.MORE_OF_BOTH
    for name in names:
        now, trial = known.tried({}), known.tried({"method": name})
        if now is None or trial is None:
            continue
        rows = trial.outcomes.places.tolist()
        before, after = (_least(one.outcomes.at(rows), places) for one in (now, trial))
        if after - before >= gained:
            best, gained = METHODS[name], after - before
    return best


def _least(outcomes: Outcomes, places: Sequence[int]) -> float:
    """Return the smaller of the cosines of a merge and two of its sources."""
    size = math.sqrt(float(outcomes.square.sum()))
    norms = np.sqrt(outcomes.asked.sum(0))
    pull = outcomes.pull.sum(0)
    found = [
        float(pull[place] / (norms[place] * size)) if norms[place] * size > 0 else 0.0 for place in places
    ]
    return min(found)


# ------------------------------------------------------------------------ no evidence


def unfounded(known: Evidence) -> Iterator[Advice]:
    """Advise the plain sum where the chosen method has nothing to work on and departs from it, and say what
    it costs.
    """
    pairs, method = known.report.pairs, known.recipe.declared()
    if not pairs or any(pair.relation not in ("unrelated", "disjoint", "same start") for pair in pairs):
        return
    now = known.tried({})
    if now is None or not _departs(now):
        return
    reason = _no_ground(known, method)
    if reason:
        kept = known.outcome.error if known.outcome is not None else 0.0
        more = f", and the cut to a LoRA leaves out {percent(kept**2)} of it" if kept > 0.1 else ""
        yield Advice(
            "unfounded",
            "Use the weighted sum",
            f"{reason}: what it makes is at cosine {now.sum_cosine:.2f} to the sum and {now.to_sum:.2f} × as "
            f"strong{more}.",
            {"cosine": now.sum_cosine, "size": now.to_sum},
            {"method": "weighted_sum"},
        )


def _departs(now: Trial) -> bool:
    """Tell whether a merge is another one than the weighted sum of its sources, or clearly fainter."""
    return not now.sum_cosine >= tolerances.SAME_DIRECTION or now.to_sum < 1.0 - tolerances.AS_STRONG


def _no_ground(known: Evidence, method: Method) -> str:
    """Say why there is nothing for the method to do; "" where there is, or where that cannot be said."""
    pairs = known.report.pairs
    largest = max((abs(p.whole.cosine) for p in pairs if not math.isnan(p.whole.cosine)), default=0.0)
    total = sum(abs(ratio) for ratio in known.ratios)
    if method.elects and not any(p.whole.excess > max(0.01, 3 * p.whole.error) for p in pairs):
        shown = max((p.whole.conflict for p in pairs if not math.isnan(p.whole.conflict)), default=math.nan)
        return (
            f"signs disagree in {percent(shown, 1)} of the entries, as chance has it: {method.title} "
            "removes entries at random here"
        )
    if method.drops:
        return f"the sources are unrelated (cosine {largest:.3f}), so dropping at random only adds noise"
    if method.averages and (total > 1.05 or method.kin_only):
        return (
            f"the sources share nothing (cosine {largest:.3f}), "
            f"so {method.title} only makes each of them fainter"
        )
    return ""


def _names(known: Evidence, pair: PairReport) -> str:
    return f"{known.names[pair.first]} and {known.names[pair.second]}"
