"""Understanding a merge: analyses that arrive in parts, advice, reports kept, recipes compared."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from lib_merge.analysis import AnalysisReport, analyze_steps, to_html, to_json
from lib_merge.analysis.comparison import compare_reports
from lib_merge.engine.threads import Job
from lib_merge.errors import Cancelled, RecipeError
from lib_merge.kept.history import Entry
from lib_merge.methods import METHODS
from lib_merge.recipe import Recipe, from_json
from lib_merge.recipe_edits import PER_SOURCE, letter, with_changes
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.jobs import JobReply, Task
from lib_merge.ui.protocol import About
from lib_merge.ui.state import KnobValue, Row, Setup, TabState, from_recipe, policy_of, to_recipe, used

log = logging.getLogger("lib_merge")
# analyses whose report can still be asked for
REMEMBERED = 8


# -------------------------------------------------------------------------------------------- analyses


@dataclass(frozen=True, slots=True)
class Growing:
    """A report while its job runs, and the rows that its sources are, in its order."""

    report: AnalysisReport
    rows: list[int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeRequest:
    """Carries what is to be analysed."""

    state: TabState
    all: Annotated[bool, About("also carry out methods that work number by number")] = False


@operation("analyze")
def analyze(desk: Desk, request: AnalyzeRequest) -> JobReply:
    """Start an analysis of what is set up."""
    recipe = to_recipe(request.state, desk.library.resolve)
    rows = [row.id for row in used(request.state)]
    methods = list(METHODS) if request.all else None
    return desk.jobs.start("analyze", lambda task: _analyze(desk, recipe, rows, task, methods)).reply()


def _analyze(
    desk: Desk, recipe: Recipe, rows: list[int | None], task: Task, methods: Sequence[str] | None
) -> dict[str, Any]:
    job = Job(progress=task.progress, cancelled=task.stop.is_set, open_file=desk.headers)
    for report in analyze_steps(recipe, job=job, before=desk.measured, methods=methods):
        report = replace(report, handles=tuple(leaf.handle for leaf in recipe.leaves()))  # noqa: PLW2901
        task.partial = Growing(report, rows)
    desk.measured = report
    task.partial = Growing(replace(report, bench=None), rows)  # Gram matrices are kept once
    grown = [one for one in desk.jobs.of("analyze") if one.partial is not None]
    for old in grown[:-REMEMBERED]:
        old.partial = None
    return {"stage": report.stage}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisRequest:
    """Names the job of an analysis."""

    job: int
    have: Annotated[str, About("the stage of the report that the page has")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisReply(JobReply):
    """How far an analysis is; `report` where it has grown beyond what the page has."""

    report: Annotated[dict[str, Any] | None, About(omit=True)] = None


@operation("analysis")
def analysis(desk: Desk, request: AnalysisRequest) -> AnalysisReply:
    """Return how far an analysis is, and its report where that has grown."""
    task = desk.jobs.get(request.job)
    now = task.reply()
    grown = task.partial
    report = None
    if isinstance(grown, Growing) and grown.report.stage != request.have:
        report = {**to_json(grown.report, tensors=False), "rows": grown.rows}
    known = {field.name: getattr(now, field.name) for field in fields(JobReply)}
    return AnalysisReply(**known, report=report)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """Asks for an analysis as a file."""

    job: int
    form: Annotated[Literal["html", "page", "json"], About("page: html without its longest tables")] = "page"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReply:
    """A file's text; null where there is none."""

    text: str | None


@operation("analysis_export")
def analysis_export(desk: Desk, request: ExportRequest) -> TextReply:
    """Return an analysis as one page or as JSON."""
    task = next((one for one in desk.jobs.of("analyze") if one.id == request.job), None)
    grown = task.partial if task is not None else None
    if not isinstance(grown, Growing):
        message = "that analysis is not kept any more; analyse again."
        raise RecipeError(message)
    if request.form == "json":
        return TextReply(text=json.dumps(to_json(grown.report), ensure_ascii=False, allow_nan=False))
    return TextReply(text=to_html(grown.report, tensors=request.form == "html"))


# -------------------------------------------------------------------------------------------- advice


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What an advice changes; lists hold one value per source of the recipe, null leaves one as it is."""

    ratios: list[float | None] | None = None
    te_ratios: list[float | list[float] | None] | None = None
    blocks: list[dict[str, float] | str | None] | None = None
    roles: list[str | None] | None = None
    method: str | None = None
    knobs: dict[str, KnobValue] | None = None
    rank: Annotated[int | str | None, About("a policy as people type it")] = None
    precision: str | None = None
    keep: Annotated[list[int] | None, About("the sources that stay, by their places")] = None
    aside: Annotated[
        list[str] | None, About("handles of sources that stay outside the merge of the others, added on top")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyRequest:
    """Carries what is set up and what to change of it."""

    state: TabState
    changes: Changes = Changes()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupReply:
    """What the tab is to be set to; null where there is nothing."""

    state: Setup | None


@operation("apply")
def apply(desk: Desk, request: ApplyRequest) -> SetupReply:
    """Return what is set up with an advice carried out."""
    return SetupReply(state=applied(desk, request.state, request.changes))


def applied(desk: Desk, state: TabState, changes: Changes) -> Setup:
    """Return the set-up with an advice's changes; sources that it leaves out are switched off, not lost.

    Raises:
        RecipeError: the advice belongs to another recipe.
    """
    given = {field.name: getattr(changes, field.name) for field in fields(Changes)}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = with_changes(to_recipe(state, desk.library.resolve), given)
    made = from_recipe(recipe, desk.locator.locate, lambda blocks: desk.expand(blocks, state.family))
    if recipe.rank == policy_of(state.rank):
        made = replace(made, rank=state.rank)
    knobs = {**state.knobs, **made.knobs}
    if changes.aside:
        return replace(made, sources=_set_aside(state, recipe, made), knobs=knobs)
    if any(row.group for row in used(state)):
        return replace(made, sources=state.sources, groups=state.groups, knobs=knobs)
    return replace(made, sources=_changed(state, made.sources, changes), knobs=knobs)


def _set_aside(state: TabState, recipe: Recipe, made: Setup) -> list[Row]:
    """Return the rows in their places, grouped and at the ratios of a recipe that `with_aside` made.

    Raises:
        RecipeError: the recipe has groups in a group, which rows cannot show.
    """
    if len(made.sources) != len(recipe.leaves()):
        message = "that would need a group inside a group, which the tab does not have."
        raise RecipeError(message)
    new = {source.handle: row for source, row in zip(recipe.leaves(), made.sources)}
    rows = []
    for index, row in enumerate(state.sources):
        now = new.get(letter(index)) if row.on and row.key else None
        if now is not None:
            te = row.te if now.ratio == row.ratio else now.te
            row = replace(row, group=now.group, ratio=now.ratio, te=te)  # noqa: PLW2901
        rows.append(row)
    return rows


def _changed(state: TabState, made: list[Row], changes: Changes) -> list[Row]:
    """Return the rows, those of the recipe as it is now first, with the fields that were to change."""
    rows = used(state)
    places = list(range(len(rows))) if changes.keep is None else changes.keep
    names = [
        _ROW_FIELD.get(field, field)
        for name, field in PER_SOURCE.items()
        if getattr(changes, name) is not None
    ]
    kept = [
        replace(rows[place], **{name: getattr(new, name) for name in names})
        for place, new in zip(places, made)
    ]
    left = [replace(row, on=False) for place, row in enumerate(rows) if place not in places]
    unused = [row for row in state.sources if not any(row is one for one in rows)]
    return [*kept, *left, *unused]


_ROW_FIELD = {"te_ratio": "te"}


# -------------------------------------------------------------------------------------------- reports


def report_merge(desk: Desk, entry: str, recipe: Recipe) -> Task | None:
    """Write the report of a merge beside its history entry, after the merge and without holding it up."""

    def work(task: Task) -> dict[str, Any]:
        try:
            return _report(desk, entry, recipe, task)
        except Cancelled:  # another merge goes first
            report_merge(desk, entry, recipe)
            raise

    try:
        return desk.jobs.start("report", work) if entry else None
    except RecipeError as error:  # the merge is saved; its report can be made at any time
        log.info("the report of %s was not begun: %s", entry, error)
        return None


def _report(desk: Desk, entry: str, recipe: Recipe, task: Task) -> dict[str, Any]:
    job = Job(progress=task.progress, cancelled=task.stop.is_set, open_file=desk.headers)
    *_, report = analyze_steps(recipe, job=job, before=desk.measured)
    desk.measured = report
    desk.reports.keep(entry, to_json(report, tensors=False), to_html(report, tensors=False))
    return {"entry": entry}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """Names a merge of the history."""

    entry: str
    form: Literal["html", "json"] = "html"


@operation("report")
def report(desk: Desk, request: ReportRequest) -> TextReply:
    """Return the report kept with a merge."""
    entry = desk.history.get(request.entry)
    return TextReply(text=desk.reports.text(entry.id, request.form))


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRequest:
    """Names a merge of the history."""

    entry: str


@operation("report_make")
def report_make(desk: Desk, request: EntryRequest) -> JobReply:
    """Start to make the report of a merge that has none, from its recipe and the sources of today."""
    entry = desk.history.get(request.entry)
    recipe = _recipe_of(desk, entry)
    return desk.jobs.start("report", lambda task: _report(desk, entry.id, recipe, task)).reply()


def _recipe_of(desk: Desk, entry: Entry) -> Recipe:
    state = desk.setup_of(from_json(entry.recipe, "the entry"))
    gone = [row.name for row in state.sources if not row.key]
    if gone:
        message = (
            f"{', '.join(gone)} is not in the LoRA folders any more, so there is no report of {entry.name}."
        )
        raise RecipeError(message)
    return to_recipe(state, desk.library.resolve)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRequest:
    """Names two merges of the history."""

    entry: str
    other: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareReply:
    """Two merges side by side; lists of two are of the first and the second."""

    entries: list[dict[str, Any]]
    missing: Annotated[list[str], About("entries without a report")]
    changes: Annotated[list[str], About("what changed between their recipes")]
    sources: list[list[dict[str, Any]]]
    whole: list[dict[str, Any]]
    pairs: list[list[dict[str, Any]]]
    blocks: list[dict[str, Any]]


@operation("compare_recipes")
def compare_recipes(desk: Desk, request: PairRequest) -> CompareReply:
    """Return two merges side by side: what changed, and their reports block by block."""
    entries = [desk.history.get(name) for name in (request.entry, request.other)]
    reports = [desk.reports.read(entry.id) for entry in entries]
    return CompareReply(
        entries=[_shown(entry) for entry in entries],
        missing=[entry.id for entry, one in zip(entries, reports) if one is None],
        changes=list(desk.history.diff(entries[1].id, entries[0].id)),
        **compare_reports(*reports),
    )


def _shown(entry: Entry) -> dict[str, Any]:
    names = ("id", "name", "time", "method", "sources", "report", "verdict", "notes")
    return {name: getattr(entry, name) for name in names}
