"""What a merge's file is called: a template, a version that counts itself up, names every system can keep."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from lib_merge.errors import OutputError
from lib_merge.files.beside import beside
from lib_merge.files.names import NOT_ALLOWED, SUFFIX, check_name, check_output_name, check_stem
from lib_merge.ranks.policy import PolicyKind
from lib_merge.recipe import Recipe, Source
from lib_merge.ui.desk import Desk
from lib_merge.ui.state import Output

TEMPLATE = "{sources}_{method}_{weights}_v{n}"
_FIELD = re.compile(r"\{(sources|method|weights|rank|n)\}")
_BAD = re.compile(f"[{NOT_ALLOWED},{{}}]+")
MOST = 100


def fill_template(
    template: str, names: Sequence[str], weights: Sequence[float], method: str, rank: str
) -> str:
    """Return the stem with every field but the version filled in.

    Args:
        template: text with {sources}, {method}, {weights}, {rank}, {n}.
        names: the sources' stems.
        weights: their ratios.
        method: its id.
        rank: "lossless", "32", …
    """
    share = max(8, (MOST - 30) // max(1, len(names)))
    values: Mapping[str, str] = {
        "sources": "+".join(_clean(name)[:share].strip(" .-_") or "lora" for name in names[:6]),
        "method": _clean(method),
        "weights": "-".join(_percent(weight) for weight in weights[:6]),
        "rank": _clean(rank),
        "n": "{n}",
    }
    stem = _FIELD.sub(lambda match: values[match[1]], template or TEMPLATE)
    return re.sub(" +", " ", stem).strip(" ") or "merge_v{n}"


def _percent(weight: float) -> str:
    return f"{round(weight * 100):d}".replace("-", "m")


def _clean(text: str) -> str:
    return _BAD.sub("_", text)


def target_of(desk: Desk, output: Output, recipe: Recipe, most: int = 0) -> Path:
    """Return the file that the output settings name.

    Args:
        desk: its first LoRA folder is written to.
        output: template, folder, overwrite.
        recipe: gives sources, method, weights, rank.
        most: the greatest rank that is foreseen: a name says no greater one; 0 where none is.
    Raises:
        OutputError: a bad name or folder.
    """
    folder = sub_folder(desk.host.lora_folders()[0], output.folder)
    return output_path(folder, stem_of(output.template, recipe, most), overwrite=output.overwrite)


def stem_of(template: str, recipe: Recipe, most: int = 0) -> str:
    """Return the stem that a template gives a merge, its version open; see `target_of`."""
    named = named_sources(recipe)
    names, weights = [name for name, _ in named], [weight for _, weight in named]
    return fill_template(template, names, weights, recipe.method, rank_in_names(recipe, most))


def rank_in_names(recipe: Recipe, most: int) -> str:
    """Return the rank policy as names have it: no rank above what can come out."""
    policy = recipe.policy()
    if most and policy.kind is PolicyKind.RANK:
        return str(min(int(policy.value), most))
    return policy.text.replace(":", "-")


def named_sources(recipe: Recipe) -> list[tuple[str, float]]:
    """Return (name, ratio) of every file, those of groups at their ratio times the group's."""
    named: list[tuple[str, float]] = []
    for source in recipe.sources:
        inner = [(source.label, 1.0)] if source.recipe is None else named_sources(source.recipe)
        named += [(name, source.ratio * ratio) for name, ratio in inner]
    return named


def said_source(source: Source) -> str:
    """Return what people call a source: of a group the names of its files, `(ink + mira)`."""
    if source.recipe is None:
        return source.label
    return f"({' + '.join(said_source(one) for one in source.recipe.sources)})"


def output_path(folder: Path, stem: str, *, overwrite: bool) -> Path:
    """Return the file to write: the first free version where the stem counts one, the stem itself elsewhere.

    Raises:
        OutputError: a name that a system could not keep, or that leads into another folder.
    """
    stem = stem.removesuffix(SUFFIX)
    check_stem(stem)
    if "{n}" not in stem:
        return folder / f"{stem}{SUFFIX}"
    number = 1
    while _taken(path := folder / f"{stem.replace('{n}', str(number))}{SUFFIX}", overwrite=overwrite):
        number += 1
    if overwrite and number > 1:
        path = folder / f"{stem.replace('{n}', str(number - 1))}{SUFFIX}"
    check_output_name(path)
    return path


def _taken(path: Path, *, overwrite: bool) -> bool:
    """Tell whether a version is there already, or without leave to overwrite, something beside its name."""
    return os.path.lexists(path) or (not overwrite and bool(beside(path)))


def sub_folder(root: Path, name: str) -> Path:
    """Return a folder below the LoRA folder.

    Raises:
        OutputError: it would lie outside, also by way of a link.
    """
    parts = PurePosixPath(str(name or "").replace("\\", "/")).parts
    if any(part == ".." or part.endswith(":") for part in parts) or (parts and parts[0] == "/"):
        message = f"the folder {name!r} is not inside the LoRA folder."
        raise OutputError(message)
    for part in parts:
        check_name(part, "the folder")
    folder = root.joinpath(*parts)
    if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
        message = f"the folder {name!r} is a link that leads out of the LoRA folder: choose one inside."
        raise OutputError(message)
    return folder
