"""The picture on a merge's card: one that was dropped in the tab, or that of a source."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_merge.errors import RecipeError

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

ENDINGS = ("png", "jpg", "jpeg", "webp", "gif")
LARGEST = 12 << 20


def keep_preview(desk: Actions, saved: Path, wanted: Any) -> list[str]:  # noqa: ANN401
    """Put a picture beside a saved LoRA; the merge is safe already, so what goes wrong is only said.

    Args:
        desk: resolves the source whose picture is taken.
        saved: the LoRA.
        wanted: nothing, {"like": key of a source} or {"data": "data:image/…;base64,…"}.
    Returns:
        Sentences on what went wrong.
    """
    if not isinstance(wanted, Mapping) or not (wanted.get("like") or wanted.get("data")):
        return []
    try:
        data = _of_source(desk, str(wanted["like"])) if wanted.get("like") else _decoded(str(wanted["data"]))
        if data is not None:
            _write(saved, data)
    except (RecipeError, OSError) as error:
        return [f"the preview picture was not saved: {error}"]
    return []


def picture_beside(path: Path) -> Path | None:
    """Return the picture that the WebUI shows for a LoRA."""
    places = [path.with_suffix(f"{middle}.{ending}") for ending in ENDINGS for middle in (".preview", "")]
    return next((place for place in places if place.is_file()), None)


def _of_source(desk: Actions, key: str) -> bytes | None:
    found = picture_beside(desk.library.resolve(key))
    if found is None or found.stat().st_size > LARGEST:
        return None
    return found.read_bytes()


def _decoded(text: str) -> bytes:
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


def _write(saved: Path, data: bytes) -> None:
    if len(data) > LARGEST:
        message = f"it is larger than {LARGEST >> 20} MB."
        raise RecipeError(message)
    target = saved.with_suffix(f".preview.{_ending(data)}")
    temp = target.with_name(f".{secrets.token_hex(6)}.preview.merging")
    temp.write_bytes(data)
    os.replace(temp, target)
    for ending in ENDINGS:  # an older picture of another kind would be shown instead
        other = saved.with_suffix(f".preview.{ending}")
        if other != target:
            with contextlib.suppress(OSError):
                other.unlink()
