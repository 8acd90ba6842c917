"""Numbers about the pictures of a comparison, column by column.

Drawing a comparison: the labelled grid, and maps of where merge and stack differ.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lib_merge.webui.compare.columns import Column
from lib_merge.webui.compare.rows import Row

# ------------------------------------------------------------------------------------------------ figures

WINDOW = 7


@dataclass(slots=True)
class Cell:
    """One picture.

    seconds  making it, loading its LoRAs included
    load     loading its LoRAs
    error    why there is none, or why it is not whole
    """

    image: Any = None
    infotext: str = ""
    seconds: float = 0.0
    load: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Grid:
    """What was made so far, row by row.

    sizes  per column, bytes of the files that its LoRAs are loaded from
    """

    columns: list[Column]
    rows: list[Row]
    cells: list[list[Cell]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    stopped: bool = False


def figures(grid: Grid) -> list[dict[str, Any]]:
    """Return per column what was measured.

    Returns:
        column, kind, pictures; `against`: for the stack and every source alone {column, difference, spread,
        similarity}, the mean absolute difference in grey levels (0-255) over pixels, averaged over rows, its
        standard deviation over rows, and the mean structural similarity (1 = the same; None where
        scikit-image is not there or the pictures are smaller than its window); seconds and load per picture;
        bytes.
    """
    others = [index for index, column in enumerate(grid.columns) if column.kind in ("stack", "source")]
    result = []
    for index, column in enumerate(grid.columns):
        cells = [row[index] for row in grid.cells if len(row) > index and whole(row[index])]
        result.append(
            {
                "column": column.label,
                "kind": column.kind,
                "pictures": len(cells),
                "against": [
                    one for other in others if other != index and (one := _against(grid, index, other))
                ],
                "seconds": _mean([cell.seconds for cell in cells]),
                "load": _mean([cell.load for cell in cells]) if column.parts else None,
                "bytes": grid.sizes[index] if index < len(grid.sizes) else 0,
            }
        )
    return result


def whole(cell: Cell) -> bool:
    """Return True for a picture that was finished."""
    return cell.image is not None and not cell.error


def _against(grid: Grid, index: int, other: int) -> dict[str, Any] | None:
    differences, similarities = [], []
    for row in grid.cells:
        if len(row) <= max(index, other) or not whole(row[index]) or not whole(row[other]):
            continue
        one, two = pixels(row[index].image), pixels(row[other].image)
        if one.shape != two.shape:
            continue
        differences.append(float(np.abs(one - two).mean()))
        similarities.append(similarity(one, two))
    if not differences:
        return None
    known = [value for value in similarities if value is not None]
    return {
        "column": grid.columns[other].label,
        "difference": float(np.mean(differences)),
        "spread": float(np.std(differences)),
        "similarity": float(np.mean(known)) if known else None,
    }


def similarity(one: np.ndarray, two: np.ndarray) -> float | None:
    """Return the mean structural similarity of two pictures.

    Args:
        one: Float[height width 3], 0-255.
        two: the same shape.
    Source: Wang, Bovik, Sheikh, Simoncelli 2004, as scikit-image computes it.
    """
    if min(one.shape[:2]) < WINDOW:
        return None
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    return float(structural_similarity(one, two, channel_axis=2, data_range=255.0, win_size=WINDOW))


def pixels(image: Any) -> np.ndarray:  # noqa: ANN401
    """Return Float[height width 3], 0-255."""
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def table(grid: Grid, measured: Sequence[dict[str, Any]]) -> str:
    """Return the figures as plain text, one line per column, and what failed."""
    lines = []
    for item in measured:
        parts = [item["column"]]
        for other in item["against"]:
            alike = "" if other["similarity"] is None else f", similarity {other['similarity']:.3f}"
            parts.append(
                f"{other['difference']:.3f} ± {other['spread']:.3f} grey levels from {other['column']}{alike}"
            )
        if item["seconds"] is not None:
            parts.append(f"{item['seconds']:.1f} s a picture")
        if item["load"] is not None:
            parts.append(f"LoRAs: {item['load']:.2f} s to load, {item['bytes'] / 1e6:.1f} MB")
        lines.append(" · ".join(parts))
    errors = {cell.error for row in grid.cells for cell in row if cell.error}
    lines += [f"failed: {error}" for error in sorted(errors)]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ sheet

GREY = "#808080"


def draw(grid: Grid, width: int, height: int) -> Any:  # noqa: ANN401
    """Return the labelled grid of what was made, None before the first row.

    Args:
        grid: the cells; a cell without a picture says why in its place.
        width: of a picture, where none was made.
        height: the same.
    """
    return _sheet(grid, [[_shown(cell) for cell in row] for row in grid.cells if row], width, height)


def draw_maps(grid: Grid, width: int, height: int) -> Any:  # noqa: ANN401
    """Return a grid of |picture − stack|, None without a stack or anything to hold against it.

    Every map is brightened by one common factor, which stands in its label, so that maps can be compared.
    """
    stack = next((index for index, column in enumerate(grid.columns) if column.kind == "stack"), None)
    if stack is None:
        return None
    chosen = [index for index, column in enumerate(grid.columns) if column.kind in ("merge", "variant")]
    differences: dict[tuple[int, int], np.ndarray] = {}
    for number, row in enumerate(grid.cells):
        for index in chosen:
            if len(row) > max(index, stack) and whole(row[index]) and whole(row[stack]):
                one, two = pixels(row[index].image), pixels(row[stack].image)
                if one.shape == two.shape:
                    differences[number, index] = np.abs(one - two)
    if not differences:
        return None
    top = max(float(np.quantile(values, 0.995)) for values in differences.values())
    factor = 255.0 / max(top, 1.0)
    rows = [
        [_map(differences.get((number, index)), factor) for index in chosen]
        for number in range(len(grid.cells))
    ]
    labels = [f"|{grid.columns[index].label} − stack| × {factor:.3g}" for index in chosen]
    return _sheet(grid, rows, width, height, labels)


def _map(values: np.ndarray | None, factor: float) -> Any:  # noqa: ANN401
    from PIL import Image

    if values is None:
        return None
    return Image.fromarray(np.clip(values * factor, 0, 255).astype(np.uint8))


def _sheet(
    grid: Grid, rows: list[list[Any]], width: int, height: int, labels: list[str] | None = None
) -> Any:  # noqa: ANN401
    from modules import images
    from PIL import Image

    if not rows:
        return None
    names = labels or [column.label for column in grid.columns]
    sizes = [image.size for row in rows for image in row if image is not None and not isinstance(image, str)]
    wide, high = (max(one[0] for one in sizes), max(one[1] for one in sizes)) if sizes else (width, height)
    filled = []
    for row in rows:
        padded = [*row, *[None] * (len(names) - len(row))]
        for image in padded:
            place = Image.new("RGB", (wide, high), GREY)
            if isinstance(image, str):
                _write(place, image)
            elif image is not None:
                place.paste(image.convert("RGB"), ((wide - image.size[0]) // 2, (high - image.size[1]) // 2))
            filled.append(place)
    sheet = images.image_grid(filled, rows=len(rows))
    above = [[images.GridAnnotation(name)] for name in names]
    beside = [[images.GridAnnotation(row.label)] for row in grid.rows[: len(rows)]]
    return images.draw_grid_annotations(sheet, wide, high, above, beside)


def _shown(cell: Cell) -> Any:  # noqa: ANN401
    """Return the picture, or the sentence that stands in its place."""
    return cell.image if cell.image is not None else cell.error or None


def _write(place: Any, sentence: str) -> None:  # noqa: ANN401
    from PIL import ImageDraw

    lines = textwrap.wrap(sentence, max(8, place.size[0] // 7))[:12]
    ImageDraw.Draw(place).multiline_text((6, 6), "\n".join(lines), fill="white")
