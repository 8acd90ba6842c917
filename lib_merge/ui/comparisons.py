"""Comparisons that were made: their figures and a small picture of the grid, kept for the verdict and the
history.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lib_merge.errors import MergeError, RecipeError
from lib_merge.kept.history import History
from lib_merge.recipe import Recipe, from_json, loads
from lib_merge.ui.prompt import recipes_of
from lib_merge.ui.state import from_recipe

if TYPE_CHECKING:
    from lib_merge.ui.actions import Actions

MOST = 40
WIDEST = 1600
_ID = re.compile(r"\d{6}-[0-9a-f]{8}")
AGAINST = ("better", "equal", "worse")
DECISIONS = ("keep", "discard", "next")


class Comparisons:
    """A folder with one JSON and one JPEG per comparison."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made with the first comparison."""
        self._folder = folder
        self._lock = threading.Lock()

    def add(self, recipe: Recipe, grid: Any, figures: Sequence[Mapping[str, Any]], picture: Any) -> str:  # noqa: ANN401
        """Keep a comparison and return its id; the oldest beyond `MOST` go.

        Args:
            recipe: the merge it is about.
            grid: its columns and rows.
            figures: what was measured per column.
            picture: the drawn grid.
        """
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                known = self._ids()
                number = int(known[-1][:6]) + 1 if known else 1
                identity = f"{number:06d}-{secrets.token_hex(4)}"
                small = picture.convert("RGB")
                small.thumbnail((WIDEST, WIDEST))
                small.save(self._folder / f"{identity}.jpg", quality=88)
                data = {
                    "version": 1,
                    "sources": [source.label for source in recipe.sources],
                    "columns": [
                        {
                            "label": one.label,
                            "kind": one.kind,
                            "recipe": one.recipe.to_json() if one.recipe else None,
                        }
                        for one in grid.columns
                    ],
                    "rows": [row.label for row in grid.rows[: len(grid.cells)]],
                    "figures": list(figures),
                    "stopped": grid.stopped,
                }
                temp = self._folder / f".{identity}.json.merging"
                temp.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
                os.replace(temp, self._folder / f"{identity}.json")
                for old in known[: max(0, len(known) + 1 - MOST)]:
                    for suffix in (".json", ".jpg"):
                        (self._folder / f"{old}{suffix}").unlink(missing_ok=True)
            except OSError:
                return ""  # the pictures are with the WebUI; only the verdict form will not come
        return identity

    def newest(self) -> str:
        """Return the id of the newest, "" where there is none."""
        known = self._ids()
        return known[-1] if known else ""

    def get(self, identity: str) -> dict[str, Any]:
        """Return what is known of one.

        Raises:
            RecipeError: it is gone or broken.
        """
        try:
            if not _ID.fullmatch(identity):
                raise ValueError
            data = json.loads((self._folder / f"{identity}.json").read_text(encoding="utf-8"))
            return {**data, "id": identity}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            message = "that comparison is not there any more."
            raise RecipeError(message) from error

    def picture(self, identity: str) -> str:
        """Return the grid as a data: address.

        Raises:
            RecipeError: it is gone.
        """
        self.get(identity)
        try:
            data = (self._folder / f"{identity}.jpg").read_bytes()
        except OSError as error:
            message = "the picture of that comparison is gone."
            raise RecipeError(message) from error
        return "data:image/jpeg;base64," + base64.b64encode(data).decode()

    def _ids(self) -> list[str]:
        try:
            return sorted(path.stem for path in self._folder.glob("*.json") if _ID.fullmatch(path.stem))
        except OSError:
            return []


class Judging:
    """The part of `Actions` that takes verdicts and what is done with a picture's merge."""

    comparisons: Comparisons
    history: History

    def op_comparison(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return a comparison, the newest by default; `found` is null where there is none."""
        identity = str(request.get("comparison") or "") or self.comparisons.newest()
        return {"found": self.comparisons.get(identity) if identity else None}

    def op_comparison_picture(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the grid of a comparison."""
        return {"picture": self.comparisons.picture(str(request.get("comparison") or ""))}

    def op_verdict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Write down what a person thinks of a merge: an entry of the history, or one column of a
        comparison.
        """
        verdict = checked_verdict(request.get("verdict"))
        status = "revise" if failed(verdict) else "ok"
        notes = str(request.get("notes") or "")[:10_000]
        entry = str(request.get("entry") or "") or self._entry_of(request)
        fields: dict[str, Any] = {"verdict": verdict, "status": status}
        if request.get("comparison"):
            fields["grid"] = str(request["comparison"])
        if notes:
            fields["notes"] = notes
        self.history.update(entry, **fields)
        return {"entry": entry, "status": status}

    def _entry_of(self, request: Mapping[str, Any]) -> str:
        """Return the history's entry of a column's merge, made now where it was never saved as a LoRA."""
        from datetime import datetime, timezone

        found = self.comparisons.get(str(request.get("comparison") or ""))
        columns = found.get("columns") or []
        index = request.get("column")
        if not isinstance(index, int) or not 0 <= index < len(columns) or not columns[index].get("recipe"):
            message = "that column of the comparison is no merge."
            raise RecipeError(message)
        recipe = columns[index]["recipe"]
        for entry in self.history.list():
            if alike(entry.recipe, recipe):
                return entry.id
        return self.history.add(
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            name=f"{' + '.join(found.get('sources') or [])}, {columns[index]['label']}",
            recipe=recipe,
            method=str(recipe.get("method") or ""),
            sources=[
                {"name": str(one.get("name") or "group"), "ratio": one.get("ratio", 1.0)}
                for one in recipe["sources"]
            ],
        ).id

    def op_picture_text(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of the merge that a picture's infotext carries; null where it carries none."""
        desk, recipe = cast("Actions", self), _carried(request)
        if recipe is None:
            return {"state": None}
        return {"state": from_recipe(recipe, desk.locate, lambda blocks: desk.expand(blocks, recipe.family))}

    def op_preview_set(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Make a picture the preview of the LoRA that was made of its merge: `NAME.preview.png` beside it."""
        desk, recipe = cast("Actions", self), _carried(request)
        entries = self.history.list() if recipe is not None else []
        entry = next((one for one in entries if one.key and alike(one.recipe, recipe.to_json())), None)  # type: ignore[union-attr]
        if entry is None:
            message = "this merge is not a LoRA yet: save it first."
            raise RecipeError(message)
        path = desk.library.resolve(entry.key)
        write_preview(path, str(request.get("image") or ""))
        desk.library.refresh(wait=True)
        return {"name": path.stem}


def _carried(request: Mapping[str, Any]) -> Recipe | None:
    """Return the first recipe of an infotext, or the one that the WebUI's paste button has unpacked
    already.
    """
    text = str(request.get("text") or "").strip()
    if text.startswith("{"):
        return loads(text, "the picture's recipe")
    return next(iter(recipes_of(text)), None)


def checked_verdict(given: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a verdict with what the form asks for and nothing else.

    Returns:
        preserved {source: yes, partly or no}, artefacts and consistent (true, false or absent), against
        (better, equal, worse or ""), decision (keep, discard, next or "").
    """
    data = given if isinstance(given, Mapping) else {}
    preserved = data.get("preserved") if isinstance(data.get("preserved"), Mapping) else {}
    verdict: dict[str, Any] = {
        "preserved": {
            str(name)[:200]: value
            for name, value in list(preserved.items())[:64]  # type: ignore[union-attr]
            if value in ("yes", "partly", "no")
        },
        "against": data.get("against") if data.get("against") in AGAINST else "",
        "decision": data.get("decision") if data.get("decision") in DECISIONS else "",
    }
    for name in ("artefacts", "consistent"):
        if isinstance(data.get(name), bool):
            verdict[name] = data[name]
    return verdict


def failed(verdict: Mapping[str, Any]) -> bool:
    """Return True where the merge did not pass: it is to be tried again, or something was lost that nobody
    accepted.
    """
    if verdict.get("decision"):
        return verdict["decision"] == "next"
    lost = "no" in dict(verdict.get("preserved") or {}).values()
    worse = (
        verdict.get("against") == "worse"
        or verdict.get("artefacts") is True
        or verdict.get("consistent") is False
    )
    return lost or worse


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return True where two recipes (JSON) ask for the same; hashes and default values may be written or
    not.
    """
    try:
        return bool(one) and _bare(from_json(one)) == _bare(from_json(other))
    except MergeError:
        return False


def _bare(recipe: Recipe) -> Recipe:
    sources = tuple(
        replace(
            source,
            path=None,
            sha256="",
            size=0,
            recipe=_bare(source.recipe) if source.recipe is not None else None,
            blocks={name: value for name, value in source.blocks.items() if value != 1}
            if isinstance(source.blocks, Mapping)
            else source.blocks or {},
        )
        for source in recipe.sources
    )
    settings = recipe.declared().settings(recipe.knobs, len(sources))
    return replace(recipe, sources=sources, knobs=settings, rank=recipe.policy(), family=None)


def write_preview(lora: Path, image: str) -> Path:
    """Write a picture beside a LoRA as the WebUI's cards want it; an animated or huge one becomes a plain
    PNG.

    Args:
        lora: the file.
        image: data: address of a picture.
    Raises:
        RecipeError: not a picture.
    """
    from PIL import Image

    try:
        raw = base64.b64decode(image.rpartition(",")[2], validate=True)
        picture = Image.open(io.BytesIO(raw))
        picture.thumbnail((1024, 1024))
        data = io.BytesIO()
        picture.convert("RGB").save(data, "PNG")
    except Exception as error:  # PIL raises many kinds for what is no picture
        message = "that picture cannot be read."
        raise RecipeError(message) from error
    target = lora.with_name(f"{lora.stem}.preview.png")
    temp = lora.with_name(f".{lora.stem[:40]}.{secrets.token_hex(4)}.preview.merging")
    try:
        temp.write_bytes(data.getvalue())
        os.replace(temp, target)
    except OSError as error:
        temp.unlink(missing_ok=True)
        message = f"the preview cannot be written: {error.strerror or error}."
        raise RecipeError(message) from error
    return target
