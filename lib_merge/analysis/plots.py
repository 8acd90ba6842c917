"""Plots as inline SVG: labelled axes, numbers in the cells, colours that colour-blind people can tell apart.

Text takes the page's colour, so that a plot is readable in dark and light. Every text is escaped.

The plots of a report: block × source and block × pair heat maps, and the error-against-rank curve.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lib_merge.analysis.model import AnalysisReport, PairPart
from lib_merge.families import block_order

# ------------------------------------------------------------------------ svg

# cividis: even steps of lightness, the same to almost everyone
SEQUENTIAL = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")
DIVERGING = ("#2166ac", "#92c5de", "#f7f7f7", "#fdb863", "#b35806")
# Okabe and Ito, with grey for black: one per source, the same as in the tab
SOURCES = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#f0e442", "#999999")
CELL_WIDTH, CELL_HEIGHT, LETTER = 34, 24, 6.5
MAX_LABEL = 28


def text(value: object, most: int = 0) -> str:
    """Return any text escaped for HTML, without characters that could turn or break a line, cut at `most`."""
    shown = "".join(
        "�" if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") else letter
        for letter in str(value)
    )
    if most and len(shown) > most:
        shown = f"{shown[: most - 1]}…"
    return html.escape(shown, quote=True)


@dataclass(frozen=True, slots=True)
class Scale:
    """Colours for numbers from `low` to `high`, and how a number is written."""

    low: float
    high: float
    colours: Sequence[str]
    write: Callable[[float], str]

    def colour(self, value: float) -> str:
        """Return the colour of a number, between the nearest two of the list."""
        span = self.high - self.low
        place = 0.0 if span <= 0 else min(1.0, max(0.0, (value - self.low) / span))
        step = place * (len(self.colours) - 1)
        first = min(int(step), len(self.colours) - 2)
        pairs = zip(_parts(self.colours[first]), _parts(self.colours[first + 1]))
        return "#" + "".join(f"{round(a + (b - a) * (step - first)):02x}" for a, b in pairs)


def _parts(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def ink(colour: str) -> str:
    """Return black or white, whichever has more contrast on a colour (WCAG's relative luminance)."""
    parts = [part / 255 for part in _parts(colour)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#fff"


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], scale: Scale
) -> str:
    """Return a heat map with its numbers in the cells.

    Args:
        title: what the numbers are, for screen readers.
        rows: names, on the left.
        columns: blocks, on top.
        values: [row][column]; NaN leaves a cell empty.
        scale: colours and writing.
    """
    left = 12 + LETTER * max((min(len(row), MAX_LABEL) for row in rows), default=0)
    top = 58
    width, height = left + CELL_WIDTH * len(columns) + 4, top + CELL_HEIGHT * len(rows) + 4
    parts = [_open(width, height, title)]
    for number, column in enumerate(columns):
        x = left + CELL_WIDTH * (number + 0.5)
        parts.append(
            f'<text x="{x:.0f}" y="{top - 6}" transform="rotate(-60 {x:.0f} '
            f'{top - 6})">{text(column, 12)}</text>'
        )
    for line, row in enumerate(rows):
        y = top + CELL_HEIGHT * line
        parts.append(f'<text x="{left - 8:.0f}" y="{y + 16}" text-anchor="end">{text(row, MAX_LABEL)}</text>')
        for number, value in enumerate(values[line]):
            if not math.isnan(value):
                parts.append(
                    _cell((left + CELL_WIDTH * number, y), value, f"{row}, {columns[number]}", scale)
                )
    return "".join((*parts, "</svg>"))


def _cell(at: tuple[float, float], value: float, name: str, scale: Scale) -> str:
    colour = scale.colour(value)
    shown = text(scale.write(value))
    return (
        f'<g><title>{text(name)}: {shown}</title><rect x="{at[0]:.0f}" y="{at[1]:.0f}" '
        f'width="{CELL_WIDTH - 2}" '
        f'height="{CELL_HEIGHT - 2}" rx="3" class="cell" style="fill:{colour}"/><text '
        f'x="{at[0] + CELL_WIDTH / 2 - 1:.0f}" '
        f'y="{at[1] + 15:.0f}" text-anchor="middle" style="fill:{ink(colour)}">{shown}</text></g>'
    )


def legend(title: str, scale: Scale, steps: int = 5) -> str:
    """Return a small key of a scale."""
    values = [scale.low + (scale.high - scale.low) * step / (steps - 1) for step in range(steps)]
    parts = [_open(steps * 46 + 4, 24, title)]
    parts += [_cell((46 * number + 2, 1), value, title, scale) for number, value in enumerate(values)]
    return "".join((*parts, "</svg>"))


@dataclass(frozen=True, slots=True)
class Axes:
    """What stands at a curve's axes, and how their numbers are written."""

    across: str
    up: str
    write: Callable[[float], str]


def curve(
    title: str, points: Sequence[tuple[float, float]], axes: Axes, mark: tuple[float, str] | None = None
) -> str:
    """Return a line plot from 0 to the largest value.

    Args:
        title: for screen readers.
        points: (x, y), x ascending.
        axes: labels with their units.
        mark: a vertical line at x, and what is written beside it.
    """
    width, height, left, bottom, head = 560, 260, 62, 46, 14
    right = max((x for x, _ in points), default=1.0) or 1.0
    most = max((y for _, y in points), default=1.0) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (width - left - 16) * x / right, height - bottom - (height - bottom - head) * y / most

    parts = [_open(width, height, title)]
    for step in range(5):
        x, y = place(right * step / 4, most * step / 4)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - 16}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" '
            f'text-anchor="end">{text(axes.write(most * step / 4))}</text>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{right * step / 4:g}</text>'
        )
    line = ("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
    parts.append(f'<polyline class="line" points="{" ".join(line)}"/>')
    if mark is not None:
        x, _ = place(min(mark[0], right), 0.0)
        anchor = "end" if x > width * 0.7 else "start"
        shift = -6 if anchor == "end" else 6
        parts.append(f'<line class="mark" x1="{x:.1f}" y1="{head}" x2="{x:.1f}" y2="{height - bottom}"/>')
        parts.append(
            f'<text x="{x + shift:.1f}" y="{height - bottom - 10}" '
            f'text-anchor="{anchor}">{text(mark[1])}</text>'
        )
    parts.append(
        f'<text x="{(left + width) / 2:.0f}" y="{height - 8}" text-anchor="middle">{text(axes.across)}</text>'
    )
    middle = (head + height - bottom) / 2
    parts.append(
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 '
        f'{middle:.0f})">{text(axes.up)}</text>'
    )
    return "".join((*parts, "</svg>"))


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{text(title)}" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"><title>{text(title)}</title>'
    )


# ------------------------------------------------------------------------ plots

SHARE = Scale(0.0, 1.0, SEQUENTIAL, lambda value: str(round(100 * value)))
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
    names = dict.fromkeys(block for source in report.sources for block in source.blocks)
    order = block_order(report.family)
    return sorted(names, key=lambda block: order.get(block, len(order)))


def dominance_map(report: AnalysisReport, blocks: Sequence[str]) -> str:
    """Return the block × source heat map of shares of the merge; empty without a recipe."""
    if report.recipe is None:
        return ""
    outcomes = report.recipe.blocks
    values = [
        [
            outcomes[block].shares[index] if block in outcomes and any(outcomes[block].shares) else math.nan
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


def _figure(parts: Mapping[str, PairPart], block: str, figure: Callable[[PairPart], float]) -> float:
    return figure(parts[block]) if block in parts else math.nan


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
