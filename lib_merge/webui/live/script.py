"""The script that is always on: `<merge:NAME:0.8>` in prompts, live merges of other scripts, the tab's
preview.

It has no controls a person sees. Two hidden fields carry what is set up in the Merge tab of this browser,
and the recipe of a pasted picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_merge.errors import MergeError
from lib_merge.ui.desk import Desk
from lib_merge.webui import lora_code
from lib_merge.webui.compare.columns import MERGE, STACK, ColumnChoices, plan_columns
from lib_merge.webui.compare.run import PACE, place_of
from lib_merge.webui.desk import desk_of
from lib_merge.webui.host import make_picture_folder
from lib_merge.webui.live import prompts

TITLE = "LoRA Merge"


def make_script(extension: Path) -> type:
    """Return the Script class; made here so that the WebUI's base class is met only inside a WebUI.

    Args:
        extension: this extension's folder.
    """
    import gradio as gr
    from modules import scripts

    class LoraMergeLive(scripts.Script):
        """In txt2img and img2img, always."""

        lora_merge_setup = True

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> Any:  # noqa: ANN401
            del is_img2img
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            tab = "img2img" if is_img2img else "txt2img"
            setup = _hidden(gr, f"lora_merge_setup_{tab}", "LoRA Merge set up")
            pasted = _hidden(gr, f"lora_merge_pasted_{tab}", "LoRA Merge pasted")
            self.infotext_fields = [(pasted, prompts.RECIPE_KEY)]
            self.paste_field_names = [prompts.RECIPE_KEY]
            return [setup, pasted]

        def before_process(self, p: Any, setup: str = "", *_: Any) -> None:  # noqa: ANN401
            PACE.begin()
            preview(p, desk_of(extension), setup)

        def process(self, p: Any, setup: str = "", *_: Any) -> None:  # noqa: ANN401
            if getattr(p, "lora_merge_preview", False):
                p.all_seeds = [p.all_seeds[0]] * len(p.all_seeds)
                p.all_subseeds = [p.all_subseeds[0]] * len(p.all_subseeds)
            prompts.prepare(p, desk_of(extension), setup)

        def before_process_batch(self, p: Any, *_: Any, **more: Any) -> None:  # noqa: ANN401
            prompts.before_batch(p, desk_of(extension), int(more.get("batch_number", 0)), more["prompts"])

        def process_batch(self, p: Any, *_: Any, **more: Any) -> None:  # noqa: ANN401
            prompts.after_activation(p, desk_of(extension), int(more.get("batch_number", 0)))

        def postprocess(self, p: Any, processed: Any, *_: Any) -> None:  # noqa: ANN401
            PACE.end(len(processed.images))
            prompts.after(p, processed)

    return LoraMergeLive


def _hidden(gr: Any, name: str, label: str) -> Any:  # noqa: ANN401
    field = gr.Textbox("", label=label, elem_id=name, elem_classes=["lora-merge-setup"])
    field.do_not_save_to_config = True
    return field


def preview(p: Any, desk: Desk, setup: str) -> None:  # noqa: ANN401
    """Turn a generation that the tab's Preview button started into two pictures of one seed: stack and merge.

    Args:
        p: the WebUI's processing object, before its prompts are set up.
        desk: the tab's server side.
        setup: JSON of the Merge tab; `"preview": true` in it asks for this.
    """
    try:
        state = json.loads(setup) if '"preview"' in setup else {}
    except ValueError:
        return
    if not isinstance(state, Mapping) or state.get("preview") is not True:
        return
    p.n_iter, p.batch_size = 2, 1
    p.do_not_save_samples = p.do_not_save_grid = True
    p.lora_merge_preview = True
    make_picture_folder()
    try:
        lora_code.check_live()
        recipe = prompts.tab_recipe(desk, setup)
        columns = plan_columns(recipe, ColumnChoices((STACK, MERGE)), place_of(desk))
    except MergeError as error:
        p.lora_merge_changes = (_refusing(error),)
        return
    p.lora_merge_parts = tuple(column.parts for column in columns)
    p.lora_merge_recipe = recipe


def _refusing(error: MergeError) -> prompts.Change:
    """Return a change that says why, so that it is said like every other refusal: before the first
    picture.
    """

    def refuse(_: Any) -> Any:  # noqa: ANN401
        raise error

    return refuse
