"""The comparison as an entry of the WebUI's list of scripts.

Its panel is drawn by `javascript/` and reaches `run` as JSON in one hidden field: native controls for it, in
two tabs, cost every page load a quarter of a second whether or not anybody compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib_merge.errors import MergeError
from lib_merge.ui.desk import Desk
from lib_merge.webui.compare.panel import asked
from lib_merge.webui.compare.run import TITLE, run_comparison
from lib_merge.webui.desk import desk_of
from lib_merge.webui.refusal import SAID, reaches, refusal


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
            return panel("img2img" if is_img2img else "txt2img")

        def run(self, p: Any, given: Any = "", *_: Any) -> Any:  # noqa: ANN401
            return answer(p, desk_of(extension), given)

    return LoraMergeComparison


def answer(p: Any, desk: Desk, given: Any) -> Any:  # noqa: ANN401
    """Do what the script's controls ask for; what is wrong with it is said where the person is.

    Args:
        p: the WebUI's processing object.
        desk: the tab's server side.
        given: JSON of the controls.
    Raises:
        LoraMergeRefusal: for the API and for pages that show it.
    """
    try:
        return run_comparison(p, desk, asked(given))
    except MergeError as error:
        if reaches(p):
            raise refusal(str(error)) from error
        from modules import processing

        nothing = processing.Processed(p, [], p.seed, "")
        nothing.comments = SAID + str(error)
        return nothing


def panel(tab: str) -> list[Any]:
    """Draw the place for the panel and its field.

    Args:
        tab: txt2img or img2img.
    """
    import gradio as gr

    with gr.Column(elem_id=f"lora_merge_compare_{tab}"):
        field = gr.Textbox(
            "",
            label="LoRA Merge comparison",
            elem_id=f"lora_merge_asked_{tab}",
            elem_classes=["lora-merge-setup"],
            show_label=False,
            max_lines=1,
        )
    field.do_not_save_to_config = True
    return [field]
