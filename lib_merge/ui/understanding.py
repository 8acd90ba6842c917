"""Requests about understanding: analyses that arrive part by part, advice carried out, reports kept, recipes
compared.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from lib_merge import recipe_edits
from lib_merge.analysis import AnalysisReport, to_html, to_json
from lib_merge.analysis.comparison import compare_reports
from lib_merge.analysis.forecast import analyze_steps_with_engine
from lib_merge.engine.job import Job
from lib_merge.errors import Cancelled, RecipeError
from lib_merge.kept.history import Entry, History
from lib_merge.kept.reports import Reports
from lib_merge.methods import METHODS
from lib_merge.recipe import Recipe, from_json
from lib_merge.ui.jobs import Jobs, Task
from lib_merge.ui.state import from_recipe, state_of, to_recipe

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

log = logging.getLogger("lib_merge")
# Analyses whose report can still be asked for.
REMEMBERED = 8
# what an advice changes per source -> the row's field
PER_ROW = {"ratios": "ratio", "te_ratios": "te", "blocks": "blocks", "roles": "role"}


class Understanding:
    """The part of `Actions` that analyses and advises.

    Analyses run as jobs; a report grows in `_grown` while its job runs, so that a browser can take what is
    there. What the last one measured is kept, so that another ratio needs no reading.
    """

    jobs: Jobs
    history: History
    reports: Reports

    def begin_understanding(self, reports: Reports) -> None:
        """Start with no analysis; keep reports of merges there."""
        self.reports = reports
        self._grown: dict[int, AnalysisReport] = {}
        self._rows: dict[int, list[Any]] = {}
        self._last: AnalysisReport | None = None
        self._understanding = threading.Lock()

    # ---------------------------------------------------------------- analyses

    def op_analyze(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start an analysis of what is set up; `all` also carries out methods that work number by number."""
        state = state_of(request)
        recipe = to_recipe(state, self._desk.library.resolve)
        names = list(METHODS) if request.get("all") else None
        task = self.jobs.start("analyze", lambda task: self._analyze(recipe, task, names))
        with self._understanding:
            self._rows[task.id] = _leaf_rows(state)
        return task.to_json()

    @property
    def _desk(self) -> Actions:
        return cast("Actions", self)

    def _analyze(self, recipe: Recipe, task: Task, methods: Sequence[str] | None) -> dict[str, Any]:
        job = Job(drop_unsupported=True, progress=task.progress, cancelled=task.stop.is_set)
        for report in analyze_steps_with_engine(recipe, job=job, before=self._last, methods=methods):
            with self._understanding:
                self._grown[task.id] = report
                for table in (self._grown, self._rows):
                    for old in sorted(table)[:-REMEMBERED]:
                        del table[old]
        with self._understanding:
            self._last = report
            # Gram matrices are kept once, not with every report
            self._grown = {number: replace(grown, bench=None) for number, grown in self._grown.items()}
        return {"stage": report.stage}

    def op_analysis(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return how far an analysis is, and its report where that has grown beyond the stage that the
        browser has.
        """
        found = self.jobs.get(request.get("job")).to_json()
        with self._understanding:
            report, rows = self._grown.get(found["job"]), self._rows.get(found["job"], [])
        if report is not None and report.stage != request.get("have"):
            found["report"] = {**to_json(report, tensors=False), "rows": rows}
        return found

    def op_analysis_export(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return an analysis as one page (`html`, or `page` without its longest tables) or as `json`."""
        with self._understanding:
            report = self._grown.get(cast("int", request.get("job")))
        if report is None:
            message = "that analysis is not kept any more; analyse again."
            raise RecipeError(message)
        if request.get("form") == "json":
            return {"text": json.dumps(to_json(report), ensure_ascii=False, allow_nan=False)}
        return {"text": to_html(report, tensors=request.get("form") == "html")}

    def op_apply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state with an advice carried out."""
        return {"state": applied(self._desk, state_of(request), dict(request.get("changes") or {}))}

    # ---------------------------------------------------------------- reports of merges

    def report_merge(self, entry: str, recipe: Recipe) -> Task | None:
        """Write the report of a merge beside its history entry, after the merge and without holding it up."""

        def work(task: Task) -> dict[str, Any]:
            try:
                return self._report(entry, recipe, task)
            except Cancelled:  # another merge goes first
                self.report_merge(entry, recipe)
                raise

        return self.jobs.start("report", work) if entry else None

    def _report(self, entry: str, recipe: Recipe, task: Task) -> dict[str, Any]:
        job = Job(drop_unsupported=True, progress=task.progress, cancelled=task.stop.is_set)
        *_, report = analyze_steps_with_engine(recipe, job=job, before=self._last)
        with self._understanding:
            self._last = report
        try:
            self.reports.keep(entry, to_json(report, tensors=False), to_html(report, tensors=False))
        except OSError as error:
            message = f"the report cannot be written: {error.strerror or error}."
            raise RecipeError(message) from error
        return {"entry": entry}

    def op_report(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the report kept with a merge as `html` or `json`; `text` is null where there is none."""
        entry = self.history.get(str(request.get("entry")))
        return {"text": self.reports.text(entry.id, "json" if request.get("form") == "json" else "html")}

    def op_report_make(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start to make the report of a merge that has none, from its recipe and the sources as they are
        today.
        """
        entry = self.history.get(str(request.get("entry")))
        recipe = self._recipe_of(entry)
        return self.jobs.start("report", lambda task: self._report(entry.id, recipe, task)).to_json()

    def _recipe_of(self, entry: Entry) -> Recipe:
        recipe = from_json(entry.recipe, "the entry")
        state = from_recipe(
            recipe, self._desk.locate, lambda blocks: self._desk.expand(blocks, recipe.family)
        )
        gone = [row["name"] for row in state["sources"] if not row["key"]]
        if gone:
            message = (
                f"{', '.join(gone)} is not in the LoRA folders any more, so there is no "
                f"report of {entry.name}."
            )
            raise RecipeError(message)
        return to_recipe(state, self._desk.library.resolve)

    def op_compare_recipes(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return two merges side by side: what changed between their recipes, and their reports block by
        block.
        """
        entries = [self.history.get(str(request.get(name))) for name in ("entry", "other")]
        reports = [self.reports.read(entry.id) for entry in entries]
        return {
            "entries": [_shown(entry) for entry in entries],
            "missing": [entry.id for entry, report in zip(entries, reports) if report is None],
            "changes": list(self.history.diff(entries[1].id, entries[0].id)),
            **compare_reports(*reports),
        }


def _shown(entry: Entry) -> dict[str, Any]:
    data = entry.to_json()
    kept = ("id", "name", "time", "method", "sources", "report", "verdict", "notes")
    return {name: data[name] for name in kept}


def _used(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in state.get("sources") or [] if row.get("on", True) and row.get("key")]


def _leaf_rows(state: Mapping[str, Any]) -> list[Any]:
    """Return the ids of the rows in the order in which the report has the sources: a group where its first
    row stands.
    """
    rows, found = _used(state), []
    for row in rows:
        letter = str(row.get("group") or "")
        members = [other for other in rows if str(other.get("group") or "") == letter] if letter else [row]
        found.extend(member.get("id") for member in members if member.get("id") not in found)
    return found


def applied(desk: Actions, state: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with an advice's changes carried out; sources that it leaves out are switched off,
    not lost.

    Raises:
        RecipeError: the advice belongs to another recipe.
    """
    recipe = recipe_edits.with_changes(to_recipe(state, desk.library.resolve), changes)
    made = from_recipe(recipe, desk.locate, lambda blocks: desk.expand(blocks, state.get("family")))
    rows = _used(state)
    if not any(row.get("group") for row in rows):
        places = list(changes["keep"]) if changes.get("keep") is not None else list(range(len(rows)))
        fields = [field for name, field in PER_ROW.items() if changes.get(name) is not None]
        kept = [
            {**rows[place], **{field: new[field] for field in fields}}
            for place, new in zip(places, made["sources"])
        ]
        left = [{**row, "on": False} for place, row in enumerate(rows) if place not in places]
        unused = [dict(row) for row in state.get("sources") or [] if not any(row is used for used in rows)]
        made["sources"] = [*kept, *left, *unused]
    else:
        made["sources"], made["groups"] = (
            [dict(row) for row in state["sources"]],
            dict(state.get("groups") or {}),
        )
    made["knobs"] = {**(state.get("knobs") or {}), **made["knobs"]}
    return made
