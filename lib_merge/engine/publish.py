"""Giving a finished merge its name, and its notes beside it, alone among all merges into that file.

Whoever comes last has both: the file and the notes that lie there are of one merge. What a merge replaces and
did not make is kept in the trash, what it finds beside its name is kept as .bak; an earlier merge of the same
name is replaced, since its recipe gives the same bytes again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from lib_merge import metadata
from lib_merge.engine.report import MergeReport
from lib_merge.engine.threads import Job
from lib_merge.engine.tree import Tree
from lib_merge.errors import MergeError, OutputError
from lib_merge.files import store
from lib_merge.files.beside import beside
from lib_merge.files.hashes import data_hash
from lib_merge.files.moving import back_up
from lib_merge.files.reader import SafetensorsFile, open_tensors
from lib_merge.files.trash import Thrown, Trash
from lib_merge.files.writer import StreamWriter

# seconds to wait for another merge that publishes into the same file
PATIENCE = 60.0


class Published(NamedTuple):
    """The path that a merge got, and what is to be told of it."""

    path: Path
    notes: list[str]


def publish(writer: StreamWriter, tree: Tree, report: MergeReport, job: Job) -> Published:
    """Give a finished file its name, and write its notes.

    Args:
        writer: whose temporary file is complete.
        tree: what was merged.
        report: with its modules measured.
        job: overwrite, trash, side_car.
    Raises:
        OutputError: the name is taken and may not be replaced, or what it replaces cannot be kept.
    """
    if not (job.proof or job.side_car):  # thrown away after a look
        return Published(writer.publish(overwrite=job.overwrite), [])
    target = writer.target
    trash = Trash(job.trash or target.parent / ".lora-merge" / "trash")
    with store.locked(target, PATIENCE):
        there = os.path.lexists(target)
        kept = _keep_replaced(target, trash, job) if there and job.overwrite else None
        try:
            final = writer.publish(overwrite=job.overwrite)
        except BaseException:
            if kept is not None:
                trash.drop(kept)
            raise
        notes = []
        if kept is not None:
            notes += _settle(kept, trash, final == target)
        if job.side_car:
            notes += _leftovers(final, job) if not there or final != target else []
            notes += _side_car(final, tree, report, job)
    return Published(final, notes)


def _keep_replaced(target: Path, trash: Trash, job: Job) -> Thrown | None:
    """Keep what is going to be replaced, with what lies beside it; None where there is nothing to be kept."""
    if is_own(target):
        return None
    return trash.keep([target, *(path for path in beside(target) if not job.spares(path))])


def _settle(kept: Thrown, trash: Trash, replaced: bool) -> list[str]:
    """Take away what lay beside a replaced file; forget the copies where it was not replaced."""
    if not replaced:
        trash.drop(kept)
        return []
    first, *others = kept.files.values()
    for name in others:
        with contextlib.suppress(OSError):
            (Path(kept.folder) / name).unlink()
    what = f"{first} and {len(others)} files beside it were" if others else f"{first} was"
    return [f"the old {what} kept in {trash.folder}"]


def is_own(path: Path) -> bool:
    """Tell whether a file is a merge that was saved under this very name and is as it was saved."""
    if path.is_symlink():
        return False
    try:
        with open_tensors(path) as file:
            if not isinstance(file, SafetensorsFile) or metadata.recipe_of(file.metadata) is None:
                return False
            named = file.metadata.get("ss_output_name") == path.stem
            return named and file.metadata.get("sshs_model_hash") == data_hash(path, file.data_start)
    except MergeError:
        return False


def _leftovers(final: Path, job: Job) -> list[str]:
    """Keep pictures and texts of somebody else's that lie there under a new name: they would become the
    merge's.
    """
    side_car = metadata.side_car_path(final)
    if metadata.card_at(side_car).ours:  # of a merge that was deleted without them
        return []
    notes = []
    for path in beside(final):
        if path != side_car and not job.spares(path):
            try:
                kept = back_up(path).name
                notes.append(f"{path.name} lay there under the name of the merge; it is kept as {kept}")
            except OutputError as error:
                notes.append(str(error))
    return notes


def _side_car(final: Path, tree: Tree, report: MergeReport, job: Job) -> list[str]:
    """Write the notes beside the file: words, weight, what was merged."""
    node = tree.root
    path = metadata.side_car_path(final)
    if job.spares(path):
        return [f"{path.name} is the recipe, so no notes were written beside {final.name}"]
    words = metadata.trigger_words([(leaf.source, leaf.file.metadata) for leaf in node.leaves()])
    recipe = node.stamped()
    notes = "\n".join([metadata.describe_recipe(recipe), *report.words()])
    try:
        note = metadata.write_side_car(final, recipe, node.family, words, notes, finish=job.card)
    except OutputError as error:  # the merge itself is safe; a note beside it is not worth failing
        note = str(error)
    return [note] if note else []
