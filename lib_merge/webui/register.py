"""Entering the WebUI: the tab, the settings, the REST API. Called at every start and every "Reload UI"."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lib_merge.loaders import NAMINGS
from lib_merge.webui.desk import desk_of

log = logging.getLogger("lib_merge")
SECTION = ("lora_merge", "LoRA Merge")


def register(extension: Path) -> None:
    """Register every callback; the WebUI forgets them at "Reload UI" and runs the entry script again.

    Args:
        extension: this extension's folder.
    """
    from modules import script_callbacks

    script_callbacks.on_before_ui(lambda: _axes(extension))
    script_callbacks.on_ui_tabs(lambda: _tabs(extension))
    script_callbacks.on_ui_settings(_settings)
    script_callbacks.on_app_started(lambda _, app: _started(extension, app))
    script_callbacks.on_cfg_denoiser(_at_step)


def _tabs(extension: Path) -> list[tuple[Any, str, str]]:
    from lib_merge.ui.tab import build_with, failed_tab
    from lib_merge.webui.live.prompts import live_of

    try:
        live_of(desk_of(extension))  # sweeps what a crash left behind
        tab = build_with(desk_of(extension))
    except Exception as error:
        log.exception("the Merge tab could not be built")
        tab = failed_tab(f"{type(error).__name__}: {error}")
    return [(tab, "LoRA Merge", "lora_merge_tab")]


def _axes(extension: Path) -> None:
    from lib_merge.webui.axes import add_axes

    try:
        add_axes(desk_of(extension))
    except Exception:
        log.exception("the axes for X/Y/Z plots could not be added")


def _at_step(params: Any) -> None:  # noqa: ANN401
    from lib_merge.webui.live.prompts import at_step

    at_step(params)


def _settings() -> None:
    import gradio as gr
    from modules import shared

    options = {
        "lora_merge_folder": shared.OptionInfo("merged", "Sub-folder for new merges", section=SECTION),
        "lora_merge_template": shared.OptionInfo(
            "{sources}_{method}_{weights}_v{n}", "Name of new merges", section=SECTION
        ).info("{sources} {method} {weights} {rank} and {n}, which counts up"),
        "lora_merge_precision": shared.OptionInfo(
            "fp16",
            "Precision of new merges",
            gr.Dropdown,
            {"choices": ["fp16", "bf16", "float"]},
            section=SECTION,
        ),
        "lora_merge_names": shared.OptionInfo(
            "",
            "Names of the modules of new merges",
            gr.Dropdown,
            {"choices": ["", *NAMINGS]},
            section=SECTION,
        ).info("a spelling, or a host that must know them; empty: what every host loads"),
    }
    for name, option in options.items():
        shared.opts.add_option(name, option)


def _started(extension: Path, app: Any) -> None:  # noqa: ANN401
    from modules import shared

    try:
        from lib_merge.ui.modules import add_modules
        from lib_merge.ui.strangers import add_token
        from lib_merge.webui.rest import add_routes, check_page_login

        add_token(app, desk_of(extension).token, check_page_login)
        add_modules(app, check_page_login)
        if getattr(shared.cmd_opts, "api", False):
            add_routes(app, desk_of(extension))
    except Exception:
        log.exception("the Merge tab's token, its modules or its REST API could not be added")
