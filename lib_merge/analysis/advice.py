"""Advice drawn from the numbers: each with its reason, and with the change that carries it out.

An unremarkable merge gets none: two unrelated LoRAs of like strength disagree in half of their signs by
chance, and that is no conflict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lib_merge.analysis.aside import outside
from lib_merge.analysis.choice import crowded, fighting, one_run, opposed, shared, unfounded
from lib_merge.analysis.cut import lost
from lib_merge.analysis.evidence import Evidence, both, evidence, megabytes, percent, policy_words, tidy
from lib_merge.analysis.model import Advice, AnalysisReport, PairReport
from lib_merge.analysis.outcome import Prospect
from lib_merge.analysis.sources import SAME_LORA
from lib_merge.analysis.strength import balance, strength, text_encoders
from lib_merge.engine.report import part_words
from lib_merge.linalg import tolerances
from lib_merge.linalg.svd import pooled, rank_for
from lib_merge.methods import DEFAULT_METHOD
from lib_merge.ranks.budget import fewest
from lib_merge.ranks.policy import PolicyKind, RankPolicy

# A smaller rank is worth a word when it saves this share of the bytes while keeping KEEP of the energy.
WORTH, KEEP = 0.3, 0.99
# A cut above this share of the energy is worth a word.
CUT = 0.05
# Strength beside the loudest source below which a cut of the rank would take most of a source.
FAINT = 0.4
# Share of its sources' strength below which next to nothing is left.
EMPTY = 0.3


def advise(report: AnalysisReport, prospect: Prospect) -> Iterator[Advice]:
    """Yield what the evidence speaks for, the most pressing first; nothing for an unremarkable merge.

    Args:
        report: with sources and pairs, and the recipe's outcome where it is known.
        prospect: the recipe looked at.
    """
    known = evidence(report, prospect)
    for rule in RULES:
        yield from rule(known)
    if not (known.pairs(*SAME_LORA, "epochs") or _drowned(known)):
        yield from _smaller(known)


def _drowned(known: Evidence) -> bool:
    """Tell whether a source is so faint beside the others that a smaller rank would cut it away."""
    used = known.heard[known.heard > 0]
    return len(used) > 1 and bool(used.min() < FAINT * used.max())


def _broken(known: Evidence) -> Iterator[Advice]:
    bad = [index for index, source in enumerate(known.report.sources) if source.broken]
    if not bad:
        return
    rest = [index for index in range(len(known.names)) if index not in bad]
    named = ", ".join(known.names[index] for index in bad)
    first = known.report.sources[bad[0]].broken[0]
    reason = f"it holds NaN or infinity (first in {first}), which would spoil the merge: get the file again."
    numbers = {"tensors": sum(len(known.report.sources[index].broken) for index in bad)}
    yield Advice(
        "broken", f"Leave out {named}", reason, numbers, {"keep": rest} if known.flat and rest else {}
    )


def _bases(known: Evidence) -> Iterator[Advice]:
    for number, warning in enumerate(known.report.training.warnings):
        yield Advice(
            f"bases-{number}" if number else "bases", "Check that they belong together", f"{warning}."
        )


def _outside(known: Evidence) -> Iterator[Advice]:
    yield from outside(known.recipe, [source.marks for source in known.report.sources])


def _copies(known: Evidence) -> Iterator[Advice]:
    """Advise one file instead of two that are the same LoRA, with the ratio that both have together."""
    for pair in known.pairs(*SAME_LORA):
        keep, drop = pair.first, pair.second
        scale = pair.scale
        if pair.relation == "resized":
            ranks = [known.report.sources[index].rank[1] for index in (keep, drop)]
            keep, drop = (drop, keep) if ranks[1] > ranks[0] else (keep, drop)
            scale = 1.0
        ratio, change = _one_of(known, keep, drop, scale)
        yield Advice(
            f"{pair.relation.replace(' ', '-')}-{pair.first}-{pair.second}",
            f"Keep only {known.names[keep]}" if ratio else "They cancel each other",
            _copy_reason(known, pair, ratio),
            {"cosine": pair.whole.cosine, "scale": scale, "ratio": ratio},
            change,
        )


def _copy_reason(known: Evidence, pair: PairReport, ratio: float) -> str:
    if pair.relation == "resized":
        return f"{pair.reason}: together they are one LoRA twice, at ratio {ratio:g}."
    if pair.relation == "negated copy":
        left = f"what is left is one LoRA at ratio {ratio:g}" if ratio else "nothing is left"
        return f"{pair.reason}: they cancel, and {left}."
    almost = "almost " if pair.relation == "near-duplicate" else ""
    return f"{pair.reason}: together they are {almost}one LoRA at ratio {ratio:g}."


def _one_of(known: Evidence, keep: int, drop: int, scale: float) -> tuple[float, dict[str, object]]:
    """Return the ratio at which one source stands for two, and the change to it where it does."""
    ratio = tidy(known.ratios[keep] + scale * known.ratios[drop])
    left = [index for index in range(len(known.names)) if index != drop]
    method = known.recipe.declared()
    change: dict[str, object] = {}
    if len(left) < method.sources[0] or (len(left) == 1 and not method.stacks):
        change["method"] = DEFAULT_METHOD
        if len(left) == 1 and known.outcome is not None and known.ratios[keep]:
            ratio = tidy(known.ratios[keep] * known.outcome.whole.retention[keep])  # what the method makes
    ratios: list[float | None] = [ratio if index == keep else None for index in range(len(known.names))]
    change.update(ratios=ratios, keep=left)
    fits = known.flat and ratio != 0 and _stands_for(known, change)
    return ratio, change if fits else {}


def _stands_for(known: Evidence, change: Mapping[str, object]) -> bool:
    """Tell whether a merge of fewer sources is the merge of all of them, but for what does not matter."""
    now, trial = known.tried({}), known.tried(change)
    if now is None or trial is None:
        return False
    # of a method that is no sum only its angle to the sum is known, which lies along the one that is kept
    cosine = now.sum_cosine if math.isnan(trial.cosine) else trial.cosine
    return cosine >= 1.0 - tolerances.STANDS_FOR and abs(trial.size - 1.0) <= tolerances.STANDS_FOR


def _empty(known: Evidence) -> Iterator[Advice]:
    """Advise the plain sum where next to nothing is left of the sources."""
    outcome = known.outcome
    if outcome is None or known.pairs("negated copy"):
        return
    wanted = float(np.sqrt(np.square(known.heard).sum()))
    total = sum(abs(ratio) for ratio in known.ratios) or 1.0
    if not wanted > 0 or outcome.whole.norm >= EMPTY * wanted / max(total, 1.0):
        return
    share = outcome.whole.norm / wanted
    plain = {"method": DEFAULT_METHOD}
    trial = None if known.recipe.declared().stacks else known.tried(plain)
    helps = trial is not None and trial.outcome.norm >= EMPTY * wanted / max(total, 1.0)
    why = f"{outcome.title} finds nothing shared" if helps else "they cancel"
    more = f"; their sum has {percent(trial.outcome.norm / wanted)}" if trial is not None and helps else ""
    yield Advice(
        "empty",
        "Use the weighted sum" if helps else "Next to nothing is left",
        f"the result has {percent(share)} of its sources' strength together: {why}{more}.",
        {"share": share},
        plain if helps else {},
    )


# What decides a rank by itself: no smaller one is advised beside it.
_OPEN = (PolicyKind.BUDGET, PolicyKind.ENERGY, PolicyKind.ERROR)


def _smaller(known: Evidence) -> Iterator[Advice]:
    """Advise a rank, or a size, that keeps 99 % of the energy in much fewer bytes."""
    prospect, outcome = known.prospect, known.outcome
    if outcome is None or not prospect.spectra or known.recipe.policy().kind in _OPEN:
        return
    best = smaller(prospect)
    if best is None or best[1] > (1.0 - WORTH) * outcome.bytes:
        return
    text, size, error = best
    yield Advice(
        "rank",
        _shown(text),
        f"{part_words(1.0 - error**2)} of the merge fits into {megabytes(size)} instead of "
        f"{megabytes(outcome.bytes)}.",
        {"bytes": size, "before": outcome.bytes, "error": error},
        {"rank": text},
    )


def _shown(policy: str) -> str:
    kind, _, value = policy.rpartition(":")
    if kind == "budget":
        return f"Save within {value.removesuffix('MB')} MB"
    return f"Keep {float(value):.0%} of every module" if kind else f"Save at rank {value}"


def smaller(prospect: Prospect) -> tuple[str, int, float] | None:
    """Return (policy, bytes, relative error) of the smallest way to keep 99 %: one rank, a share per module,
    or a size.
    """
    spectra, names = prospect.spectra, prospect.names
    one = rank_for(pooled(spectra), KEEP)
    if not one:
        return None
    bytes_at = prospect.size.bytes_at(names)
    shares = RankPolicy(PolicyKind.ENERGY, KEEP)
    wide = np.array([0 if not len(s) or not s[0] > 0 else shares.choose(s, len(s)) for s in spectra])
    prices = prospect.size.prices(names)
    split = fewest(dict(zip(names, spectra)), dict(zip(names, prices.tolist())), KEEP)
    greedy = np.array([split[name] for name in names], dtype=int)
    size = prospect.size.fixed + int(greedy @ prices)  # a budget counts every alpha
    options = [
        (str(one), np.minimum(prospect.stacked, one)),
        (f"energy:{KEEP:g}", np.minimum(prospect.stacked, wide)),
    ]
    step = 10 ** max(0, len(str(size)) - 4)  # three or four digits, rounded up
    budget = f"budget:{-(-size // step) * step / 1e6:g}MB"
    sized = [(text, bytes_at(ranks), lost(spectra, ranks)) for text, ranks in (*options, (budget, greedy))]
    # a plain rank is easier to understand, so others must be clearly smaller
    return min(sized, key=lambda option: option[1] * (1.0 if option[0] == str(one) else 1.1))


def _cut(known: Evidence) -> Iterator[Advice]:
    """Advise a higher rank where the policy throws away more than people would want."""
    outcome = known.outcome
    if outcome is None or not outcome.curve or outcome.error**2 <= CUT:
        return
    enough = next((point for point in outcome.curve if point.energy >= KEEP), outcome.curve[-1])
    yield Advice(
        "cut",
        f"Save at rank {enough.rank}",
        f"{percent(1 - outcome.error**2)} of the merge is kept ({policy_words(outcome.policy)}); rank "
        f"{enough.rank} keeps {percent(enough.energy)} in {megabytes(enough.bytes)}.",
        {"kept": 1 - outcome.error**2, "bytes": enough.bytes},
        {"rank": str(enough.rank)},
    )


def _range(known: Evidence) -> Iterator[Advice]:
    narrow = [source for source in known.report.sources if source.headroom < 2.0]
    if narrow and known.recipe.precision == "fp16":
        source = min(narrow, key=lambda one: one.headroom)
        yield Advice(
            "range",
            "Save as bf16",
            f"{source.label} has numbers up to {source.largest:.3g}, and fp16 ends at 65504.",
            {"largest": source.largest},
            {"precision": "bf16"},
        )


RULES: tuple[Callable[[Evidence], Iterator[Advice]], ...] = (
    _broken,
    _bases,
    _outside,
    _copies,
    one_run,
    balance,
    shared,
    opposed,
    strength,
    crowded,
    fighting,
    text_encoders,
    unfounded,
    _empty,
    _cut,
    _range,
)
__all__ = ["RULES", "advise", "both", "smaller"]
