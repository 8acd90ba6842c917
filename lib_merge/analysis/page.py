"""The report as one HTML file: no scripts, nothing fetched, readable in dark and light, every name
escaped.
"""

from __future__ import annotations

from collections.abc import Iterator

from lib_merge.analysis import details, plots, tables
from lib_merge.analysis.model import Advice, AnalysisReport
from lib_merge.analysis.svg import text
from lib_merge.analysis.tables import chip, number, share, table

STYLE = """
:root{color-scheme:light dark;--ink:#1b2430;--soft:#5b6675;--page:#fff;--card:#f4f6f9;--edge:#d5dbe3;
--line:#0072b2;--mark:#b35806}
@media (prefers-color-scheme:dark){:root:not(.light){--ink:#e6ebf2;--soft:#9aa7b8;--page:#10151d;
--card:#1a212c;--edge:#334052;--line:#56b4e9;--mark:#fdb863}}
.dark{color-scheme:dark;--ink:#e6ebf2;--soft:#9aa7b8;--page:#10151d;--card:#1a212c;--edge:#334052;--line:#56b4e9;
--mark:#fdb863}.light{color-scheme:light}
body{margin:0 auto;padding:1.5rem;max-width:1200px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
p{margin:.3rem 0}.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--edge);border-radius:10px;
padding:.8rem 1rem;margin:.6rem 0;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--edge);vertical-align:top}
td.n,th.n{text-align:right}tr.on td{font-weight:600}td.differs{font-weight:600;color:var(--mark)}
.chip{display:inline-block;min-width:1.1em;padding:0 .45em;border-radius:6px;font-weight:600;
margin-right:.4em}
svg{display:block;font:11px system-ui,sans-serif}svg text{fill:currentColor}.grid,.cell{stroke:var(--edge)}
.line{fill:none;stroke:var(--line);stroke-width:2}
.mark{stroke:var(--mark);stroke-width:1.5;stroke-dasharray:4 3}
details{margin:.4rem 0}summary{cursor:pointer;font-weight:600}ul{margin:.3rem 0;padding-left:1.3rem}
code{font-size:.85em;color:var(--soft);overflow-wrap:anywhere}
"""


def to_html(report: AnalysisReport, *, tensors: bool = True) -> str:
    """Return a report as one self-contained HTML page with inline SVG plots.

    Args:
        report: any stage of it; what is not known yet is left out.
        tensors: with a row for every tensor; without, only what stands out.
    """
    names = ", ".join(source.label for source in report.sources)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        (
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
            "'unsafe-inline'\">"
        ),
        f"<title>LoRA analysis: {text(names, 120)}</title><style>{STYLE}</style></head><body>",
        f'<h1>LoRA analysis</h1><p class="soft">{text(report.family)}, {len(report.sources)} sources, '
        f"measured in {report.seconds:.1f} s</p>",
        *_merge(report),
        *_advice(report),
        *plots.sections(report),
        *tables.pairs(report),
        *tables.sources(report),
        *details.standing_out(report),
        *details.blocks(report),
        *(details.tensors(report) if tensors else ()),
        *tables.training(report),
        *tables.methods(report),
        *_symptoms(report),
        *_notes(report),
        "</body></html>",
    ]
    return "\n".join(parts)


def _merge(report: AnalysisReport) -> Iterator[str]:
    recipe = report.recipe
    if recipe is None:
        return
    whole = recipe.whole
    seen = "" if recipe.direct else f", estimated from {recipe.seen[0]} of {recipe.seen[1]} modules"
    error = f", relative error {share(recipe.error, 1)}" if recipe.error else ""
    yield (
        f"<h2>What will come out</h2><p>{text(recipe.title)}, ratios adding up to {recipe.total:g}{seen}. "
        f"Rank {text(recipe.policy)}: {recipe.bytes / 1e6:.1f} MB{error}.</p>"
        f"<p>Norm {number(whole.norm)}, {number(whole.cancel)} × that of unrelated sources (below 1 "
        "they cancel, above 1 they "
        f"add up); the strongest direction grows to at most {number(whole.growth)} × (above 1.5 "
        "tends to over-bake).</p>"
    )
    rows = [
        (
            f"{chip(report, index)}{text(label, 60)}",
            number(ratio),
            share(whole.shares[index]),
            number(whole.to_source[index]),
            share(whole.retention[index]),
            share(whole.crosstalk[index]),
        )
        for index, (label, ratio) in enumerate(zip(recipe.labels, recipe.ratios))
    ]
    head = ("Source", "Ratio", "Share of the merge", "Merge / source", "Of it is in", "Others on its inputs")
    yield table(head, rows)


def _advice(report: AnalysisReport) -> Iterator[str]:
    if report.stage != "advice":
        return
    yield "<h2>Advice</h2>"
    if not report.advice:
        yield "<p>Nothing stands out: the numbers speak for no change.</p>"
    else:
        yield f'<div class="card"><ul>{"".join(_item(item) for item in report.advice)}</ul></div>'
    if report.starts:
        yield (
            '<details><summary>Starting points by role</summary><div class="card"><ul>'
            f"{''.join(_item(item) for item in report.starts)}</ul></div></details>"
        )


def _item(item: Advice) -> str:
    return f"<li><strong>{text(item.title)}</strong> {text(item.reason)}</li>"


def _symptoms(report: AnalysisReport) -> Iterator[str]:
    if not report.symptoms:
        return
    yield "<h2>What is wrong?</h2>"
    for item in report.symptoms:
        says = "".join(f"<li>{text(sentence)}</li>" for sentence in item.says)
        tries = "".join(_item(advice) for advice in item.tries)
        more = f"<p>To try:</p><ul>{tries}</ul>" if tries else ""
        yield (
            f"<details><summary>{text(item.title)}</summary><div "
            f'class="card"><ul>{says}</ul>{more}</div></details>'
        )


def _notes(report: AnalysisReport) -> Iterator[str]:
    if report.notes:
        yield f"<h2>Notes</h2><ul>{''.join(f'<li>{text(note)}</li>' for note in report.notes)}</ul>"
