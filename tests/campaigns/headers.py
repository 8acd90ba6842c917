"""Changed safetensors files: what safetensors' own library refuses is refused, what it reads is read or refused with a
reason, and a file that opens can be looked at and merged, or is refused in a sentence.
"""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from lib_merge import Job, Source, merge, open_lora
from lib_merge.errors import MergeError
from lib_merge.files.reader import open_tensors
from lib_merge.library.inspect import inspect_file
from lib_merge.library.library import read_facts
from tests.campaigns.harness import Campaign, Inputs, Problem, sentence
from tests.campaigns.small_files import good, pack, save_tensors, seeds, unpack

VALUES = [
    "F16", "F32", "BF16", "I64", "U8", "F8_E4M3", "F8_E5M2", "F64", "BOOL", "F4", "F12", "", None, True, -1, 0, 1, 2, 3, 4, 12, 24,
    320, 768, 2**31, 2**53, 2**63, 2**64, 1.0, 1e3, -0.0, [], {}, [0], [0, 0], [1] * 20, [24], [4, 6], [2, 2, 6], "x" * 300, "\u202e",
    10**400,
]  # fmt: skip
BYTES = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\ud800", b"\\u0000", b"\x00", b"\xff", b" ", b"\n", b"1", b"-", b"e9", b"NaN", b"\xef\xbb\xbf",
    b"-0", b"1.0", b"1e1", b"null", b"[" * 2000, b'"a":1,',
]  # fmt: skip
NAMES = [
    "__metadata__", "", "a", "alpha", "0", "lora_unet_a.lora_up.weight", "\u202e", "\n", "unet:0:up", "text_encoder:0:up", "<s1>", "x" * 3000,
    "lora_unet_mid_block_attentions_0_proj_in.alpha", "diffusion_model.x.diff", "lora_te_x.dora_scale", "ü", "../../x.lora_up.weight",
]  # fmt: skip
ODD = [0.0, -0.0, 1e-30, 6e4, float("inf"), float("-inf"), float("nan"), 1e38]
# reasons to refuse what safetensors reads
STRICTER = ("twice", "axes", "type", "metadata", "dtype", "does not know", "name")


class Headers(Campaign):
    """See the module."""

    name = "headers"
    aim = 100_000
    share = 4.0

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._path = folder / "fuzz.safetensors"
        self._good = folder / "good.safetensors"
        self._good.write_bytes(save_tensors(good()))
        self._out = folder / "out"
        self._out.mkdir()
        self._seeds = seeds()
        self._tried = 0

    def make(self, number: int, rng: random.Random) -> Inputs:
        raw = (
            self._seeds[min(int(rng.expovariate(0.15)), len(self._seeds) - 1)]
            if rng.random() < 0.5
            else rng.choice(self._seeds)
        )
        change = rng.choice((_entries, _order, _text, _length, _bytes, _tensors, _tensors, _numbers))
        try:
            return {"fuzz.safetensors": change(raw, rng)}
        except (ValueError, LookupError, TypeError, RuntimeError):  # a seed that has no header to be changed
            return {"fuzz.safetensors": _bytes(raw, rng)}

    def attempt(self, inputs: Inputs) -> str:
        raw = inputs["fuzz.safetensors"]
        self._path.write_bytes(raw)
        self._tried += 1
        outcome = self._beside_theirs(raw)
        try:
            with open_lora(self._path) as lora:
                modules = len(lora.modules)
        except MergeError as error:
            sentence(error, self._path.name)
            facts = read_facts(self._path)
            if not facts["problem"]:
                raise Problem("other", f"the library lists what open_lora refuses: {error}") from error
            return outcome if outcome != "read by both" else "tensors read, no LoRA"
        try:
            inspect_file(self._path)
        except MergeError as error:
            sentence(error, self._path.name)
            return "opened, not inspected"
        read_facts(self._path)
        if not modules or self._tried % 4:
            return "opened and inspected"
        return self._merge()

    def _beside_theirs(self, raw: bytes) -> str:
        try:
            with open_tensors(self._path) as file:
                ours = file.read_many(list(file.tensors))
        except MergeError as error:
            sentence(error, self._path.name)
            if _theirs(raw) is None:
                return "refused by both"
            if not any(word in str(error) for word in STRICTER):
                raise Problem("other", f"safetensors reads it: {_without_names(error)}") from error
            return "refused by us alone, with the reason"
        theirs = _theirs(raw)
        if theirs is None:
            raise Problem("other", "safetensors refuses what we read")
        if _bits(ours) != _bits(theirs):
            raise Problem("other", "safetensors reads other numbers")
        return "read by both"

    def _merge(self) -> str:
        out = self._out / "m.safetensors"
        sources = [
            Source(path=path, name=path.name, ratio=ratio)
            for path, ratio in ((self._path, 0.7), (self._good, 0.4))
        ]
        done = "merged"
        try:
            merge(sources, save_to=out, job=Job(overwrite=True, drop_unsupported=True))
            load(out.read_bytes())
        except MergeError as error:
            sentence(error)
            done = "opened, not merged"
        except SafetensorError as error:
            raise Problem("partial", f"safetensors refuses the merge: {error}") from error
        finally:
            left = [
                path
                for path in self._out.iterdir()
                if path.name not in ("m.safetensors", "m.json", ".lora-merge")
            ]
            merged = out.exists()
            for path in self._out.iterdir():
                if path.is_file():
                    path.unlink()
        if left or (merged and done != "merged"):
            raise Problem(
                "partial", f"after a merge that was refused: {[path.name for path in left]} {merged}"
            )
        return done


def _theirs(raw: bytes) -> dict[str, torch.Tensor] | None:
    try:
        return dict(sorted(load(raw).items()))  # theirs come in any order
    except (SafetensorError, KeyError, RuntimeError, ValueError, OverflowError, TypeError):
        return None


def _bits(values: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {
        key: (value.dtype, tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes())
        for key, value in values.items()
    }


def _without_names(error: MergeError) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "…", str(error))[:200]


# ------------------------------------------------------------------------------------------------ changes


def _entries(raw: bytes, rng: random.Random) -> bytes:
    """Lie about types, shapes and places."""
    text, data = unpack(raw)
    header = json.loads(text)
    for _ in range(rng.randrange(1, 4)):
        entry = header[rng.choice(list(header))]
        if not isinstance(entry, dict) or "dtype" not in entry:
            if isinstance(entry, dict):
                entry[rng.choice(["k", "ss_tag_frequency", "merge_recipe", "ss_network_dim"])] = rng.choice(
                    VALUES
                )
            continue
        field = rng.choice(["dtype", "shape", "data_offsets", "extra"])
        value = entry.get(field)
        if isinstance(value, list) and value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            near = [value[at] + 1, value[at] * 2, max(0, value[at] - 2)] if type(value[at]) is int else []
            value[at] = rng.choice(VALUES + near * 6)
        elif isinstance(value, list) and len(value) > 1 and rng.random() < 0.5:
            rng.shuffle(value)
        else:
            entry[field] = rng.choice(VALUES)
    return pack(json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"), data)


def _order(raw: bytes, rng: random.Random) -> bytes:
    """Put entries into another order, rename them, have them twice or not at all, blanks behind."""
    text, data = unpack(raw)
    items = list(json.loads(text).items())
    rng.shuffle(items)
    kind = rng.randrange(5)
    if kind == 1:
        items[0] = (rng.choice(NAMES), items[0][1])
    elif kind == 2:
        items.append(rng.choice(items))
    elif kind == 3:
        items.pop()
    elif kind == 4:
        items.append((rng.choice(NAMES), rng.choice(items)[1]))
    new = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in items) + "}"
    return pack(new.encode() + rng.choice([b"", b" " * 7, b"\n\t", b"\x00", b" " * 9000]), data)


def _text(raw: bytes, rng: random.Random) -> bytes:
    text, data = unpack(raw)
    at = rng.randrange(len(text))
    return pack(text[:at] + rng.choice(BYTES) + text[at + rng.randrange(3) :], data)


def _length(raw: bytes, rng: random.Random) -> bytes:
    length = struct.unpack("<Q", raw[:8])[0]
    lies = [
        0,
        1,
        7,
        length - 1,
        length + 1,
        length + 8,
        10**8,
        10**8 + 1,
        2**31,
        2**63,
        2**64 - 1,
        rng.randrange(2 * length),
    ]
    return struct.pack("<Q", rng.choice(lies)) + raw[8:]


def _bytes(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(
        rng.choice([raw, raw, raw[: rng.randrange(len(raw))], raw + b"\x00" * rng.randrange(1, 9)])
    )
    whole = min(len(changed), 8 + struct.unpack("<Q", raw[:8])[0])
    for _ in range(rng.randrange(1, 5) if changed else 0):
        at = rng.randrange(len(changed) if rng.random() < 0.3 else max(1, whole))
        changed[at] = changed[at] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(changed)


def _tensors(raw: bytes, rng: random.Random) -> bytes:
    """Write a sound file of tensors that do not belong together: other shapes, names, types, some missing."""
    tensors = _theirs(raw) or good()
    for _ in range(rng.randrange(1, 4)):
        key = rng.choice(list(tensors))
        value, kind = tensors[key], rng.randrange(8)
        if kind == 0:
            del tensors[key]
        elif kind == 1:
            tensors[rng.choice([*NAMES, *tensors, _respelt(key, rng)])] = tensors.pop(key)
        elif kind == 2:
            tensors[_respelt(key, rng)] = value
        elif kind == 3:
            tensors[key] = value.reshape(
                rng.choice([(-1,), (1, -1), (-1, 1, 1), (1, -1, 1, 1), (-1, *[1] * 9)])
            )
        elif kind == 4:
            tensors[key] = value.transpose(0, -1) if value.ndim else value.reshape(1)
        elif kind == 5:
            tensors[key] = torch.zeros([rng.choice((0, 1, 2, 3, 4, 20, 24)) for _ in range(rng.randrange(6))])
        elif kind == 6:
            tensors[key] = (
                value.float()
                .nan_to_num(0)
                .to(rng.choice([torch.int64, torch.bool, torch.uint8, torch.float64, torch.bfloat16]))
            )
        elif value.ndim:
            tensors[key] = value[: rng.randrange(len(value) + 1)]
        if not tensors:
            break
    return save_tensors(tensors)


def _respelt(key: str, rng: random.Random) -> str:
    swaps = [
        ("lora_up", "lora_down"), ("lora_down", "lora_mid"), ("lora_up.weight", "alpha"), (".weight", ""), ("attn1", "attn2"), ("_0_", "_1_"),
        ("lora_unet_", "lora_te_"), ("lora_up.weight", "dora_scale"), ("lora_up.weight", "diff"), ("lora_unet_", "lycoris_"), ("_", "."),
        (".lora_up.weight", ".lora_B.default.weight"), ("lokr_w1", "lokr_w1_a"), ("hada_w1_a", "hada_t1"), ("lora_unet_", "unet."),
    ]  # fmt: skip
    old, new = rng.choice(swaps)
    return key.replace(old, new, 1) if rng.random() < 0.8 else key.replace(new, old, 1) if new else key + ".x"


def _numbers(raw: bytes, rng: random.Random) -> bytes:
    """Leave names and shapes, and put odd numbers in."""
    tensors = _theirs(raw) or good()
    for _ in range(rng.randrange(1, 3)):
        key = rng.choice(
            [key for key in tensors if key.endswith("alpha")] or list(tensors)
            if rng.random() < 0.4
            else list(tensors)
        )
        value = tensors[key].clone()
        odd = rng.choice(ODD)
        if not value.is_floating_point() and not abs(odd) < 1e4:
            odd = 1.0
        if value.dtype in (torch.float16, torch.float32, torch.float64, torch.bfloat16) and value.numel():
            flat = value.reshape(-1)
            flat[:: rng.choice((1, 7, max(1, value.numel())))] = odd
            tensors[key] = flat.reshape(value.shape)
    return save_tensors(tensors)
