"""What is read of LoRA files for the list: where they lie, and what each one's header tells."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib_merge import metadata
from lib_merge.adapters import open_lora
from lib_merge.errors import MergeError
from lib_merge.families import blocks_present, encoder_of

SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
MOST_TAGS = 20


def walk(folder: Path) -> Iterator[Path]:
    """Yield the LoRA files below a folder, links included, each real folder once."""
    seen: set[str] = set()
    for where, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        names[:] = sorted(name for name in names if not name.startswith("."))
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(where) / name


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a header tells, JSON-ready; a file that cannot be merged has a `problem`."""
    try:
        with open_lora(path) as file:
            family = file.family or ""
            shown = file if file.family else file.settled(file.guess.candidates[0], drop_unsupported=True)
            layouts = [module.layout for module in shown.modules.values()]
            ranks = [layout.rank for layout in layouts if layout.rank]
            first = shown.family or ""
            return {
                "family": family,
                "candidates": list(file.guess.candidates),
                "kinds": [kind for kind, _ in Counter(str(layout.kind) for layout in layouts).most_common(3)],
                "rank": [min(ranks, default=0), max(ranks, default=0)],
                "te": any(encoder_of(name) for name in shown.modules),
                "blocks": list(blocks_present(shown.modules, first)),
                "tags": _tags(file.metadata),
                "has_recipe": metadata.recipe_of(file.metadata) is not None,
                "problem": "",
            }
    except MergeError as error:
        return {"problem": str(error)[:300]}
    except OSError as error:
        return {"problem": f"it cannot be read: {error.strerror or error}"}


def _tags(header: Any) -> list[str]:  # noqa: ANN401
    counts: Counter[str] = Counter()
    for tags in metadata.read_tags(header).values():
        if isinstance(tags, dict):
            counts.update(
                {
                    str(tag).strip()[:80]: count
                    for tag, count in tags.items()
                    if isinstance(count, (int, float))
                }
            )
    return [tag for tag, _ in counts.most_common(MOST_TAGS)]
