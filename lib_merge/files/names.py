"""File names that work on every system, and names that are still free."""

from __future__ import annotations

import re
from pathlib import Path

from lib_merge.errors import OutputError

_RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?$", re.IGNORECASE)
# the last range: bytes of a name that are no text, as Python keeps them on Linux
_FORBIDDEN = re.compile(r'[<>:"|?*\\/\x00-\x1f\x7f\ud800-\udfff]')
MAX_NAME = 240
SUFFIX = ".safetensors"


def check_output_name(path: Path) -> None:
    """Raise `OutputError` for a name that Windows, macOS or Linux could not keep.

    Args:
        path: the wished output; only its last part is judged.
    """
    name = path.name
    if _FORBIDDEN.search(name):
        message = (
            f'the output name {name!a} has a character that file names cannot have everywhere (<>:"|?*\\/).'
        )
    elif _RESERVED.match(name) or name.endswith((" ", ".")) or name.startswith(" "):
        message = f"the output name {name!a} is reserved on Windows or ends in a blank or dot."
    elif len(name.encode("utf-8")) > MAX_NAME:
        message = f"the output name is {len(name.encode('utf-8'))} bytes long; {MAX_NAME} is the limit."
    elif path.suffix != SUFFIX or path.stem == "":
        message = f"the output {name!a} must end in {SUFFIX}."
    else:
        return
    raise OutputError(message)


def next_version(path: Path) -> Path:
    """Return `stem_v2`, `stem_v3`, … beside `path`: the first that does not exist; an existing _vN is
    counted up.
    """
    match = re.fullmatch(r"(.*)_v(\d{1,6})", path.stem)
    stem, number = (match[1], int(match[2])) if match else (path.stem, 1)
    while True:
        number += 1
        candidate = path.with_name(f"{stem}_v{number}{path.suffix}")
        if not candidate.exists():
            return candidate
