"""What the WebUI executes: imports the package while this folder can be imported from, and registers it."""

from __future__ import annotations

from pathlib import Path

from modules import script_callbacks, scripts

EXTENSION = Path(scripts.basedir())


def _failed(reason: str) -> None:
    """Show in the tab's place why there is none."""
    import html

    import gradio as gr

    def tab() -> list[tuple[gr.Blocks, str, str]]:
        with gr.Blocks(analytics_enabled=False) as page:
            gr.HTML(f"<p><b>LoRA Merge could not start.</b> {html.escape(reason)}</p>")
        return [(page, "LoRA Merge", "lora_merge_tab")]

    script_callbacks.on_ui_tabs(tab)


try:
    import lib_merge

    found = Path(lib_merge.__file__).resolve().parents[1]
    if found == EXTENSION.resolve():
        from lib_merge.webui import register
        from lib_merge.webui.compare.script import make_script as make_comparison
        from lib_merge.webui.live.script import make_script as make_always

        register(EXTENSION)
        # the WebUI looks for script classes in this module
        LoraMergeLive = make_always(EXTENSION)
        LoraMergeComparison = make_comparison(EXTENSION)
    else:
        _failed(
            f"Another extension brought a package of the same name, lib_merge, from {found.name}; "
            "disable one of the two."
        )
except Exception as error:
    import logging

    logging.getLogger("lib_merge").exception("LoRA Merge could not start")
    _failed(f"{type(error).__name__}: {error}")
