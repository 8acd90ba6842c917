"""Advice on strength: balancing sources, the whole merge, and the text encoders.

Sources are balanced over the modules that they share: a LoRA of the text encoder alone is not louder or
fainter than one of everything, it does something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib_merge.analysis.evidence import Evidence, both, percent, tidy
from lib_merge.analysis.model import Advice
from lib_merge.linalg import tolerances

# One source is heard this much more than another, and not because the ratios ask for it.
LOUDER, UNASKED = 2.0, 1.5
# Where a block is balanced by itself, its weight stays between 1/CAP and CAP.
CAP = 2.0
# Strength beside the strongest source, as it is heard and at ratio 1: two unrelated ones reach 1.41 together.
STRONG = 1.5
# Cosine of two text encoders' changes that counts as pulling apart, and the least share of the energy they
# need.
APART, ENOUGH = -0.1, 1e-3


# ------------------------------------------------------------------------ balance


@dataclass(frozen=True, slots=True)
class Compared:
    """Sources whose strength can be compared, over the modules that all of them have.

    places  of the sources
    heard   Float64[source], ‖wᵢΔWᵢ‖ over these modules; 0 for the others
    each    Float64[source], the same at ratio 1
    apart   places of heard sources that have too little in common with them
    part    some of them have other modules as well
    """

    places: list[int]
    heard: np.ndarray
    each: np.ndarray
    apart: list[int]
    part: bool

    def shares(self, ratios: Sequence[float]) -> list[float]:
        """Return each compared source's share of the strength at these ratios."""
        sizes = [abs(ratios[place]) * float(self.each[place]) for place in self.places]
        total = sum(sizes) or 1.0
        return [size / total for size in sizes]


def compared(known: Evidence) -> Compared:
    """Return the free sources that can be compared: the modules they share hold a part of the energy of each.

    Where one changes the U-Net, that part is one of the U-Net: nobody is louder for a text encoder alone.
    While the part is too small, the source of the fewest modules is left out.
    """
    energy = known.prospect.bench.products.diagonal(axis1=1, axis2=2).clip(0)
    has = energy > 0
    used = np.flatnonzero((known.heard > 0) & (known.each > 0) & known.free).tolist()
    places = list(used)
    encoder = np.array([bool(module.task.encoder) for module in known.prospect.bench.modules])
    trunk = ~encoder if has[~encoder][:, used].any() else np.ones_like(encoder)
    while len(places) > 1 and _in_common(energy[trunk], has[trunk], places) < tolerances.COMPARABLE:
        places.remove(min(places, key=lambda place: int(has[:, place].sum())))
    if len(places) < 2:
        places = []
    rows = has[:, places].all(1)
    asked = known.prospect.weighing.asked
    inside = np.zeros(len(known.names))
    inside[places] = 1.0
    heard = np.sqrt((np.square(asked[rows]) * energy[rows]).sum(0)) * inside
    ratios = np.abs(known.ratios)
    plain = np.sqrt(energy[rows].sum(0)) * inside
    each = np.divide(heard, ratios, out=plain, where=ratios > 0)
    part = bool(places) and not has[:, places][has[:, places].any(1)].all()
    return Compared(places, heard, each, [place for place in used if place not in places], part)


def _in_common(energy: np.ndarray, has: np.ndarray, places: list[int]) -> float:
    """Return how much of its energy the source that shares least shares; 0 for one that has none there."""
    rows, whole = has[:, places].all(1), energy[:, places].sum(0)
    return float(np.divide(energy[rows][:, places].sum(0), whole, out=0.0 * whole, where=whole > 0).min())


def balance(known: Evidence) -> Iterator[Advice]:
    """Advise balancing where one source is heard twice as much as another without being asked to.

    wᵢ ← wᵢ·n̄/nᵢ with nᵢ the norm at ratio 1 over the modules that the sources share and n̄ their geometric
    mean, then scaled so that Σ|wᵢ| stays: in one step, however far they are apart.
    """
    if known.copies:
        return
    field = compared(known)
    if not field.places:
        yield from _unlike(known, field)
        return
    heard, each = field.heard, field.each
    loud, quiet = (field.places[int(pick(heard[field.places]))] for pick in (np.argmax, np.argmin))
    factor, stronger = float(heard[loud] / heard[quiet]), float(each[loud] / each[quiet])
    if factor < LOUDER or stronger < UNASKED:
        return
    ratios = balanced(known.ratios, each)
    before, after = field.shares(known.ratios), field.shares(ratios)
    apply: dict[str, object] = {}
    if known.flat:
        factors = [new / old if old else 1.0 for new, old in zip(ratios, known.ratios)]
        apply = {"ratios": ratios, **_with_te(known, factors)}
    if max(before) - max(after) < tolerances.EVENED or not _evens(known, field, apply):
        return
    share = before[field.places.index(loud)]
    reason = (
        f"{known.names[loud]} is {_times(stronger)} × as strong as {known.names[quiet]}: at "
        f"{both(known.ratios)} it is {percent(share)} of what they bring{_only(known, field)}; at these "
        f"ratios that is {' / '.join(percent(value) for value in after)}{known.kept}"
    )
    numbers = {"stronger": stronger, "share": share, "after": after, "norms": [float(v) for v in each]}
    yield Advice("balance", f"Balance → {both(ratios)}", f"{reason}.", numbers, apply)
    yield from _by_block(known, field, ratios)


def _evens(known: Evidence, field: Compared, change: Mapping[str, object]) -> bool:
    """Tell whether the method lets a change of ratios through to the shares of the merge."""
    trial = known.tried(change, carry_out=True) if change else None
    if trial is None or known.outcome is None:
        return True  # by what goes in
    before, after = (np.array(one.shares)[field.places] for one in (known.outcome.whole, trial.outcome))
    return float(before.max() / before.sum() - after.max() / after.sum()) >= tolerances.EVENED


def _times(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _only(known: Evidence, field: Compared) -> str:
    """Say over what sources are compared, and which are not."""
    if not field.apart:
        return " to the modules that all of them change" if field.part else ""
    names = " and ".join(known.names[place] for place in field.apart)
    return f" to the modules that they share ({names} changes others and is left as it is)"


def _unlike(known: Evidence, field: Compared) -> Iterator[Advice]:
    """Say that sources of quite different modules have no balance, where their strengths suggest one."""
    used = field.apart
    if len(used) < 2:
        return
    loud, quiet = (used[int(pick(known.heard[used]))] for pick in (np.argmax, np.argmin))
    factor, stronger = known.heard[loud] / known.heard[quiet], known.each[loud] / known.each[quiet]
    if factor < LOUDER or stronger < UNASKED:
        return
    counts = {place: known.report.sources[place].modules for place in (loud, quiet)}
    yield Advice(
        "uneven",
        "Judge their strengths by pictures",
        f"{known.names[quiet]} changes {counts[quiet]} modules and {known.names[loud]} {counts[loud]}, "
        "mostly others: their strengths cannot be compared, so no ratio balances them.",
        {"modules": [counts[quiet], counts[loud]]},
    )


def balanced(ratios: list[float], norms: np.ndarray) -> list[float]:
    """Return ratios at which what sources bring is as the ratios have it, whatever their norms.

    wᵢ ← wᵢ·n̄/nᵢ, Σ|wᵢ| as before.

    Args:
        ratios: of all sources.
        norms: Float64[source], at ratio 1; a source of norm 0 stays as it is.
    """
    used = [index for index, ratio in enumerate(ratios) if ratio and norms[index] > 0]
    if not used:
        return list(ratios)
    middle = math.exp(sum(math.log(float(norms[index])) for index in used) / len(used))
    moved = {index: ratios[index] * middle / float(norms[index]) for index in used}
    total = sum(abs(ratios[index]) for index in used)
    scale = total / sum(abs(ratio) for ratio in moved.values())
    found = [tidy(moved[index] * scale) if index in moved else ratio for index, ratio in enumerate(ratios)]
    # what rounding a small one left over is the largest one's, so that the total stays to the last digit
    top = max(used, key=lambda index: abs(found[index]))
    rest = total - sum(abs(found[index]) for index in used if index != top)
    found[top] = math.copysign(round(rest, 4), found[top])
    return found


def _by_block(known: Evidence, field: Compared, ratios: list[float]) -> Iterator[Advice]:
    """Advise block weights as well where one factor cannot do it: who is stronger differs between blocks."""
    weights, spread, left = block_balance(known, field)
    if spread < CAP**2 or not known.flat or any(source.blocks for source in known.recipe.sources):
        return
    yield Advice(
        "balance-blocks",
        "Balance every block by itself",
        f"who is stronger differs by {spread:.1f} × between blocks, which one ratio cannot even out; with "
        f"block weights from {1 / CAP:g} to {CAP:g}, beyond which a LoRA is another one, {left:.1f} × is "
        "left. It also flattens what each LoRA does where.",
        {"spread": spread, "left": left},
        {"ratios": ratios, "blocks": weights},
    )


def block_balance(known: Evidence, field: Compared) -> tuple[list[dict[str, float]], float, float]:
    """Return block weights per source that even out each block, how much the balance differs between
    blocks, and how much of that the weights leave.
    """
    bench, places = known.prospect.bench, field.places
    weights: list[dict[str, float]] = [{} for _ in bench.files]
    spreads, remains = [0.0], [0.0]
    each = field.each[places]
    total = np.log(np.maximum(each, 1e-300))
    for block, rows in bench.blocks().items():
        energy = bench.products[rows].sum(0).diagonal().clip(0)[places]
        if (energy <= 1e-4 * np.square(each)).any():
            continue  # a block that one source hardly touches needs no balance
        norms = np.log(np.sqrt(energy))
        away = (norms - total) - float(np.mean(norms - total))
        given = np.clip(-away, -math.log(CAP), math.log(CAP))
        spreads.append(float(np.ptp(away)))
        remains.append(float(np.ptp(away + given)))
        for index, value in zip(places, given):
            weight = tidy(math.exp(float(value)))
            if weight != 1.0:
                weights[index][block] = weight
    return weights, math.exp(max(spreads)), math.exp(max(remains))


# ------------------------------------------------------------------------ the whole, text encoders


def strength(known: Evidence) -> Iterator[Advice]:
    """Advise a lower total where the sum is much stronger than any source alone: scale = max‖wᵢΔWᵢ‖ / ‖Σ
    wᵢΔWᵢ‖.
    """
    heard, total = known.heard[known.free], known.strength
    top, alone = float(heard.max(initial=0.0)), float(known.each[known.free].max(initial=0.0))
    if not known.recipe.declared().stacks or not top > 0 or total <= STRONG * max(top, alone):
        return
    if known.copies or known.pairs("epochs") or known.all_related:
        return  # then another method, or one file less, is the better advice
    scale = top / total
    ratios = known.keeping([tidy(ratio * scale) for ratio in known.ratios])
    factors = [scale if free else 1.0 for free in known.free]
    apply = {"ratios": ratios, **_with_te(known, factors)} if known.flat else {}
    yield Advice(
        "strength",
        f"Lower the total → {both(ratios)}",
        f"together they are {total / top:.2f} × as strong as the strongest of them, which tends to "
        "over-bake; these ratios bring the merge to that one's strength, and change nothing else"
        f"{known.kept}.",
        {"strength": total, "strongest": top, "scale": scale},
        apply,
    )


def text_encoders(known: Evidence) -> Iterator[Advice]:
    """Advise the text encoder of one source alone where two change it against each other.

    Lower ratios for both would leave the quarrel as it is. Offered where the one then has clearly more of
    its text encoder, and the other, of which less energy lies there, gives little up.
    """
    gram, whole = known.encoders, known.prospect.bench.whole
    for pair in known.free_pairs("unrelated", "same start", "related", "opposed"):
        a, b = pair.first, pair.second
        size = math.sqrt(max(float(gram[a, a] * gram[b, b]), 0.0))
        shares = [float(gram[i, i] / whole[i, i]) if whole[i, i] > 0 else 0.0 for i in (a, b)]
        if not size > 0 or min(shares) < ENOUGH or gram[a, b] / size > APART:
            continue
        cosine = float(gram[a, b]) / size
        stays, gives = (a, b) if shares[0] >= shares[1] else (b, a)
        change = {"te_ratios": [0.0 if place == gives else None for place in range(len(known.names))]}
        now, then = _encoder_kept(known, stays, {}), _encoder_kept(known, stays, change)
        can = then - now >= tolerances.MORE_OF_IT and min(shares) <= tolerances.GIVEN_UP
        names = {place: known.names[place] for place in (a, b)}
        facts = (
            f"the text encoders of {names[a]} and {names[b]} pull apart (cosine {cosine:.2f}; unrelated "
            f"ones have 0), and hold {percent(shares[0])} and {percent(shares[1])} of their energy"
        )
        if can and known.flat:
            facts += (
                f": with that of {names[stays]} alone, {percent(then)} of it is in instead of {percent(now)}"
                f", and {names[gives]} loses its own"
            )
        else:
            facts += "; where prompts are misunderstood, lower the text-encoder ratio of one of them"
        yield Advice(
            "text-encoder",
            f"Take the text encoder of {names[stays]} alone"
            if can and known.flat
            else "Text encoders pull apart",
            f"{facts}.",
            {"cosine": cosine, "shares": shares, "kept": [now, then]},
            change if can and known.flat else {},
        )
        return


def _encoder_kept(known: Evidence, place: int, change: Mapping[str, object]) -> float:
    """Return how much of a source's text encoder is in the merge after a change; NaN where unknown."""
    trial = known.tried(change)
    if trial is None:
        return math.nan
    bench = known.prospect.bench
    rows = [index for index, module in enumerate(bench.modules) if module.task.encoder]
    part = trial.outcomes.at(rows)
    asked = float(part.asked[:, place].sum())
    return float(part.pull[:, place].sum()) / asked if asked > 0 else math.nan


def _with_te(known: Evidence, factors: list[float]) -> dict[str, object]:
    te = known.te_ratios(factors)
    return {} if te is None else {"te_ratios": te}
