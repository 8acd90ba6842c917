"""Saving the groups of a hierarchical merge as files of their own, so that a step can be judged and rolled
back to.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from lib_merge.engine.run import Job, run
from lib_merge.errors import OutputError
from lib_merge.recipe import Recipe


def save(recipe: Recipe, folder: Path, job: Job) -> list[str]:
    """Merge every group into `folder`, innermost first; return a sentence for each.

    Raises:
        OutputError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the folder {folder.name} for the levels cannot be made: {error.strerror or error}."
        raise OutputError(message) from error
    said: list[str] = []
    _save(recipe, folder, job, said, "")
    return said


def _save(recipe: Recipe, folder: Path, job: Job, said: list[str], prefix: str) -> None:
    for number, source in enumerate(recipe.sources, 1):
        if source.recipe is None:
            continue
        name = f"{prefix}level-{number}"
        if source.name:
            name += "-" + re.sub(r"[^\w.-]+", "_", Path(source.name).stem)[:60]
        _save(source.recipe, folder, job, said, f"{name}-")
        inner = replace(
            source.recipe, family=source.recipe.family or recipe.family, precision=recipe.precision
        )
        report = run(inner, folder / f"{name}.safetensors", replace(job, overwrite=True))
        said.append(f"level {number} was saved as {Path(report.output).name}")
