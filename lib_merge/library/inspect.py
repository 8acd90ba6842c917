"""What is in a LoRA file, for people and for the tab."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from lib_merge import metadata
from lib_merge.adapters import LoraFile, open_lora
from lib_merge.families import block_of, blocks_present, encoder_of
from lib_merge.linalg import norm

MOST_TAGS = 24


def inspect_file(path: Path, family: str | None = None) -> dict[str, Any]:
    """Return family, kinds, ranks, alpha, dtype, blocks present, norms, tags and recipe of a file,
    JSON-ready.

    Modules that hold NaN or infinity are listed as broken and count in no norm.

    Raises:
        MergeError: damaged or not a LoRA.
    """
    with open_lora(path, family) as file:
        shown = file
        if file.family is None:
            shown = file.settled(file.guess.candidates[0], drop_unsupported=True)
        return {
            "file": path.name,
            "family": file.family,
            "candidates": list(file.guess.candidates),
            "reason": file.guess.reason,
            "style": file.parsed.style,
            "bytes": file.size,
            **_modules(shown),
            "embeddings": list(file.parsed.embeddings),
            "left_out": dict(Counter(shown.left_out.values())),
            "tags": _tags(file),
            "recipe": _recipe(file),
            "metadata_keys": len(file.metadata),
        }


def _modules(file: LoraFile) -> dict[str, Any]:
    family = file.family or ""
    ranks = [module.layout.rank for module in file.modules.values() if module.layout.rank]
    squares: dict[str, float] = {}
    encoders: dict[str, dict[str, float]] = {}  # of each block's part in each text encoder
    broken: list[str] = []
    for name, module in file.modules.items():
        size = norm(module.load(file.file)) if module.layout.columns else 0.0
        if not math.isfinite(size):
            broken.append(name)
        elif module.layout.columns:
            block, encoder = block_of(name, family), encoder_of(name)
            squares[block] = squares.get(block, 0.0) + size**2
            if encoder:
                parts = encoders.setdefault(block, {})
                parts[str(encoder)] = parts.get(str(encoder), 0.0) + size**2
    total = sum(squares.values())
    present = blocks_present(file.modules, family)
    alphas = {float(file.file.read(m.roles["alpha"])) for m in file.modules.values() if "alpha" in m.roles}
    if len(alphas) > 1 or not all(map(math.isfinite, alphas)):
        alpha: Any = "differs"
    else:
        alpha = alphas.pop() if alphas else "= rank"
    dtypes = Counter(info.dtype for info in file.file.tensors.values())
    return {
        "modules": len(file.modules),
        "kinds": dict(Counter(module.layout.kind for module in file.modules.values())),
        "rank": {"min": min(ranks, default=0), "max": max(ranks, default=0)},
        "alpha": alpha,
        "dtype": dtypes.most_common(1)[0][0] if dtypes else "",
        "blocks": list(present),
        "norm": total**0.5,
        "broken": broken,
        "block_energy": {block: squares.get(block, 0.0) / (total or 1.0) for block in present},
        "encoder_energy": {
            block: {encoder: square / (total or 1.0) for encoder, square in parts.items()}
            for block, parts in encoders.items()
        },
    }


def _tags(file: LoraFile) -> list[str]:
    counts: Counter[str] = Counter()
    for tags in metadata.read_tags(file.metadata).values():
        for tag, count in tags.items():
            counts[tag.strip()] += count
    return [tag for tag, _ in counts.most_common(MOST_TAGS)]


def _recipe(file: LoraFile) -> Any:  # noqa: ANN401
    text = metadata.recipe_of(file.metadata)
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
