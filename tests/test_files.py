"""Reading, writing and hashing against safetensors' own library; damaged files are one sentence each."""

from __future__ import annotations

import hashlib
import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from lib_merge.errors import FileFormatError, OutputError
from lib_merge.files.hashes import data_hash, legacy_hash
from lib_merge.files.header import header_room
from lib_merge.files.reader import open_tensors
from lib_merge.files.store import sweep
from lib_merge.files.writer import StreamWriter, next_version, write_safetensors

TENSORS = {
    "b.alpha": torch.tensor(4.0).half(),
    "a.up": torch.randn(700, 1000, generator=torch.Generator().manual_seed(1)).half(),
    "z": torch.arange(3, dtype=torch.float32),
    "bf": torch.arange(6).reshape(2, 3).bfloat16(),
    "ints": torch.arange(4),
    "flags": torch.tensor([True, False, True]),
    "f8": torch.arange(4).float().to(torch.float8_e4m3fn),
    "empty": torch.zeros(0, 4),
}


def _raw(header, data=b"", pad=b""):
    text = (header if isinstance(header, bytes) else json.dumps(header).encode()) + pad
    return struct.pack("<Q", len(text)) + text + data


def _entry(dtype="F32", shape=(2,), start=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


DAMAGED = {
    "empty": (b"", "empty"),
    "five bytes": (b"\x01\x02\x03\x04\x05", "ends after 5"),
    "header longer than the file": (struct.pack("<Q", 10**7) + b"{}", "header would be"),
    "absurd header length": (struct.pack("<Q", 2**60) + b"{}" * 40, "header would be"),
    "not JSON": (_raw(b"{nope"), "not valid JSON"),
    "not UTF-8": (_raw(b'{"\xff\xfe": 1}'), "not valid JSON"),
    "NaN is not JSON": (_raw(b'{"a": NaN}'), "not valid JSON"),
    "a list": (_raw([1]), "not a JSON object"),
    "no dtype": (_raw({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "lacks dtype"),
    "wrong dtype name": (_raw({"a": _entry("F12")}, bytes(8)), "F12"),
    "negative shape": (_raw({"a": _entry(shape=(-2,))}, bytes(8)), "whole numbers"),
    "boolean shape": (_raw({"a": _entry(shape=(True, 2))}, bytes(8)), "whole numbers"),
    "float offsets": (_raw({"a": {**_entry(), "data_offsets": [0.0, 8.0]}}, bytes(8)), "whole numbers"),
    "one offset": (_raw({"a": {**_entry(), "data_offsets": [8]}}, bytes(8)), "whole numbers"),
    "backwards": (_raw({"a": _entry(start=8, end=0)}, bytes(8)), "outside"),
    "past the end": (_raw({"a": _entry(end=800)}, bytes(8)), "outside"),
    "bytes and shape differ": (_raw({"a": _entry(shape=(3,))}, bytes(8)), "needs 12"),
    "overflowing shape": (_raw({"a": _entry(shape=(2**31, 2**31, 2**31))}, bytes(8)), "outside"),
    "overlap": (_raw({"a": _entry(), "b": _entry(start=4, end=12)}, bytes(12)), "overlaps"),
    "gap": (_raw({"a": _entry(), "b": _entry(start=12, end=20)}, bytes(20)), "gap"),
    "data left over": (_raw({"a": _entry()}, bytes(16)), "tensors end at"),
    "duplicate key": (_raw(b'{"a": {"dtype":"F32","shape":[0],"data_offsets":[0,0]}, "a": 1}'), "twice"),
    "metadata not texts": (_raw({"__metadata__": {"a": 1}, "a": _entry()}, bytes(8)), "__metadata__"),
    "a web page": (b"<!DOCTYPE html><html><head><title>Log in</title></head></html>", "web page"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "LFS"),
    "deep JSON": (_raw(b"[" * 100_000), "not valid JSON"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence_that_names_it(name, tmp_path):
    content, says = DAMAGED[name]
    path = tmp_path / "style.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=says) as error:
        open_tensors(path)
    text = str(error.value)
    assert "style.safetensors" in text
    assert "\n" not in text
    assert len(text) < 400


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(FileFormatError, match=r"nope\.safetensors does not exist"):
        open_tensors(tmp_path / "nope.safetensors")
    with pytest.raises(FileFormatError, match="folder"):
        open_tensors(tmp_path)


def test_what_safetensors_writes_is_read_back_bit_for_bit(tmp_path):
    path = tmp_path / "ü ñ.safetensors"
    save_file(TENSORS, str(path), {"key": "välue"})
    with open_tensors(path) as file:
        found = file.read_many(list(file.tensors))
        assert dict(file.metadata) == {"key": "välue"}
        single = file.read("z")
    assert set(found) == set(TENSORS)
    assert torch.equal(single, TENSORS["z"])
    for key, value in TENSORS.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))


def test_reading_does_not_need_positional_reads(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, str(path))
    with open_tensors(path) as file:
        file._positional = False
        assert torch.equal(file.read("a.up"), TENSORS["a.up"])


def test_a_file_cut_while_it_is_read_is_said(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, str(path))
    with open_tensors(path) as file:
        os.truncate(path, path.stat().st_size - 1_000_000)
        with pytest.raises(FileFormatError, match="shorter"):
            file.read_many(list(file.tensors))


def test_content_decides_and_not_the_extension(tmp_path):
    path = tmp_path / "a.pt"
    save_file(TENSORS, str(path))
    with open_tensors(path) as file:
        assert torch.equal(file.read("z"), TENSORS["z"])
    zipped = tmp_path / "b.safetensors"
    torch.save({"z": TENSORS["z"]}, zipped)
    with open_tensors(zipped) as file:
        assert torch.equal(file.read("z"), TENSORS["z"])


def test_our_file_is_what_safetensors_reads_and_in_its_order(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", TENSORS, {"ss_a": "x", "other": "é"})
    found = load_file(str(path))
    assert all(
        torch.equal(found[key].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
        for key, value in TENSORS.items()
    )
    theirs = save(TENSORS, {"ss_a": "x"})
    length = struct.unpack("<Q", theirs[:8])[0]
    with open_tensors(path) as file:
        assert data_hash(path, file.data_start) == hashlib.sha256(theirs[8 + length :]).hexdigest()
        legacy = hashlib.sha256(theirs[0x100000:0x110000]).hexdigest()[:8]
        assert legacy_hash(path, file.tensors, file.data_start, file.metadata) == legacy
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_nothing_is_at_the_output_until_it_is_published(tmp_path):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")
    with StreamWriter(target, header_room([("x", "F32", (2,))], 64)) as writer:
        writer.add("x", "F32", (2,), [torch.zeros(2).numpy()])
        assert target.read_bytes() == b"old"
        assert not writer.temp.name.endswith(".safetensors")
        assert writer.temp.name.startswith(".")
        writer.finish({})
        assert writer.publish(overwrite=True) == target
    assert torch.equal(load_file(str(target))["x"], torch.zeros(2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_abandoned_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), StreamWriter(tmp_path / "a.safetensors", 100):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced_unasked(tmp_path):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        write_safetensors(target, {"x": torch.zeros(2)}, {}, overwrite=False)
    assert target.read_bytes() == b"old"


def test_stale_temporaries_of_dead_writers_are_swept_and_living_ones_are_not(tmp_path):
    stale = tmp_path / ".gone.0123456789ab.merging"
    stale.write_bytes(b"x")
    os.utime(stale, (0, 0))
    with StreamWriter(tmp_path / "a.safetensors", 100) as writer:
        assert not stale.exists()
        os.utime(writer.temp, (0, 0))
        assert sweep(tmp_path) == 0
        assert writer.temp.exists()


def test_a_held_target_gives_the_next_version_instead_of_losing_the_merge(tmp_path, monkeypatch):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")
    real = os.replace

    def held(source, destination):
        if str(destination).endswith("a.safetensors"):
            raise PermissionError(13, "in use")
        real(source, destination)

    monkeypatch.setattr(os, "replace", held)
    assert write_safetensors(target, {"x": torch.zeros(2)}, {}).name == "a_v2.safetensors"
    assert target.read_bytes() == b"old"
    assert write_safetensors(target, {"x": torch.zeros(2)}, {}).name == "a_v3.safetensors"


def test_versions_count_up(tmp_path):
    (tmp_path / "a_v2.safetensors").touch()
    assert next_version(tmp_path / "a.safetensors").name == "a_v3.safetensors"
    assert next_version(tmp_path / "a_v2.safetensors").name == "a_v3.safetensors"


@pytest.mark.parametrize(
    "name", ["CON.safetensors", "com1.safetensors", "a?.safetensors", "a\nb.safetensors", "a.pt", ".safetensors", " a.safetensors",
             "x" * 250 + ".safetensors", "nul.x.safetensors", "a\x7f.safetensors"],
)  # fmt: skip
def test_a_name_that_some_system_cannot_keep_is_refused(name, tmp_path):
    with pytest.raises(OutputError):
        StreamWriter(tmp_path / name, 100)
    assert list(tmp_path.iterdir()) == []
