"""What the comparison's panel asks for: its choices, how much will be made, a person's own test prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lib_merge.errors import MergeError, RecipeError
from lib_merge.ui.actions import Actions
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


class WebuiActions(Actions):
    """The tab's server side inside a WebUI."""

    def op_compare_choices(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the panel offers."""
        del request
        return {
            "columns": list(CHOICES),
            "ticked": list(TICKED),
            "samplers": _samplers(),
            "names": self.recipe_names(),
        }

    def op_compare_estimate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return in one sentence how many pictures `asked` of `setup` are, or what is wrong with it
        (`wrong`).
        """
        try:
            return {
                "said": estimate(self, asked(request.get("asked")), str(request.get("setup") or "")),
                "wrong": False,
            }
        except MergeError as error:
            return {"said": str(error), "wrong": True}

    def op_compare_prompts(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the test prompts; with `keep`, keep these first, or go back to the built-in ten where it is
        empty.
        """
        said = keep_prompts(self, str(request["keep"])) if "keep" in request else ""
        return {"prompts": own_prompts(self), "said": said}


def asked(given: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what is asked of the script: an object of some of `NAMES`, as JSON or, through the API, as it
    stands.

    Raises:
        RecipeError: it is no such object, or has a name that the script does not know.
    """
    try:
        found = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, Mapping):
        message = f"the comparison wants one JSON object with some of {', '.join(NAMES)}."
        raise RecipeError(message)
    unknown = [str(name)[:40] for name in found if name not in NAMES]
    if unknown:
        message = f"the comparison knows no {', '.join(unknown[:5])}; it knows {', '.join(NAMES)}."
        raise RecipeError(message)
    return dict(found)


def estimate(desk: Any, given: Mapping[str, Any], setup: str) -> str:  # noqa: ANN401
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
        f"{_many(count, 'picture')}, live merges: {merges}"
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


def own_prompts(desk: Any) -> str:  # noqa: ANN401
    """Return the person's own test prompts, the built-in ten where there are none."""
    try:
        return (desk.host.data_folder() / PROMPTS_FILE).read_text(encoding="utf-8")[:LONGEST]
    except (OSError, ValueError):
        return "\n".join(PROMPTS)


def keep_prompts(desk: Any, text: str) -> str:  # noqa: ANN401
    """Keep test prompts for the next time; none at all brings the built-in ten back. Returns what to say.

    Raises:
        RecipeError: they cannot be written.
    """
    path = desk.host.data_folder() / PROMPTS_FILE
    try:
        if text.strip():
            path.write_text(text[:LONGEST], encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        message = f"the prompts could not be kept: {error.strerror or error}."
        raise RecipeError(message) from error
    return (
        "These are your test prompts from now on."
        if text.strip()
        else "The ten built-in test prompts are back."
    )


def _samplers() -> list[str]:
    from modules import sd_samplers

    return [sampler.name for sampler in sd_samplers.samplers]
