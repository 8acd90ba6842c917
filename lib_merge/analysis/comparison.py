"""Two stored reports side by side, block by block.

Reports come from files that a person may have edited: what is missing or of another kind is left out, never
    an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lib_merge.analysis.page import FORMAT
from lib_merge.families import block_order

Json = Mapping[str, Any]
# figures of a merge that are one number, and those that are one per source
SINGLE = ("norm", "cancel", "evenness", "growth")
EACH = ("shares", "retention", "crosstalk")


def compare_reports(one: Json | None, other: Json | None) -> dict[str, Any]:
    """Return two reports (as `to_json` makes them) in one table.

    Args:
        one: the first, or None where there is no report.
        other: the second, likewise.
    Returns:
        sources  per report, [{label, ratio, norm, effective_rank}]
        whole    per report, the merge's figures over everything; {} without a report
        pairs    per report, [{names, relation, cosine, conflict, expected}]
        blocks   [{block, sides: [figures or None, figures or None], change}], change = ‖τ₂‖/‖τ₁‖ − 1 or None
    """
    reports = [_report(given) for given in (one, other)]
    return {
        "sources": [_sources(report) for report in reports],
        "whole": [_whole(report) for report in reports],
        "pairs": [_pairs(report) for report in reports],
        "blocks": _blocks(reports),
    }


def _report(value: Json | None) -> Json:
    return value if isinstance(value, Mapping) and value.get("format") == FORMAT else {}


def _map(value: Any) -> Json:  # noqa: ANN401
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:  # noqa: ANN401
    return list(value) if isinstance(value, (list, tuple)) else []


def _number(value: Any) -> float | None:  # noqa: ANN401
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None


def _sources(report: Json) -> list[dict[str, Any]]:
    recipe = _map(report.get("recipe"))
    ratios = _list(recipe.get("ratios"))
    rows = []
    for index, source in enumerate(map(_map, _list(report.get("sources")))):
        part = _map(source.get("whole"))
        rows.append(
            {
                "label": str(source.get("label", "")),
                "ratio": _number(ratios[index]) if index < len(ratios) else None,
                "norm": _number(part.get("norm")),
                "effective_rank": _number(part.get("effective_rank")),
            }
        )
    return rows


def _figures(outcome: Json) -> dict[str, Any]:
    single = {name: _number(outcome.get(name)) for name in SINGLE}
    return {**single, **{name: [_number(value) for value in _list(outcome.get(name))] for name in EACH}}


def _whole(report: Json) -> dict[str, Any]:
    recipe = _map(report.get("recipe"))
    if not recipe:
        return {}
    more = {name: _number(recipe.get(name)) for name in ("total", "error", "bytes")}
    ranks = [_number(value) for value in _list(recipe.get("rank"))]
    return {
        **_figures(_map(recipe.get("whole"))),
        **more,
        "policy": str(recipe.get("policy", "")),
        "rank": ranks,
    }


def _pairs(report: Json) -> list[dict[str, Any]]:
    rows = []
    for pair in map(_map, _list(report.get("pairs"))):
        part = _map(pair.get("whole"))
        figures = {name: _number(part.get(name)) for name in ("cosine", "conflict", "expected")}
        names = [str(name) for name in _list(pair.get("names"))]
        rows.append({"names": names, "relation": str(pair.get("relation", "")), **figures})
    return rows


def _blocks(reports: list[Json]) -> list[dict[str, Any]]:
    recipes = [_map(report.get("recipe")) for report in reports]
    sides = [_map(recipe.get("blocks")) for recipe in recipes]
    present = dict.fromkeys(str(block) for side in sides for block in side)
    family = next((str(report["family"]) for report in reports if report.get("family")), "")
    order = block_order(family)
    rows = []
    for block in sorted(present, key=lambda name: order.get(name, len(order))):
        both = [_side(recipe, side, block) for recipe, side in zip(recipes, sides)]
        norms = [side["norm"] if side else None for side in both]
        change = norms[1] / norms[0] - 1.0 if norms[0] and norms[1] is not None else None
        rows.append({"block": block, "sides": both, "change": change})
    return rows


def _side(recipe: Json, blocks: Json, block: str) -> dict[str, Any] | None:
    if block not in blocks:
        return None
    more = {
        name: [_number(value) for value in _list(_map(recipe.get(name)).get(block))]
        for name in ("weights", "heard")
    }
    return {**_figures(_map(blocks[block])), **more}
