"""Drawing a comparison: the labelled grid, and maps of where merge and stack differ."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from lib_merge.webui.figures import Cell, Grid, pixels, whole

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
    found: dict[tuple[int, int], np.ndarray] = {}
    for number, row in enumerate(grid.cells):
        for index in chosen:
            if len(row) > max(index, stack) and whole(row[index]) and whole(row[stack]):
                one, two = pixels(row[index].image), pixels(row[stack].image)
                if one.shape == two.shape:
                    found[number, index] = np.abs(one - two)
    if not found:
        return None
    top = max(float(np.quantile(values, 0.995)) for values in found.values())
    factor = 255.0 / max(top, 1.0)
    rows = [
        [_map(found.get((number, index)), factor) for index in chosen] for number in range(len(grid.cells))
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
