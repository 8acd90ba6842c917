"""What the comparison's panel asks for: its choices, how much will be made, a person's own test prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from lib_merge.errors import FileFormatError, MergeError, RecipeError
from lib_merge.files.store import read_text, write_error, write_text
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.protocol import About
from lib_merge.webui.compare.columns import CHOICES, TICKED, plan_columns
from lib_merge.webui.compare.rows import PROMPTS, plan_rows
from lib_merge.webui.compare.run import PACE, asked_columns, asked_rows, place_of, recipe_of

NAMES = (
    "merge",
    "columns",
    "methods",
    "ratios",
    "ranks",
    "presets",
    "knob",
    "strengths",
    "knockout",
    "prompts",
    "seeds",
    "samplers",
    "cfgs",
    "sizes",
    "maps",
)
PROMPTS_FILE = "comparison-prompts.txt"
LONGEST = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareChoicesReply:
    """What the panel offers."""

    columns: list[str]
    ticked: Annotated[list[str], About("columns that are on at first")]
    samplers: list[str]
    names: Annotated[list[str], About("of recipes")]


@operation("compare_choices")
def compare_choices(desk: Desk) -> CompareChoicesReply:
    """Return what the comparison's panel offers."""
    return CompareChoicesReply(
        columns=list(CHOICES), ticked=list(TICKED), samplers=_samplers(), names=desk.recipe_names()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """What the panel and the tab are set to, both as JSON text."""

    asked: str = ""
    setup: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateReply:
    """How many pictures that makes, or what is wrong with it."""

    said: str
    wrong: bool


@operation("compare_estimate")
def compare_estimate(desk: Desk, request: EstimateRequest) -> EstimateReply:
    """Return in one sentence how many pictures are asked for."""
    try:
        return EstimateReply(said=estimate(desk, asked(request.asked), request.setup), wrong=False)
    except MergeError as error:
        return EstimateReply(said=str(error), wrong=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsRequest:
    """Test prompts to keep; empty brings the built-in ten back, null keeps none."""

    keep: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsReply:
    """The test prompts, one per line."""

    prompts: str
    said: str


@operation("compare_prompts")
def compare_prompts(desk: Desk, request: PromptsRequest) -> PromptsReply:
    """Return a person's test prompts, after keeping new ones where some are given."""
    said = keep_prompts(desk, request.keep) if request.keep is not None else ""
    return PromptsReply(prompts=own_prompts(desk), said=said)


def asked(given: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what is asked of the script: an object of some of `NAMES`, as JSON or, through the API, as it
    stands.

    Raises:
        RecipeError: it is no such object, or has a name that the script does not know.
    """
    try:
        fields = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, Mapping):
        message = f"the comparison wants one JSON object with some of {', '.join(NAMES)}."
        raise RecipeError(message)
    unknown = [str(name)[:40] for name in fields if name not in NAMES]
    if unknown:
        message = f"the comparison knows no {', '.join(unknown[:5])}; it knows {', '.join(NAMES)}."
        raise RecipeError(message)
    return dict(fields)


def estimate(desk: Desk, given: Mapping[str, Any], setup: str) -> str:
    """Return how many pictures will be made and how long that takes.

    Args:
        desk: the tab's server side.
        given: see `asked`.
        setup: JSON of the Merge tab.
    Raises:
        MergeError: what is wrong with it, as the script will say it.
    """
    recipe = recipe_of(desk, str(given.get("merge") or ""), setup)
    columns = plan_columns(recipe, asked_columns(given), place_of(desk))
    rows = plan_rows(asked_rows(given), recipe, "", 0)
    count = len(columns) * len(rows)
    merges = len(
        {part.recipe.dumps() for column in columns for part in column.parts if part.recipe is not None}
    )
    text = (
        f"{_many(len(columns), 'column')} × {_many(len(rows), 'row')} = "
        f"{_many(count, 'picture')}, {_many(merges, 'merge')} made for them and not saved"
    )
    seconds = PACE.estimate(count)
    if seconds is None:
        return f"{text}; how long that takes is known after the first picture."
    return f"{text}; about {duration(seconds)} at the pace of the last picture."


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def own_prompts(desk: Desk) -> str:
    """Return the person's own test prompts, the built-in ten where there are none."""
    try:
        text = read_text(desk.host.data_folder() / PROMPTS_FILE)
    except FileFormatError:
        text = None
    return "\n".join(PROMPTS) if text is None else text[:LONGEST]


def keep_prompts(desk: Desk, text: str) -> str:
    """Keep test prompts for the next time; none at all brings the built-in ten back. Returns what to say.

    Raises:
        OutputError: they cannot be written.
    """
    path = desk.host.data_folder() / PROMPTS_FILE
    if text.strip():
        write_text(path, text[:LONGEST], title="the file of test prompts")
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, path, "the file of test prompts") from error
    return (
        "These are your test prompts from now on."
        if text.strip()
        else "The ten built-in test prompts are back."
    )


def _samplers() -> list[str]:
    from modules import sd_samplers

    return [sampler.name for sampler in sd_samplers.samplers]
