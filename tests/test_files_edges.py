"""Rare files and bad moments of the byte layer: odd header lengths, closed files, sweeps, held names."""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from lib_merge.errors import FileFormatError, OutputError
from lib_merge.files import reader, store
from lib_merge.files.hashes import data_hash, file_hash
from lib_merge.files.header import header_room
from lib_merge.files.reader import open_tensors
from lib_merge.files.writer import StreamWriter, write_safetensors

VALUES = torch.tensor([1.5, -2.0])


def _padded(length: int) -> bytes:
    """A file with the tensor `a` and a header of exactly `length` bytes."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    return struct.pack("<Q", length) + text + struct.pack("<2f", *VALUES.tolist())


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x00", b"PK\x03\x00"])
def test_a_header_length_that_looks_like_a_zip_or_a_pickle_is_still_a_header_length(start, tmp_path):
    length = int.from_bytes(start, "little")
    path = tmp_path / "a.safetensors"
    path.write_bytes(_padded(length))
    assert path.read_bytes().startswith(start)
    with open_tensors(path) as file:
        assert torch.equal(file.read("a"), VALUES)


@pytest.mark.parametrize("where", ["key", "metadata"])
def test_half_a_character_is_refused_before_it_could_reach_an_output(where, tmp_path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = (
        {"\ud800": entry} if where == "key" else {"__metadata__": {"ss_output_name": "x\udfff"}, "a": entry}
    )
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(FileFormatError, match="not valid JSON"):
        open_tensors(path)


def test_a_whole_character_written_as_two_halves_is_read(tmp_path):
    text = b'{"\\ud83d\\ude00":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with open_tensors(path) as file:
        assert list(file.tensors) == ["😀"]


def test_a_long_run_is_read_in_pieces_and_comes_out_whole(tmp_path, monkeypatch):
    values = torch.arange(5000, dtype=torch.int32)
    save_file({"a": values, "b": values.flip(0)}, str(tmp_path / "a.safetensors"))
    monkeypatch.setattr(reader, "_MAX_READ", 1000)
    sizes = []
    real = reader.SafetensorsFile._read_at
    monkeypatch.setattr(
        reader.SafetensorsFile,
        "_read_at",
        lambda self, view, at: sizes.append(len(view)) or real(self, view, at),
    )
    for positional in (True, False):
        with open_tensors(tmp_path / "a.safetensors") as file:
            file._positional = positional and file._positional
            found = file.read_many(["b", "a"])
        assert torch.equal(found["a"], values)
        assert torch.equal(found["b"], values.flip(0))
    assert max(sizes) == 1000


def test_an_empty_tensor_at_its_neighbours_start_takes_nothing_from_it(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": VALUES, "none": torch.zeros(0, 3), "z": VALUES * 3}, str(path))
    with open_tensors(path) as file:
        assert file.tensors["none"].start in (file.tensors["a"].end, file.tensors["z"].start)
        for keys in (["a", "z", "none"], ["z", "none"], ["none", "z"], ["none", "a"], ["none"]):
            found = file.read_many(keys)
            assert torch.equal(found.get("z", VALUES * 3), VALUES * 3)
            assert torch.equal(found.get("a", VALUES), VALUES)
            assert tuple(found["none"].shape) == (0, 3)


@pytest.mark.parametrize("extension", ["safetensors", "pt"])
def test_a_closed_file_says_so(extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    save_file({"a": VALUES}, str(path)) if extension == "safetensors" else torch.save({"a": VALUES}, path)
    with open_tensors(path) as file:
        assert torch.equal(file.read("a"), VALUES)
    with pytest.raises(FileFormatError, match=rf"a\.{extension} cannot be read any more"):
        file.read("a")


@pytest.mark.parametrize("extension", ["safetensors", "pt"])
def test_what_was_read_may_be_changed_without_changing_the_next_reading(extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    save_file({"a": VALUES}, str(path)) if extension == "safetensors" else torch.save({"a": VALUES}, path)
    with open_tensors(path) as file:
        file.read("a").add_(1)
        assert torch.equal(file.read("a"), VALUES)


def test_a_disk_that_fails_while_the_header_is_read_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": VALUES}))

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(reader, "read_header", failing)
    with pytest.raises(FileFormatError, match=r"a\.safetensors cannot be read: Input/output error\."):
        open_tensors(path)


def test_the_hash_is_of_the_bytes_that_were_opened(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": VALUES}))
    with open_tensors(path) as file:
        before = file_hash(path)
        assert file.sha256() == before != data_hash(path, file.data_start)
        path.rename(tmp_path / "b.safetensors")
        path.write_bytes(save({"a": VALUES * 2}))
        assert file.sha256() == before  # another file of that name was not read
        file.check_unchanged()
        with (tmp_path / "b.safetensors").open("r+b") as other:
            other.seek(-4, os.SEEK_END)
            other.write(b"\0\0\0\0")
        os.utime(tmp_path / "b.safetensors", ns=(1, 1))
        for ask in (file.sha256, file.check_unchanged):
            with pytest.raises(FileFormatError, match=r"a\.safetensors was changed while it was read"):
                ask()
    with pytest.raises(FileFormatError, match=r"a\.safetensors cannot be read any more"):
        file.sha256()


def test_a_pickle_that_was_replaced_is_not_hashed_for_the_one_that_was_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": VALUES}, path)
    with open_tensors(path) as file:
        assert file.sha256() == file_hash(path)
        torch.save({"a": VALUES * 2}, tmp_path / "new.pt")
        (tmp_path / "new.pt").replace(path)
        for ask in (file.sha256, file.check_unchanged):
            with pytest.raises(FileFormatError, match=r"a\.pt was changed while it was read"):
                ask()
        path.unlink()
        with pytest.raises(FileFormatError, match=r"a\.pt cannot be read any more"):
            file.sha256()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps an open file by itself")
def test_a_sweep_never_takes_a_file_that_a_merge_is_publishing(tmp_path, monkeypatch):
    swept = []
    real = os.link

    def link(source, target):
        swept.append(store.sweep(tmp_path))
        real(source, target)

    monkeypatch.setattr(store, "LEFT_BEHIND", -60.0)
    monkeypatch.setattr(os, "link", link)
    path = write_safetensors(tmp_path / "a.safetensors", {"a": VALUES}, {}, overwrite=False)
    assert swept == [0]
    assert torch.equal(load_file(str(path))["a"], VALUES)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps an open file by itself")
def test_a_file_swept_before_its_merge_could_lock_it_is_made_again(tmp_path, monkeypatch):
    real = store._lock
    swept = []

    def late(file):
        if not swept:
            swept.append(store.sweep(tmp_path))
        real(file)

    monkeypatch.setattr(store, "LEFT_BEHIND", -60.0)
    monkeypatch.setattr(store, "_lock", late)
    with StreamWriter(tmp_path / "a.safetensors", header_room([("a", "F32", (2,))], 8)) as writer:
        assert swept == [1]
        writer.add("a", "F32", (2,), [VALUES.numpy()])
        writer.finish({})
        writer.publish(overwrite=False)
    assert torch.equal(load_file(str(tmp_path / "a.safetensors"))["a"], VALUES)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_without_hard_links_an_existing_file_is_still_not_replaced(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = write_safetensors(tmp_path / "a.safetensors", {"a": VALUES}, {}, overwrite=False)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_safetensors(path, {"a": VALUES * 2}, {}, overwrite=False)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_mapped_target_on_windows_gives_the_next_version(tmp_path, monkeypatch):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")

    def mapped(*_):
        error = OSError(errno.EINVAL, "a user-mapped section is open")
        error.winerror = 1224
        raise error

    monkeypatch.setattr(os, "replace", mapped)
    assert write_safetensors(target, {"a": VALUES}, {}).name == "a_v2.safetensors"
    assert target.read_bytes() == b"old"


def test_a_refused_publish_can_be_repeated_with_leave_to_overwrite(tmp_path):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")
    with StreamWriter(target, header_room([("a", "F32", (2,))], 8)) as writer:
        writer.add("a", "F32", (2,), [VALUES.numpy()])
        writer.finish({})
        with pytest.raises(OutputError, match="exists already"):
            writer.publish(overwrite=False)
        assert writer.publish(overwrite=True) == target
    assert torch.equal(load_file(str(target))["a"], VALUES)


def test_a_name_given_twice_and_missing_bytes_are_defects_of_the_caller(tmp_path):
    with StreamWriter(tmp_path / "a.safetensors", 200) as writer:
        writer.add("a", "F32", (2,), [VALUES.numpy()])
        size = writer.size
        with pytest.raises(ValueError, match="twice"):
            writer.add("a", "F32", (2,), [VALUES.numpy()])
        assert writer.size == size
        with pytest.raises(ValueError, match="given 8 bytes"):
            writer.add("b", "F32", (3,), [VALUES.numpy()])
    assert list(tmp_path.iterdir()) == []


def test_a_header_is_rewritten_in_place_and_never_outgrows_its_room(tmp_path):
    with StreamWriter(tmp_path / "a.safetensors", header_room([("a", "F32", (2,))], 40)) as writer:
        writer.add("a", "F32", (2,), [VALUES.numpy()])
        writer.finish({"x": "1"})
        before = load_file(str(writer.temp))
        writer.finish({"x": "longer", "y": "é"})
        with pytest.raises(OutputError, match="needs"):
            writer.finish({"x": "y" * 1000})
        path = writer.publish(overwrite=False)
    with open_tensors(path) as file:
        assert dict(file.metadata) == {"x": "longer", "y": "é"}
        assert torch.equal(file.read("a"), before["a"])


def test_missing_folders_long_paths_and_vanished_temporaries_are_told_apart(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    with pytest.raises(OutputError, match="the folder nowhere does not exist"):
        StreamWriter(tmp_path / "nowhere" / "a.safetensors", 100)
    deep = tmp_path / ("d" * 200)
    deep.mkdir()
    assert "too long" in str(store.write_error(missing, deep / "a.safetensors"))
    with StreamWriter(Path(os.path.relpath(tmp_path)) / "a.safetensors", 100) as writer:
        writer.finish({})
        writer.temp.unlink()
        with pytest.raises(OutputError, match=r"too long|removed meanwhile"):
            writer.publish(overwrite=True)


@pytest.mark.parametrize("name", ["a\udcff.safetensors", "COM1 .safetensors"])
def test_a_name_that_is_no_text_or_reserved_with_a_blank_is_refused(name, tmp_path):
    with pytest.raises(OutputError, match="the output name"):
        StreamWriter(tmp_path / name, 100)
    assert list(tmp_path.iterdir()) == []
