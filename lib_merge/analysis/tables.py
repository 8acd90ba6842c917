"""The tables of a report as HTML; every text from a file is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from lib_merge.analysis.model import AnalysisReport
from lib_merge.analysis.svg import SOURCES, ink, text


def number(value: float, digits: int = 3) -> str:
    """Return a number for a table: a dash for none, ∞ for infinite."""
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{digits}g}"


def share(value: float, digits: int = 0) -> str:
    """Return a share as a percentage; a dash for none."""
    return "–" if math.isnan(value) else f"{value * 100:.{digits}f} %"


def chip(report: AnalysisReport, index: int) -> str:
    """Return a source's letter in its colour."""
    colour = SOURCES[index % len(SOURCES)]
    return f'<span class="chip" style="background:{colour};color:{ink(colour)}">{report.handle(index)}</span>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, marked: Sequence[bool] = ()
) -> str:
    """Return a table; cells are HTML already, all columns but the first `left` hold numbers."""
    classes = ["" if place < left else ' class="n"' for place in range(len(head))]
    top = "".join(f"<th{kind}>{text(title)}</th>" for kind, title in zip(classes, head))
    body = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(classes, row))
        body.append(f"<tr{' class=on' if place < len(marked) and marked[place] else ''}>{cells}</tr>")
    return (
        f'<div class="card"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def pairs(report: AnalysisReport) -> Iterator[str]:
    """Yield the table of pairs, as HTML."""
    if not report.pairs:
        return
    yield "<h2>Pairs</h2>"
    rows = []
    for pair in report.pairs:
        part = pair.whole
        rows.append(
            (
                f"{chip(report, pair.first)}{chip(report, pair.second)}",
                f"{text(pair.relation)}<br><span class=soft>{text(pair.reason)}</span>",
                number(part.cosine),
                f"{_times(part.overlap_out, part.chance_out)} / {_times(part.overlap_in, part.chance_in)}",
                f"{share(part.conflict, 1)} ± {share(part.error, 1)}",
                f"{number(100 * part.excess, 2)} points",
                number(pair.start, 2),
            )
        )
    head = (
        "Pair",
        "What they are",
        "Cosine",
        "Overlap out / in, × chance",
        "Signs disagree",
        "beyond the cosine",
        "Same start",
    )
    yield table(head, rows, 2)
    yield (
        '<p class="soft">Unrelated LoRAs have cosine 0, overlap 1 × chance, and signs that disagree '
        "in 50 % of the entries: that "
        "is chance, not conflict. Signs are sampled; ± is one standard error.</p>"
    )


def _times(value: float, chance: float) -> str:
    return number(value / chance, 2) if chance > 0 else "–"


def sources(report: AnalysisReport) -> Iterator[str]:
    """Yield the table of sources, as HTML."""
    if not report.sources:
        return
    yield "<h2>Sources</h2>"
    rows = []
    for index, source in enumerate(report.sources):
        part = source.whole
        ranks = " / ".join(str(rank) for rank in part.ranks.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in source.kinds.items())
        trouble = [f"{len(source.zero)} zero"] if source.zero else []
        trouble += [f"{len(source.broken)} broken"] if source.broken else []
        rows.append(
            (
                f"{chip(report, index)}{text(source.name, 60)}<br><span class=soft>{text(kinds)}</span>",
                number(part.norm),
                f"{number(part.effective_rank, 2)} / {number(part.stable_rank, 2)}",
                ranks,
                share(source.encoder),
                f"{number(part.mean, 2)} ± {number(part.std, 2)}",
                f"{number(part.low, 2)} … {number(part.high, 2)}",
                number(source.headroom, 2),
                text(", ".join(trouble) or "–"),
            )
        )
    head = (
        "File",
        "Norm",
        "Effective / stable rank",
        "Rank for 90 / 95 / 99 / 99.9 %",
        "Text encoders",
        "ΔW mean ± std",
        "sampled least … most",
        "fp16 headroom ×",
        "Tensors",
    )
    yield table(head, rows)


def training(report: AnalysisReport) -> Iterator[str]:
    """Yield the table of training facts, as HTML."""
    rows = report.training.rows
    if not rows or not any(value for row in rows for value in row.values):
        return
    yield "<h2>Training</h2>"
    yield from (f"<p><strong>{text(warning)}</strong></p>" for warning in report.training.warnings)
    head = "".join(f"<th>{chip(report, index)}</th>" for index in range(len(rows[0].values)))
    body = []
    for row in rows:
        kind = " class=differs" if row.differs else ""
        cells = "".join(f"<td{kind}>{text(value or '–', 120)}</td>" for value in row.values)
        body.append(f"<tr><td>{text(row.title)}</td>{cells}</tr>")
    rows_html = "".join(body)
    yield f'<div class="card"><table><thead><tr><th></th>{head}</tr></thead>'
    yield f"<tbody>{rows_html}</tbody></table></div>"


def methods(report: AnalysisReport) -> Iterator[str]:
    """Yield the table of other methods, as HTML."""
    if not report.methods:
        return
    yield "<h2>Other methods on the same sources and ratios</h2>"
    rows = [
        (
            text(row.title),
            number(row.to_sum),
            number(row.cosine),
            " / ".join(share(value) for value in row.retention),
            " / ".join(share(value) for value in row.crosstalk),
            share(row.kept),
            str(row.seen),
        )
        for row in report.methods
    ]
    head = (
        "Method",
        "Strength / sum",
        "Cosine to the sum",
        "Of each is in",
        "Others on its inputs",
        "Kept as LoRA",
        "Modules",
    )
    yield table(head, rows, marked=[row.chosen for row in report.methods])
