"""How a merge runs: where, with whom it speaks, and where its output may go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lib_merge.adapters import LoraFile, open_lora
from lib_merge.errors import OutputError
from lib_merge.files.names import check_output_name
from lib_merge.recipe import Recipe

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Job:
    """How a merge runs; nothing here changes the bytes.

    device            "auto", "cpu", "cuda", "mps", … or a torch.device
    progress          called with (stage, done, total)
    cancelled         asked between modules
    proof             hold the file against what was asked, hash it and wait for the disk before it gets its
                      name; off only for files that are thrown away after a look
    """

    device: str | torch.device = "cpu"
    overwrite: bool = False
    drop_unsupported: bool = False
    progress: Progress | None = None
    cancelled: Callable[[], bool] = field(default=lambda: False)
    side_car: bool = True
    proof: bool = True
    open_file: Callable[[Path], LoraFile] = open_lora

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(stage, done, total)


def pick_device(device: str | torch.device) -> torch.device:
    """Return the torch device; "auto" is CUDA where there is one, else the CPU.

    Raises:
        OutputError: torch does not know the device or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        float(torch.ones(1, device=found).sum())  # a device that cannot count ("meta") is none
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = f"the device {str(device)!r} is not available here: {str(error).splitlines()[0]}"
        raise OutputError(message) from error
    return found


def check_target(target: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Raise `OutputError` where the output has a bad name, no folder, is a source, or exists and may not be
    replaced.
    """
    check_output_name(target)
    if not target.parent.is_dir():
        message = f"the folder {target.parent.name or target.parent} does not exist."
        raise OutputError(message)
    for source in recipe.leaves():
        with contextlib.suppress(
            OSError, ValueError
        ):  # a path that no system could have is said when it is opened
            if target.exists() and source.path is not None and source.path.samefile(target):
                message = f"{target.name} is one of the sources; choose another output name."
                raise OutputError(message)
    if target.exists() and not overwrite:
        message = f"{target.name} exists already; choose another name or allow overwriting."
        raise OutputError(message)
