"""What to know of a merge before it is carried out, as the command line says it."""

from __future__ import annotations

import contextlib
import sys

from lib_merge.adapters import open_lora
from lib_merge.analysis.aside import outside
from lib_merge.analysis.normalised import normalised
from lib_merge.analysis.recognition import recognised
from lib_merge.engine.tree import open_tree
from lib_merge.errors import MergeError
from lib_merge.recipe import Recipe


def cautions(recipe: Recipe) -> list[str]:
    """Return sentences on speed LoRAs that the method spoils, and on ratios that it divides out.

    That a file cannot be opened is said by the merge.
    """
    marks = []
    with contextlib.suppress(MergeError):
        for source in recipe.leaves():
            assert source.path is not None
            with open_lora(source.path) as file:
                marks.append(recognised(file))
    strong: list[str] = []
    with contextlib.suppress(MergeError), open_tree(recipe, drop_unsupported=True) as tree:
        for advice in normalised(tree):
            mend = " (--knob normalize=off)" if advice.apply else ""
            strong.append(f"{advice.reason}{mend}")
    for text in strong:  # said while the merge may still be stopped
        sys.stderr.write(f"note: {text}\n")
    return strong + [
        f"{advice.reason} --aside {' '.join(advice.apply['aside'])} does that."
        if advice.apply
        else advice.reason
        for advice in outside(recipe, marks)
    ]
