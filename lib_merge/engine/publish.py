"""Giving a finished merge its name, and its notes beside it, alone among all merges into that file.

Whoever comes last has both: the file and the notes that lie there are of one merge. What a merge replaces and
did not make is kept in the trash, what it finds beside its name is kept as .bak; an earlier merge of the same
name is replaced, since its recipe gives the same bytes again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lib_merge import metadata
from lib_merge.engine.report import MergeReport
from lib_merge.engine.threads import Job
from lib_merge.engine.tree import Tree
from lib_merge.errors import MergeError, OutputError
from lib_merge.files import store
from lib_merge.files.beside import beside
from lib_merge.files.hashes import data_hash
from lib_merge.files.moving import back_up, move_back
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
        if there and not job.overwrite:
            return Published(writer.publish(overwrite=False), [])  # which says so
        left = not there and metadata.card_at(metadata.side_car_path(target)).ours
        kept = _keep_replaced(target, trash, job) if there else None
        stale = _stale_card(target, tree, job) if kept is None else []
        with _card(target, tree, report, job, anew=kept is not None) as card:
            final = _named(writer, trash, kept, job, stale)
            if card is not None and final == target:
                card.put()
        notes = (
            [] if kept is None else _settle(kept, trash, None if card is None else card.path, final == target)
        )
        notes += _settle_card(stale, final == target)
        if final != target:
            notes += _late_notes(final, tree, report, job)
        elif job.side_car:
            notes += _leftovers(final, job) if not there and not left else []
            notes += _spared(final) if card is None else card.notes
    return Published(final, notes)


def _named(
    writer: StreamWriter, trash: Trash, kept: Thrown | None, job: Job, stale: Sequence[tuple[Path, Path]]
) -> Path:
    """Give the file its name; where it gets none, nothing was replaced."""
    try:
        return writer.publish(overwrite=job.overwrite)
    except BaseException:
        move_back(stale)
        if kept is not None:
            trash.drop(kept)
        raise


def _keep_replaced(target: Path, trash: Trash, job: Job) -> Thrown | None:
    """Keep what is going to be replaced, with what lies beside it; None where there is nothing to be kept."""
    if is_own(target):
        return None
    return trash.keep([target, *(path for path in beside(target) if not job.spares(path))])


def _settle(kept: Thrown, trash: Trash, card: Path | None, replaced: bool) -> list[str]:
    """Take away what lay beside a replaced file, its card excepted where a new one has its place by now;
    forget the copies where the file was not replaced.
    """
    if not replaced:
        trash.drop(kept)
        return []
    first, *others = kept.files.values()
    for name in others:
        if card is None or name != card.name:
            with contextlib.suppress(OSError):
                (Path(kept.folder) / name).unlink()
    what = f"{first} and {len(others)} files beside it were" if others else f"{first} was"
    return [f"the old {what} kept in {trash.folder}"]


def _stale_card(target: Path, tree: Tree, job: Job) -> list[tuple[Path, Path]]:
    """Set the notes of another merge aside where no new ones are written; return (their place, where they
    lie now).
    """
    path = metadata.side_car_path(target)
    if job.side_car or job.spares(path) or path.is_symlink():
        return []
    card = metadata.card_at(path)
    if not card.ours or card.fields.get("description") == metadata.describe_recipe(tree.root.stamped()):
        return []
    return [(path, back_up(path))]


def _settle_card(stale: Sequence[tuple[Path, Path]], replaced: bool) -> list[str]:
    if not replaced:
        move_back(stale)
        return []
    return [f"{path.name} described an earlier merge; it is kept as {aside.name}" for path, aside in stale]


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
    notes = []
    for path in beside(final):
        if path != side_car and not job.spares(path):
            try:
                kept = back_up(path).name
                notes.append(f"{path.name} lay there under the name of the merge; it is kept as {kept}")
            except OutputError as error:
                notes.append(str(error))
    return notes


# -------------------------------------------------------------------------------------------- its notes


def _card(
    target: Path, tree: Tree, report: MergeReport, job: Job, *, anew: bool
) -> contextlib.AbstractContextManager[metadata.NewCard | None]:
    """Write the notes before the file has its name; None where none are wanted."""
    if not job.side_car or job.spares(metadata.side_car_path(target)):
        return contextlib.nullcontext()
    return metadata.new_card(target, _change(tree, report, job), anew=anew)


def _change(tree: Tree, report: MergeReport, job: Job) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return how the merge changes the notes beside it: words, weight, what was merged."""
    node = tree.root
    words = metadata.trigger_words([(leaf.source, leaf.file.metadata) for leaf in node.leaves()])
    recipe = node.stamped()
    notes = "\n".join([metadata.describe_recipe(recipe), *report.words()])
    return metadata.card_change(recipe, node.family, words, notes, finish=job.card)


def _late_notes(final: Path, tree: Tree, report: MergeReport, job: Job) -> list[str]:
    """Write the notes of a file that got the next free name, since its own was held by another program."""
    if not job.side_car:
        return []
    side_car = metadata.side_car_path(final)
    notes = [] if metadata.card_at(side_car).ours else _leftovers(final, job)
    if job.spares(side_car):
        return notes + _spared(final)
    with metadata.new_card(final, _change(tree, report, job)) as card:
        card.put()
    return notes + card.notes


def _spared(final: Path) -> list[str]:
    return [
        f"{metadata.side_car_path(final).name} is the recipe, so no notes were written beside {final.name}"
    ]
