"""The plots of a report: block × source and block × pair heat maps, and the error-against-rank curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from lib_merge.analysis.figures import PairPart
from lib_merge.analysis.model import AnalysisReport
from lib_merge.analysis.svg import DIVERGING, SEQUENTIAL, Axes, Scale, curve, heat_map, legend, text
from lib_merge.families import block_order

SHARE = Scale(0.0, 1.0, SEQUENTIAL, lambda value: f"{100 * value:.0f}")
COSINE = Scale(-1.0, 1.0, DIVERGING, lambda value: _short(value, 2))
# Points of sign conflict beyond the cosine's.
EXCESS = Scale(-10.0, 10.0, DIVERGING, lambda value: _short(value, 1))
# Standard errors beyond which a sampled figure is shown: with a hundred cells, two are reached by chance.
SURE = 3.0


def sections(report: AnalysisReport) -> Iterator[str]:
    """Yield the plots that the report's stage allows, as HTML."""
    blocks = block_names(report)
    if report.recipe is not None and len(report.sources) > 1:
        yield from _card(
            "Who dominates where", "share of the merge, % by block", dominance_map(report, blocks), SHARE
        )
    if report.sources:
        top = Scale(0.0, max(_most(report), 1e-9), SEQUENTIAL, SHARE.write)
        said = "share of each source's own energy, % by block"
        yield from _card("Where each source acts", said, energy_map(report, blocks), top)
    if report.pairs:
        said = "cosine by block: −1 opposite, 0 unrelated, 1 the same"
        yield from _card(
            "What pairs want", said, pair_map(report, blocks, lambda part: part.cosine, COSINE), COSINE
        )
        said = (
            "points of sign conflict beyond the cosine's, where that is more than three standard "
            "errors; else 0"
        )
        yield from _card("Where pairs fight", said, pair_map(report, blocks, _sure_excess, EXCESS), EXCESS)
    if report.recipe is not None and report.recipe.curve:
        yield f'<h2>Energy kept against rank</h2><div class="card">{rank_curve(report)}</div>'


def block_names(report: AnalysisReport) -> list[str]:
    """Return the blocks that any source has, in the family's order."""
    if report.bench is not None and report.bench.modules:
        return list(report.bench.blocks())
    found = dict.fromkeys(block for source in report.sources for block in source.blocks)
    order = block_order(report.family)
    return sorted(found, key=lambda block: order.get(block, len(order)))


def dominance_map(report: AnalysisReport, blocks: Sequence[str]) -> str:
    """Return the block × source heat map of shares of the merge; empty without a recipe."""
    if report.recipe is None:
        return ""
    found = report.recipe.blocks
    values = [
        [
            found[block].shares[index] if block in found and any(found[block].shares) else math.nan
            for block in blocks
        ]
        for index in range(len(report.sources))
    ]
    return heat_map(
        "Share of the merge by block and source, in per cent", _names(report), blocks, values, SHARE
    )


def energy_map(report: AnalysisReport, blocks: Sequence[str]) -> str:
    """Return the block × source heat map of each source's own energy."""
    values = [
        [source.blocks[block].share if block in source.blocks else math.nan for block in blocks]
        for source in report.sources
    ]
    scale = Scale(0.0, max(_most(report), 1e-9), SEQUENTIAL, SHARE.write)
    return heat_map(
        "Share of each source's energy by block, in per cent", _names(report), blocks, values, scale
    )


def pair_map(
    report: AnalysisReport, blocks: Sequence[str], figure: Callable[[PairPart], float], scale: Scale
) -> str:
    """Return a block × pair heat map of one figure."""
    rows = [f"{report.handle(pair.first)} · {report.handle(pair.second)}" for pair in report.pairs]
    values = [[_figure(pair.blocks, block, figure) for block in blocks] for pair in report.pairs]
    return heat_map("Figure by block and pair", rows, blocks, values, scale)


def rank_curve(report: AnalysisReport) -> str:
    """Return the share of the energy kept against one rank for all modules, with the rank in force marked."""
    if report.recipe is None or not report.recipe.curve:
        return ""
    recipe = report.recipe
    points = [(0.0, 0.0), *((float(point.rank), point.energy) for point in recipe.curve)]
    least, most = recipe.rank
    kept = f"{100 * (1 - recipe.error**2):.1f} % in {recipe.bytes / 1e6:.1f} MB"
    mark = (float(most), f"rank {most}: {kept}" if least == most else f"rank {least} to {most}: {kept}")
    axes = Axes("Rank of every module", "Energy kept (share of Σ S²)", lambda value: f"{100 * value:.0f} %")
    return curve("Share of the energy kept against rank", points, axes, mark)


def _short(value: float, digits: int) -> str:
    """Return a number without a leading zero, and without a minus before nothing."""
    rounded = round(value, digits) + 0.0
    shown = f"{rounded:.{digits}f}"
    return "0" if not rounded else shown.replace("0.", ".", 1) if abs(rounded) < 1 else shown


def _figure(found: Mapping[str, PairPart], block: str, figure: Callable[[PairPart], float]) -> float:
    return figure(found[block]) if block in found else math.nan


def _sure_excess(part: PairPart) -> float:
    if math.isnan(part.excess):
        return math.nan
    return 100 * part.excess if abs(part.excess) > SURE * part.error else 0.0


def _names(report: AnalysisReport) -> list[str]:
    return [f"{report.handle(index)} {source.label}" for index, source in enumerate(report.sources)]


def _most(report: AnalysisReport) -> float:
    return max((part.share for source in report.sources for part in source.blocks.values()), default=0.0)


def _card(title: str, said: str, plot: str, scale: Scale) -> Iterator[str]:
    if plot:
        yield (
            f'<h2>{text(title)}</h2><p class="soft">{text(said)}</p>'
            f'<div class="card">{plot}{legend(f"{title}: key", scale)}</div>'
        )
