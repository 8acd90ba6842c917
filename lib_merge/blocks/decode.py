"""Preset files are text in whatever encoding the editor at hand used."""

from __future__ import annotations

import re

from lib_merge.errors import FileFormatError

MAX_BYTES = 1 << 20
MAX_LINES = 5000
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_HIGH = re.compile(rb"[\x80-\xff]+")


def decode(data: bytes, filename: str) -> tuple[str, str]:
    """Return a file's text, and a sentence on its encoding where that had to be guessed.

    Args:
        data: the whole file.
        filename: for messages.
    Raises:
        FileFormatError: it is too large, or not a text.
    """
    check_size(len(data), filename)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _wide(data, filename), "Read as UTF-16, as its first bytes say."
    try:
        return _text(data.decode("utf-8-sig"), filename), ""
    except UnicodeDecodeError:
        pass
    # Chinese text is pairs of high bytes; a Western letter with an accent stands alone
    if all(len(run) % 2 == 0 for run in _HIGH.findall(data)):
        try:
            return _text(
                data.decode("gbk"), filename
            ), "Not UTF-8: read as GBK. Look at names with special letters."
        except UnicodeDecodeError:
            pass
    text = data.decode("cp1252", errors="replace")
    return _text(text, filename), "Not UTF-8: read as Western (cp1252). Look at names with special letters."


def check_size(size: int, filename: str) -> None:
    """Raise `FileFormatError` for a file that is too large to be one of presets."""
    if size > MAX_BYTES:
        message = f"{filename} has {size:,} bytes; a file of presets has at most {MAX_BYTES:,}."
        raise FileFormatError(message)


def split_lines(text: str, filename: str) -> list[str]:
    """Return the lines as an editor counts them.

    Raises:
        FileFormatError: the text is not one, or has far too many lines.
    """
    check_size(len(text), filename)
    lines = re.split(r"\r\n|\r|\n", _text(text, filename).removeprefix("\ufeff"))
    if len(lines) > MAX_LINES:
        message = f"{filename} has {len(lines):,} lines; {MAX_LINES:,} is the limit for a file of presets."
        raise FileFormatError(message)
    return lines


def _wide(data: bytes, filename: str) -> str:
    try:
        return _text(data.decode("utf-16"), filename)
    except UnicodeDecodeError as error:
        message = f"{filename} is not a text file, so there are no presets in it."
        raise FileFormatError(message) from error


def _text(text: str, filename: str) -> str:
    if _BINARY.search(text):
        message = f"{filename} is not a text file, so there are no presets in it."
        raise FileFormatError(message)
    return text
