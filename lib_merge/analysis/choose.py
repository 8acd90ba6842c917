"""Advice on the method: another one only where evidence speaks for it, the plain sum where none speaks for
the chosen one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lib_merge.analysis.evidence import Evidence, percent
from lib_merge.analysis.figures import PairReport
from lib_merge.analysis.model import Advice
from lib_merge.analysis.relations import epoch_order, runs

# Cosine from which two sources want so much of the same that a sum counts it twice.
SAME = 0.5
# Share of a source's own work that others add on its inputs, and overlap beside chance, from which
# separating helps.
CROSSTALK, CROWDED = 0.35, 3.0
# Sign conflict beyond what the cosine brings: at least this much, and this many standard errors.
CONFLICT, SURE = 0.03, 4.0


def one_run(evidence: Evidence) -> Iterator[Advice]:
    """Advise the moving average for epochs of one run."""
    for members in runs(evidence.report.pairs, len(evidence.names)):
        order = epoch_order(evidence.prospect.bench, members)
        names = [evidence.names[index] for index in order]
        if evidence.recipe.method == "ema" and evidence.flat and order == sorted(order):
            continue
        pair = next(
            pair for pair in evidence.report.pairs if pair.relation == "epochs" and pair.first in members
        )
        everyone = evidence.flat and len(members) == len(evidence.names)
        yield Advice(
            "epochs",
            "Use EMA of epochs",
            f"{', '.join(names)} are epochs of one run ({pair.reason}); an average over them, "
            "oldest first, is smoother than "
            "the last one, and a sum would be far too strong.",
            {"cosine": pair.whole.cosine, "start": pair.start, "order": order},
            {"method": "ema", "keep": order, "ratios": [1.0] * len(order)} if everyone else {},
        )


def shared(evidence: Evidence) -> Iterator[Advice]:
    """Advise an average where two sources want the same, and separation where they pull against each
    other.
    """
    if not evidence.recipe.declared().adds:
        return
    related = [pair for pair in evidence.pairs("related", "same start") if pair.whole.cosine >= SAME]
    if related:
        pair = max(related, key=lambda found: found.whole.cosine)
        yield Advice(
            "related",
            "Use the average",
            f"{_names(evidence, pair)} largely want the same (cosine {pair.whole.cosine:.2f}): a "
            "sum counts what they share "
            "twice.",
            {"cosine": pair.whole.cosine},
            {"method": "average"},
        )
    against = evidence.pairs("opposed")
    if against:
        pair = min(against, key=lambda found: found.whole.cosine)
        yield Advice(
            "opposed",
            "Use the decorrelated sum",
            f"{_names(evidence, pair)} pull in opposite directions (cosine {pair.whole.cosine:.2f}) "
            "and cancel where they meet; "
            "separating their inputs lets each keep its own.",
            {"cosine": pair.whole.cosine},
            {"method": "decorrelated_sum"},
        )


def crowded(evidence: Evidence) -> Iterator[Advice]:
    """Advise the decorrelated sum where unrelated sources read the same inputs and disturb each other
    there.
    """
    outcome = evidence.outcome
    if outcome is None or not evidence.recipe.declared().adds:
        return
    for pair in evidence.pairs("unrelated", "same start"):
        part = pair.whole
        talk = max((outcome.whole.crosstalk[i] for i in (pair.first, pair.second)), default=math.nan)
        if not (talk >= CROSSTALK and part.overlap_in >= CROWDED * part.chance_in > 0):
            continue
        yield Advice(
            "crowded",
            "Use the decorrelated sum",
            f"{_names(evidence, pair)} read the same inputs ({part.overlap_in / part.chance_in:.1f} "
            "× chance) and add up to "
            f"{percent(talk)} of the other's work there.",
            {"crosstalk": talk, "overlap": part.overlap_in, "chance": part.chance_in},
            {"method": "decorrelated_sum"},
        )
        return


def fighting(evidence: Evidence) -> Iterator[Advice]:
    """Advise an election of signs where they disagree more than chance and cosine explain."""
    if not evidence.recipe.declared().adds:
        return
    for pair in evidence.pairs("unrelated", "same start", "related", "opposed"):
        part = pair.whole
        if not (part.excess > CONFLICT and part.excess > SURE * part.error):
            continue
        yield Advice(
            "conflict",
            "Try Core TIES",
            f"the signs of {_names(evidence, pair)} disagree in {percent(part.conflict, 1)} of the entries, "
            f"{part.excess * 100:.1f} points more than their cosine explains (± {part.error * 100:.1f}).",
            {"conflict": part.conflict, "expected": part.expected, "error": part.error},
            {"method": "core_ties"},
        )
        return


def unfounded(evidence: Evidence) -> Iterator[Advice]:
    """Advise the plain sum where the chosen method has nothing to work on, and say what it costs."""
    pairs, method = evidence.report.pairs, evidence.recipe.declared()
    if not pairs or any(pair.relation not in ("unrelated", "disjoint", "same start") for pair in pairs):
        return
    largest = max((abs(p.whole.cosine) for p in pairs if not math.isnan(p.whole.cosine)), default=0.0)
    total = sum(abs(ratio) for ratio in evidence.ratios)
    reason = ""
    if method.elects and not any(p.whole.excess > max(0.01, 3 * p.whole.error) for p in pairs):
        shown = max((p.whole.conflict for p in pairs if not math.isnan(p.whole.conflict)), default=math.nan)
        reason = (
            f"signs disagree in {percent(shown, 1)} of the entries, as chance has it: {method.title} "
            "removes entries at random here"
        )
    elif method.drops:
        reason = f"the sources are unrelated (cosine {largest:.3f}), so dropping at random only adds noise"
    elif method.averages and (total > 1.05 or method.kin_only):
        reason = (
            f"the sources share nothing (cosine {largest:.3f}), "
            f"so {method.title} only makes each of them fainter"
        )
    if reason:
        kept = evidence.outcome.error if evidence.outcome is not None else 0.0
        more = f", and the cut to a LoRA loses {percent(kept**2)} of the energy" if kept > 0.1 else ""
        yield Advice(
            "unfounded",
            "Use the weighted sum",
            f"{reason}{more}.",
            {"cosine": largest},
            {"method": "weighted_sum"},
        )


def _names(evidence: Evidence, pair: PairReport) -> str:
    return f"{evidence.names[pair.first]} and {evidence.names[pair.second]}"
