"""Pickled LoRAs: benign ones are read, hostile ones run nothing."""

from __future__ import annotations

import builtins
import copy
import io
import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from lib_merge.errors import FileFormatError, MergeError, UnsafePickleError
from lib_merge.files import machine, pickles
from lib_merge.files.reader import open_tensors


class _Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class _State:
    def __reduce__(self):
        return dict, (), {"x": 1}


def _zip(path: Path, program: bytes, storages=None, method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, data in (storages or {"0": bytes(16)}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def _tensor_program(size=(4,), stride=(1,), offset=0, numel=4, key="0", kind="FloatStorage") -> bytes:
    """A torch pickle of {"a": tensor}, written instruction by instruction."""

    def tup(values):
        return b"(" + b"".join(b"L" + str(v).encode() + b"L\n" for v in values) + b"t"

    return (
        b"\x80\x02}(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n" + kind.encode()
        + b"\nX" + struct.pack("<I", len(key)) + key.encode() + b"X\x03\x00\x00\x00cpuL" + str(numel).encode() + b"L\ntQL"
        + str(offset).encode() + b"L\n" + tup(size) + tup(stride) + b"\x89}tRu."
    )  # fmt: skip


def test_the_hand_written_program_is_a_tensor(tmp_path):
    path = _zip(tmp_path / "a.pt", _tensor_program(), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    with open_tensors(path) as file:
        assert file.read("a").tolist() == [1, 2, 3, 4]


BOUNDS = {
    "past the end": {"size": (5,)},
    "offset past the end": {"offset": 1},
    "stride past the end": {"size": (2,), "stride": (4,)},
    "expanded": {"size": (1 << 30,), "stride": (0,)},
    "negative stride": {"stride": (-1,)},
    "negative size": {"size": (-4,)},
    "huge": {"size": (1 << 62, 1 << 62), "stride": (1, 1)},
    "storage too short": {"numel": 400, "size": (400,)},
    "storage missing": {"key": "7"},
    "more sizes than strides": {"size": (2, 2)},
    "unknown storage": {"kind": "QuantumStorage"},
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_tensor_that_reaches_outside_its_bytes_is_refused(name, tmp_path):
    path = _zip(tmp_path / "a.pt", _tensor_program(**BOUNDS[name]))
    with pytest.raises(FileFormatError, match=r"a\.pt") as error:
        open_tensors(path)
    assert "\n" not in str(error.value)


def _hostile(canary: str):
    touch = f"touch {canary}"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f"os.system, protocol {protocol}", pickle.dumps({"a": _Call(os.system, touch)}, protocol)
    yield "eval", pickle.dumps(_Call(builtins.eval, f"__import__('os').system({touch!r})"), 2)
    yield "exec", pickle.dumps([_Call(builtins.exec, f"open({canary!r}, 'w')")], 4)
    yield "open", pickle.dumps(_Call(builtins.open, canary, "w"), 2)
    yield "getattr", pickle.dumps(_Call(getattr, "x", "upper"), 2)
    yield (
        "dotted name",
        b"\x80\x04\x8c\x05torch\x94\x8c\tos.system\x94\x93\x94"
        + b"\x8c"
        + bytes([len(touch)])
        + touch.encode()
        + b"\x85R.",
    )
    yield "torch.load", b"ctorch\nload\n(S'x'\ntR."
    yield "torch.hub", b"ctorch.hub\nload\n(S'x'\ntR."
    yield "INST", b"(S'" + touch.encode() + b"'\nios\nsystem\n."
    yield "OBJ", b"(cos\nsystem\nS'" + touch.encode() + b"'\no."
    yield "NEWOBJ", b"\x80\x02ccollections\nOrderedDict\n)\x81."
    yield "NEWOBJ of int", pickle.dumps(_Call(int.__new__, int), 2)
    yield "EXT1", b"\x80\x02\x82\x01."
    yield "EXT4", b"\x80\x02\x84\x01\x00\x00\x00."
    yield "BUILD", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb."
    yield "calling a tuple", b"\x80\x02K\x01)R."
    yield "rebuild with junk", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR."
    yield "OrderedDict of junk", b"\x80\x02ccollections\nOrderedDict\n(K\x01tR."
    yield "size of junk", b"\x80\x02ctorch\nSize\n(K\x01K\x02tR."
    yield "persistent junk", b"\x80\x02X\x01\x00\x00\x00xQ."
    yield "bytearray bomb", b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f."
    yield "huge text", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx."
    yield "memo underflow", b"\x80\x02h\x05."
    yield "stack underflow", b"\x80\x02R."
    yield "no stop", b"\x80\x02]"
    yield "only numbers", pickle.dumps({"a": 1}, 2)
    yield "a number", pickle.dumps(7, 2)
    yield "state on a dict subclass", pickle.dumps(_State(), 2)
    yield "recursion", b"(" * 5000 + b"t" * 5000 + b"."
    yield "a key whose hash never ends", b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s."
    yield "a key whose hash overflows the stack", b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."
    yield "such a key among many", b"\x80\x02}()" + b"2\x86" * 60 + b"K\x01u."
    yield "such a key in a table", b"\x80\x02()" + b"2\x86" * 60 + b"K\x01d."
    yield "such a key in pairs", b"\x80\x02ccollections\nOrderedDict\n(])" + b"2\x86" * 60 + b"K\x01\x86atR."
    yield "such a thing in a set", b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90."
    yield "such a thing in a frozen set", b"\x80\x04()" + b"2\x86" * 60 + b"\x91."
    yield (
        "calls without end",
        b"\x80\x02ctorch\nSize\nq\x000("
        + b"K\x01" * 50_000
        + b"t\x85q\x010"
        + b"h\x00h\x01R0" * 500
        + b"K\x01.",
    )
    yield "a name of a megabyte", b"c" + b"m" * 1_000_000 + b"\nx\n."


CANARY = str(Path(tempfile.gettempdir()) / f"lora-merge-canary-{os.getpid()}")
HOSTILE = dict(_hostile(CANARY))


@pytest.mark.parametrize("wrapping", ["zip", "bare", "compressed zip"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_runs_nothing_and_is_one_sentence(name, wrapping, tmp_path):
    Path(CANARY).unlink(missing_ok=True)
    path = tmp_path / "evil.pt"
    if wrapping == "bare":
        path.write_bytes(HOSTILE[name])
    else:
        _zip(path, HOSTILE[name], method=zipfile.ZIP_STORED if wrapping == "zip" else zipfile.ZIP_DEFLATED)
    with pytest.raises(MergeError) as error:
        open_tensors(path)
    assert "\n" not in str(error.value)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_message_is_longer_than_a_few_lines(name, tmp_path):
    with pytest.raises(MergeError) as error:
        open_tensors(_zip(tmp_path / "evil.pt", HOSTILE[name]))
    assert len(str(error.value)) < 400


def test_a_program_that_is_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_PROGRAM", 1000)
    monkeypatch.setattr(machine, "MAX_PROGRAM", 1000)
    long = pickle.dumps({"a": "x" * 2000}, 2)
    for path in (_zip(tmp_path / "a.pt", long), tmp_path / "b.pt"):
        if not path.exists():
            path.write_bytes(long)
        with pytest.raises(FileFormatError, match="its program is too long"):
            open_tensors(path)
    lines = tmp_path / "c.pt"
    lines.write_bytes(b"\x80\x02S'" + b"x" * 2000 + b"'\n.")
    with pytest.raises(FileFormatError, match="its program is too long"):
        open_tensors(lines)


def test_archive_entries_that_overlap_cannot_ask_for_more_than_the_file_has(tmp_path):
    numel = 100_000
    one = _tensor_program(size=(numel,), numel=numel)[2:-1]
    text = b"X\x01\x00\x00\x00"
    items = [
        one.replace(text + b"0", text + key).replace(text + b"a", text + key)
        for key in (b"%d" % n for n in range(10))
    ]
    program = b"\x80\x02(" + b"".join(items) + b"l."
    path = _zip(tmp_path / "a.pt", program, {"0": bytes(4 * numel)})
    # nine more names in the archive's table for the same bytes
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo("archive/data/0")
        for key in "123456789":
            alias = copy.copy(first)
            alias.filename = f"archive/data/{key}"
            archive.filelist.append(alias)
            archive.NameToInfo[alias.filename] = alias
        archive._didModify = True
    with pytest.raises(FileFormatError, match="need more data than the file has"):
        open_tensors(path)


def test_many_tensors_over_one_storage_take_its_memory_once(tmp_path):
    base = torch.arange(1000, dtype=torch.float32)
    path = tmp_path / "a.pt"
    torch.save({f"{index}": base[index:].view(-1) for index in range(300)}, path)
    found = pickles.read_pickle(path)
    assert len({value.untyped_storage().data_ptr() for value in found.values()}) == 1
    assert all(torch.equal(found[str(index)], base[index:]) for index in range(300))


@pytest.mark.parametrize("content", [
    {"a": {"w": torch.zeros(2)}, "b": {"w": torch.ones(2)}},
    {1: torch.zeros(2), "1": torch.ones(2)},
    {"w": torch.zeros(2), "state_dict": {"w": torch.ones(2)}},
])  # fmt: skip
def test_two_tensors_of_one_name_are_said_and_none_wins_in_silence(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(FileFormatError, match=r"a\.pt .*two tensors named [w1]"):
        open_tensors(tmp_path / "a.pt")


def test_one_storage_read_as_two_types_is_refused(tmp_path):
    halves = _tensor_program(kind="HalfStorage")[3:-1]
    program = _tensor_program()[:-2] + halves.replace(b"X\x01\x00\x00\x00a", b"X\x01\x00\x00\x00b")[1:] + b"."
    with pytest.raises(FileFormatError, match="two different types"):
        open_tensors(_zip(tmp_path / "a.pt", program))


@pytest.mark.parametrize("kind", ["ComplexFloatStorage", "QInt8Storage"])
def test_numbers_that_no_lora_has_are_refused(kind, tmp_path):
    with pytest.raises(FileFormatError, match=kind):
        open_tensors(_zip(tmp_path / "a.pt", _tensor_program(kind=kind)))


def test_a_refusal_names_what_it_would_have_run(tmp_path):
    path = _zip(tmp_path / "evil.pt", pickle.dumps({"a": _Call(os.system, "true")}, 2))
    with pytest.raises(UnsafePickleError, match=r"evil\.pt is refused.*(posix|nt)\.system"):
        open_tensors(path)


@pytest.mark.parametrize("legacy", [True, False])
def test_what_torch_saves_is_read(legacy, tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    content = {
        "a": base[2:14].reshape(3, 4).t(),
        "b": base.half(),
        "c": torch.nn.Parameter(torch.ones(2, 2)),
        "d": torch.arange(3).bfloat16(),
        "eight bits": torch.arange(6).float().to(torch.float8_e4m3fn).reshape(2, 3),
        "empty": torch.zeros(0, 4),
        "epoch": 3,
        "made with": torch.float16,
    }
    path = tmp_path / "a.bin"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with open_tensors(path) as file:
        assert set(file.tensors) == {"a", "b", "c", "d", "eight bits", "empty"}
        for key in file.tensors:
            found, wanted = file.read(key), content[key].detach()
            assert found.dtype == wanted.dtype
            assert found.is_contiguous()
            assert torch.equal(found.float(), wanted.float())
    optimizer = {"state": {0: {"exp_avg": base * 2}}}
    content = {"state_dict": {"a": base}, "optimizer": optimizer}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with open_tensors(path) as file:
        assert torch.equal(file.read("a"), base)
    module = torch.nn.Linear(2, 2)  # an OrderedDict with _metadata
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    with open_tensors(path) as file:
        assert torch.equal(file.read("weight"), module.weight.detach())


@pytest.mark.parametrize("name", ["cloneofsimo_sd2_r4_kiriko.pt", "diffusers_oldest_sd15_r4_dog.bin"])
def test_real_pickles_equal_torchs_own_reading(name, loras):
    theirs = torch.load(loras / name, weights_only=True, map_location="cpu")
    if isinstance(theirs, list):
        theirs = {str(index): value for index, value in enumerate(theirs)}
    with open_tensors(loras / name) as file:
        assert set(file.tensors) == set(theirs)
        assert all(torch.equal(file.read(key), value) for key, value in theirs.items())


def test_a_truncated_pickle_is_said(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(100)}, buffer)
    path = tmp_path / "a.pt"
    for cut in (3, 40, 300, len(buffer.getvalue()) - 30):
        path.write_bytes(buffer.getvalue()[:cut])
        with pytest.raises(FileFormatError):
            open_tensors(path)
