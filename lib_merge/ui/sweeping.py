"""A sweep: the same merge with one thing changed, several times; said before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from lib_merge import recipe_edits
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import open_tree
from lib_merge.errors import Cancelled, MergeError, RecipeError
from lib_merge.kept.changes import rank_title, title_of, value_title
from lib_merge.methods.registry import KnobKind
from lib_merge.ranks.policy import SizeEstimate
from lib_merge.recipe import Recipe
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.jobs import JobReply, Task
from lib_merge.ui.merging import run_recipe
from lib_merge.ui.naming import output_path, stem_of, sub_folder
from lib_merge.ui.protocol import About, sentence
from lib_merge.ui.state import Output, TabState, to_recipe

MOST = 24
_VERSION = "{n}"
USUAL: Mapping[str, Sequence[float]] = {
    "ratio": (0.2, 0.4, 0.6, 0.8, 1.0),
    "balance": (0.7, 0.6, 0.5, 0.4, 0.3),
    "total": (0.6, 0.8, 1.0, 1.2),
    "rank": (8, 16, 32, 64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What changes from file to file, and the values it takes.

    ratio    of `source`
    balance  between `source` and `other`: the value is the share of `source`, their total stays
    total    of all ratios, which keep their proportions
    knob     the setting `knob` of the merge's method
    rank     of the file
    """

    kind: Literal["ratio", "balance", "total", "knob", "rank"]
    source: Annotated[str, About("letter of the source, or the name of a group", example="A")] = "A"
    other: Annotated[str, About("of a balance", example="B")] = "B"
    knob: Annotated[str, About("of the method, by its name in `methods`")] = ""
    values: Annotated[
        list[Union[float, bool, str]], About("usual ones where there are none", most=MOST, example=[0.3, 0.7])
    ] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRequest:
    """What is set up, and what is to change of it."""

    state: TabState
    sweep: Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStep:
    """One file of a sweep."""

    name: Annotated[str, About("of the file")]
    label: Annotated[str, About("what is changed, in words", example="A 0.7 / B 0.3")]
    ratios: Annotated[list[float], About("of the merge's sources")]
    rank: Annotated[list[int], About("least and most of any module")]
    bytes: int
    exact: Annotated[bool, About("rank and bytes will be these; otherwise at most these")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What a sweep would write; nothing was written."""

    steps: list[SweepStep]
    folder: Annotated[str, About("below the first LoRA folder")]
    bytes: Annotated[int, About("of all files together, at most")]
    free: Annotated[int | None, About("bytes left on that disk, null where nobody can say")]
    said: Annotated[str, About("all of it in one sentence, to be confirmed", example="5 files, 94 MB")]


@operation("sweep_plan")
def sweep_plan(desk: Desk, request: SweepRequest) -> SweepPlan:
    """Say what a sweep would write: names, how many, how large."""
    folder = sub_folder(desk.host.lora_folders()[0], request.state.output.folder)
    steps = []
    for one in planned(desk, request):
        steps.append(
            SweepStep(
                name=output_path(folder, one.stem, overwrite=False).name,
                label=one.label,
                ratios=[source.ratio for source in one.recipe.sources],
                rank=list(one.size.rank),
                bytes=one.size.bytes,
                exact=one.size.exact,
            )
        )
    total, free = sum(step.bytes for step in steps), _free(folder)
    count = "1 file" if len(steps) == 1 else f"{len(steps)} files"
    limit = "" if all(step.exact for step in steps) else "at most "
    short = "" if free is None or free > total else f"; only {free / 1e6:.0f} MB are free on that disk"
    return SweepPlan(
        steps=steps,
        folder=request.state.output.folder,
        bytes=total,
        free=free,
        said=f"{count}, {limit}{total / 1e6:.1f} MB{short}",
    )


@operation("sweep")
def sweep(desk: Desk, request: SweepRequest) -> JobReply:
    """Start a sweep; its result has `made`, a merge's result for every file, and `failed`, sentences."""
    steps = planned(desk, request)
    output = replace(request.state.output, overwrite=False)
    desk.jobs.stop("analyze")
    desk.jobs.stop("report")
    return desk.jobs.start("sweep", lambda task: _run(desk, steps, output, task)).reply()


@dataclass(frozen=True, slots=True)
class Planned:
    """One merge of a sweep, with the stem of its file, whose version may be open."""

    recipe: Recipe
    label: str
    stem: str
    size: SizeEstimate


def planned(desk: Desk, request: SweepRequest) -> list[Planned]:
    """Return the merges of a sweep, each with a name of its own.

    Raises:
        MergeError: a value that cannot be, an unknown source or knob; says which step it is.
    """
    recipe = to_recipe(request.state, desk.library.resolve)
    steps = []
    for value in _values(recipe, request.sweep):
        label, short, edit = _edit(recipe, request.sweep, value)
        try:
            changed = edit()
            changed.check()
            with open_tree(changed, desk.headers, drop_unsupported=True) as tree:
                steps.append((changed, label, short, foresee(tree)))
        except MergeError as error:
            message = f"{label}: {error}"
            raise RecipeError(message) from error
    folder = sub_folder(desk.host.lora_folders()[0], request.state.output.folder)
    stems = _stems(
        request.state.output.template, [(one, short, size) for one, _, short, size in steps], folder
    )
    return [Planned(one, label, stem, size) for (one, label, _, size), stem in zip(steps, stems)]


def _values(recipe: Recipe, asked: Sweep) -> list[float | bool | str]:
    given: list[float | bool | str] = list(dict.fromkeys(asked.values))
    if given or asked.kind != "knob":
        return given or list(USUAL[asked.kind])
    knob = recipe.declared().knob(asked.knob)
    if knob.kind is KnobKind.SWITCH:
        return [True, False]
    if knob.choices:
        return list(knob.choices)
    width = knob.maximum - knob.minimum
    return [round(knob.minimum + width * step / 6, 6) for step in range(1, 6)]


def _edit(recipe: Recipe, asked: Sweep, value: float | bool | str) -> tuple[str, str, Callable[[], Recipe]]:
    """Return a step in words, for its name, and what makes it: the edits that axes and columns make, too."""
    one, other = asked.source.strip().upper(), asked.other.strip().upper()
    if asked.kind == "knob":
        words = f"{title_of(asked.knob)} {value_title(value)}"
        return (
            words,
            f"{asked.knob}-{value_title(value)}",
            lambda: recipe_edits.with_knob(recipe, asked.knob, value),
        )
    if asked.kind == "rank":
        text = f"{value:g}" if isinstance(value, float) else str(value)
        return f"rank {rank_title(text)}", "r{rank}", lambda: recipe_edits.with_rank(recipe, text)
    number = recipe_edits.number(value)
    if asked.kind == "ratio":
        return f"{one} {number:g}", f"{one}{number:g}", lambda: recipe_edits.with_ratio(recipe, one, number)
    if asked.kind == "total":
        return f"total {number:g}", f"total{number:g}", lambda: recipe_edits.with_total(recipe, number)
    changed = recipe_edits.with_balance(recipe, one, other, number)
    pair = [
        recipe_edits.source_at(changed, recipe_edits.place_of(changed, name)).ratio for name in (one, other)
    ]
    return (
        f"{one} {pair[0]:g} / {other} {pair[1]:g}",
        f"{one}{pair[0]:g}-{other}{pair[1]:g}",
        lambda: changed,
    )


def _stems(template: str, steps: Sequence[tuple[Recipe, str, SizeEstimate]], folder: Path) -> list[str]:
    """Return a stem for each step, all different whatever version they get.

    What the template says of weights and rank may tell them apart; where it does not, what is changed is
    written before the version. A stem that is taken already gets a version.
    """
    stems = [stem_of(template, recipe, size.rank[1]) for recipe, _, size in steps]
    if len({stem.casefold() for stem in stems}) < len(stems):
        marked = (_marked(template, short) for _, short, _ in steps)
        stems = [stem_of(one, recipe, size.rank[1]) for one, (recipe, _, size) in zip(marked, steps)]
    if len({stem.casefold() for stem in stems}) < len(stems):  # two ranks above what can come out
        message = "two steps would give the same file: leave one of their values out."
        raise RecipeError(message)
    taken = any(_VERSION not in stem and output_path(folder, stem, overwrite=True).exists() for stem in stems)
    return [stem if _VERSION in stem or not taken else f"{stem}_v{_VERSION}" for stem in stems]


def _marked(template: str, short: str) -> str:
    text = (template or "{sources}_{method}_{weights}_v{n}").removesuffix(".safetensors")
    front, version, rest = text.rpartition("_v{n}")
    return f"{front}_{short}{version}{rest}" if version else f"{text}_{short}"


def _free(folder: Path) -> int | None:
    place = next((one for one in (folder, *folder.parents) if one.is_dir()), None)
    try:
        return shutil.disk_usage(place).free if place is not None else None
    except OSError:
        return None


def _run(desk: Desk, steps: Sequence[Planned], output: Output, task: Task) -> dict[str, Any]:
    """Merge one after the other; a step that fails costs no other, a stop keeps what is saved."""
    made: list[dict[str, Any]] = []
    failed: list[str] = []
    for index, step in enumerate(steps):
        task.part = (index, len(steps))
        folder = sub_folder(desk.host.lora_folders()[0], output.folder)
        try:
            target = output_path(folder, step.stem, overwrite=False)
            made.append(run_recipe(desk, step.recipe, target, output, task) | {"label": step.label})
        except Cancelled:
            if not made:
                raise
            failed.append(f"stopped after {len(made)} of {len(steps)}; these are saved")
            break
        except MergeError as error:
            failed.append(f"{step.label}: {sentence(error)}")
    if not made:
        raise RecipeError(failed[0])
    return {"made": made, "failed": failed}
