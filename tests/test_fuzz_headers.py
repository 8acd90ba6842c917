"""Mutated safetensors files, judged beside safetensors' own library: nothing that it refuses is read, and what both
read is the same."""

from __future__ import annotations

import collections
import json
import random
import struct

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lib_merge.errors import FileFormatError
from lib_merge.files.reader import open_tensors

COUNT = 2500
SEED = {
    "a.lora_up.weight": torch.arange(24, dtype=torch.float16).reshape(6, 4),
    "a.lora_down.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "a.alpha": torch.tensor(4.0),
    "ü": torch.arange(3),
    "none": torch.zeros(0, 2),
}
VALUES = [
    "F16", "F32", "BF16", "I64", "U8", "F8_E4M3", "F12", "", None, True, -1, 0, 1, 2, 12, 24, 48, 2**31, 2**53, 2**63, 2**64, 1.0, 1e3,
    [], {}, [0], [0, 0], [24], [4, 6], [2, 2, 6], "x" * 300, "\u202e",
]  # fmt: skip
BYTES = [
    b"{",
    b"}",
    b"[",
    b",",
    b'"',
    b"\\ud800",
    b"\\u0000",
    b"\x00",
    b"\xff",
    b" ",
    b"\n",
    b"1",
    b"-",
    b"e9",
    b"NaN",
    b"\xef\xbb\xbf",
]


def _pack(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def _entries(header: dict, data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(1, 4)):
        entry = header[rng.choice(list(header))]
        if "dtype" not in entry:
            entry[rng.choice(["k", "ss_x"])] = rng.choice(VALUES)
            continue
        field = rng.choice(["dtype", "shape", "data_offsets", "extra"])
        value = entry.get(field)
        if isinstance(value, list) and value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            small = [value[at] + 1, value[at] * 2, max(0, value[at] - 2)] if type(value[at]) is int else []
            value[at] = rng.choice(VALUES + small)
        else:
            entry[field] = rng.choice(VALUES)
    return _pack(json.dumps(header, ensure_ascii=rng.random() < 0.5).encode(), data)


def _order(header: dict, data: bytes, rng: random.Random) -> bytes:
    """Entries in another order, renamed, twice or missing; blanks behind the header."""
    items = list(header.items())
    rng.shuffle(items)
    kind = rng.randrange(4)
    if kind == 1:
        items[0] = (rng.choice(["b", "", "__metadata__", "a.alpha"]), items[0][1])
    elif kind == 2:
        items.append(rng.choice(items))
    elif kind == 3:
        items.pop()
    text = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in items) + "}"
    return _pack(text.encode() + rng.choice([b"", b" " * 7, b"\n\t", b"\x00"]), data)


def _mutated(raw: bytes, rng: random.Random) -> bytes:
    length = struct.unpack("<Q", raw[:8])[0]
    text, data = raw[8 : 8 + length], raw[8 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        return _entries(json.loads(text), data, rng)
    if kind == 1:
        return _order(json.loads(text), data, rng)
    if kind == 2:
        at = rng.randrange(len(text))
        return _pack(text[:at] + rng.choice(BYTES) + text[at + rng.randrange(3) :], data)
    if kind == 3:
        other = rng.choice(
            [0, 1, 7, length - 1, length + 1, length + 8, 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1]
        )
        return struct.pack("<Q", other) + raw[8:]
    changed = bytearray(
        rng.choice([raw, raw[: rng.randrange(len(raw))], raw + b"\x00" * rng.randrange(1, 9)])
    )
    for _ in range(rng.randrange(3) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _ours(path) -> dict[str, torch.Tensor] | str:
    try:
        with open_tensors(path) as file:
            return file.read_many(list(file.tensors))
    except FileFormatError as error:
        message = str(error)
        assert "\n" not in message
        assert "fuzz.safetensors" in message
        assert len(message) < 500
        return message


def _theirs(raw: bytes) -> dict[str, torch.Tensor] | None:
    try:
        return load(raw)
    except (SafetensorError, KeyError, RuntimeError, ValueError, OverflowError):
        return None


def _bits(values: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {
        key: (value.dtype, tuple(value.shape), value.reshape(-1).view(torch.uint8).tolist())
        for key, value in values.items()
    }


def test_what_safetensors_refuses_is_refused_and_what_both_read_is_the_same(tmp_path):
    raw = save(SEED, {"ss_output_name": "x"})
    rng = random.Random(7)
    path = tmp_path / "fuzz.safetensors"
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(COUNT):
        mutated = _mutated(raw, rng)
        path.write_bytes(mutated)
        ours, theirs = _ours(path), _theirs(mutated)
        if isinstance(ours, str):
            counts["refused by both" if theirs is None else ours] += 1
        else:
            assert theirs is not None, mutated
            assert _bits(ours) == _bits(theirs), mutated
            counts["read by both"] += 1
    assert counts.pop("read by both") > 200
    assert counts.pop("refused by both") > 1000
    # stricter in one thing only: of two entries with one name, their library silently takes the last
    assert all("twice" in message for message in counts)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "bool", "int64", "float8_e5m2"]
)
def test_whatever_safetensors_writes_is_read(dtype, tmp_path):
    path = tmp_path / "fuzz.safetensors"
    for shape in [(), (0,), (1,), (3, 1, 2), (7, 5)]:
        values = {"x": torch.ones(shape).to(getattr(torch, dtype)), "y": torch.zeros(3)}
        path.write_bytes(save(values))
        assert _bits(_ours(path)) == _bits(values)
