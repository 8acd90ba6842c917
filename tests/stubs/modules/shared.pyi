import argparse
from collections.abc import Callable
from typing import Any

class OptionInfo:
    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        onchange: Callable[[], object] | None = None,
        section: tuple[str, str] | None = None,
    ) -> None: ...
    def info(self, info: str) -> OptionInfo: ...

class Options:
    data: dict[str, Any]
    def add_option(self, key: str, info: OptionInfo) -> None: ...

class State:
    interrupted: bool
    stopping_generation: bool
    job: str
    job_count: int
    textinfo: str | None

cmd_opts: argparse.Namespace
opts: Options
state: State
