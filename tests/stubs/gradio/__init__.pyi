from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from fastapi import FastAPI
from gradio import themes as themes

__version__: str
_Self = TypeVar("_Self", bound=_Context)

class Component:
    do_not_save_to_config: bool

class _Context:
    def __enter__(self: _Self) -> _Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class Blocks(_Context):
    def __init__(
        self, *, analytics_enabled: bool | None = None, theme: themes.Base | None = None
    ) -> None: ...

class Row(_Context):
    def __init__(self, *, elem_id: str | None = None) -> None: ...

class Column(_Context):
    def __init__(self, *, elem_id: str | None = None) -> None: ...

class HTML(Component):
    def __init__(self, value: str = "", *, elem_id: str | None = None) -> None: ...

class Textbox(Component):
    def __init__(
        self,
        value: str = "",
        *,
        label: str | None = None,
        elem_id: str | None = None,
        elem_classes: Sequence[str] | None = None,
        show_label: bool | None = None,
        max_lines: int = 20,
    ) -> None: ...

class Dropdown(Component): ...

class Dependency:
    # js is _js in gradio 3
    def then(
        self,
        fn: Callable[..., Any] | None,
        inputs: Sequence[Component],
        outputs: Sequence[Component],
        *,
        queue: bool | None = None,
        show_progress: Any = ...,
        **js: str,
    ) -> Dependency: ...

class Button(Component):
    def __init__(self, value: str = "Run", *, elem_id: str | None = None) -> None: ...
    def click(
        self,
        fn: Callable[..., Any] | None,
        inputs: Sequence[Component],
        outputs: Sequence[Component],
        *,
        queue: bool | None = None,
        show_progress: Any = ...,
        api_name: Any = ...,
        **js: str,
    ) -> Dependency: ...

def mount_gradio_app(app: FastAPI, blocks: Blocks, path: str) -> FastAPI: ...
