"""Names of files that every system can keep and every list shows: one rule for the tab, REST and the command
line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from lib_merge.errors import OutputError

SUFFIX = ".safetensors"
# bytes; what lies beside a LoRA has longer names, and no system allows more than 255
MAX_NAME = 240
_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE
)
_SIGNS = r'<>:"|?*\\/'
# what is no text, as Python keeps the bytes of a name on Linux, and what would be shown as another name
_UNSEEN = r"\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
# inside of [ ]
NOT_ALLOWED = _SIGNS + _UNSEEN


def check_name(name: str, what: str = "the name") -> None:
    """Refuse a name, of a file or a folder, that Windows, macOS or Linux could not keep or would hide.

    Args:
        name: one part of a path.
        what: how the sentence calls it.
    Raises:
        OutputError: it leads to another folder, is hidden, reserved, too long, or has characters that are
            not allowed everywhere.
    """
    if not name.strip(" ."):
        problem = "is no name of its own: give it letters or digits"
    elif re.search(f"[{_UNSEEN}]", name):
        problem = "has a control character in it: take it out"
    elif found := re.search(f"[{_SIGNS}]", name):
        problem = f'has {found[0]} in it; names cannot have < > : " / \\ | ? * everywhere'
    elif name.startswith("."):
        problem = "begins with a dot, which hides it: leave the dot out"
    elif name.startswith(" ") or name.endswith((" ", ".")):
        problem = "begins or ends in a blank, or ends in a dot, which Windows cannot keep: leave it out"
    elif _RESERVED.fullmatch(name):
        problem = "is reserved on Windows: choose another one"
    elif len(name.encode("utf-8")) > MAX_NAME:
        problem = f"is {len(name.encode('utf-8'))} bytes long; {MAX_NAME} is the limit"
    else:
        return
    message = f"{what} {_shown(name)} {problem}."
    raise OutputError(message)


def check_stem(stem: str) -> None:
    """Refuse what is typed as the name of a LoRA, without its ending, where `check_output_name` would.

    Raises:
        OutputError: see `check_name`.
    """
    check_name(stem)
    check_name(f"{stem}{SUFFIX}")


def check_output_name(path: Path) -> None:
    """Refuse the path of an output whose name could not be kept everywhere; its folders are not judged.

    Raises:
        OutputError: see `check_name`, or it does not end in .safetensors.
    """
    check_name(path.name, "the output name")
    if path.suffix != SUFFIX:
        message = f"the output {_shown(path.name)} must end in {SUFFIX}."
        raise OutputError(message)
    check_name(path.stem, "the output name")


def parts_below(relative: str, *, windows: bool = os.name == "nt") -> tuple[str, ...] | None:
    """Return the parts of a path below some folder; None for what leads elsewhere or means no file there.

    Args:
        relative: as somebody else gave it.
        windows: read it as Windows does: both slashes part it, and drives, shares, streams, devices and ends
            that are cut off mean other places.
    """
    path = PureWindowsPath(relative) if windows else PurePosixPath(relative)
    parts = path.parts
    if not parts or path.anchor or ".." in parts or "\0" in relative:
        return None
    if windows and any(":" in one or one[-1] in " ." or _RESERVED.fullmatch(one) for one in parts):
        return None
    return parts


def _shown(name: str) -> str:
    cut = name if len(name) <= 60 else f"{name[:57]}..."
    seen = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in cut)
    return f"'{seen}'"
