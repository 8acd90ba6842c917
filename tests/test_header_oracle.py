"""Our reader of headers beside safetensors' own: what that refuses we refuse; what it takes we take, or say why."""

from __future__ import annotations

import io
import json
import random
import struct

import pytest
import safetensors

from lib_merge.errors import FileFormatError
from lib_merge.files.header import ITEM_BYTES, read_header

# what we refuse although safetensors reads it, each in words of its own
NAMED = (
    "has the key",  # twice: readers differ in which of the two they take
    "axes; 16 are the most",
    "is the most there can be",  # a side of an empty tensor that no tensor of torch has
    "which is not one of",  # a type that torch or the engine cannot compute with
)
ODD = [
    "-0", "0", "1", "-1", "1.0", "0.0", "1e0", "1E2", "-0.0", "1e400", "1" + "0" * 400, "9" * 308, "01", "+1",
    "0x1", "1_0", " 1 ", "true", "null",
    "NaN", "Infinity", '"1"', '""', "[]", "[0]", "[[1]]", "{}", "18446744073709551615", "18446744073709551616",
    "9223372036854775807", "9223372036854775808", "281474976710656", "4294967296", "1" * 30, "[1,]", "'a'",
    '"F16"', '"f16"', '"F64"', '"BOOL"', '"C64"', '"F8_E8M0"', '"F4"', '"\\ud800"', '"\\u0000"', '"\\ud83d\\ude00"',
    "[0,0]", "[0,2]", "[2,4]", "[0,2,4]", "[2,0]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,18446744073709551615]",
]  # fmt: skip
TEXTS = [
    "", " ", "\t", "\n", "\r", "\0", "\x0b", "\x1f", "\x7f", "\u00a0", "\u2028", "\ufeff", ",", ":", "{", "}", "[", "]", '"', "\\",
    "/*x*/", "//x\n", "x", "é", '\\u12', "\\x41", "\\/", "\\b", '"a":1,', '"__metadata__":{},', '"__metadata__":{"a":"b"},',
    '"__metadata__":null,', '"__metadata__":{"a":null},', '"__metadata__":[],', '"a":null,',
]  # fmt: skip


def _entry(draw, at):
    dtype = draw.choice(list(ITEM_BYTES))
    shape = [
        draw.choice([0, 1, 2, 3])
        for _ in range(draw.choice([0, 1, 2, 2, 3, 17] if draw.random() < 0.2 else [1, 2]))
    ]
    size = ITEM_BYTES[dtype]
    for side in shape:
        size *= side
    return {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}, at + size


def _file(draw):
    """Return the bytes of a file that is right, or nearly."""
    entries, at = {}, 0
    for number in range(draw.randrange(4)):
        entries[draw.choice(["a", "b", "é", "x.y", ""]) + str(number)], at = _entry(draw, at)
    items = list(entries.items())
    draw.shuffle(items)
    header = dict(items)
    if draw.random() < 0.4:
        header["__metadata__"] = draw.choice([{}, {"a": "b"}, {"format": "pt", "é": "\n"}])
    text = json.dumps(
        header, separators=draw.choice([(",", ":"), (", ", ": ")]), ensure_ascii=draw.random() < 0.5
    )
    for _ in range(draw.choice([0, 1, 1, 1, 2])):
        text = _mutated(draw, text)
    raw = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        place = draw.randrange(len(raw) + 1)
        raw = raw[:place] + bytes([draw.randrange(256)]) + raw[place + draw.randrange(2) :]
    raw += b" " * draw.choice([0, 0, 1, 7])
    length = len(raw) + (draw.choice([-1, 1, 8, 1 << 40]) if draw.random() < 0.05 else 0)
    data = at + (draw.choice([-1, 1, 8]) if draw.random() < 0.1 else 0)
    return struct.pack("<Q", max(length, 0)) + raw + b"\0" * max(data, 0)


def _mutated(draw, text):
    if draw.random() < 0.6:  # a value, somewhere
        places = [place for place, sign in enumerate(text) if sign in ":[,"]
        if places:
            start = draw.choice(places) + 1
            ends = [place for place in range(start, len(text)) if text[place] in ",]}"]
            if ends:
                return text[:start] + draw.choice(ODD) + text[draw.choice(ends[:2]) :]
    place = draw.randrange(len(text) + 1)
    return text[:place] + draw.choice(TEXTS) + text[place + draw.choice([0, 0, 1, 2]) :]


def _theirs(data):
    """Return {name: (dtype, shape)} as safetensors reads it; None where it refuses."""
    try:
        read = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {name: (str(info["dtype"]), tuple(info["shape"])) for name, info in read}


def _ours(data):
    try:
        header = read_header(io.BytesIO(data), "x.safetensors")
    except FileFormatError as error:
        return str(error)
    return {name: (info.dtype, info.shape) for name, info in header.tensors.items()}


def _differ(data):
    theirs, ours = _theirs(data), _ours(data)
    if isinstance(ours, str):
        assert ours.isprintable()
        assert len(ours) < 900
        return theirs is not None and not any(named in ours for named in NAMED)
    return theirs != ours


@pytest.mark.parametrize("seed", range(20))
def test_headers_are_read_as_safetensors_reads_them(seed):
    draw = random.Random(seed)
    taken = 0
    for _ in range(400):
        data = _file(draw)
        assert not _differ(data), (data, _theirs(data), _ours(data))
        taken += _theirs(data) is not None
    assert 40 < taken < 360  # the slice has both
