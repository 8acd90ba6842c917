"""The name of a merge: a template with a live preview, a version that counts itself up, names that every
system can keep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from lib_merge.errors import OutputError
from lib_merge.files.names import check_output_name

TEMPLATE = "{sources}_{method}_{weights}_v{n}"
_FIELD = re.compile(r"\{(sources|method|weights|rank|n)\}")
_BAD = re.compile(r'[<>:"|?*\\/\x00-\x1f\x7f\ud800-\udfff,{}]+')
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
    return re.sub(r"\s+", " ", stem).strip(" .") or "merge_v{n}"


def _percent(weight: float) -> str:
    return f"{round(weight * 100):d}".replace("-", "m")


def _clean(text: str) -> str:
    return _BAD.sub("_", text)


def output_path(folder: Path, stem: str, *, overwrite: bool) -> Path:
    """Return the file to write: the first free version where the stem counts one, the stem itself elsewhere.

    Raises:
        OutputError: a name that a system could not keep, or that leads into another folder.
    """
    stem = stem.removesuffix(".safetensors")
    check_plain_name(stem)
    if "{n}" not in stem:
        path = folder / f"{stem}.safetensors"
        check_output_name(path)
        return path
    number = 1
    while (folder / f"{stem.replace('{n}', str(number))}.safetensors").exists():
        number += 1
    if overwrite and number > 1:
        number -= 1
    path = folder / f"{stem.replace('{n}', str(number))}.safetensors"
    check_output_name(path)
    return path


def check_plain_name(stem: str) -> None:
    """Raise `OutputError` for a name that would lead into another folder; folders are chosen beside it."""
    if set(stem) & set("/\\"):
        message = f"the name {stem[:60]!r} has a slash in it; choose the folder in its own field."
        raise OutputError(message)


def sub_folder(root: Path, name: str) -> Path:
    """Return a folder below the LoRA folder.

    Raises:
        OutputError: it would lie outside.
    """
    parts = PurePosixPath(str(name or "").replace("\\", "/")).parts
    if any(part == ".." or part.endswith(":") for part in parts) or (parts and parts[0] == "/"):
        message = f"the folder {name!r} is not inside the LoRA folder."
        raise OutputError(message)
    for part in parts:
        check_output_name(Path(f"{part}.safetensors"))
    return root.joinpath(*parts)
