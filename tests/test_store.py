"""The one writer of what people share: old or new, never half; alone, never lost; bounded, never stuck."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_merge import metadata
from lib_merge.errors import FileFormatError, OutputError
from lib_merge.files import moving, store
from lib_merge.files.store import Temporary
from lib_merge.recipe import Recipe, Source

ROOT = Path(__file__).parents[1]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files, locks and signals")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.json"


def _files(folder):
    return sorted(entry.name for entry in folder.iterdir())


def _old(path):
    os.utime(path, (0, 0))
    return path


# -------------------------------------------------------------------------------------------- old or new


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_kill_in_the_middle_keeps_the_old_file_and_a_later_writer_cleans_up(path, tmp_path, moment, forked):
    store.write(path, b"old")
    code = """
        path, moment = arguments
        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "write":
            store.Temporary.write = die
        else:
            setattr(os, moment, die)
        store.write(Path(path), b"new" * 1000)
    """
    assert forked(code, [(path, moment)]) == [-signal.SIGKILL]
    assert path.read_bytes() == b"old"
    [left] = [name for name in _files(tmp_path) if name != "a.json"]
    store.write(path, b"next")
    assert _files(tmp_path) == sorted([left, "a.json"])  # as young as that it might still live somewhere
    _old(tmp_path / left)
    store.write(path, b"last")
    assert _files(tmp_path) == ["a.json"]
    assert path.read_bytes() == b"last"


@pytest.mark.slow
@POSIX
def test_readers_see_whole_files_only(path, forked):
    contents = [bytes([65 + number]) * 200_000 for number in range(3)]
    store.write(path, contents[0])
    code = """
        for number in range(60):
            store.write(Path(arguments[0]), bytes([65 + number % 3]) * 200_000)
    """
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(forked, code, [[path]])
        while not writer.done():
            assert store.read(path) in contents
            time.sleep(0.002)
    assert writer.result() == [0]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "in use"), "a.json is held open by another program: close it there and save again."),
        (OSError(errno.ENOSPC, "full"), "no space is left for a.json: free some room or choose another disk."),
        (OSError(errno.EROFS, "ro"), "a.json cannot be written: the folder {} is read-only."),
        (OSError(errno.EIO, "the disk is upset"), "a.json cannot be written: the disk is upset."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("moment", ["replace", "write"])
def test_a_failure_is_one_sentence_and_changes_nothing(path, tmp_path, monkeypatch, error, says, moment):
    store.write(path, b"old")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace") if moment == "replace" else (Temporary, "write")), fail)
        patch.setattr(store, "PAUSES", ())
        with pytest.raises(OutputError) as raised:
            store.write(path, b"new")
    assert str(raised.value) == says.format(tmp_path.name)
    assert path.read_bytes() == b"old"
    assert _files(tmp_path) == ["a.json"]


def test_a_folder_that_takes_no_new_files_is_called_read_only(path, tmp_path, monkeypatch):
    store.write(path, b"old")

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(store, "PAUSES", ())
        patch.setattr(Path, "open", refuse)
        patch.setattr(store, "_own", refuse)
        with pytest.raises(OutputError, match=r"the folder .* is read-only"):
            store.write(path, b"new")
        with pytest.raises(OutputError, match=r"the folder .* is read-only"), store.locked(path):
            pass
    assert path.read_bytes() == b"old"


def test_a_file_held_open_for_a_moment_is_waited_for(path, monkeypatch):
    replace, calls = os.replace, []

    def busy(*paths):
        calls.append(paths)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, "in use")
        replace(*paths)

    monkeypatch.setattr(os, "replace", busy)
    store.write(path, b"new")
    assert len(calls) == 3
    assert path.read_bytes() == b"new"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match="the folder nowhere does not exist"):
        store.write(tmp_path / "nowhere" / "a.json", b"x")


@POSIX
def test_a_link_stays_a_link(path, tmp_path):
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "real.json"
    real.write_bytes(b"old")
    path.symlink_to(real)
    store.write(path, b"new")
    assert path.is_symlink()
    assert real.read_bytes() == b"new"
    assert _files(tmp_path / "there") == ["real.json"]
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(OutputError, match=r"a\.json cannot be written"):
        store.write(path, b"new")


# -------------------------------------------------------------------------------------------- leftovers


def test_only_old_unheld_leftovers_of_our_own_making_are_swept(tmp_path):
    gone = _old(_touch(tmp_path / ".gone.0123456789ab.merging"))
    young = _touch(tmp_path / ".young.0123456789ab.merging")
    others = [
        _old(_touch(tmp_path / name))
        for name in (".theirs.merging", ".notes.xyz.merging", "seen.0123456789ab.merging", ".a.json.lock", ".x.0123456789ab.merging.txt")
    ]  # fmt: skip
    lock, journal = tmp_path / ".m.safetensors.lock", tmp_path / ".gone.0123456789ab.merging-journal"
    for empty in (lock, journal):
        empty.write_bytes(b"")
        _old(empty)
    with Temporary(tmp_path / "a.json") as living, store.locked(tmp_path / "b.json"):
        _old(living.path)
        _old(tmp_path / ".b.json.lock")
        assert store.sweep(tmp_path) == 3
        assert living.path.exists()
        assert (tmp_path / ".b.json.lock").exists()
    assert not any(left.exists() for left in (gone, lock, journal))
    assert young.exists()
    assert all(other.exists() for other in others)


@POSIX
def test_a_pipe_of_such_a_name_does_not_stop_a_sweep(tmp_path):
    os.mkfifo(tmp_path / ".pipe.0123456789ab.merging")
    (tmp_path / ".link.0123456789ab.merging").symlink_to(_touch(tmp_path / "victim"))
    for trap in tmp_path.glob(".*"):
        os.utime(trap, (0, 0), follow_symlinks=False)
    begun = time.monotonic()
    store.sweep(tmp_path)
    assert time.monotonic() - begun < 2
    assert (tmp_path / "victim").read_bytes() == b"x"


def _touch(path):
    path.write_bytes(b"x")
    return path


@pytest.mark.slow
@POSIX
def test_many_writers_and_sweepers_lose_nothing(tmp_path, forked):
    """Of 8 merges at once, a sweep took the temporaries of others."""
    code = """
        folder, name = arguments
        store.LEFT_BEHIND = -60.0  # the lock alone must do
        for number in range(40):
            store.write_json(Path(folder) / f"{name}-{number}.json", {"number": number})
    """
    assert forked(code, [(tmp_path, name) for name in "abcd"]) == [0] * 4
    assert len(_files(tmp_path)) == 160
    assert all(store.read_json(entry)["number"] >= 0 for entry in tmp_path.iterdir())


# -------------------------------------------------------------------------------------------- one at a time


@pytest.mark.slow
def test_processes_that_count_in_one_file_lose_no_number(path, tmp_path, forked):
    code = """
        path = Path(arguments[0])
        for _ in range(50):
            with store.locked(path, 60.0):
                store.write_json(path, {"n": (store.read_json(path) or {"n": 0})["n"] + 1})
    """
    assert forked(code, [[path]] * 3) == [0] * 3
    assert store.read_json(path) == {"n": 150}
    assert _files(tmp_path) == ["a.json"]  # no lock is left lying beside people's files


def test_threads_exclude_each_other(path):
    inside, most = [], []

    def work():
        for _ in range(20):
            with store.locked(path, 30.0):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 80


@pytest.mark.slow
@POSIX
def test_a_killed_holder_leaves_nothing_locked(path, forked):
    code = """
        with store.locked(Path(arguments[0])):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert forked(code, [[path]]) == [-signal.SIGKILL]
    begun = time.monotonic()
    with store.locked(path):
        assert time.monotonic() - begun < 2


def test_a_lock_that_is_not_given_back_is_one_sentence(path):
    with (
        store.locked(path),
        pytest.raises(OutputError, match=r"a\.json has been held by another program for 0.05 s"),
        store.locked(path, 0.05),
    ):
        pass


# -------------------------------------------------------------------------------------------- reading


def test_reading_what_is_no_plain_small_file(path, tmp_path):
    assert store.read(path) is None
    assert store.read_text(path) is None
    assert store.read_json(path) is None
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert store.read_json(path) == [1]
    assert store.read_text(path) == "[1]"
    with pytest.raises(FileFormatError, match="larger than 5 bytes"):
        store.read(path, 5)
    path.write_bytes(b"\xff")
    with pytest.raises(FileFormatError, match=r"no.* text in UTF-8"):
        store.read_text(path)
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=r"a\.json is not valid JSON"):
            store.read_json(path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        store.read(tmp_path)


@POSIX
def test_a_pipe_or_device_does_not_block(tmp_path):
    pipe = tmp_path / "a.json"
    os.mkfifo(pipe)
    begun = time.monotonic()
    for odd in (pipe, Path("/dev/zero")):
        with pytest.raises(FileFormatError, match="it is no plain file"):
            store.read(odd)
    assert time.monotonic() - begun < 2


@given(value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=8) | st.sampled_from(["\ud800", "a\udcff"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
), text=st.text(st.characters(), max_size=20))  # fmt: skip
def test_whatever_is_written_comes_back(tmp_path_factory, value, text):
    path = tmp_path_factory.mktemp("s") / "a.json"
    store.write_json(path, value)
    assert store.read_json(path) == value
    path.read_bytes().decode("utf-8")  # others read it too
    store.write_text(path, text)
    if text.isprintable():
        assert store.read_text(path) == text.removeprefix("\ufeff")


# -------------------------------------------------------------------------------------------- moving


def test_moving_never_takes_the_place_of_another(path, tmp_path):
    path.write_bytes(b"a")
    other = tmp_path / "b.json"
    other.write_bytes(b"b")
    with pytest.raises(FileExistsError):
        moving.move(path, other)
    assert (path.read_bytes(), other.read_bytes()) == (b"a", b"b")
    first = moving.to_trash(path, tmp_path / "trash")
    path.write_bytes(b"again")
    second = moving.to_trash(path, tmp_path / "trash")
    assert first.name == "a.json"
    assert (first.read_bytes(), second.read_bytes()) == (b"a", b"again")
    with pytest.raises(FileNotFoundError):
        moving.to_trash(path, tmp_path / "trash")


@POSIX
def test_moving_a_link_moves_the_link(path, tmp_path):
    real = tmp_path / "real"
    real.write_bytes(b"x")
    path.symlink_to(real)
    moving.move(path, tmp_path / "moved.json")
    assert (tmp_path / "moved.json").is_symlink()
    assert _files(tmp_path) == ["moved.json", "real"]


def test_moving_to_another_disk(path, tmp_path, monkeypatch):
    path.write_bytes(b"x" * 3_000_000)
    real = moving.rename_new

    def across(source, target):
        if source == path:
            raise OSError(errno.EXDEV, "another disk")
        real(source, target)

    monkeypatch.setattr(moving, "rename_new", across)
    target = tmp_path / "there.json"
    moving.move(path, target)
    assert target.read_bytes() == b"x" * 3_000_000
    assert _files(tmp_path) == ["there.json"]


def test_broken_files_are_set_aside_under_the_next_free_name(path, tmp_path):
    path.write_bytes(b"{1")
    assert moving.set_aside(path).name == "a.broken-1.json"
    path.write_bytes(b"{2")
    assert moving.set_aside(path, b"{2").name == "a.broken-2.json"
    assert _files(tmp_path) == ["a.broken-1.json", "a.broken-2.json", "a.json"]


# -------------------------------------------------------------------------------------------- side-cars


RECIPE = Recipe((Source(name="x.safetensors"),), method="weighted_sum")


def _write_card(lora, *said):
    """Write a merge's card beside it as when it is published; return what is told of it."""
    with metadata.new_card(lora, metadata.card_change(RECIPE, "SD1", *said)) as card:
        meanwhile = card.path.read_bytes() if card.path.is_file() else None
        card.put()
    if card.error is not None:
        raise card.error
    assert meanwhile in (None, card.path.read_bytes())  # never another merge's
    return "".join(card.notes)


FOREIGN = (
    b'{"notes": "mine",}', b"[1, 2]", b"{", b"", b"5", b'"text"', b"null", b"\xff\xfe", b"\xef\xbb\xbf{}",
    b"[" * 100_000, b'{"notes": "mine"}', b'{"architectures": ["x"]}', b'{"written by merge": 5}',
    b'{"written by merge": {}, "notes": 5}', b'{"written by merge": {}, "preferred weight": "1"}',
    b'{"written by merge": {}, "preferred weight": NaN}', b'{"written by merge": {}, "activation text": []}',
    b'\xef\xbb\xbf{"written by merge": {}}',
)  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=lambda content: content[:40].decode("latin-1"))
def test_what_no_merge_has_written_is_kept_and_named(tmp_path, content):
    lora, side = tmp_path / "m.safetensors", tmp_path / "m.json"
    for name in ("m.json.bak", "m.json.2.bak"):
        side.write_bytes(content)
        note = _write_card(lora, ["word"], "notes")
        assert f"kept as {name}" in note
        assert (tmp_path / name).read_bytes() == content
        assert json.loads(side.read_text())["activation text"] == "word"
    assert _write_card(lora, ["word"], "notes") == ""
    assert _files(tmp_path) == ["m.json", "m.json.2.bak", "m.json.bak"]


def test_what_a_person_wrote_into_a_card_stays_in_it(tmp_path):
    lora, side = tmp_path / "m.safetensors", tmp_path / "m.json"
    side.write_text('{"notes": "mine", "favourite": false, "written by merge": 5}', encoding="utf-8-sig")
    assert "m.json.bak" in _write_card(lora, ["word"], "notes")
    card = json.loads(side.read_text())
    assert (card["notes"], card["favourite"]) == ("mine", False)
    side.write_text(json.dumps({**card, "activation text": "other", "negative text": "bad"}))
    assert _write_card(lora, ["new"], "notes") == ""
    card = json.loads(side.read_text())
    assert (card["notes"], card["activation text"], card["negative text"]) == ("mine", "other", "bad")
    assert _files(tmp_path) == ["m.json", "m.json.bak"]


@POSIX
@pytest.mark.parametrize("there", [True, False])
def test_a_side_car_that_is_a_link_is_not_written_through(tmp_path, there):
    (tmp_path / "loras").mkdir()
    lora, side, victim = (
        tmp_path / "loras" / "m.safetensors",
        tmp_path / "loras" / "m.json",
        tmp_path / "config.json",
    )
    if there:
        victim.write_text('{"theirs": 1}')
    side.symlink_to(victim)
    assert "was a link; it is kept as m.json.bak" in _write_card(lora, [], "notes")
    assert victim.exists() == there
    assert not there or victim.read_text() == '{"theirs": 1}'
    assert (tmp_path / "loras" / "m.json.bak").is_symlink()
    assert not side.is_symlink()


@POSIX
@pytest.mark.parametrize("trap", ["link", "dangling", "pipe"])
def test_a_lock_file_that_somebody_laid_there_is_neither_followed_nor_waited_for(path, tmp_path, trap):
    lock, victim = tmp_path / ".a.json.lock", tmp_path / "victim"
    if trap == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(victim)
        if trap == "link":
            victim.write_bytes(b"theirs")
    begun = time.monotonic()
    with contextlib.suppress(OutputError), store.locked(path, 0.2):
        pass
    assert time.monotonic() - begun < 5
    assert victim.exists() == (trap == "link")


@POSIX
def test_a_pipe_in_place_of_a_side_car_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "m.json")
    assert metadata.read_side_car(tmp_path / "m.safetensors") == {}
    with pytest.raises(OutputError, match="no plain file"):
        _write_card(tmp_path / "m.safetensors", [], "notes")


def test_a_huge_side_car_is_neither_read_nor_replaced(tmp_path):
    side = tmp_path / "m.json"
    side.write_bytes(b'{"notes": "x"}' + b" " * store.LIMIT)
    assert metadata.read_side_car(tmp_path / "m.safetensors") == {}
    with pytest.raises(OutputError, match="larger than 8 MB"):
        _write_card(tmp_path / "m.safetensors", [], "notes")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows calls such a path not found")
def test_a_name_that_no_file_can_have_is_no_file(tmp_path):
    assert store.read_text(tmp_path / f"{'n' * 252}.adapter_config.json") is None
