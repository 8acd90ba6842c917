"""The generation parameters that a WebUI wrote into a picture: a PNG's text, a JPEG's or WebP's EXIF
comment.
"""

from __future__ import annotations

import struct
import zlib

from lib_merge.errors import RecipeError

TEXT_LIMIT = 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_MOST_ENTRIES = 512


def infotext(data: bytes) -> str:
    """Return the generation parameters of a picture; "" when there are none.

    Raises:
        RecipeError: not a PNG, JPEG or WebP, or damaged.
    """
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _comment(_jpeg_exif(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _comment(_webp_exif(data))
    message = "that picture is not a PNG, JPEG or WebP."
    raise RecipeError(message)


def _png(data: bytes) -> str:
    at = len(_PNG)
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            break
        if kind in (b"tEXt", b"iTXt", b"zTXt"):
            key, _, rest = body.partition(b"\x00")
            if key == b"parameters":
                return _chunk(kind, rest)
        if kind == b"IEND":
            return ""
        at += 12 + size
    message = "that PNG is damaged."
    raise RecipeError(message)


def _chunk(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        return _decoded(rest)
    if kind == b"zTXt":
        return _decoded(_unpacked(rest[1:]))
    packed = rest[:1] == b"\x01"
    text = rest[2:].split(b"\x00", 2)[-1]
    return _decoded(_unpacked(text) if packed else text)


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, TEXT_LIMIT)
    except zlib.error as error:
        message = "that PNG's text is damaged."
        raise RecipeError(message) from error


def _decoded(data: bytes) -> str:
    data = data[:TEXT_LIMIT]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _jpeg_exif(data: bytes) -> bytes:
    """Return the TIFF part of a JPEG's first EXIF segment."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xD9, 0xDA):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        if data[at + 1] == 0xE1 and body.startswith(b"Exif\0\0"):
            return body[6:]
        at += 2 + max(size, 2)
    return b""


def _webp_exif(data: bytes) -> bytes:
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            body = data[at + 8 : at + 8 + size]
            return body.removeprefix(b"Exif\0\0")
        at += 8 + size + size % 2
    return b""


def _comment(tiff: bytes) -> str:
    """Return the user comment of a TIFF structure; "" where there is none or it is damaged."""
    if tiff[:2] not in (b"II", b"MM"):
        return ""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        pointer = _entry(tiff, order, first, _EXIF_IFD)
        if pointer is None:
            return ""
        found = _entry(tiff, order, struct.unpack(f"{order}I", pointer)[0], _USER_COMMENT)
    except struct.error:
        return ""
    return _text(found) if found else ""


def _entry(tiff: bytes, order: str, at: int, wanted: int) -> bytes | None:
    """Return the value of one tag of a directory."""
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for index in range(min(count, _MOST_ENTRIES)):
        place = at + 2 + 12 * index
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, place)
        if tag != wanted:
            continue
        size = length * {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}.get(kind, 1)
        start = place + 8
        if size > 4:
            (start,) = struct.unpack_from(f"{order}I", tiff, place + 8)
        return tiff[start : start + size]
    return None


def _text(comment: bytes) -> str:
    """Return a user comment's text: its first eight bytes name the encoding."""
    code, body = comment[:8], comment[8 : 8 + TEXT_LIMIT]
    if code != b"UNICODE\0":
        return _decoded(body if code in (b"ASCII\0\0\0", bytes(8)) else comment[:TEXT_LIMIT]).rstrip("\0")
    # most write it big-endian, whatever the rest of the file is; the wrong way round, letters become rare
    # signs
    body = body[: len(body) // 2 * 2]
    big, little = body.decode("utf-16-be", "ignore"), body.decode("utf-16-le", "ignore")
    return max(big, little, key=lambda text: sum(character < "\u0250" for character in text)).rstrip("\0")
