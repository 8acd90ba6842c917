"""Advice on strength: balancing sources, the whole merge, and the text encoders."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lib_merge.analysis.evidence import Evidence, both, percent, tidy
from lib_merge.analysis.model import Advice
from lib_merge.analysis.relations import SAME_LORA

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
    used = np.flatnonzero((heard > 0) & (each > 0))
    if len(used) < 2 or _copies(evidence):
        return
    loud, quiet = used[int(np.argmax(heard[used]))], used[int(np.argmin(heard[used]))]
    factor, stronger = float(heard[loud] / heard[quiet]), float(each[loud] / each[quiet])
    if factor < LOUDER or stronger < UNASKED:
        return
    ratios = balanced(evidence.ratios, each)
    names, share = evidence.names, float(heard[loud] / heard.sum())
    apply = {}
    if evidence.flat:
        factors = [new / old if old else 1.0 for new, old in zip(ratios, evidence.ratios)]
        apply = {"ratios": ratios, **_with_te(evidence, factors)}
    reason = (
        f"{names[loud]} is {stronger:.1f} × as strong as {names[quiet]}: at {both(evidence.ratios)} "
        "it carries "
        f"{share:.0%} of the merge"
    )
    numbers = {"stronger": stronger, "share": share, "norms": [float(value) for value in each]}
    yield Advice("balance", f"Balance → {both(ratios)}", f"{reason}.", numbers, apply)
    yield from _by_block(evidence, ratios)


def balanced(ratios: list[float], norms: np.ndarray) -> list[float]:
    """Return ratios whose sources are nearer to each other in strength; see `balance`."""
    used = [index for index, ratio in enumerate(ratios) if ratio and norms[index] > 0]
    middle = math.exp(sum(math.log(float(norms[index])) for index in used) / len(used))
    moved = [
        ratio * min(CAP, max(1 / CAP, middle / float(norms[index]))) if index in used else ratio
        for index, ratio in enumerate(ratios)
    ]
    scale = sum(abs(ratio) for ratio in ratios) / sum(abs(ratio) for ratio in moved)
    return [tidy(ratio * scale) for ratio in moved]


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
    found: list[dict[str, float]] = [{} for _ in bench.files]
    logs: list[float] = []
    total = np.log(np.maximum(evidence.each, 1e-300))
    for block, places in bench.blocks().items():
        energy = bench.products[places].sum(0).diagonal().clip(0)
        if (energy <= 1e-4 * np.square(evidence.each)).any():
            continue  # a block that one source hardly touches needs no balance
        norms = np.sqrt(energy)
        away = (np.log(norms) - total) - float(np.mean(np.log(norms) - total))
        logs.append(float(away.max() - away.min()))
        for index, value in enumerate(away):
            weight = tidy(min(CAP, max(1 / CAP, math.exp(-float(value)))))
            if weight != 1.0:
                found[index][block] = weight
    return found, math.exp(max(logs, default=0.0))


def strength(evidence: Evidence) -> Iterator[Advice]:
    """Advise a lower total where the sum is much stronger than any source alone: scale = max‖wᵢΔWᵢ‖ / ‖Σ
    wᵢΔWᵢ‖.
    """
    heard, total = evidence.heard, evidence.strength
    top, alone = float(heard.max(initial=0.0)), float(evidence.each.max(initial=0.0))
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
    ratios = [tidy(ratio * scale) for ratio in evidence.ratios]
    apply = {"ratios": ratios, **_with_te(evidence, [scale] * len(ratios))} if evidence.flat else {}
    yield Advice(
        "strength",
        f"Lower the total → {both(ratios)}",
        f"together they are {total / top:.2f} × as strong as the strongest of them, which tends to "
        "over-bake; these ratios bring "
        "the merge to that one's strength.",
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
            {"te_ratios": evidence.te_ratios([0.5] * len(evidence.ratios), always=True)}
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
