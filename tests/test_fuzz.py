"""Mutated headers and bodies: a LoRA or one sentence, never anything else."""

from __future__ import annotations

import json
import random
import struct

import pytest
import torch
from safetensors.torch import save

from lib_merge import open_lora
from lib_merge.errors import MergeError
from lib_merge.files.reader import open_tensors
from tests.factories import NAMES, lora_tensors

COUNT = 2400
_WORDS = [
    "F16", "F32", "I64", "BOOL", "F8_E4M3", "", "x" * 300, None, True, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, 1.5, [], {}, [0], [1, 2],
    "__metadata__", "lora_unet_a.lora_up.weight", "\u202e", "unet:0:up", "0", "<s1>", "a.alpha",
]  # fmt: skip


def _seed_file() -> bytes:
    tensors = lora_tensors(0, rank=2, names=NAMES[:2])
    return save({key: value.half() for key, value in tensors.items()}, {"ss_output_name": "x"})


def _mutated(raw: bytes, rng: random.Random) -> bytes:
    length = struct.unpack("<Q", raw[:8])[0]
    kind = rng.randrange(6)
    if kind == 0:  # bytes anywhere
        data = bytearray(raw)
        for _ in range(rng.randrange(1, 9)):
            data[
                rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 8 + length))
            ] = rng.randrange(256)
        return bytes(data)
    if kind == 1:  # cut or grown
        return raw[: rng.randrange(len(raw))] if rng.random() < 0.7 else raw + bytes(rng.randrange(1, 99))
    if kind == 2:  # another header length
        return (
            struct.pack(
                "<Q", rng.choice([0, 1, 7, length - 1, length + 1, 2**31, 2**63, rng.randrange(2 * length)])
            )
            + raw[8:]
        )
    header = json.loads(raw[8 : 8 + length])
    for _ in range(rng.randrange(1, 4)):
        key = rng.choice(list(header))
        if kind == 3 and key != "__metadata__":
            field = rng.choice(["dtype", "shape", "data_offsets"])
            value = header[key][field]
            if isinstance(value, list) and value and rng.random() < 0.7:
                value[rng.randrange(len(value))] = rng.choice(_WORDS)
            else:
                header[key][field] = rng.choice(_WORDS)
        elif kind == 4:
            header[str(rng.choice(_WORDS))] = header.pop(key)
        else:
            header[key] = rng.choice(_WORDS) if rng.random() < 0.5 else header[rng.choice(list(header))]
        if not header:
            break
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


@pytest.mark.slow
def test_mutated_files_are_read_or_refused_in_one_sentence(tmp_path):
    raw = _seed_file()
    rng = random.Random(20)
    path = tmp_path / "fuzz.safetensors"
    refused = read = 0
    for _ in range(COUNT):
        path.write_bytes(_mutated(raw, rng))
        try:
            with open_tensors(path) as file:
                for key in file.tensors:
                    value = file.read(key)
                    assert tuple(value.shape) == file.tensors[key].shape
            with open_lora(path) as lora:
                for module in lora.modules.values():
                    if module.layout.columns:
                        assert tuple(module.load(lora.file).dense().shape) == (
                            module.layout.out,
                            module.layout.columns,
                        )
                read += 1
        except MergeError as error:
            refused += 1
            assert "\n" not in str(error)
            assert "fuzz.safetensors" in str(error)
    assert refused > COUNT // 2
    assert read > 20


def test_random_bytes_are_refused(tmp_path):
    path = tmp_path / "fuzz.safetensors"
    rng = random.Random(5)
    for _ in range(300):
        path.write_bytes(rng.randbytes(rng.randrange(0, 400)))
        with pytest.raises(MergeError):
            open_lora(path)


def test_the_unmutated_file_is_read(tmp_path):
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(_seed_file())
    with open_lora(path) as lora:
        assert len(lora.modules) == 3
        assert torch.isfinite(lora.modules[NAMES[0]].load(lora.file).dense()).all()
