"""The script "LoRA merge comparison": one labelled grid of sources, stack, merge and variants, from live merges."""

from __future__ import annotations

import html
import json
import time
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib_merge.errors import MergeError
from lib_merge.ui.state import to_recipe
from lib_merge.webui.columns import CHOICES, PROMPTS, Column, Row, plan_columns, plan_rows
from lib_merge.webui.live import PREFIX, LiveMerges

TITLE = "LoRA merge comparison"
_live: dict[str, LiveMerges] = {}


def live_of(desk: Any) -> LiveMerges:  # noqa: ANN401
    """Return the live merges of this process; made at the WebUI's start, so that leftovers go."""
    key = str(desk.host.data_folder())
    if key not in _live:
        _live[key] = LiveMerges(desk.host.data_folder() / "live")
    return _live[key]


@dataclass(slots=True)
class Cell:
    """One picture."""

    image: Any
    infotext: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Grid:
    """What was made so far, row by row."""

    columns: list[Column]
    rows: list[Row]
    cells: list[list[Cell]] = field(default_factory=list)
    stopped: bool = False


def run_comparison(p: Any, desk: Any, asked: dict[str, str | list[str]]) -> Any:  # noqa: ANN401
    """Make the pictures and the grid; returns the WebUI's `Processed`.

    Args:
        p: the WebUI's processing object; every picture is made from a copy of it.
        desk: the tab's server side.
        asked: state (JSON of the Merge tab), columns, variants, strengths, prompts, seeds.
    Raises:
        MergeError: anything that is wrong with what was asked, before the first picture.
    """
    from modules import processing, shared

    recipe = to_recipe(_state(str(asked["state"])), desk.library.resolve)
    processing.fix_seed(p)
    columns = plan_columns(recipe, list(asked["columns"]), str(asked["variants"]), str(asked["strengths"]))
    prompt = p.prompt if isinstance(p.prompt, str) else p.prompt[0]
    rows = plan_rows(str(asked["prompts"]), str(asked["seeds"]), recipe, prompt, int(p.seed))
    shared.state.job_count = len(columns) * len(rows)
    live = live_of(desk)
    grid = Grid(columns, rows)
    try:
        tags = [[live.make(one, desk.host.device()) for one in column.recipes] for column in columns]
        for row in rows:
            grid.cells.append([])
            for column, names in zip(columns, tags):
                if shared.state.interrupted or getattr(shared.state, "stopping_generation", False):
                    grid.stopped = True
                    break
                live.show()
                grid.cells[-1].append(_picture(p, row, names, column))
            if grid.stopped:
                break
    finally:
        live.clear()
    return _finish(p, grid)


def _state(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        message = "set up a merge in the Merge tab first: this compares what is set up there."
        raise MergeError(message)
    return found


def _picture(p: Any, row: Row, names: list[str], column: Column) -> Cell:  # noqa: ANN401
    from modules import processing

    one = copy(p)
    one.prompt = " ".join([row.prompt, *(f"<lora:{name}:1>" for name in names)])
    one.seed, one.n_iter, one.batch_size = row.seed, 1, 1
    one.do_not_save_samples = one.do_not_save_grid = True
    one.extra_generation_params = {**p.extra_generation_params, "Merge column": column.label}
    begun = time.perf_counter()
    try:
        done = processing.process_images(one)
    except Exception as error:  # one broken cell must not cost the others
        return Cell(None, error=f"{type(error).__name__}: {error}")
    if not done.images:
        return Cell(None, error="interrupted")
    return Cell(done.images[0], clean(done.infotexts[0] if done.infotexts else ""), time.perf_counter() - begun)


def clean(infotext: str) -> str:
    """Return an infotext without names that will mean nothing tomorrow."""
    import re

    infotext = re.sub(rf"\s*<lora:{PREFIX}[0-9a-f]+:1>", "", infotext)
    infotext = re.sub(rf"(?:, )?{PREFIX}[0-9a-f]+: [0-9a-f]+", "", infotext)
    return re.sub(r'(?:, )?Lora hashes: "\s*(?:, )?"', "", infotext)


def figures(grid: Grid) -> list[dict[str, Any]]:
    """Return per column: mean absolute difference to the stack over rows, its spread, and seconds per picture."""
    stack = next((index for index, column in enumerate(grid.columns) if column.label == "stack"), None)
    found = []
    for index, column in enumerate(grid.columns):
        cells = [row[index] for row in grid.cells if len(row) > index and row[index].image is not None]
        differences = [
            float(np.abs(_pixels(row[index].image) - _pixels(row[stack].image)).mean())
            for row in grid.cells
            if stack is not None and len(row) > max(index, stack) and row[index].image and row[stack].image
        ]
        found.append(
            {
                "column": column.label,
                "pictures": len(cells),
                "difference": float(np.mean(differences)) if differences else None,
                "spread": float(np.std(differences)) if differences else None,
                "seconds": float(np.mean([cell.seconds for cell in cells])) if cells else None,
            }
        )
    return found


def _pixels(image: Any) -> np.ndarray:  # noqa: ANN401
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def _finish(p: Any, grid: Grid) -> Any:  # noqa: ANN401
    """Save the pictures, draw the grid, and hand both back with the table of figures."""
    from modules import images, processing, shared
    from PIL import Image

    cells = [cell for row in grid.cells for cell in row]
    size = next((cell.image.size for cell in cells if cell.image is not None), (p.width, p.height))
    blank = Image.new("RGB", size, "#808080")
    rows = [row for row in grid.cells if row]
    filled = [
        (row[index].image if index < len(row) and row[index].image is not None else blank)
        for row in rows
        for index in range(len(grid.columns))
    ]
    pictures = [cell for cell in cells if cell.image is not None]
    result = processing.Processed(p, [cell.image for cell in pictures], p.seed, "")
    result.infotexts = [cell.infotext for cell in pictures]
    if rows:
        sheet = images.image_grid(filled, rows=len(rows))
        above = [[images.GridAnnotation(column.label)] for column in grid.columns]
        beside = [[images.GridAnnotation(row.label)] for row in grid.rows[: len(rows)]]
        sheet = images.draw_grid_annotations(sheet, size[0], size[1], above, beside)
        result.images.insert(0, sheet)
        result.infotexts.insert(0, pictures[0].infotext if pictures else "")
        result.index_of_first_image = 1
    result.info = result.infotexts[0] if result.infotexts else ""
    result.comments = _table(grid)
    if shared.opts.data.get("samples_save", True):
        for image, text in zip(result.images, result.infotexts):
            images.save_image(image, p.outpath_grids, "lora-merge", info=text, extension="png", p=p)
    return result


def _table(grid: Grid) -> str:
    lines = []
    for item in figures(grid):
        parts = [item["column"]]
        if item["difference"] is not None:
            parts.append(f"{item['difference']:.3f} ± {item['spread']:.3f} grey levels from the stack")
        if item["seconds"] is not None:
            parts.append(f"{item['seconds']:.1f} s a picture")
        lines.append(html.escape(" · ".join(parts)))
    errors = {cell.error for row in grid.cells for cell in row if cell.error}
    lines += [f"failed: {html.escape(error)}" for error in sorted(errors)]
    return "\n".join(lines)


def make_script(extension: Path) -> type:
    """Return the Script class; made here so that the WebUI's base class is met only inside a WebUI."""
    import gradio as gr
    from modules import scripts

    class LoraMergeComparison(scripts.Script):
        """Entry in the script list of txt2img and img2img."""

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> bool:
            del is_img2img
            return True

        def ui(self, is_img2img: bool) -> list[Any]:
            tab = "img2img" if is_img2img else "txt2img"
            gr.HTML("<p>Compares what is set up in the Merge tab; nothing is saved as a LoRA.</p>")
            columns = gr.CheckboxGroup(list(CHOICES), value=list(CHOICES), label="Columns")
            variants = gr.Textbox("", label="Variants of the merge", placeholder="ties, core_ties, 0.3/0.7")
            strengths = gr.Textbox("", label="Strengths of the merge", placeholder="0.6, 0.8, 1.2")
            prompts = gr.Textbox("", lines=3, label="Prompts, one per line", placeholder="empty: the prompt above")
            protocol = gr.Button("Ten test prompts")
            seeds = gr.Textbox("", label="Seeds to compare", placeholder="1, 2")
            state = gr.Textbox(
                "", label="Merge set up", elem_id=f"lora_merge_setup_{tab}", elem_classes=["lora-merge-setup"]
            )
            protocol.click(
                fn=lambda: "\n".join(PROMPTS), inputs=[], outputs=[prompts], queue=False, show_progress=False
            )
            for control in (columns, variants, strengths, prompts, seeds, state):
                control.do_not_save_to_config = True
            return [columns, variants, strengths, prompts, seeds, state]

        def run(self, p: Any, *given: Any) -> Any:  # noqa: ANN401
            from lib_merge.webui.register import desk_of

            names = ("columns", "variants", "strengths", "prompts", "seeds", "state")
            return run_comparison(p, desk_of(extension), dict(zip(names, given)))

    return LoraMergeComparison
