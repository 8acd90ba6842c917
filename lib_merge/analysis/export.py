"""The report as JSON-ready objects: names without folders, numbers that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from lib_merge.analysis.model import AnalysisReport

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
    found = {"format": FORMAT, "version": VERSION}
    for item in fields(report):
        if item.name not in ("bench", "sources", "handles"):
            found[item.name] = _plain(getattr(report, item.name))
    found["sources"] = [_source(source, tensors=tensors) for source in report.sources]
    for pair, plain in zip(report.pairs, found["pairs"]):
        plain["names"] = [report.sources[index].label for index in (pair.first, pair.second)]
    for row, plain in zip(report.training.rows, found["training"]["rows"]):
        plain["differs"] = row.differs
    return found


def _source(source: Any, *, tensors: bool) -> dict[str, Any]:  # noqa: ANN401
    found = {
        item.name: _plain(getattr(source, item.name)) for item in fields(source) if item.name != "tensors"
    }
    if tensors:
        rows = [[_plain(getattr(tensor, column)) for column in TENSOR_COLUMNS] for tensor in source.tensors]
        found["tensors"] = {"columns": list(TENSOR_COLUMNS), "rows": rows}
    return found


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
