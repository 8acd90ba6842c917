"""The command line's plain-text output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib_merge.engine.report import MergeReport
from lib_merge.methods import METHODS


def report_text(report: MergeReport) -> str:
    """Return a finished merge in a few lines."""
    ranks = report.ranks()
    worst = report.worst()
    lines = [
        f"{Path(report.output).name}: {report.family}, {report.method}, {len(report.modules)} modules, "
        f"rank {ranks['min']}-{ranks['max']}, {report.bytes / 1e6:.1f} MB",
        f"asked = saved to {report.relative_error:.3%}"
        + (f" (worst {worst.relative:.3%}, {worst.name})" if worst else "")
        + (f"; the rank keeps {report.energy_kept:.2%} of the energy" if report.energy_kept < 1 else ""),
    ]
    if report.pruned:
        saved, error = report.pruned["bytes_saved"], report.pruned["relative_error"]
        lines.append(f"pruned {saved / 1e6:.2f} MB, adding {error:.3%} error")
    lines.extend(f"note: {warning}" for warning in report.warnings)
    if report.left_out:
        reasons: dict[str, int] = {}
        for why in report.left_out.values():
            reasons[why] = reasons.get(why, 0) + 1
        lines.append("left out: " + ", ".join(f"{count} × {why}" for why, count in reasons.items()))
    total = report.seconds.get("total", 0.0)
    lines.append(f"{total:.2f} s, at most {report.peak_rss_mb:.0f} MB of memory")
    return "\n".join(lines)


def inspect_text(item: dict[str, Any]) -> str:
    """Return what `inspect` found in a few lines."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in item["kinds"].items())
    rank = item["rank"]
    lines = [
        f"{item['file']}: {item['family'] or ' or '.join(item['candidates'])} ({item['reason']})",
        f"  {item['style']} keys, {kinds}; rank {rank['min']}-{rank['max']}, alpha {item['alpha']}, "
        f"{item['dtype']}, "
        f"{item['bytes'] / 1e6:.1f} MB, norm {item['norm']:.4g}",
        f"  blocks: {' '.join(item['blocks'])}",
    ]
    if item["tags"]:
        lines.append(f"  tags: {', '.join(item['tags'])}")
    if item["broken"]:
        lines.append(
            f"  broken: {len(item['broken'])} modules hold NaN or infinity, {item['broken'][0]} first"
        )
    if item["left_out"]:
        lines.append(f"  cannot be merged: {item['left_out']}")
    if item["recipe"]:
        lines.append("  merged by this program; `run` and `verify` take it")
    return "\n".join(lines)


def method_rows() -> list[dict[str, Any]]:
    """Return the registry as JSON-ready rows."""
    return [
        {
            "name": method.name,
            "title": method.title,
            "sentence": method.sentence,
            "paper": method.paper,
            "space": method.space,
            "sources": list(method.sources),
            "roles": list(method.roles),
            "order_matters": not method.symmetric,
            "knobs": [
                {
                    "name": knob.name,
                    "kind": knob.kind,
                    "default": knob.default,
                    "minimum": knob.minimum,
                    "maximum": knob.maximum,
                    "step": knob.step,
                    "choices": list(knob.choices),
                    "scope": knob.scope,
                    "help": knob.help,
                }
                for knob in method.knobs
            ],
        }
        for method in METHODS.values()
    ]


def methods_text() -> str:
    """Return the methods with their sentence and knobs."""
    lines = []
    for method in METHODS.values():
        lines.append(f"{method.name}  ({method.space})  {method.sentence}")
        lines.extend(f"    {knob.name}={knob.default}  {knob.help}" for knob in method.knobs)
    return "\n".join(lines)


def methods_markdown() -> str:
    """Return the README's table of methods."""
    rows = ["| method | works on | what it does | knobs (default) |", "|---|---|---|---|"]
    for method in METHODS.values():
        knobs = ", ".join(f"`{knob.name}` ({_plain(knob.default)})" for knob in method.knobs) or "–"
        rows.append(f"| [`{method.name}`]({method.paper}) | {method.space} | {method.sentence} | {knobs} |")
    return "\n".join(rows)


def _plain(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
