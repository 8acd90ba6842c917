"""The report as JSON-ready objects: names without folders, numbers that JSON can hold.

The long tables of a report as HTML, folded away: every block of every source, and every tensor.

The tables of a report as HTML; every text from a file is escaped.

The report as one HTML file: no scripts, nothing fetched, readable in dark and light, every name
escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from lib_merge.analysis import plots
from lib_merge.analysis.model import Advice, AnalysisReport, Part, SourceReport, TensorStats
from lib_merge.analysis.plots import SOURCES, ink, text
from lib_merge.engine.report import part_words
from lib_merge.ranks.policy import parse_policy

# ------------------------------------------------------------------------ export

FORMAT = "lora-merge-analysis"
VERSION = 1
TENSOR_COLUMNS = ("key", "count", "mean", "std", "low", "high")


def to_json(report: AnalysisReport, *, tensors: bool = True) -> dict[str, Any]:
    """Return a report as JSON-ready objects.

    Args:
        report: any stage of it.
        tensors: with a row for every tensor, as a table of columns and rows; without, only what stands out.
    Returns:
        Mappings, lists, texts, and finite numbers; what is not a number or infinite becomes null.
    """
    data: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for item in fields(report):
        if item.name not in ("bench", "sources", "handles"):
            data[item.name] = _plain(getattr(report, item.name))
    data["sources"] = [_source(source, tensors=tensors) for source in report.sources]
    for pair, plain in zip(report.pairs, data["pairs"]):
        plain["names"] = [report.sources[index].label for index in (pair.first, pair.second)]
    for row, plain in zip(report.training.rows, data["training"]["rows"]):
        plain["differs"] = row.differs
    return data


def _source(source: Any, *, tensors: bool) -> dict[str, Any]:  # noqa: ANN401
    data = {
        item.name: _plain(getattr(source, item.name)) for item in fields(source) if item.name != "tensors"
    }
    if tensors:
        rows = [[_plain(getattr(tensor, column)) for column in TENSOR_COLUMNS] for tensor in source.tensors]
        data["tensors"] = {"columns": list(TENSOR_COLUMNS), "rows": rows}
    return data


def _plain(value: Any) -> Any:  # noqa: ANN401
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {
            f"{key:g}" if isinstance(key, float) else str(key): _plain(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


# ------------------------------------------------------------------------ details

BLOCK_HEAD = (
    "Block",
    "Modules",
    "Norm",
    "Share of the energy",
    "Effective / stable rank",
    "Rank for 90 / 95 / 99 / 99.9 %",
    "ΔW mean ± std",
    "sampled least … most",
)
TENSOR_HEAD = ("Tensor", "Numbers", "Mean", "Std", "Least", "Most", "")
# Names shown of tensors that are zero or broken.
NAMED = 40


def block_tables(report: AnalysisReport) -> Iterator[str]:
    """Yield a folded table of blocks for every source, as HTML."""
    for index, source in enumerate(report.sources):
        if source.blocks:
            rows = [_block(block, part) for block, part in source.blocks.items()]
            yield _folded(f"Blocks of {chip(report, index)}{text(source.label, 60)}", table(BLOCK_HEAD, rows))


def _block(name: str, part: Part) -> tuple[str, ...]:
    return (
        text(name, 12),
        str(part.modules),
        number(part.norm),
        share(part.share, 1),
        f"{number(part.effective_rank, 2)} / {number(part.stable_rank, 2)}",
        " / ".join(str(rank) for rank in part.ranks.values()),
        f"{number(part.mean, 2)} ± {number(part.std, 2)}",
        f"{number(part.low, 2)} … {number(part.high, 2)}",
    )


def standing_out(report: AnalysisReport) -> Iterator[str]:
    """Yield the names of tensors that are zero, or hold NaN or infinity, as HTML."""
    for index, source in enumerate(report.sources):
        for keys, what in ((source.broken, "hold NaN or infinity"), (source.zero, "are zero throughout")):
            if keys:
                named = " ".join(f"<code>{text(key, 160)}</code>" for key in keys[:NAMED])
                more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
                yield f"<p>{chip(report, index)}{len(keys)} tensors {what}: {named}{more}</p>"


def tensor_tables(report: AnalysisReport) -> Iterator[str]:
    """Yield a folded table of all tensors for every source, as HTML."""
    for index, source in enumerate(report.sources):
        if source.tensors:
            yield _folded(f"Tensors of {chip(report, index)}{text(source.label, 60)}", _tensor_table(source))


def _tensor_table(source: SourceReport) -> str:
    return table(TENSOR_HEAD, (_tensor(tensor) for tensor in source.tensors))


def _tensor(tensor: TensorStats) -> tuple[str, ...]:
    figures = (tensor.mean, tensor.std, tensor.low, tensor.high)
    what = "zero" if tensor.zero else "" if tensor.finite else "NaN or infinity"
    return (text(tensor.key, 160), str(tensor.count), *(number(figure) for figure in figures), what)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


# ------------------------------------------------------------------------ tables


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


def pair_tables(report: AnalysisReport) -> Iterator[str]:
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


def source_tables(report: AnalysisReport) -> Iterator[str]:
    """Yield the table of sources, as HTML."""
    if not report.sources:
        return
    yield "<h2>Sources</h2>"
    rows = []
    for index, source in enumerate(report.sources):
        part = source.whole
        ranks = " / ".join(str(rank) for rank in part.ranks.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in source.kinds.items())
        kinds = "; ".join([kinds, *(mark.said for mark in source.marks)])
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


def training_table(report: AnalysisReport) -> Iterator[str]:
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


def method_table(report: AnalysisReport) -> Iterator[str]:
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


# ------------------------------------------------------------------------ page

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
        *pair_tables(report),
        *source_tables(report),
        *standing_out(report),
        *block_tables(report),
        *(tensor_tables(report) if tensors else ()),
        *training_table(report),
        *method_table(report),
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
    kept = f"{part_words(1 - recipe.error**2)} of the merge is kept" if recipe.error else "nothing is cut"
    yield (
        f"<h2>What will come out</h2><p>{text(recipe.title)}, ratios adding up to {recipe.total:g}{seen}. "
        f"{recipe.bytes / 1e6:.1f} MB: {kept} "
        f"({text(parse_policy(recipe.policy).words)}).</p>"
        f"{''.join(f'<p>{text(pruned.said)}</p>' for pruned in recipe.pruning)}"
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
