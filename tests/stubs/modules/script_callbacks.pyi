from collections.abc import Callable, Sequence

from fastapi import FastAPI
from gradio import Blocks

class CFGDenoiserParams:
    x: object
    sampling_step: int
    total_sampling_steps: int
    denoiser: object

def on_cfg_denoiser(callback: Callable[[CFGDenoiserParams], object], *, name: str | None = None) -> None: ...
def on_before_ui(callback: Callable[[], object], *, name: str | None = None) -> None: ...
def on_ui_tabs(
    callback: Callable[[], Sequence[tuple[Blocks, str, str]]], *, name: str | None = None
) -> None: ...
def on_ui_settings(callback: Callable[[], object], *, name: str | None = None) -> None: ...
def on_app_started(callback: Callable[[Blocks, FastAPI], object], *, name: str | None = None) -> None: ...
