"""What a merge would make, from headers alone: what the panel beside the rows says while they are being set
up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_merge import metadata
from lib_merge.engine.fillers import fillers
from lib_merge.engine.job import Job
from lib_merge.engine.plan import Child, Node, Planner
from lib_merge.errors import RecipeError
from lib_merge.families.blocks import encoder_of
from lib_merge.kept.history import differences
from lib_merge.recipe import Recipe
from lib_merge.ui.cautions import Named, cautions
from lib_merge.ui.naming import fill_template, output_path, sub_folder
from lib_merge.ui.state import letters_of, to_recipe

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

WIDTH = {"fp16": 2, "bf16": 2, "float": 4}


def plan(desk: Actions, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a merge would make: name, family, modules, ranks, size, and what to know before saving.

    Raises:
        MergeError: what keeps it from being merged, in one sentence.
    """
    recipe = to_recipe(state, desk.library.resolve)
    target = target_of(desk, state, recipe)
    planner = Planner(Job().open_file, drop_unsupported=True)
    try:
        node = planner.build(recipe)
        sources = [Named(letter, leaf) for letter, leaf in zip(letters_of(state), node.leaves())]
        words = metadata.trigger_words([(leaf.source, leaf.file.metadata) for leaf in node.leaves()])
        told = [
            note for note in node.notes if "more than once" not in note
        ]  # the cautions say it with letters
        notes = [*_missing(state), *cautions(sources), *told, *_left_out(planner)]
        encoders = _encoders(sources)
        sizes = _sizes(node)
    finally:
        for file in planner.files:
            file.close()
    return {
        "family": node.family,
        "encoders": encoders,
        **sizes,
        "estimate": node.policy.kind in ("energy", "error", "budget"),
        "policy": node.policy.text,
        "name": target.name,
        "folder": _shown_folder(desk, target.parent),
        "exists": target.exists(),
        "claimed": _claimed(desk, target),
        "triggers": ", ".join(words),
        "notes": notes,
        "changes": _changes(desk, state, node.recipe),
    }


def _changes(desk: Actions, state: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return what differs from the merge that this one is based on; nothing where that is gone."""
    entry = str((state.get("output") or {}).get("based_on") or "")
    if not entry:
        return []
    try:
        return differences(desk.history.get(entry).recipe, recipe.to_json())
    except RecipeError:
        return []


def _sizes(node: Node) -> dict[str, Any]:
    """Return modules, ranks and bytes of the result; what weighs 0 in every source is counted as emptied."""
    ranks, numbers, emptied = [], 0, 0
    for item in [*node.targets.values(), *fillers(node)]:
        stacked = item.stacked
        if item.name in node.targets:
            weights = node.weights(item)
            if not any(weights):
                emptied += 1
                continue
            stacked = sum(
                _rank_at(child, item.name) for child, weight in zip(node.children, weights) if weight
            )
            if not stacked and item.stacked:  # only sources that weigh nothing here have the module
                emptied += 1
                continue
        if not item.columns:
            continue
        rank = min(max(1, stacked), item.out, item.columns)
        if node.policy.kind == "rank":
            rank = min(rank, int(node.policy.value))
        ranks.append(rank)
        numbers += rank * (item.out + item.columns)
    size = numbers * WIDTH[node.recipe.precision]
    if node.policy.kind == "budget":
        size = min(size, int(node.policy.value))
    return {
        "modules": len(ranks),
        "emptied": emptied,
        "rank": [min(ranks, default=0), max(ranks, default=0)],
        "bytes": size,
    }


def _missing(state: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every row that is on and whose LoRA is gone: it is not merged, and nobody may
    overlook that.
    """
    rows = enumerate(state.get("sources") or [])
    gone = [
        (index, row) for index, row in rows if row.get("on", True) and row.get("name") and not row.get("key")
    ]
    return [
        f"{chr(ord('A') + index % 26)} ({str(row['name'])[:80]}) is missing: the merge is without it"
        for index, row in gone
    ]


def _rank_at(child: Child, name: str) -> int:
    """Return the ranks that a source, or a group, brings to one module."""
    if isinstance(child, Node):
        target = child.targets.get(name)
        return target.stacked if target is not None else 0
    part = child.parts.get(name)
    return part.rank if part is not None else 0


def _left_out(planner: Planner) -> list[str]:
    left = {file.name: len(file.left_out) for file in planner.files if file.left_out}
    return [
        f"{count} modules of {name} cannot be merged and will be left out" for name, count in left.items()
    ]


def _encoders(sources: Sequence[Named]) -> list[str]:
    """Return the letters of the sources that change the text encoder."""
    return [
        s.letter for s in sources if any(encoder_of(name, s.file.family or "") for name in s.file.modules)
    ]


def _shown_folder(desk: Actions, folder: Path) -> str:
    with contextlib.suppress(ValueError):
        below = folder.relative_to(desk.host.lora_folders()[0]).as_posix()
        return "" if below == "." else below
    return folder.name


def _claimed(desk: Actions, target: Path) -> str:
    """Return the LoRA that already answers to the new name, unless it is the file to be replaced."""
    stem = target.stem.casefold()
    for item in desk.library.items():  # the WebUI's own list knows the last of several files of one name
        if item.name.casefold() == stem and desk.library.resolve(item.key) != target:
            return item.key
    other = desk.host.claims_name(target.stem)
    return "" if other is None or other == target else desk.library.key_of(other)


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
