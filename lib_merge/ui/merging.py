"""A merge started from the tab: run in a thread, noted in the history, offered to the WebUI."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lib_merge import metadata
from lib_merge.adapters.source import open_lora
from lib_merge.api import run_recipe, verify
from lib_merge.engine.job import Job
from lib_merge.engine.report import Report
from lib_merge.errors import OutputError
from lib_merge.files.names import check_output_name
from lib_merge.kept.history import Entry
from lib_merge.recipe import Recipe, loads, with_paths
from lib_merge.ui.jobs import Task
from lib_merge.ui.naming import check_plain_name, sub_folder
from lib_merge.ui.pictures import keep_preview
from lib_merge.ui.planning import target_of
from lib_merge.ui.running import compute
from lib_merge.ui.state import to_recipe

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions


def merge_work(desk: Actions, state: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Run the merge of a state; returns the report, the new LoRA's key and its prompt.

    Raises:
        MergeError: nothing was written then.
    """
    recipe = to_recipe(state, desk.library.resolve)
    return recipe_work(desk, recipe, target_of(desk, state, recipe), dict(state.get("output") or {}), task)


def recipe_work(
    desk: Actions, recipe: Recipe, target: Path, output: Mapping[str, Any], task: Task
) -> dict[str, Any]:
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

    def work(job: Job) -> Report:
        made = run_recipe(recipe, target, job=job)
        # still in our turn: the next generation must not start with what the WebUI remembers of an
        # overwritten file
        desk.host.refresh_loras([Path(made.output)])
        return made

    report, remarks = compute(
        desk.host, task, work, overwrite=bool(output.get("overwrite")), drop_unsupported=True
    )
    report.warnings[:0] = remarks
    saved = Path(report.output)
    _side_car(saved, output)
    report.warnings.extend(keep_preview(desk, saved, output.get("preview")))
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
    desk.report_merge(done["entry"], recipe)
    return done


def start_again(desk: Actions, entry: Entry, recipe: Recipe, name: str) -> dict[str, Any]:
    """Start a merge of the history again, under its own name or under `name`, in the folder it was saved in.

    Raises:
        OutputError: a name that cannot be, or one that exists already.
    """
    root = desk.host.lora_folders()[0]
    own = entry.key.partition("/")[2]
    stem = name.strip().removesuffix(".safetensors") or entry.name
    check_plain_name(stem)
    target = sub_folder(root, str(PurePosixPath(own).parent)) / f"{stem}.safetensors"
    check_output_name(target)
    same = stem == entry.name
    if target.exists() and not same:
        message = f"{target.name} exists already; choose another name."
        raise OutputError(message)
    found = with_paths(recipe, lambda source: desk.library.resolve(desk.locate(source)))
    output = {"overwrite": same, "based_on": entry.based_on, "notes": entry.notes}
    before = str(entry.report.get("tensor_hash") or "")

    def work(task: Task) -> dict[str, Any]:
        done = recipe_work(desk, found, target, output, task)
        return {**done, "same_tensors": bool(before) and done["tensor_hash"] == before, "again": entry.id}

    return desk.jobs.start("merge", work).to_json()


def _side_car(saved: Path, output: Mapping[str, Any]) -> None:
    """Put the words and notes of the tab into the WebUI's side-car; the merge is safe already, so failing is
    no loss.
    """
    path = metadata.side_car_path(saved)
    side = metadata.read_side_car(saved)
    if output.get("triggers") is not None:
        side["activation text"] = str(output["triggers"])[:2000]
    if output.get("notes"):
        side["notes"] = f"{str(output['notes'])[:10_000]}\n{side.get('notes', '')}".strip()
    temp = path.with_name(f".{path.stem[:40]}.notes.merging")
    with contextlib.suppress(OSError):
        temp.write_text(json.dumps(side, ensure_ascii=False, indent=4), encoding="utf-8")
        os.replace(temp, path)


def note(
    desk: Actions, saved: Path, recipe: Recipe, done: Mapping[str, Any], output: Mapping[str, Any]
) -> str:
    """Add the merge to the history and return the entry's id; "" when the history cannot be written."""
    opened = carried_recipe(saved) or recipe
    summary = (
        "relative_error",
        "energy_kept",
        "rank",
        "bytes",
        "seconds",
        "warnings",
        "tensor_hash",
        "family",
        "modules",
    )
    try:
        entry = desk.history.add(
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            name=saved.stem,
            key=str(done["key"]),
            recipe=opened.to_json(),
            method=recipe.method,
            sources=[{"name": source.label, "ratio": source.ratio} for source in recipe.sources],
            report={name: done[name] for name in summary if name in done},
            based_on=str(output.get("based_on") or ""),
            notes=str(output.get("notes") or ""),
        )
    except OSError:
        return ""
    return entry.id


def carried_recipe(path: Path) -> Recipe | None:
    """Return the recipe that a file carries, None where there is none."""
    with open_lora(path) as file:
        text = metadata.recipe_of(file.metadata)
    return loads(text, path.name) if text else None


def verify_work(desk: Actions, path: Path, task: Task) -> dict[str, Any]:
    """Hold a merged file against its recipe.

    Raises:
        MergeError: it differs, a source is gone, or it was not made here.
    """
    report, remarks = compute(desk.host, task, lambda job: verify(path, desk.host.lora_folders(), job=job))
    report.warnings[:0] = remarks
    return report.to_json()
