"""The presets file among disks that fail, programs that hold it, and other processes that write it."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_merge.blocks import ANY, Preset, PresetStore
from lib_merge.blocks import store as presets
from lib_merge.errors import FileFormatError, OutputError, RecipeError
from lib_merge.families import FAMILIES, family_of
from lib_merge.files import store as files
from lib_merge.files.store import locked

ROOT = Path(__file__).parents[1]
ONES17 = (1.0,) * 17
FACE = Preset("Face", "SD1", tuple(float(place % 2) for place in range(17)))


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "presets.json")


def _names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_held_open_for_a_moment_is_waited_for(store, monkeypatch):
    store.save(FACE)
    replace, calls = os.replace, []

    def busy(*paths):
        calls.append(paths)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, "in use")
        replace(*paths)

    monkeypatch.setattr(os, "replace", busy)
    store.save(Preset("B", "SD1", ONES17))
    assert len(calls) == 3
    assert store.names() == ("Face", "B")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "in use"), "held open by another program"),
        (OSError(errno.ENOSPC, "full"), "no space is left"),
        (OSError(errno.EROFS, "ro"), "read-only"),
        (OSError(errno.EIO, "io"), "cannot be written: io"),
    ],
)
def test_a_failed_save_is_one_sentence_and_changes_nothing(store, tmp_path, monkeypatch, error, says):
    store.save(FACE)
    before = store.path.read_bytes()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(files, "PAUSES", (0.0,))
        with pytest.raises(OutputError, match=says):
            store.save(Preset("B", "SD1", ONES17))
    assert store.path.read_bytes() == before
    assert _names(tmp_path) == ["presets.json"]
    assert store.names() == ("Face",)


def test_paths_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"presets\.json cannot be written"):
        PresetStore(tmp_path / "file" / "presets.json").save(FACE)
    folder = PresetStore(tmp_path / "presets.json")
    folder.path.mkdir()
    assert folder.list() == ()
    assert "cannot be read" in folder.take_warnings()[0]
    with pytest.raises(FileFormatError, match=r"presets\.json cannot be read: it is no plain file"):
        folder.save(FACE)


def test_a_store_never_outgrows_what_it_reads(store, monkeypatch):
    monkeypatch.setattr(presets, "MAX_BYTES", 600)
    store.save(FACE)
    with pytest.raises(OutputError, match="delete some presets"):
        store.save(Preset("B", "SDXL", dict.fromkeys(family_of("SDXL").blocks, 0.123456)))
    assert store.names() == ("Face",)


def test_a_lock_kept_too_long_is_one_sentence(store):
    store.save(FACE)
    impatient = PresetStore(store.path, timeout=0.1)
    with locked(store.path.resolve(), 1.0):
        with pytest.raises(OutputError, match="held by another program"):
            impatient.save(Preset("B", "SD1", ONES17))
        assert impatient.names() == ("Face",)  # reading needs no lock
    impatient.save(Preset("B", "SD1", ONES17))


def test_the_lock_of_windows(store, monkeypatch):
    class Fake:
        LK_NBLCK, LK_UNLCK = 1, 2
        owner = None
        steps: list = []

        @classmethod
        def locking(cls, number, mode, count):
            assert count == 1
            cls.steps.append(mode)
            if mode == cls.LK_NBLCK:
                if cls.owner is not None:
                    raise PermissionError(errno.EACCES, "taken")
                cls.owner = number
            else:
                cls.owner = None

    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setitem(sys.modules, "msvcrt", Fake)
    store.save(FACE)
    assert Fake.steps == [1, 2]
    with (
        locked(store.path, 1.0),
        pytest.raises(OutputError, match="held by another program"),
        locked(store.path, 0.05),
    ):
        pass
    assert Fake.owner is None


def test_a_folder_without_locks_still_works(store, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    store.save(FACE)
    assert store.names() == ("Face",)


def test_threads_lose_nothing(store):
    stores = [store, PresetStore(store.path, 30.0)]

    def work(number):
        for index in range(8):
            stores[number % 2].save(Preset(f"{number}-{index}", "SD1", ONES17))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.list()) == 32


@pytest.mark.slow
def test_two_processes_lose_nothing(store, tmp_path, forked):
    code = """
        path, name = arguments
        store = PresetStore(path, 60.0)
        for index in range(20):
            store.save(Preset(f"{name}-{index}", "SD1", (0.5,) * 17))
            if index % 5 == 4:
                store.rename(f"{name}-{index}", f"{name}-renamed-{index}")
    """
    assert forked(code, [(store.path, name) for name in "ab"]) == [0, 0]
    assert len(store.names()) == 40
    assert sum("renamed" in name for name in store.names()) == 8
    assert list(store.take_warnings()) == []
    assert _names(tmp_path) == ["presets.json"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_in_the_middle_of_a_save_keeps_the_old_file(store, tmp_path, moment, forked):
    store.save(FACE)
    before = store.path.read_bytes()
    code = """
        path, moment = arguments
        setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        PresetStore(path).save(Preset("B", "SD1", (0.5,) * 17))
    """
    assert forked(code, [(store.path, moment)]) == [-9]
    assert store.path.read_bytes() == before
    [left] = [
        name for name in _names(tmp_path) if name != "presets.json"
    ]  # the temporary file of the killed one
    os.utime(tmp_path / left, (0, 0))
    start = time.monotonic()
    store.save(Preset("C", "SD1", ONES17))
    assert time.monotonic() - start < 3  # the lock died with its holder
    assert store.names() == ("Face", "C")
    assert _names(tmp_path) == ["presets.json"]


NAMES = st.text(max_size=90)
VALUES = st.one_of(
    st.floats(), st.integers(), st.text(max_size=5), st.none(), st.sampled_from(["R", "X+0.1", "1"])
)


@given(name=NAMES, family=st.sampled_from([*FAMILIES, ANY]), weights=st.one_of(st.lists(VALUES, min_size=12, max_size=17).map(tuple), st.dictionaries(st.sampled_from(["BASE", "M00", "B01", "?"]), VALUES)))  # fmt: skip
def test_whatever_is_saved_comes_back(tmp_path_factory, name, family, weights):
    store = PresetStore(tmp_path_factory.mktemp("s") / "p.json")
    try:
        kept = store.save(Preset(name, family, weights))
    except RecipeError:
        return
    assert PresetStore(store.path).get(name, family) == kept
    assert list(store.take_warnings()) == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=9), st.sampled_from(["SD1", "any"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["name", "families", "SD1", "any", "weights", "elements", "BASE"]), inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.slow
@given(entries=st.lists(JSON, max_size=4))
def test_no_content_of_the_file_raises_or_gets_lost(tmp_path_factory, entries):
    store = PresetStore(tmp_path_factory.mktemp("s") / "p.json")
    text = json.dumps({"format": "lora-merge-presets", "version": 1, "presets": entries})
    store.path.write_text(text, "utf-8")
    store.list("SD1")
    warned = "".join(store.take_warnings())
    aside = store.path.with_name("p.broken-1.json")
    assert aside.exists() == ("broken-1" in warned)
    assert (aside if aside.exists() else store.path).read_text("utf-8") == text
