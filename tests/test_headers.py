"""Headers kept between two looks: read once, never stale, and no file is held open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lib_merge import Recipe, Source
from lib_merge.adapters import file as adapters_file
from lib_merge.analysis import analyze
from lib_merge.engine.headers import HeaderCache
from lib_merge.engine.survey import foresee
from lib_merge.engine.threads import Job
from lib_merge.engine.tree import open_tree
from lib_merge.errors import FileFormatError
from tests.factories import lora_tensors, write, write_lora


@pytest.fixture
def opened(monkeypatch):
    """Paths whose header was read."""
    paths = []
    read = adapters_file.open_tensors
    monkeypatch.setattr(adapters_file, "open_tensors", lambda path: paths.append(Path(path)) or read(path))
    return paths


@pytest.fixture
def pair(tmp_path):
    return [write_lora(tmp_path / f"{name}.safetensors", seed=n) for n, name in enumerate("ab")]


def _recipe(paths, *ratios):
    return Recipe(tuple(Source(path=path, name=path.name, ratio=r) for path, r in zip(paths, ratios)))


def test_a_moved_slider_reads_no_header(pair, opened):
    cache = HeaderCache()
    sizes = []
    for ratio in (0.5, 0.6, 0.7):
        with open_tree(_recipe(pair, ratio, 0.4), cache) as tree:
            sizes.append(foresee(tree))
    assert opened == pair
    assert sizes[0] == sizes[1] == sizes[2]


def test_neither_does_the_analysis_after_it(pair, opened):
    job = Job(open_file=HeaderCache())
    before = analyze(_recipe(pair, 0.5, 0.4), job=job)
    opened.clear()
    after = analyze(_recipe(pair, 0.7, 0.4), job=job, before=before)
    assert opened == []
    fresh = analyze(_recipe(pair, 0.7, 0.4))
    assert after.recipe == fresh.recipe


def test_tensors_are_those_of_the_file(pair):
    cache = HeaderCache()
    for _ in range(2):
        with cache(pair[0]) as file:
            for key, value in lora_tensors(0).items():
                assert torch.equal(file.file.read(key), value)
            assert file.sha256 == file.file.sha256()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_no_file_is_held_open(pair):
    cache = HeaderCache()

    def held():
        return [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(pair[0])]

    with cache(pair[0]) as file:
        assert not held()
        file.file.read(next(iter(file.file.tensors)))
        assert held()
    assert not held()
    pair[0].unlink()


def test_a_file_that_changed_is_read_again(pair, opened):
    cache = HeaderCache()
    cache(pair[0]).close()
    write(pair[0], lora_tensors(0, rank=7))
    with cache(pair[0]) as file:
        assert {module.layout.rank for module in file.modules.values()} == {7}
    pair[0].with_name(f"{pair[0].stem}.adapter_config.json").write_text("{}", encoding="utf-8")
    cache(pair[0]).close()
    assert opened == [pair[0]] * 3


def test_a_file_that_changes_before_its_tensors_are_read_is_refused(pair):
    cache = HeaderCache()
    cache(pair[0]).close()
    with cache(pair[0]) as file:
        write(pair[0], lora_tensors(0, rank=7))
        with pytest.raises(FileFormatError, match="changed meanwhile"):
            file.file.read(next(iter(file.file.tensors)))


def test_only_the_files_used_last_are_kept(pair, opened):
    cache = HeaderCache(most=1)
    for path in (pair[0], pair[1], pair[1], pair[0]):
        cache(path).close()
    assert opened == [pair[0], pair[1], pair[0]]


def test_what_one_caller_closes_another_may_still_read(pair):
    cache = HeaderCache()
    one, other = cache(pair[0]), cache(pair[0])
    key = next(iter(one.file.tensors))
    one.file.read(key)
    one.close()
    assert other.file.read(key).numel()
    other.close()
