"""Pickled files (.pt, .bin, .ckpt) whose programs were changed instruction by instruction: they are read or refused in a
sentence, run nothing, and what torch's own weights_only reader reads too has the same numbers there.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from lib_merge import open_lora
from lib_merge.errors import MergeError
from lib_merge.files.reader import open_tensors
from lib_merge.library.inspect import inspect_file
from lib_merge.library.library import read_facts
from tests.campaigns.harness import SHARED, Campaign, Inputs, Problem, sentence
from tests.campaigns.small_files import generated, good

NUMBERS = (0, 1, 2, 4, 7, 24, 255, 256, 65535, 2**31 - 1, 2**31, 2**48, 2**62, 2**63 - 1, -1, -(2**31))
TEXTS = (
    "",
    "0",
    "1",
    "storage",
    "cpu",
    "cuda:0",
    "FloatStorage",
    "\ud800",
    "\u202e",
    "x" * 300,
    "lora_up.weight",
    "state_dict",
    "\n",
    "data.pkl",
)
# what a program may name; the last ones would run something, were they ever called
GLOBALS = (
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter", "torch FloatStorage", "torch HalfStorage",
    "torch BFloat16Storage", "torch.storage UntypedStorage", "torch float8_e4m3fn", "torch Size", "collections OrderedDict", "torch.nn.parameter Parameter",
    "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "numpy dtype", "builtins getattr", "builtins eval", "os system", "posix system",
    "torch.serialization load", "subprocess Popen", "lib_merge.files.store write_text", "pathlib Path",
)  # fmt: skip
CANARY = "canary"


class Pickles(Campaign):
    """See the module."""

    name = "pickles"
    aim = 20_000
    share = 2.0

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._seeds = [_read(saved) for saved in _saved()]
        self._programs = [list(_instructions(program)) for program, _ in self._seeds]
        self._canary = Path(CANARY)

    def make(self, number: int, rng: random.Random) -> Inputs:
        at = rng.randrange(len(self._seeds))
        program, archive = self._seeds[at]
        parts = [bytes(part) for part in self._programs[at]]
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
            _change(parts, self._programs, rng)
        program = b"".join(parts)
        if rng.random() < 0.1:
            program = _flipped(program, rng)
        data = _zipped(program, archive, rng) if isinstance(archive, dict) else _legacy(program, archive, rng)
        if rng.random() < 0.1:
            data = _flipped(data, rng)
        if rng.random() < 0.03:
            data = data[: rng.randrange(len(data) + 1)]
        return {f"fuzz.{rng.choice(('pt', 'bin', 'ckpt', 'safetensors'))}": data}

    def attempt(self, inputs: Inputs) -> str:
        [(name, data)] = inputs.items()
        path = self.folder / name
        path.write_bytes(data)
        try:
            return self._read(path, data)
        finally:
            path.unlink()
            if self._canary.exists():
                self._canary.unlink()
                raise Problem("other", "the program of a pickle was run")

    def _read(self, path: Path, data: bytes) -> str:
        try:
            with open_tensors(path) as file:
                ours = file.read_many(list(file.tensors))
        except MergeError as error:
            sentence(error, path.name)
            read_facts(path)
            return "refused"
        same = _held_beside_torch(ours, data)
        try:
            with open_lora(path) as lora:
                for module in lora.modules.values():
                    if module.layout.columns:
                        module.load(lora.file)
            inspect_file(path)
        except MergeError as error:
            sentence(error, path.name)
            return f"tensors read{same}, no LoRA"
        read_facts(path)
        return f"opened{same}"


def _held_beside_torch(ours: dict[str, torch.Tensor], data: bytes) -> str:
    try:
        theirs = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # whatever it says, it says no
        return ""
    if not isinstance(theirs, dict):
        return ""
    theirs = {
        key: value
        for key, value in theirs.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    for key in ours.keys() & theirs.keys():
        one, other = ours[key], theirs[key].detach()
        if one.shape != other.shape or one.dtype != other.dtype:
            raise Problem(
                "other", f"torch reads {other.dtype} {tuple(other.shape)}, we {one.dtype} {tuple(one.shape)}"
            )
        if one.numel() and not torch.equal(_raw(one), _raw(other)):
            raise Problem("other", "torch reads other numbers")
    return " as torch does"


def _raw(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)


# ------------------------------------------------------------------------------------------------ sound files


def _saved() -> list[bytes]:
    """Return sound files as torch writes them, of both formats, in several arrangements."""
    tensors = {key: value.float() for key, value in list(good().items())[:6]}
    some = list(generated().values())
    contents = [
        tensors,
        {"state_dict": tensors, "epoch": 3, "optimizer": {"lr": 1e-4, "names": ["a", (1, 2.5, None, True)]}},
        OrderedDict((key, torch.nn.Parameter(value, requires_grad=False)) for key, value in tensors.items()),
        [value for value in tensors.values() if value.ndim == 2],
        {key: value.to(torch.bfloat16).mT if value.ndim > 1 else value for key, value in some[0].items()},
        dict(some[4].items()),
        {
            "a": torch.arange(12).reshape(3, 4)[1:],
            "b": torch.zeros(0, 2),
            "c": torch.ones(2).expand(5, 2),
            "d": torch.tensor(1.5),
        },
        {key: value.to(torch.float8_e4m3fn) for key, value in list(tensors.items())[:2]},
    ]
    found = []
    for content in contents:
        for new in (True, False):
            try:
                buffer = io.BytesIO()
                torch.save(content, buffer, _use_new_zipfile_serialization=new)
                found.append(buffer.getvalue())
            except Exception:  # a type that the old format does not know
                continue
    hostile = sorted((SHARED / "cases" / "hostile").glob("*.pt"))
    return found + [path.read_bytes() for path in hostile if path.stat().st_size < 100_000]


def _read(data: bytes) -> tuple[bytes, dict[str, bytes] | tuple[bytes, bytes]]:
    """Return a file's program, and what is around it: an archive's other entries, or what lies before and behind."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
        [program] = [name for name in entries if name.endswith("data.pkl")]
        return entries.pop(program), {program: b"", **entries}
    stream = io.BytesIO(data)
    try:
        for _ in range(3):
            list(pickletools.genops(stream))
        begin = stream.tell()
        list(pickletools.genops(stream))
    except ValueError:  # a program of its own
        return data, (b"", b"")
    return data[begin : stream.tell()], (data[:begin], data[stream.tell() :])


def _instructions(program: bytes) -> list[bytes]:
    """Return a program cut into instructions; one that cannot be cut is one piece."""
    try:
        starts = [place or 0 for _, _, place in pickletools.genops(program)]
    except Exception:  # a hostile one
        return [program]
    return [program[start:end] for start, end in zip(starts, [*starts[1:], len(program)])]


# ------------------------------------------------------------------------------------------------ changes


def _change(parts: list[bytes], programs: list[list[bytes]], rng: random.Random) -> None:
    at, kind = rng.randrange(len(parts)), rng.randrange(9)
    if kind == 0 and len(parts) > 1:
        del parts[at]
    elif kind == 1:
        parts.insert(at, parts[at])
    elif kind == 2:
        other = rng.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 3:
        parts.insert(at, rng.choice(rng.choice(programs)))
    elif kind == 4:
        parts.insert(
            at,
            rng.choice(pickletools.opcodes).code.encode("latin-1") + rng.randbytes(rng.choice((0, 0, 1, 4))),
        )
    elif kind == 5:
        parts.insert(at, _call(rng))
    elif kind == 6:
        parts[at] = parts[at][:1] + rng.randbytes(len(parts[at]) - 1)
    elif kind == 7:
        parts.insert(at, parts[at] * rng.choice((2, 50, 3000)))
    else:
        places = [n for n, part in enumerate(parts) if part[:1] in b"KMJL\x8aX\x8cBC\x8e\x8fIFGc"]
        if places:
            at = rng.choice(places)
            parts[at] = _argument(parts[at], rng)


def _argument(part: bytes, rng: random.Random) -> bytes:
    """Return an instruction that puts something else of its sort on the stack."""
    if part[:1] == b"c":
        return b"c" + rng.choice(GLOBALS).replace(" ", "\n").encode() + b"\n"
    if part[:1] in b"X\x8c":
        text = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    if part[:1] in b"FG":
        return b"G" + struct.pack(">d", rng.choice((0.0, -1.5, float("nan"), float("inf"), 1e300)))
    value = rng.choice(NUMBERS)
    if rng.random() < 0.1:
        return b"L" + str(10 ** rng.choice((30, 400, 4000))).encode() + b"L\n"
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _call(rng: random.Random) -> bytes:
    """Return instructions that name something and call it with a tuple or build it."""
    named = b"c" + rng.choice(GLOBALS).replace(" ", "\n").encode() + b"\n"
    touch = f"touch {CANARY}".encode()
    given = rng.choice(
        (b")", b"(X" + struct.pack("<I", len(touch)) + touch + b"t", b"(K\x01K\x02t", b"}", b"]")
    )
    return named + given + rng.choice((b"R", b"\x81", b"b", b"R0", b"o", b""))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _zipped(program: bytes, entries: dict[str, bytes], rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
    ) as archive:
        for name, data in entries.items():
            content = data or (program if name.endswith("data.pkl") else b"")
            if rng.random() < 0.02:
                continue
            if "/data/" in name and rng.random() < 0.05:
                content = rng.choice((b"", content[:-1], content * 2, bytes(7)))
            if name.endswith("byteorder") and rng.random() < 0.05:
                content = rng.choice((b"big", b"", b"little\n", b"\xff"))
            archive.writestr(name, content)
    return buffer.getvalue()


def _legacy(program: bytes, around: tuple[bytes, bytes], rng: random.Random) -> bytes:
    before, behind = around
    if rng.random() < 0.1 and behind:
        behind = _flipped(behind, rng)
    if rng.random() < 0.02:
        before = pickle.dumps({"protocol_version": 1001, "little_endian": False, "type_sizes": {}}, 2)
    return before + program + behind
