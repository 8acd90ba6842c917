"""A merge started from the tab: run as a job, noted in the history, offered to the WebUI; and its proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from lib_merge import api, metadata
from lib_merge.adapters import open_lora
from lib_merge.engine.report import MergeReport
from lib_merge.engine.threads import Job
from lib_merge.errors import OutputError, RecipeError
from lib_merge.families import family_of
from lib_merge.files.names import SUFFIX, check_stem
from lib_merge.kept.history import Entry
from lib_merge.library.partners import noise_level, partner_stem, partners_of
from lib_merge.loaders import written_in
from lib_merge.recipe import Recipe, with_paths
from lib_merge.ui.desk import Desk, carried_recipe, operation, trash_of
from lib_merge.ui.jobs import JobReply, Task, compute
from lib_merge.ui.lineage import asked_for, developed_from, recipe_of
from lib_merge.ui.listing import LoraRequest
from lib_merge.ui.naming import said_source, sub_folder, target_of
from lib_merge.ui.pictures import keep_preview
from lib_merge.ui.planning import StateRequest, foreseen
from lib_merge.ui.protocol import About
from lib_merge.ui.state import Output, to_recipe
from lib_merge.ui.understanding import report_merge


@operation("merge", rest="POST /merge")
def merge(desk: Desk, request: StateRequest) -> JobReply:
    """Start a merge; the answer has its job."""
    output = request.state.output
    planned = foreseen(desk, request.state, free=True)
    desk.jobs.stop("analyze")  # the person waits for the merge, not for what is known about one
    desk.jobs.stop("report")

    def work(task: Task) -> dict[str, Any]:
        recipe = to_recipe(request.state, desk.library.resolve)
        return run_recipe(desk, recipe, target_of(desk, output, recipe, planned.rank[1]), output, task)

    return desk.jobs.start("merge", work).reply()


@operation("verify", rest="POST /verify")
def verify(desk: Desk, request: LoraRequest) -> JobReply:
    """Start to hold a merged LoRA against its recipe."""
    path = desk.path_of(request.key, request.name)

    def work(task: Task) -> dict[str, Any]:
        folders = desk.host.lora_folders()
        report, remarks = compute(desk.host, task, lambda job: api.verify(path, folders, job=job))
        report.warnings[:0] = remarks
        return report.to_json()

    return desk.jobs.start("verify", work).reply()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Names a job."""

    job: Annotated[int, About("its number", example=7)]


@operation("job", rest="GET /jobs/{job}")
def job(desk: Desk, request: JobRequest) -> JobReply:
    """How far a job is, and its result."""
    task = desk.jobs.get(request.job)
    reply = task.reply()
    task.told = task.told or reply.state not in ("waiting", "running")
    return reply


@operation("cancel", rest="POST /jobs/{job}/cancel")
def cancel(desk: Desk, request: JobRequest) -> JobReply:
    """Ask a job to stop."""
    return desk.jobs.cancel(request.job).reply()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainRequest:
    """Names a merge of the history to run again."""

    entry: str
    name: Annotated[str, About("of the file; its own by default: the same bytes again")] = ""


@operation("again")
def again(desk: Desk, request: AgainRequest) -> JobReply:
    """Start a merge of the history again; under its own name that gives the same bytes."""
    entry = desk.history.get(request.entry)
    recipe = recipe_of(entry)
    lost = desk.locator.missing(recipe)
    if lost:
        message = f"it cannot be run again: {'; '.join(lost)}."
        raise RecipeError(message)
    target = _target_again(desk, entry, request.name)
    located = with_paths(recipe, lambda source: desk.library.resolve(desk.locator.locate(source)))
    output = Output(overwrite=target.stem == entry.name, based_on=entry.based_on, notes=entry.notes)
    before = str(entry.report.get("tensor_hash") or "")

    def work(task: Task) -> dict[str, Any]:
        done = run_recipe(desk, located, target, output, task)
        return {**done, "same_tensors": bool(before) and done["tensor_hash"] == before, "again": entry.id}

    return desk.jobs.start("merge", work).reply()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartnersRequest:
    """Names a merge of the history whose partner files are to be merged alike."""

    entry: str


@operation("partners")
def partners(desk: Desk, request: PartnersRequest) -> JobReply:
    """Start the same recipe for the partner files of Wan 2.2, under the partner's name."""
    entry = desk.history.get(request.entry)
    recipe = recipe_of(entry)
    lost = desk.locator.missing(recipe)
    if lost:
        message = f"the partner files cannot be merged: {'; '.join(lost)}."
        raise RecipeError(message)
    located = with_paths(recipe, lambda source: desk.library.resolve(desk.locator.locate(source)))
    found = partners_of(located, desk.host.lora_folders())
    target = _target_again(desk, entry, partner_stem(entry.name, found))
    output = Output(notes=entry.notes)

    def work(task: Task) -> dict[str, Any]:
        done = run_recipe(desk, found.recipe, target, output, task)
        return {**done, "warnings": [*found.notes, *done["warnings"]]}

    return desk.jobs.start("merge", work).reply()


def _target_again(desk: Desk, entry: Entry, name: str) -> Path:
    """Return the file for another run: in the folder it was saved in, under its own name or under `name`.

    Raises:
        OutputError: a name that cannot be, or one that exists already.
    """
    own = entry.key.partition("/")[2]
    stem = name.strip(" ").removesuffix(SUFFIX) or entry.name
    check_stem(stem)
    root = desk.host.lora_folders()[0]
    target = sub_folder(root, str(PurePosixPath(own).parent)) / f"{stem}{SUFFIX}"
    if target.exists() and stem != entry.name:
        message = f"{target.name} exists already; choose another name."
        raise OutputError(message)
    return target


# ------------------------------------------------------------------------------------------------ the work


def run_recipe(desk: Desk, recipe: Recipe, target: Path, output: Output, task: Task) -> dict[str, Any]:
    """Run a recipe into a file and tell everybody: side-car, preview, WebUI, library, history.

    Args:
        desk: the server side.
        recipe: with paths.
        target: the file to write.
        output: overwrite, triggers, notes, based_on, preview.
        task: reports progress, asks for a stop.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the folder {target.parent.name} cannot be made: {error.strerror or error}."
        raise OutputError(message) from error

    def work(job: Job) -> MergeReport:
        made = api.run_recipe(recipe, target, job=job)
        # still in our turn: the next generation must not start with what the WebUI remembers of an
        # overwritten file
        desk.host.refresh_loras([Path(made.output)])
        return made

    report, remarks = compute(
        desk.host,
        task,
        work,
        overwrite=output.overwrite,
        drop_unsupported=True,
        trash=trash_of(desk).folder,
        card=_card(output),
    )
    report.warnings[:0] = remarks
    saved = Path(report.output)
    report.warnings.extend(keep_preview(desk.library, saved, output.preview, trash_of(desk)))
    desk.library.refresh(wait=True)
    done = {
        **report.to_json(),
        "output": saved.name,
        "key": desk.library.key_of(saved),
        "alias": desk.host.alias_of(saved),
    }
    done["prompt"] = f"<lora:{done['alias']}:1>"
    done["triggers"] = str(metadata.read_side_car(saved).get("activation text") or "")
    done["entry"] = note(desk, saved, recipe, done, output)
    done["noise"] = noise_level(recipe, desk.host.lora_folders()) if family_of(report.family).pairs else ""
    done["on_checkpoint"] = _on_checkpoint(desk, saved, report.family)
    report_merge(desk, done["entry"], recipe)
    return done


def _on_checkpoint(desk: Desk, saved: Path, family: str) -> dict[str, Any] | None:
    """Return how many modules act on the loaded checkpoint; None where that is of another family."""
    name, loaded = desk.host.checkpoint()
    if loaded != family:
        return None
    with open_lora(saved, family) as file:
        modules = written_in(file).modules
    known = desk.host.known_names([module.stem for module in modules])
    if known is None:
        return None
    lost = [module.name for module in modules if module.stem not in known]
    return {"name": name, "loaded": len(modules) - len(lost), "total": len(modules), "lost": lost[:12]}


def _card(output: Output) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what puts the words and notes of the tab into the WebUI's side-car."""

    def change(side: dict[str, Any]) -> dict[str, Any]:
        if output.triggers is not None:
            side["activation text"] = output.triggers[:2000]
        if output.notes:
            side["notes"] = f"{output.notes[:10_000]}\n{side.get('notes', '')}".strip()
        return side

    return change


def note(desk: Desk, saved: Path, recipe: Recipe, done: dict[str, Any], output: Output) -> str:
    """Add the merge to the history and return the entry's id; "", and a warning in `done`, when it cannot be
    written.
    """
    opened = carried_recipe(saved) or recipe
    based_on = developed_from(desk, output.based_on, recipe)
    summary = (
        "relative_error",
        "energy_kept",
        "cast_error",
        "rank",
        "bytes",
        "seconds",
        "warnings",
        "tensor_hash",
        "family",
        "modules",
        "loads_in",
    )
    try:
        entry = desk.history.add(
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            name=saved.stem,
            key=str(done["key"]),
            recipe=opened.to_json(),
            method=recipe.method,
            sources=[{"name": said_source(source), "ratio": source.ratio} for source in recipe.sources],
            report={name: done[name] for name in summary if name in done},
            based_on=based_on.id if based_on is not None else "",
            asked=asked_for(recipe),
            notes=output.notes,
        )
    except OutputError as error:
        done["warnings"] = [*done.get("warnings", ()), f"the merge is not in the history: {error}"]
        return ""
    return entry.id
