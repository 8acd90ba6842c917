"""The analysis in the tab: run as a job, shown as a page of its own, advice carried out on the tab's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lib_merge.analysis import Advice, AnalysisReport, apply_changes, to_html
from lib_merge.engine.forecast import analyze_with_engine
from lib_merge.engine.job import Job
from lib_merge.recipe import Recipe
from lib_merge.ui.jobs import Task
from lib_merge.ui.state import from_recipe, to_recipe

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions


def analyze_work(desk: Actions, state: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Analyse what the state asks for; returns advice, symptoms and the report as a page.

    Raises:
        MergeError: a source cannot be read, or the recipe is not one.
    """
    recipe = to_recipe(state, desk.library.resolve)
    job = Job(drop_unsupported=True, progress=task.progress, cancelled=task.stop.is_set)
    report = analyze_with_engine(recipe, job=job)
    return {
        "html": to_html(report),
        "facts": _facts(report),
        "advice": [_advice(item) for item in report.advice],
        "symptoms": [
            {"title": found.title, "says": list(found.says), "tries": [_advice(item) for item in found.tries]}
            for found in report.symptoms
        ],
        "notes": list(report.notes),
        "warnings": list(report.training.warnings) if report.training is not None else [],
    }


def _advice(item: Advice) -> dict[str, Any]:
    return {"id": item.id, "title": item.title, "reason": item.reason, "apply": dict(item.apply)}


def _facts(report: AnalysisReport) -> list[str]:
    """Return the few sentences that matter most, for the line above the page."""
    facts = [
        f"{chr(65 + pair.first)} and {chr(65 + pair.second)}: cosine {pair.whole.cosine:+.3f} ({pair.relation})"
        for pair in report.pairs[:6]
    ]
    if report.recipe is not None and len(report.sources) > 1:
        shares = " / ".join(f"{100 * share:.0f} %" for share in report.recipe.whole.shares)
        facts.append(f"share of the result: {shares}")
    return facts


def applied(desk: Actions, state: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with an advice's changes carried out.

    Raises:
        RecipeError: the advice belongs to another recipe.
    """
    recipe: Recipe = apply_changes(to_recipe(state, desk.library.resolve), changes)
    return from_recipe(recipe, desk.locate, lambda blocks: desk.expand(blocks, state.get("family")))
