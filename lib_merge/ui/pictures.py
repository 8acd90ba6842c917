"""The picture on a LoRA's card: one that was dropped in the tab, that of a source, or a generated one."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
from pathlib import Path

from lib_merge.errors import OutputError, RecipeError
from lib_merge.files.store import write
from lib_merge.files.trash import Trash
from lib_merge.library.library import Library
from lib_merge.ui.state import Preview

ENDINGS = ("png", "jpg", "jpeg", "webp", "gif")
LARGEST = 12 << 20


def keep_preview(library: Library, saved: Path, preview: Preview | None, trash: Trash) -> list[str]:
    """Put a picture beside a saved LoRA; the merge is safe already, so what goes wrong is only said.

    Args:
        library: resolves the source whose picture is taken.
        saved: the LoRA.
        preview: whose picture, or which.
        trash: where an earlier picture goes.
    Returns:
        Sentences on what went wrong.
    """
    if preview is None or not (preview.like or preview.data):
        return []
    try:
        data = _of_source(library, preview.like) if preview.like else decoded(preview.data)
        if data is not None:
            _write(saved, data, trash)
    except (RecipeError, OutputError, OSError) as error:
        return [f"the preview picture was not saved: {error}"]
    return []


def picture_beside(path: Path) -> Path | None:
    """Return the picture that the WebUI shows for a LoRA."""
    places = [path.with_suffix(f"{middle}.{ending}") for ending in ENDINGS for middle in (".preview", "")]
    return next((place for place in places if place.is_file()), None)


def _of_source(library: Library, key: str) -> bytes | None:
    picture = picture_beside(library.resolve(key))
    if picture is None or picture.stat().st_size > LARGEST:
        return None
    return picture.read_bytes()


def decoded(text: str) -> bytes:
    """Return the bytes of a data: address.

    Raises:
        RecipeError: it is none.
    """
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        message = "it could not be read."
        raise RecipeError(message) from error


def _ending(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    message = "it is not a PNG, JPEG, WebP or GIF."
    raise RecipeError(message)


def _write(saved: Path, data: bytes, trash: Trash) -> None:
    if len(data) > LARGEST:
        message = f"it is larger than {LARGEST >> 20} MB."
        raise RecipeError(message)
    _replace(saved, saved.with_suffix(f".preview.{_ending(data)}"), data, trash)


def _replace(lora: Path, target: Path, data: bytes, trash: Trash) -> None:
    """Write the picture of a LoRA; an earlier one is kept, one of another kind would be shown instead."""
    places = [lora.with_suffix(f".preview.{ending}") for ending in ENDINGS]
    earlier = [place for place in places if os.path.lexists(place)]
    if earlier == [target] and target.is_file() and target.read_bytes() == data:
        return
    if earlier:
        trash.keep(earlier)
    write(target, data, title="the preview", follow=False)
    for place in earlier:
        if place != target:
            with contextlib.suppress(OSError):
                place.unlink()


def write_preview(lora: Path, image: str, trash: Trash) -> Path:
    """Write a picture beside a LoRA as the WebUI's cards want it; an animated or huge one becomes a plain
    PNG.

    Args:
        lora: the file.
        image: data: address of a picture.
        trash: where an earlier picture goes.
    Raises:
        RecipeError: not a picture.
        OutputError: the folder cannot be written.
    """
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(decoded(image)))
        picture.thumbnail((1024, 1024))
        data = io.BytesIO()
        picture.convert("RGB").save(data, "PNG")
    except Exception as error:  # PIL raises many kinds for what is no picture
        message = "that picture cannot be read."
        raise RecipeError(message) from error
    target = lora.with_suffix(".preview.png")
    _replace(lora, target, data.getvalue(), trash)
    return target
