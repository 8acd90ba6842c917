"""A merge started from the tab: planned before, run in a thread, noted in the history, offered to the WebUI."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_merge import metadata
from lib_merge.api import load_recipe, run_recipe, verify
from lib_merge.engine.fillers import fillers
from lib_merge.engine.job import Job
from lib_merge.engine.plan import Planner
from lib_merge.errors import OutputError
from lib_merge.recipe import Recipe
from lib_merge.ui.jobs import Task
from lib_merge.ui.naming import fill_template, output_path, sub_folder
from lib_merge.ui.state import to_recipe

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

WIDTH = {"fp16": 2, "bf16": 2, "float": 4}


def plan(desk: Actions, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a merge would make, from headers alone: name, family, modules, ranks, size, and what to know.

    Raises:
        MergeError: what keeps it from being merged, in one sentence.
    """
    recipe = to_recipe(state, desk.library.resolve)
    target = target_of(desk, state, recipe)
    planner = Planner(Job().open_file, drop_unsupported=True)
    try:
        node = planner.build(recipe)
        ranks, numbers = [], 0
        for item in [*node.targets.values(), *fillers(node)]:
            weighted = item.name not in node.targets or any(node.weights(item))
            if not item.columns or not weighted:
                continue
            rank = min(max(1, item.stacked), item.out, item.columns)
            if node.policy.kind == "rank":
                rank = min(rank, int(node.policy.value))
            ranks.append(rank)
            numbers += rank * (item.out + item.columns)
        notes = [note for node_ in [node] for note in node_.notes]
    finally:
        for file in planner.files:
            file.close()
    left = {file.name: len(file.left_out) for file in planner.files if file.left_out}
    notes += [f"{count} modules of {name} cannot be merged and will be left out" for name, count in left.items()]
    size = numbers * WIDTH[recipe.precision]
    if node.policy.kind == "budget":
        size = min(size, int(node.policy.value))
    return {
        "family": node.family,
        "modules": len(ranks),
        "rank": [min(ranks, default=0), max(ranks, default=0)],
        "bytes": size,
        "estimate": node.policy.kind in ("energy", "error", "budget"),
        "policy": node.policy.text,
        "name": target.name,
        "folder": _shown_folder(desk, target.parent),
        "exists": target.exists(),
        "claimed": _claimed(desk, target),
        "triggers": ", ".join(_words(recipe)),
        "notes": notes,
    }


def _shown_folder(desk: Actions, folder: Path) -> str:
    with contextlib.suppress(ValueError):
        below = folder.relative_to(desk.host.lora_folders()[0]).as_posix()
        return "" if below == "." else below
    return folder.name


def _claimed(desk: Actions, target: Path) -> str:
    """Return the LoRA that already answers to the new name, unless it is the file to be replaced."""
    other = desk.host.claims_name(target.stem)
    return "" if other is None or other == target else desk.library.key_of(other)


def _words(recipe: Recipe) -> list[str]:
    from lib_merge.adapters.source import open_lora

    found = []
    for source in _leaves(recipe):
        if source.path is not None:
            with open_lora(source.path) as file:
                found.append((source, file.metadata))
    return metadata.trigger_words(found)


def _leaves(recipe: Recipe) -> list[Any]:
    return [leaf for source in recipe.sources for leaf in (_leaves(source.recipe) if source.recipe else [source])]


def target_of(desk: Actions, state: Mapping[str, Any], recipe: Recipe) -> Path:
    """Return the file that the state's output settings name.

    Raises:
        OutputError: a bad name or folder.
    """
    output = state.get("output") or {}
    folder = sub_folder(desk.host.lora_folders()[0], str(output.get("folder") or ""))
    rank = recipe.policy().text.replace(":", "-")
    names = [source.label for source in recipe.sources]
    stem = fill_template(
        str(output.get("template") or ""), names, [s.ratio for s in recipe.sources], recipe.method, rank
    )
    return output_path(folder, stem, overwrite=bool(output.get("overwrite")))


def merge_work(desk: Actions, state: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Run the merge of a state; returns the report, the new LoRA's key and its prompt.

    Raises:
        MergeError: nothing was written then.
    """
    recipe = to_recipe(state, desk.library.resolve)
    target = target_of(desk, state, recipe)
    output = state.get("output") or {}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the folder {target.parent.name} cannot be made: {error.strerror or error}."
        raise OutputError(message) from error
    job = Job(
        device=desk.host.device(),
        overwrite=bool(output.get("overwrite")),
        drop_unsupported=True,
        progress=task.progress,
        cancelled=task.stop.is_set,
    )
    with desk.host.busy_lock():
        report = run_recipe(recipe, target, job=job)
    saved = Path(report.output)
    _side_car(saved, output)
    desk.host.refresh_loras([saved])
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


def _side_car(saved: Path, output: Mapping[str, Any]) -> None:
    """Put the words and notes of the tab into the WebUI's side-car; the merge is safe already, so failing is no loss."""
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


def note(desk: Actions, saved: Path, recipe: Recipe, done: Mapping[str, Any], output: Mapping[str, Any]) -> str:
    """Add the merge to the history and return the entry's id; "" when the history cannot be written."""
    opened = load_stamped(saved, recipe)
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


def load_stamped(saved: Path, recipe: Recipe) -> Recipe:
    """Return the recipe as the file carries it, with hashes, for the history."""
    from lib_merge.adapters.source import open_lora
    from lib_merge.recipe import loads

    with open_lora(saved) as file:
        text = metadata.recipe_of(file.metadata)
    return loads(text, saved.name) if text else recipe


def verify_work(desk: Actions, path: Path, task: Task) -> dict[str, Any]:
    """Hold a merged file against its recipe.

    Raises:
        MergeError: it differs, a source is gone, or it was not made here.
    """
    job = replace(Job(device=desk.host.device()), progress=task.progress, cancelled=task.stop.is_set)
    with desk.host.busy_lock():
        return verify(path, desk.host.lora_folders(), job=job).to_json()


def recipe_of_file(desk: Actions, path: Path) -> Recipe:
    """Return the recipe a merged file carries, with every source found.

    Raises:
        RecipeError: no recipe, or a source is gone.
    """
    return load_recipe(path, desk.host.lora_folders())
