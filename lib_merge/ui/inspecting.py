"""One LoRA, laid open for people: what the header, the tensors and the training notes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib_merge.adapters.source import open_lora
from lib_merge.analysis.bench import FileInfo
from lib_merge.analysis.training import training
from lib_merge.errors import MergeError
from lib_merge.library.inspect import inspect_file
from lib_merge.metadata import describe_recipe
from lib_merge.recipe import from_json


def inspected(path: Path) -> dict[str, Any]:
    """Return what `inspect` finds, the training notes as rows, and the recipe in words.

    Raises:
        MergeError: damaged or not a LoRA.
    """
    found = inspect_file(path)
    with open_lora(path) as file:
        base = file.config.base if file.config is not None else ""
        info = FileInfo(path, file.name, path.stem, file.size, 0, dict(file.metadata), base, {}, 0)
    rows = training([info], [(0, 0)]).rows
    found["training"] = [[row.title, row.values[0]] for row in rows if row.field != "rank" and row.values[0]]
    found["made_of"] = _in_words(found["recipe"])
    return found


def _in_words(recipe: Any) -> str:  # noqa: ANN401
    if not isinstance(recipe, dict):
        return ""
    try:
        return describe_recipe(from_json(recipe, "the recipe"))
    except MergeError as error:
        return f"its recipe cannot be read: {error}"
