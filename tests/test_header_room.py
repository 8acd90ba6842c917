"""The header of a merge is as long as it must be: no blanks beyond 4 KB, whatever the sources carry."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_merge import Job, merge, verify
from lib_merge.adapters.cloneofsimo import unet_walk
from lib_merge.errors import OutputError
from lib_merge.files import header, writer
from lib_merge.files.hashes import data_hash
from lib_merge.files.reader import open_tensors
from lib_merge.files.writer import StreamWriter, write_safetensors
from tests.factories import NAMES, lora_tensors, write_lora
from tests.test_odd_files import cases  # noqa: F401

MOST = 4096


def _header(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 : 8 + length]


def _blank(path):
    raw = _header(path)
    return len(raw) - len(raw.rstrip(b" "))


def _metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 2}, {"rank": "energy:0.5"}, {"prune": 0.5}, {"method": "core_ties"}, {"method": "ties"}],
)
def test_no_merge_ends_its_header_in_many_blanks(options, tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=40) for n in range(3)]
    merge(paths, save_to=tmp_path / "m.safetensors", **options)
    assert _blank(tmp_path / "m.safetensors") <= MOST
    assert (len(_header(tmp_path / "m.safetensors")) + 8) % 8 == 0


def test_a_merge_that_leaves_most_modules_out_moves_its_data_to_the_header(tmp_path):
    walk = [(f"lora_unet_{path}", out, columns or 768) for path, out, columns in unet_walk(geglu=True)[:60]]
    paths = []
    for seed in range(2):
        tensors = {}
        for place, (name, out, columns) in enumerate(walk):
            g = torch.Generator().manual_seed(place or 1000 + seed)  # all but the first cancel
            tensors[f"{name}.lora_up.weight"] = torch.randn(out, 2, generator=g)
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=g)
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(tensors, str(paths[-1]))
    out = tmp_path / "m.safetensors"
    report = merge(paths, ratios=[1, -1], save_to=out)
    assert len(report.left_out) == 59
    assert _blank(out) <= MOST
    assert report.bytes == out.stat().st_size
    with open_tensors(out) as file:
        assert file.metadata["sshs_model_hash"] == data_hash(out, file.data_start) == report.tensor_hash
    assert set(load_file(str(out))) == {
        f"{walk[0][0]}.{role}" for role in ("alpha", "lora_down.weight", "lora_up.weight")
    }
    assert verify(out, [tmp_path]).relative_error < 1e-3


@pytest.mark.parametrize("megabytes", [0.4, 55])
def test_metadata_that_is_not_copied_takes_no_room(megabytes, tmp_path):
    more = {"ss_bucket_info": "z" * int(megabytes * 1e6), "modelspec.trigger_phrase": "ink"}
    path = write_lora(tmp_path / "a.safetensors", metadata=more)
    merge([path], save_to=tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 60_000
    assert _blank(tmp_path / "m.safetensors") <= MOST


def test_three_thousand_folders_of_tags_under_a_long_name_are_saved(tmp_path):
    tags = {f"1_folder {n}": {"tag": n} for n in range(3000)}
    path = tmp_path / f"{'n' * 200}.safetensors"
    write_lora(path, metadata={"ss_tag_frequency": json.dumps(tags)})
    out = tmp_path / "m.safetensors"
    merge([path], save_to=out)
    assert len(json.loads(_metadata(out)["ss_tag_frequency"])) == 3000
    assert _blank(out) <= MOST


def test_more_tags_than_a_header_should_hold_are_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("lib_merge.metadata.MAX_ALL_TAGS", 50)
    tags = json.dumps({"1_x": {f"tag {n}": n for n in range(20)}})
    path = write_lora(tmp_path / "a.safetensors", metadata={"ss_tag_frequency": tags})
    report = merge([path], save_to=tmp_path / "m.safetensors")
    assert "ss_tag_frequency" not in _metadata(tmp_path / "m.safetensors")
    assert any("tags" in note and "left out" in note for note in report.warnings)


def test_a_header_that_no_reader_takes_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_HEADER", 1000)
    path = write_lora(tmp_path / "a.safetensors")
    told = []
    with pytest.raises(OutputError, match=r"the header of m\.safetensors would take"):
        merge(
            [path], save_to=tmp_path / "m.safetensors", job=Job(progress=lambda *step: told.append(step[0]))
        )
    assert "merge" not in told
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("reserve", [0, 100, 5000, 100_000])
def test_data_moves_either_way_and_stays_what_it_is(reserve, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_PIECE", 64)
    values = torch.arange(500, dtype=torch.float32)
    with StreamWriter(tmp_path / "a.safetensors", reserve) as stream:
        stream.add("x", "F32", (500,), [values.numpy()])
        stream.fit({"note": "é" * 300})
        stream.finish({"note": "é" * 300})
        assert stream.size == stream.temp.stat().st_size
        stream.publish(overwrite=False)
    assert torch.equal(load_file(str(tmp_path / "a.safetensors"))["x"], values)
    assert _blank(tmp_path / "a.safetensors") <= MOST


def test_the_length_of_a_header_is_known_beforehand(tmp_path):
    tensors = {**lora_tensors(1, names=NAMES), 'odd "name" é': torch.ones(3)}
    path = write_safetensors(tmp_path / "a.safetensors", tensors, {"a": 'b"\n'})
    assert _blank(path) < 16
    entries = [(key, "F32", tuple(value.shape)) for key, value in tensors.items()]
    at, table = 0, {}
    for key, dtype, shape in entries:
        size = tensors[key].numel() * 4
        table[key] = header.TensorInfo(dtype, shape, at, at + size)
        at += size
    exact = len(header.header_bytes(table, {"a": "b"}, 0))
    assert exact <= header.header_room(entries, len(header.header_bytes({}, {"a": "b"}, 0))) <= exact + 16


def test_the_case_of_five_sources_with_long_metadata(cases, tmp_path):  # noqa: F811
    out = tmp_path / "m.safetensors"
    merge(sorted((cases / "header_padding").glob("*.safetensors")), save_to=out)
    tags = len(_metadata(out)["ss_tag_frequency"].encode())
    assert out.stat().st_size < tags * 1.2 + 100_000
    assert _blank(out) <= MOST
