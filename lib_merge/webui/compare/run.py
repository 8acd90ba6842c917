"""The script "LoRA merge comparison": one labelled grid of sources, stack, merge and variants, from live
merges.

How long a picture takes here, learnt from the last ones, for the estimate before a grid is started.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from lib_merge import metadata
from lib_merge.errors import RecipeError
from lib_merge.recipe import Recipe
from lib_merge.ui.desk import Desk
from lib_merge.ui.naming import said_source
from lib_merge.webui import checkpoint, lora_code
from lib_merge.webui.compare import pictures
from lib_merge.webui.compare.columns import TICKED, Column, ColumnChoices, Place, plan_columns
from lib_merge.webui.compare.pictures import Cell, Grid, figures, table
from lib_merge.webui.compare.rows import Lines, Row, plan_rows
from lib_merge.webui.host import make_picture_folder
from lib_merge.webui.live import prompts
from lib_merge.webui.live.prompts import setup_of
from lib_merge.webui.refusal import LoraMergeRefusal

# ------------------------------------------------------------------------------------------------ compare

TITLE = "LoRA merge comparison"
FROM_TAB = "Merge tab"
MOST_PICTURES = 2000
COLUMN_KEY = "Merge column"


def asked_columns(given: Mapping[str, Any]) -> ColumnChoices:
    """Return what the script's controls say of columns."""
    texts = {name: str(given.get(name) or "") for name in ("ratios", "ranks", "presets", "knob", "strengths")}
    return ColumnChoices(
        columns=list(given.get("columns", TICKED) or ()),
        methods=_names(given.get("methods")),
        knockout=bool(given.get("knockout")),
        **texts,
    )


def asked_rows(given: Mapping[str, Any]) -> Lines:
    """Return what the script's controls say of rows."""
    texts = {name: str(given.get(name) or "") for name in ("prompts", "seeds", "cfgs", "sizes")}
    return Lines(samplers=_names(given.get("samplers")), **texts)


def _names(value: Any) -> Sequence[str]:  # noqa: ANN401
    """Return a list of names: of a multiple choice, or of a text with commas as the API may give it."""
    return value.split(",") if isinstance(value, str) else [str(name) for name in value or ()]


def place_of(desk: Desk) -> Place:
    """Return what columns need to know of this WebUI."""
    if not desk.library.items():
        desk.library.refresh(wait=True)  # nobody has opened the tab since the start

    def usual(path: Path) -> float:
        weight = metadata.read_side_car(path).get("preferred weight")
        return float(weight) if isinstance(weight, (int, float)) and weight else 1.0

    def tag(path: Path) -> str:
        # the WebUI knows LoRAs by name alone: where two files share one, the tag may mean the other
        same = [item for item in desk.library.items() if item.name == path.stem]
        name = desk.host.alias_of(path)
        return name if len(same) == 1 and not set(name) & set("<>:") else ""

    def blocks(path: Path) -> tuple[tuple[str, ...], str]:
        key = desk.library.key_of(path)
        item = next((one for one in desk.library.items() if one.key == key), None)
        return (item.blocks, item.family) if item is not None else ((), "")

    return Place(usual, tag, desk.expand, blocks)


def recipe_of(desk: Desk, name: str, setup: str) -> Recipe:
    """Return the merge to compare: a recipe by name, or what is set up in the Merge tab.

    Raises:
        MergeError: there is none, or a source of it is gone.
    """
    if name.strip() and name.strip() != FROM_TAB:
        return desk.recipe_named(name.strip())
    return prompts.tab_recipe(desk, setup)


def run_comparison(p: Any, desk: Desk, given: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Make the pictures and the grid; returns the WebUI's `Processed`.

    Args:
        p: the WebUI's processing object; every picture is made from a copy of it.
        desk: the tab's server side.
        given: the script's controls by name.
    Raises:
        MergeError: anything that is wrong with what was asked, before the first picture.
    """
    from modules import processing

    lora_code.check_live()
    make_picture_folder()
    recipe = recipe_of(desk, str(given.get("merge") or ""), setup_of(p))
    checkpoint.load()
    processing.fix_seed(p)
    columns = plan_columns(recipe, asked_columns(given), place_of(desk))
    prompt = p.prompt if isinstance(p.prompt, str) else p.prompt[0]
    rows = plan_rows(asked_rows(given), recipe, prompt, int(p.seed))
    if len(columns) * len(rows) > MOST_PICTURES:
        message = f"{len(columns) * len(rows)} pictures are too many; {MOST_PICTURES} is the limit."
        raise RecipeError(message)
    grid = Grid(columns, rows)
    live = prompts.live_of(desk)
    before = set(live.names)
    try:
        grid.sizes = _merges(desk, live, columns)
        _pictures(p, grid)
    finally:
        live.forget(name for name in live.names if name not in before)
    return _finish(p, desk, recipe, grid, maps=bool(given.get("maps")))


def _merges(desk: Desk, live: Any, columns: Sequence[Column]) -> list[int]:  # noqa: ANN401
    """Make every live merge before the first picture, so that what is wrong is said then; return bytes per
    column.
    """
    from modules import shared

    sizes = []
    for number, column in enumerate(columns, 1):
        shared.state.textinfo = f"Merging {number} of {len(columns)}: {column.label}"
        total = 0
        for part in column.parts:
            total += part.bytes
            if part.recipe is not None:
                made = live.make(
                    part.recipe, desk.host.device(), cancelled=lambda: bool(shared.state.interrupted)
                )
                checkpoint.check_family(made.family)
                total += made.bytes
        sizes.append(total)
    shared.state.textinfo = None
    return sizes


def _pictures(p: Any, grid: Grid) -> None:  # noqa: ANN401
    from modules import shared

    state, total = shared.state, len(grid.columns) * len(grid.rows)
    state.job_count = total
    for row in grid.rows:
        grid.cells.append([])
        for column in grid.columns:
            if state.interrupted or getattr(state, "stopping_generation", False):
                grid.stopped = True
                return
            state.job = f"{sum(map(len, grid.cells)) + 1} out of {total}"
            grid.cells[-1].append(_picture(p, row, column))


def _picture(p: Any, row: Row, column: Column) -> Cell:  # noqa: ANN401
    from modules import processing, shared

    one = copy(p)
    one.prompt, one.seed, one.n_iter, one.batch_size = row.prompt, row.seed, 1, 1
    if row.negative is not None:
        one.negative_prompt = row.negative
    one.sampler_name = row.sampler or p.sampler_name
    one.cfg_scale = p.cfg_scale if row.cfg is None else row.cfg
    one.width, one.height = row.size or (p.width, p.height)
    one.do_not_save_grid = True
    one.extra_generation_params = {**p.extra_generation_params, COLUMN_KEY: column.label}
    one.lora_merge_parts, one.lora_merge_recipe, one.lora_merge_keep = (column.parts,), column.recipe, True
    begun = time.perf_counter()
    try:
        done = processing.process_images(one)
    except LoraMergeRefusal as error:
        return Cell(error=error.sentence)
    except Exception as error:  # one broken cell must not cost the others
        return Cell(error=f"{type(error).__name__}: {error}")
    plan = getattr(one, "lora_merge_plan", None)
    problem = "interrupted" if shared.state.interrupted else plan.error if plan else ""
    if not done.images:
        return Cell(error=problem or "no picture was made")
    text = done.infotexts[0] if done.infotexts else ""
    return Cell(done.images[0], text, time.perf_counter() - begun, plan.activated if plan else 0.0, problem)


def _finish(p: Any, desk: Desk, recipe: Recipe, grid: Grid, *, maps: bool) -> Any:  # noqa: ANN401
    """Draw and save the grid, keep it for the verdict, and hand all pictures back with the table of
    figures.
    """
    from modules import images, processing, shared

    cells = [cell for row in grid.cells for cell in row if cell.image is not None]
    drawn = pictures.draw(grid, p.width, p.height)
    drawn_maps = pictures.draw_maps(grid, p.width, p.height) if maps else None
    sheets = [one for one in (drawn, drawn_maps) if one is not None]
    # the grid pastes back as the merge it is about
    told = prompts.infotext([prompts.live_of(desk).stamped(recipe)])
    about = ", ".join(f"{key}: {quoted(value)}" for key, value in told.items())
    first = cells[0].infotext if cells else ""
    text = first if prompts.RECIPE_KEY in first else f"{first}, {about}" if first else about
    result = processing.Processed(p, [*sheets, *(cell.image for cell in cells)], p.seed, text)
    result.infotexts = [*[text] * len(sheets), *(cell.infotext for cell in cells)]
    result.index_of_first_image = len(sheets)
    measured = figures(grid)
    result.comments = table(grid, measured)
    if drawn is not None:
        desk.comparisons.add(
            drawn,
            sources=[said_source(source) for source in recipe.sources],
            columns=[
                {"label": one.label, "kind": one.kind, "recipe": one.recipe.to_json() if one.recipe else None}
                for one in grid.columns
            ],
            rows=[row.label for row in grid.rows[: len(grid.cells)]],
            figures=measured,
            stopped=grid.stopped,
        )
    if shared.opts.data.get("grid_save", True):
        kind = shared.opts.data.get("grid_format", "png")
        for one in sheets:
            images.save_image(one, p.outpath_grids, "lora-merge", extension=kind, info=text, grid=True, p=p)
    return result


def quoted(value: str) -> str:
    """Return an infotext value as the WebUI writes it: JSON where it has a comma, a colon or a line break."""
    import json

    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


# ------------------------------------------------------------------------------------------------ pace


class Pace:
    """Seconds per picture of the last generation."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._begun = 0.0
        self._seconds: float | None = None

    def begin(self) -> None:
        """Note that pictures are being made from now."""
        self._begun = time.monotonic()

    def end(self, pictures: int) -> None:
        """Note that these pictures are made."""
        if self._begun and pictures > 0:
            self._seconds = (time.monotonic() - self._begun) / pictures

    def estimate(self, pictures: int) -> float | None:
        """Return the seconds that pictures will take at the last one's pace; None before the first one was
        made.
        """
        return None if self._seconds is None else self._seconds * pictures


PACE = Pace()
