"""Axes for the WebUI's own X/Y/Z plot: `[Merge] method`, `[Merge] ratio A`, `[Merge] balance A:B`, …

They change the first `<merge:NAME>` of the prompt, or what is set up in the Merge tab of the browser that
asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lib_merge import recipe_edits
from lib_merge.errors import MergeError
from lib_merge.methods import METHODS
from lib_merge.recipe import Recipe
from lib_merge.webui import checkpoint
from lib_merge.webui.live import prompts
from lib_merge.webui.refusal import refusal

if TYPE_CHECKING:
    from lib_merge.ui.desk import Desk

MARK = "[Merge]"
HANDLES = ("A", "B", "C", "D")
# a merge is worth less often done than a sampler changed: its axis goes into the outer loop
COST = 0.4
ToChange = Callable[[Any], prompts.Change]


def add_axes(desk: Desk) -> None:
    """Add our axes to the WebUI's plot, once, however often its page is built anew."""
    module = _plot()
    if module is None or any(str(option.label).startswith(MARK) for option in module.axis_options):
        return
    make = module.AxisOption

    def add(label: str, kind: type, change: ToChange, choices: Callable[[], list[str]] | None = None) -> None:
        module.axis_options.append(
            make(
                f"{MARK} {label}",
                kind,
                _apply(change),
                confirm=_confirm(desk, change),
                cost=COST,
                **({"choices": choices} if choices else {}),
            )
        )

    add("method", str, _edit(recipe_edits.with_method), lambda: list(METHODS))
    for name in HANDLES:
        add(f"ratio {name}", float, _edit(recipe_edits.with_ratio, name))
    for name in HANDLES[1:]:
        add(f"balance A:{name}", float, _edit(recipe_edits.with_balance, "A", name))
    add("rank", str, _edit(recipe_edits.with_rank))
    for name in HANDLES:
        add(f"block preset {name}", str, _blocks(desk, name), lambda: list(desk.presets.names()))
    for name in HANDLES:
        add(f"text encoder ratio {name}", float, _edit(recipe_edits.with_te, name))
    add("knob", str, _knob)


def _edit(edit: Callable[..., Recipe], *handles: str) -> ToChange:
    """Return value -> change, where `edit` takes the recipe, the sources' handles and the value."""
    return lambda x: lambda recipe: edit(recipe, *handles, x)


def _blocks(desk: Desk, handle: str) -> ToChange:
    return lambda x: lambda recipe: recipe_edits.with_blocks(recipe, handle, x, desk.expand)


def _plot() -> Any:  # noqa: ANN401
    """Return the module of the WebUI's X/Y/Z plot, whatever it is called there."""
    from modules import scripts

    for data in scripts.scripts_data:
        if data.script_class.__module__ in ("xyz_grid.py", "scripts.xyz_grid", "xy_grid.py"):
            return data.module
    return None


def _knob(text: str) -> prompts.Change:
    name, _, value = text.partition("=")
    return lambda recipe: recipe_edits.with_knob(recipe, name, value)


def _apply(change: ToChange) -> Callable[[Any, Any, Sequence[Any]], None]:
    def apply(p: Any, x: Any, xs: Sequence[Any]) -> None:  # noqa: ANN401
        del xs
        # a new tuple: the plot's cells share what their copies of p hold
        p.lora_merge_changes = (*getattr(p, "lora_merge_changes", ()), change(x))

    return apply


def _confirm(desk: Desk, change: ToChange) -> Callable[[Any, Sequence[Any]], None]:
    def confirm(p: Any, xs: Sequence[Any]) -> None:  # noqa: ANN401
        try:
            recipe = merge_of(p, desk)
            checkpoint.check_family(recipe.family or "")
            for x in xs:
                change(x)(recipe).check()
        except MergeError as error:
            raise refusal(f"{MARK} {error}") from error

    return confirm


def merge_of(p: Any, desk: Desk) -> Recipe:  # noqa: ANN401
    """Return the merge that a plot changes.

    Raises:
        MergeError: the prompt has no `<merge:NAME>` and nothing is set up in the Merge tab.
    """
    prompt = p.prompt if isinstance(p.prompt, str) else p.prompt[0]
    names = prompts.names_in([prompt])
    return desk.recipe_named(names[0]) if names else prompts.tab_recipe(desk, prompts.setup_of(p))
