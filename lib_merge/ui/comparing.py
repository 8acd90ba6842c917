"""Comparisons and pictures of merges: what came out, the verdict, and what is done with a picture's merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Annotated, Any

from lib_merge.errors import MergeError, RecipeError
from lib_merge.kept.changes import source_name
from lib_merge.recipe import Recipe, from_json, loads
from lib_merge.ui.desk import Desk, operation, trash_of
from lib_merge.ui.keeping import Verdict
from lib_merge.ui.pictures import write_preview
from lib_merge.ui.prompt import recipes_of
from lib_merge.ui.protocol import About, write
from lib_merge.ui.state import as_asked
from lib_merge.ui.understanding import SetupReply


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRequest:
    """Names a comparison, the newest by default."""

    comparison: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonReply:
    """A comparison: its sources, columns, rows and figures; null where there is none."""

    found: dict[str, Any] | None


@operation("comparison")
def comparison(desk: Desk, request: ComparisonRequest) -> ComparisonReply:
    """Return a comparison that was made."""
    identity = request.comparison or desk.comparisons.newest()
    return ComparisonReply(found=desk.comparisons.get(identity) if identity else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureReply:
    """A picture."""

    picture: Annotated[str, About("data: address")]


@operation("comparison_picture")
def comparison_picture(desk: Desk, request: ComparisonRequest) -> PictureReply:
    """Return the grid of a comparison."""
    return PictureReply(picture=desk.comparisons.picture(request.comparison))


# -------------------------------------------------------------------------------------------- verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRequest:
    """A verdict on an entry of the history, or on one column of a comparison."""

    entry: str = ""
    comparison: str = ""
    column: int | None = None
    verdict: Verdict = field(default_factory=Verdict)
    notes: Annotated[str, About(most=100_000)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictReply:
    """The entry that has the verdict now."""

    entry: str
    status: Annotated[str, About("ok, or revise where the merge did not pass")]


@operation("verdict")
def verdict(desk: Desk, request: VerdictRequest) -> VerdictReply:
    """Write down what a person thinks of a merge."""
    entry = request.entry or _entry_of(desk, request)
    status = "revise" if request.verdict.failed else "ok"
    fields: dict[str, Any] = {"verdict": write(request.verdict), "status": status}
    if request.comparison:
        fields["grid"] = request.comparison
    if request.notes:
        fields["notes"] = request.notes[:10_000]
    desk.history.update(entry, **fields)
    return VerdictReply(entry=entry, status=status)


def _entry_of(desk: Desk, request: VerdictRequest) -> str:
    """Return the history's entry of a column's merge, made now where it was never saved as a LoRA."""
    kept = desk.comparisons.get(request.comparison)
    columns = kept.get("columns") or []
    index = -1 if request.column is None else request.column
    if not 0 <= index < len(columns) or not columns[index].get("recipe"):
        message = "that column of the comparison is no merge."
        raise RecipeError(message)
    recipe = columns[index]["recipe"]
    for entry in desk.history.list():
        if alike(entry.recipe, recipe):
            return entry.id
    return desk.history.add(
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        name=f"{' + '.join(kept.get('sources') or [])}, {columns[index]['label']}",
        recipe=recipe,
        method=str(recipe.get("method") or ""),
        sources=[{"name": source_name(one), "ratio": one.get("ratio", 1.0)} for one in recipe["sources"]],
    ).id


# -------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureTextRequest:
    """The infotext of a picture, or a recipe that the WebUI's paste button has unpacked from one."""

    text: str = ""


@operation("picture_text")
def picture_text(desk: Desk, request: PictureTextRequest) -> SetupReply:
    """Return the set-up of the merge that a picture's infotext carries; null where it carries none."""
    recipe = _carried(request.text)
    return SetupReply(state=None if recipe is None else desk.setup_of(as_asked(recipe)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewSetRequest:
    """A picture and its infotext."""

    text: str = ""
    image: Annotated[str, About("data: address")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraNameReply:
    """The stem of a LoRA."""

    name: str


@operation("preview_set")
def preview_set(desk: Desk, request: PreviewSetRequest) -> LoraNameReply:
    """Make a picture the preview of the LoRA that was made of its merge."""
    recipe = _carried(request.text)
    made = None if recipe is None else recipe.to_json()
    entries = desk.history.list() if made is not None else []
    entry = next((one for one in entries if one.key and made and alike(one.recipe, made)), None)
    if entry is None:
        message = "this merge is not a LoRA yet: save it first."
        raise RecipeError(message)
    path = desk.library.resolve(entry.key)
    write_preview(path, request.image, trash_of(desk))
    desk.library.refresh(wait=True)
    return LoraNameReply(name=path.stem)


def _carried(text: str) -> Recipe | None:
    text = text.strip()
    if text.startswith("{"):
        return loads(text, "the picture's recipe")
    return next(iter(recipes_of(text)), None)


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return True where two recipes (JSON) ask for the same; hashes and defaults may be written or not."""
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
