"""The long tables of a report as HTML, folded away: every block of every source, and every tensor."""

from __future__ import annotations

from collections.abc import Iterator

from lib_merge.analysis.figures import Part, SourceReport, TensorStats
from lib_merge.analysis.model import AnalysisReport
from lib_merge.analysis.svg import text
from lib_merge.analysis.tables import chip, number, share, table

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


def blocks(report: AnalysisReport) -> Iterator[str]:
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


def tensors(report: AnalysisReport) -> Iterator[str]:
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
