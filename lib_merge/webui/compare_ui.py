"""The controls of the comparison script, and the estimate of what it will make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_merge.errors import MergeError
from lib_merge.webui.columns import CHOICES, TICKED, plan_columns
from lib_merge.webui.compare import FROM_TAB, TITLE, asked_columns, asked_rows, recipe_of, run_comparison
from lib_merge.webui.desk import desk_of, place_of
from lib_merge.webui.pace import PACE
from lib_merge.webui.rows import PROMPTS, plan_rows

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


def estimate(desk: Any, given: Mapping[str, Any], setup: str) -> str:  # noqa: ANN401
    """Return how many pictures will be made and how long that takes, or what is wrong, in one sentence."""
    try:
        recipe = recipe_of(desk, str(given.get("merge") or ""), setup)
        columns = plan_columns(recipe, asked_columns(given), place_of(desk))
        rows = plan_rows(asked_rows(given), recipe, "", 0)
    except MergeError as error:
        return str(error)
    count = len(columns) * len(rows)
    merges = len({part.recipe.dumps() for column in columns for part in column.parts if part.recipe is not None})
    text = f"{len(columns)} columns × {len(rows)} rows = {count} pictures, live merges: {merges}"
    seconds = PACE.estimate(count)
    if seconds is None:
        return f"{text}; how long that takes is known after the first picture."
    return f"{text}; about {duration(seconds)} at the pace of the last picture."


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def own_prompts(desk: Any) -> str:  # noqa: ANN401
    """Return the person's own test prompts, the built-in ten where there are none."""
    try:
        return (desk.host.data_folder() / PROMPTS_FILE).read_text(encoding="utf-8")[:100_000]
    except (OSError, ValueError):
        return "\n".join(PROMPTS)


def keep_prompts(desk: Any, text: str) -> str:  # noqa: ANN401
    """Keep test prompts for the next time; none at all brings the built-in ten back. Returns what to say."""
    path = desk.host.data_folder() / PROMPTS_FILE
    try:
        if text.strip():
            path.write_text(text[:100_000], encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"The prompts could not be kept: {error.strerror or error}."
    return "These are your test prompts from now on." if text.strip() else "The ten built-in test prompts are back."


def make_script(extension: Path) -> type:
    """Return the Script class; made here so that the WebUI's base class is met only inside a WebUI.

    Args:
        extension: this extension's folder.
    """
    from modules import scripts

    class LoraMergeComparison(scripts.Script):
        """Entry in the script list of txt2img and img2img."""

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> bool:
            del is_img2img
            return True

        def ui(self, is_img2img: bool) -> list[Any]:
            return controls(desk_of(extension), "img2img" if is_img2img else "txt2img")

        def run(self, p: Any, *given: Any) -> Any:  # noqa: ANN401
            return run_comparison(p, desk_of(extension), dict(zip(NAMES, given)))

    return LoraMergeComparison


def controls(desk: Any, tab: str) -> list[Any]:  # noqa: ANN401
    """Draw the script's controls and return them in the order of `NAMES`.

    Args:
        desk: the tab's server side.
        tab: txt2img or img2img.
    """
    import gradio as gr

    from lib_merge.ui.tab import js

    def text(label: str, hint: str, lines: int = 1) -> Any:  # noqa: ANN401
        return gr.Textbox("", label=label, placeholder=hint, lines=lines)

    with gr.Row():
        merge = gr.Textbox(FROM_TAB, label="Merge to compare", placeholder="Merge tab, or a saved recipe's name")
        maps = gr.Checkbox(False, label="Difference maps, merge against stack")
    columns = gr.CheckboxGroup(list(CHOICES), value=list(TICKED), label="Columns to compare")
    with gr.Accordion("Variants of the merge", open=False):
        methods = gr.Dropdown(_methods(), value=[], multiselect=True, label="Methods to compare")
        with gr.Row():
            ratios = text("Ratios to compare", "0.3/0.7, 0.5/0.5")
            ranks = text("Ranks to compare", "8, 16, energy:0.99")
        with gr.Row():
            presets = text("Block presets to compare", "A:OUTALL, A:STYLE+B:CHARACTER")
            knob = text("One knob to compare", "drop_rate=0.1/0.3/0.5")
        with gr.Row():
            strengths = text("Strengths of the merge", "0.6, 0.8, 1.0, 1.2")
            knockout = gr.Checkbox(False, label="Block knock-out: one column per block switched off")
    prompts = text("Test prompts, one per line", "empty: the prompt above", 3)
    with gr.Row():
        ten = gr.Button("Fill in the test prompts", elem_id=f"lora_merge_ten_{tab}")
        keep = gr.Button("Keep these as my test prompts", elem_id=f"lora_merge_keep_{tab}")
    with gr.Row():
        seeds = text("Seeds to compare", "1, 2")
        cfgs = text("CFG scales to compare", "5, 7, 9")
        sizes = text("Sizes to compare", "512x512, 512x768")
    samplers = gr.Dropdown(_samplers(), value=[], multiselect=True, label="Samplers to compare")
    # the JavaScript adds a place for the verdict to this column; an HTML component would bring an id twice on gradio 3
    with gr.Column(elem_id=f"lora_merge_outcome_{tab}"), gr.Row():
        said = gr.Textbox("", label="What will be made", interactive=False, elem_id=f"lora_merge_estimate_{tab}")
        count = gr.Button("Count", elem_id=f"lora_merge_count_{tab}")
    given = [merge, columns, methods, ratios, ranks, presets, knob, strengths, knockout, prompts, seeds, samplers]
    given += [cfgs, sizes, maps]
    for control in (*given, said):
        control.do_not_save_to_config = True
    quiet: dict[str, Any] = {"queue": False, "show_progress": False, "api_name": False}
    ten.click(fn=lambda: own_prompts(desk), inputs=[], outputs=[prompts], **quiet)
    keep.click(fn=lambda prompts_text: keep_prompts(desk, prompts_text), inputs=[prompts], outputs=[said], **quiet)
    # the last input is a place for what is set up in the Merge tab, which only the browser knows
    # pressed by the JavaScript too when a control is left: one event instead of one for every control
    count.click(
        fn=lambda *values: estimate(desk, dict(zip(NAMES, values)), str(values[-1] or "")),
        inputs=[*given, said],
        outputs=[said],
        **quiet,
        # gradio hands over the values of outputs behind those of inputs
        **js(f"(...values) => [...values.slice(0, {len(given)}), window.loraMerge ? window.loraMerge.setup() : '']"),
    )
    return given


def _methods() -> list[str]:
    from lib_merge.webui.changes import method_names

    return method_names()


def _samplers() -> list[str]:
    from modules import sd_samplers

    return [sampler.name for sampler in sd_samplers.samplers]
