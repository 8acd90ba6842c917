"""The numbers that advice is drawn from, gathered once.

Advice on strength: balancing sources, the whole merge, and the text encoders.

Advice on the method: another one only where evidence speaks for it, the plain sum where none speaks for
the chosen one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib_merge.analysis.model import Advice, AnalysisReport, PairReport, RecipeReport
from lib_merge.analysis.outcome import Prospect, uses
from lib_merge.analysis.recognition import held
from lib_merge.analysis.sources import SAME_LORA, epoch_order, runs
from lib_merge.recipe import Recipe

# ------------------------------------------------------------------------ evidence


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a merge when advice is drawn.

    heard     Float64[source], ‖wᵢΔWᵢ‖ over everything
    each      Float64[source], the same at ratio 1
    encoders  Float64[source source], ⟨ΔWᵢ, ΔWⱼ⟩ over the text encoders
    flat      the recipe has no groups, so that ratios belong to files
    held      places of sources that keep their ratio, as speed LoRAs do
    """

    report: AnalysisReport
    prospect: Prospect
    heard: np.ndarray
    each: np.ndarray
    encoders: np.ndarray
    flat: bool
    held: frozenset[int] = frozenset()

    @property
    def recipe(self) -> Recipe:
        """The recipe that was looked at."""
        return self.prospect.recipe

    @property
    def outcome(self) -> RecipeReport | None:
        """What it will make, where that is known."""
        return self.report.recipe

    @property
    def names(self) -> list[str]:
        """What the sources are called."""
        return [source.label for source in self.report.sources]

    @property
    def ratios(self) -> list[float]:
        """Ratio per file."""
        return [use.ratio for use in uses(self.prospect.tree.root)]

    @property
    def strength(self) -> float:
        """‖Σ wᵢΔWᵢ‖, exact; what a weighted sum would be, without the sources that keep their ratio."""
        asked = np.array(self.prospect.weighing.asked)
        asked[:, sorted(self.held)] = 0.0
        return math.sqrt(
            max(float(np.einsum("mi,mij,mj->", asked, self.prospect.bench.products, asked)), 0.0)
        )

    @property
    def free(self) -> np.ndarray:
        """Bool[source], those whose ratio may be changed."""
        return np.array([index not in self.held for index in range(len(self.names))])

    def keeping(self, ratios: Sequence[float]) -> list[float]:
        """Return ratios in which sources that keep theirs have it."""
        return [
            old if index in self.held else new for index, (old, new) in enumerate(zip(self.ratios, ratios))
        ]

    @property
    def kept(self) -> str:
        """Say which sources keep their ratio, and why, as the end of a sentence; "" where none does."""
        marks = {index: held(self.report.sources[index].marks) for index in sorted(self.held)}
        named = [f"{self.names[index]} keeps its ratio: {mark.said}" for index, mark in marks.items() if mark]
        return f" ({'; '.join(named)})" if named else ""

    def pairs(self, *relations: str) -> list[PairReport]:
        """Return the pairs with one of these relations."""
        return [pair for pair in self.report.pairs if pair.relation in relations]

    def free_pairs(self, *relations: str) -> list[PairReport]:
        """Return the pairs with one of these relations of which neither keeps its ratio."""
        return [pair for pair in self.pairs(*relations) if self.held.isdisjoint((pair.first, pair.second))]

    def te_ratios(self, factors: Sequence[float], *, always: bool = False) -> list[Any] | None:
        """Return text-encoder ratios times factors; None where no source has its own (unless `always`)."""
        sources = self.recipe.sources
        if not always and all(source.te_ratio is None for source in sources):
            return None
        ratios: list[Any] = []
        for source, factor in zip(sources, factors):
            own = source.te_ratio
            if own is None:
                ratios.append(tidy(source.ratio * factor) if always else None)
            else:
                ratios.append(
                    [tidy(x * factor) for x in own] if isinstance(own, tuple) else tidy(own * factor)
                )
        return ratios


def evidence(report: AnalysisReport, prospect: Prospect) -> Evidence:
    """Gather what advice needs."""
    bench, asked = prospect.bench, prospect.weighing.asked
    heard = np.sqrt((np.square(asked) * bench.products.diagonal(axis1=1, axis2=2)).sum(0).clip(0))
    ratios = np.array([abs(use.ratio) for use in uses(prospect.tree.root)])
    each = np.divide(heard, ratios, out=np.sqrt(bench.whole.diagonal().clip(0)), where=ratios > 0)
    encoders = bench.products[[bool(module.task.encoder) for module in bench.modules]].sum(0)
    return Evidence(
        report=report,
        prospect=prospect,
        heard=heard,
        each=each,
        encoders=encoders,
        flat=prospect.recipe.flat,
        held=held_places(report),
    )


def held_places(report: AnalysisReport) -> frozenset[int]:
    """Return the places of sources that keep their ratio, as speed LoRAs do."""
    return frozenset(index for index, source in enumerate(report.sources) if held(source.marks))


def tidy(value: float) -> float:
    """Return a number as a person would type it: two decimals, or two digits where it is small."""
    if abs(value) >= 0.1 or value == 0:
        return round(value, 2)
    return float(f"{value:.2g}")


def percent(value: float, digits: int = 0) -> str:
    """Return a share as text; a share that is not known as a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}%}"


def plus(value: float, digits: int = 3) -> str:
    """Return a number with fixed decimals and without a minus before nothing."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def both(ratios: Sequence[float]) -> str:
    """Return ratios side by side: `0.83 / 0.17`."""
    return " / ".join(f"{ratio:g}" for ratio in ratios)


# ------------------------------------------------------------------------ balance

# One source is heard this much more than another, and not because the ratios ask for it.
LOUDER, UNASKED = 2.0, 1.5
# One step of balancing moves a ratio by at most this factor.
CAP = 2.0
# Strength beside the strongest source, as it is heard and at ratio 1: two unrelated ones reach 1.41 together.
STRONG = 1.5
# Cosine of two text encoders' changes that counts as pulling apart, and the least share of the energy they
# need.
APART, ENOUGH = -0.1, 1e-3


def balance(evidence: Evidence) -> Iterator[Advice]:
    """Advise balancing where one source is heard twice as much as another without being asked to.

    wᵢ ← wᵢ·clip(n̄/nᵢ, ½, 2) with nᵢ the norm at ratio 1 and n̄ their geometric mean, then scaled so that
    Σ|wᵢ| stays.
    """
    heard, each = evidence.heard, evidence.each
    used = np.flatnonzero((heard > 0) & (each > 0) & evidence.free)
    if len(used) < 2 or _copies(evidence):
        return
    loud, quiet = used[int(np.argmax(heard[used]))], used[int(np.argmin(heard[used]))]
    factor, stronger = float(heard[loud] / heard[quiet]), float(each[loud] / each[quiet])
    if factor < LOUDER or stronger < UNASKED:
        return
    ratios = balanced(evidence.ratios, np.where(evidence.free, each, 0.0))
    names, share = evidence.names, float(heard[loud] / heard.sum())
    apply = {}
    if evidence.flat:
        factors = [new / old if old else 1.0 for new, old in zip(ratios, evidence.ratios)]
        apply = {"ratios": ratios, **_with_te(evidence, factors)}
    reason = (
        f"{names[loud]} is {stronger:.1f} × as strong as {names[quiet]}: at {both(evidence.ratios)} "
        "it carries "
        f"{share:.0%} of the merge{evidence.kept}"
    )
    numbers = {"stronger": stronger, "share": share, "norms": [float(value) for value in each]}
    yield Advice("balance", f"Balance → {both(ratios)}", f"{reason}.", numbers, apply)
    yield from _by_block(evidence, ratios)


def balanced(ratios: list[float], norms: np.ndarray) -> list[float]:
    """Return ratios whose sources are nearer to each other in strength; those of norm 0 stay as they are."""
    used = [index for index, ratio in enumerate(ratios) if ratio and norms[index] > 0]
    if not used:
        return list(ratios)
    middle = math.exp(sum(math.log(float(norms[index])) for index in used) / len(used))
    moved = [
        ratio * min(CAP, max(1 / CAP, middle / float(norms[index]))) if index in used else ratio
        for index, ratio in enumerate(ratios)
    ]
    scale = sum(abs(ratios[index]) for index in used) / sum(abs(moved[index]) for index in used)
    return [tidy(ratio * scale) if index in used else ratio for index, ratio in enumerate(moved)]


def _by_block(evidence: Evidence, ratios: list[float]) -> Iterator[Advice]:
    """Advise block weights as well where one factor cannot do it: who is stronger changes by more than the
    cap.
    """
    weights, spread = block_balance(evidence)
    if spread < CAP**2 or not evidence.flat or any(source.blocks for source in evidence.recipe.sources):
        return
    yield Advice(
        "balance-blocks",
        "Balance every block by itself",
        f"who is stronger differs by {spread:.1f} × between blocks, which one ratio cannot even "
        "out; it also flattens what "
        "each LoRA does where.",
        {"spread": spread},
        {"ratios": ratios, "blocks": weights},
    )


def block_balance(evidence: Evidence) -> tuple[list[dict[str, float]], float]:
    """Return block weights per source that even out each block (½ … 2), and how much the balance differs
    between blocks.
    """
    bench = evidence.prospect.bench
    weights: list[dict[str, float]] = [{} for _ in bench.files]
    logs: list[float] = []
    free = np.flatnonzero(evidence.free)
    each = evidence.each[free]
    total = np.log(np.maximum(each, 1e-300))
    for block, places in bench.blocks().items():
        energy = bench.products[places].sum(0).diagonal().clip(0)[free]
        if (energy <= 1e-4 * np.square(each)).any():
            continue  # a block that one source hardly touches needs no balance
        norms = np.sqrt(energy)
        away = (np.log(norms) - total) - float(np.mean(np.log(norms) - total))
        logs.append(float(away.max() - away.min()))
        for index, value in zip(free.tolist(), away):
            weight = tidy(min(CAP, max(1 / CAP, math.exp(-float(value)))))
            if weight != 1.0:
                weights[index][block] = weight
    return weights, math.exp(max(logs, default=0.0))


def strength(evidence: Evidence) -> Iterator[Advice]:
    """Advise a lower total where the sum is much stronger than any source alone: scale = max‖wᵢΔWᵢ‖ / ‖Σ
    wᵢΔWᵢ‖.
    """
    heard, total = evidence.heard[evidence.free], evidence.strength
    top, alone = float(heard.max(initial=0.0)), float(evidence.each[evidence.free].max(initial=0.0))
    if (
        not evidence.recipe.declared().stacks
        or not top > 0
        or total <= STRONG * max(top, alone)
        or _copies(evidence)
    ):
        return
    if evidence.pairs("related", "epochs"):
        return  # then the method is the better advice
    scale = top / total
    ratios = evidence.keeping([tidy(ratio * scale) for ratio in evidence.ratios])
    factors = [scale if free else 1.0 for free in evidence.free]
    apply = {"ratios": ratios, **_with_te(evidence, factors)} if evidence.flat else {}
    yield Advice(
        "strength",
        f"Lower the total → {both(ratios)}",
        f"together they are {total / top:.2f} × as strong as the strongest of them, which tends to "
        "over-bake; these ratios bring "
        f"the merge to that one's strength{evidence.kept}.",
        {"strength": total, "strongest": top, "scale": scale},
        apply,
    )


def text_encoders(evidence: Evidence) -> Iterator[Advice]:
    """Advise a lower text-encoder ratio where two sources change the text encoders against each other."""
    gram, whole = evidence.encoders, evidence.prospect.bench.whole
    for pair in evidence.pairs("unrelated", "same start", "related", "opposed"):
        a, b = pair.first, pair.second
        size = math.sqrt(max(float(gram[a, a] * gram[b, b]), 0.0))
        shares = [float(gram[i, i] / whole[i, i]) if whole[i, i] > 0 else 0.0 for i in (a, b)]
        if not size > 0 or min(shares) < ENOUGH or gram[a, b] / size > APART:
            continue
        cosine = float(gram[a, b]) / size
        apply = (
            {"te_ratios": evidence.te_ratios([0.5 if free else 1.0 for free in evidence.free], always=True)}
            if evidence.flat
            else {}
        )
        yield Advice(
            "text-encoder",
            "Halve the text-encoder ratio",
            f"the text encoders of {evidence.names[a]} and {evidence.names[b]} pull apart (cosine "
            f"{cosine:.2f}; unrelated ones "
            f"have 0), and hold {percent(shares[0])} and {percent(shares[1])} of their energy.",
            {"cosine": cosine, "shares": shares},
            apply,
        )
        return


def _with_te(evidence: Evidence, factors: list[float]) -> dict[str, object]:
    te = evidence.te_ratios(factors)
    return {} if te is None else {"te_ratios": te}


def _copies(evidence: Evidence) -> bool:
    return bool(evidence.pairs(*SAME_LORA))


# ------------------------------------------------------------------------ choose

# Cosine from which two sources want so much of the same that a sum counts it twice.
SAME = 0.5
# Share of a source's own work that others add on its inputs, and overlap beside chance, from which
# separating helps.
CROSSTALK, CROWDED = 0.35, 3.0
# Sign conflict beyond what the cosine brings: at least this much, and this many standard errors.
CONFLICT, SURE = 0.03, 4.0


def one_run(evidence: Evidence) -> Iterator[Advice]:
    """Advise a moving or a plain average for epochs of one run."""
    for members in runs(evidence.report.pairs, len(evidence.names)):
        order = epoch_order(evidence.prospect.bench, members)
        named = ", ".join(evidence.names[index] for index in order)
        pair = next(
            pair for pair in evidence.report.pairs if pair.relation == "epochs" and pair.first in members
        )
        everyone = evidence.flat and len(members) == len(evidence.names)
        numbers = {"cosine": pair.whole.cosine, "start": pair.start, "order": order}
        if not (evidence.recipe.method == "ema" and evidence.flat and order == sorted(order)):
            yield Advice(
                "epochs",
                "Use EMA of epochs",
                f"{named} are epochs of one run ({pair.reason}); an average over them, "
                "oldest first, is smoother than "
                "the last one, and a sum would be far too strong.",
                numbers,
                {"method": "ema", "keep": order, "ratios": [1.0] * len(order)} if everyone else {},
            )
        yield from _mean(evidence, order, named, numbers)


def _mean(
    evidence: Evidence, members: Sequence[int], named: str, numbers: Mapping[str, object]
) -> Iterator[Advice]:
    """Offer the plain mean of epochs, Σ ΔWᵢ/n, at the largest of their ratios where others are there."""
    recipe = evidence.recipe
    ratios = [evidence.ratios[index] for index in members]
    everyone = len(members) == len(evidence.names)
    apply: dict[str, object] = {}
    if evidence.flat and everyone:
        if recipe.method == "ema" or (recipe.method == "average" and len(set(ratios)) == 1):
            return
        apply = {"method": "average", "ratios": [1.0] * len(members)}
    elif evidence.flat and recipe.declared().stacks:
        each = tidy(max(ratios, key=abs) / len(members))
        if all(ratio == each for ratio in ratios):
            return
        apply = {"ratios": [each if index in members else None for index in range(len(evidence.names))]}
    if apply:
        yield Advice(
            "epochs-mean",
            "Average the epochs",
            f"the plain mean of {named} counts each alike: smoother than one of them, and as strong.",
            numbers,
            apply,
        )


def shared(evidence: Evidence) -> Iterator[Advice]:
    """Advise an average where two sources want the same, and separation where they pull against each
    other.
    """
    if not evidence.recipe.declared().adds:
        return
    related = [pair for pair in evidence.free_pairs("related", "same start") if pair.whole.cosine >= SAME]
    if related:
        pair = max(related, key=lambda pair_report: pair_report.whole.cosine)
        yield Advice(
            "related",
            "Use the average",
            f"{_names(evidence, pair)} largely want the same (cosine {pair.whole.cosine:.2f}): a "
            "sum counts what they share "
            "twice.",
            {"cosine": pair.whole.cosine},
            {"method": "average"},
        )
    against = evidence.free_pairs("opposed")
    if against:
        pair = min(against, key=lambda pair_report: pair_report.whole.cosine)
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
    for pair in evidence.free_pairs("unrelated", "same start"):
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
    for pair in evidence.free_pairs("unrelated", "same start", "related", "opposed"):
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
