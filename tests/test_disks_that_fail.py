"""The history under fire: killed at every call that reaches the disk, a full disk at every write, no locks, half a
file, no file: what was said to be kept is there, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from lib_merge.errors import OutputError
from lib_merge.files import moving, store
from lib_merge.kept import database as databases
from lib_merge.kept.archive import Archive
from lib_merge.kept.database import NAME, STEPS, Database

ROOT = Path(__file__).parents[1]
# waiting for a real disk some thousand times takes minutes
MEMORY = Path("/dev/shm")
COMPILER = shutil.which("cc")
# calls of the C library that change files; at the armed one the process is killed, or the disk is full
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>
static long left = -1; static int full;
void arm(long at, int mode) { left = at; full = mode; }
long armed(void) { return left; }
static int hit(void) {
    if (left < 0 || left-- > 0) return 0;
    if (!full) kill(getpid(), SIGKILL);
    left = full == 2 ? 0 : -1;  /* 2: full from then on */
    errno = ENOSPC;
    return 1;
}
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
ssize_t write(int f, const void *b, size_t n) { return hit() ? -1 : REAL(write)(f, b, n); }
ssize_t pwrite(int f, const void *b, size_t n, off_t o) { return hit() ? -1 : REAL(pwrite)(f, b, n, o); }
ssize_t pwrite64(int f, const void *b, size_t n, off64_t o) { return hit() ? -1 : REAL(pwrite64)(f, b, n, o); }
int fsync(int f) { return !full && hit() ? -1 : REAL(fsync)(f); }
int fdatasync(int f) { return !full && hit() ? -1 : REAL(fdatasync)(f); }
int ftruncate(int f, off_t n) { return !full && hit() ? -1 : REAL(ftruncate)(f, n); }
int ftruncate64(int f, off64_t n) { return !full && hit() ? -1 : REAL(ftruncate64)(f, n); }
int unlink(const char *p) { return !full && hit() ? -1 : REAL(unlink)(p); }
int rename(const char *a, const char *b) { return !full && hit() ? -1 : REAL(rename)(a, b); }
int link(const char *a, const char *b) { return !full && hit() ? -1 : REAL(link)(a, b); }
"""
CHILD = """
    import ctypes, os, sys
    from pathlib import Path
    from lib_merge.errors import MergeError
    from lib_merge.kept.archive import Archive
    shim = ctypes.CDLL(None)
    shim.armed.restype = ctypes.c_long
    def change(archive, work):
        entries = {entry.name: entry.id for entry in archive.history.list()}
        if work == "add":
            archive.history.add(name="new", notes="y" * 9000)
        elif work == "update":
            archive.history.update(entries["m1"], notes="after" * 3000)
        elif work == "remove":
            archive.history.remove(entries["m1"])
        elif work == "report":
            archive.reports.keep(entries["m1"], {"after": [os.urandom(9).hex() for _ in range(3000)]}, "page")
        elif work == "mend":
            archive.facts("header", 1).load()
    print("ready", flush=True)
    for line in sys.stdin:
        work, at, mode, folder = line.rstrip("\\n").split(" ", 3)
        pid = os.fork()
        if pid == 0:
            archive = Archive(Path(folder))
            if work not in ("mend", "make"):
                archive.history.list()  # opened before: the change alone is tried
            shim.arm(ctypes.c_long(int(at)), int(mode))
            try:
                change(archive, work) if work != "make" else archive.history.add(name="new")
                code = 0
            except MergeError as error:
                said = str(error)
                true = "no space is left" in said or int(mode) != 2  # 2: the disk is still full
                code = 3 if said.endswith(".") and "\\n" not in said and true else 4
            except BaseException:
                code = 5
            reached = shim.armed() < 0 or int(mode) == 2 and shim.armed() == 0
            shim.arm(ctypes.c_long(-1), 0)
            os._exit(code if reached else 10 + code)
        _, status = os.waitpid(pid, 0)
        print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    if COMPILER is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    built = [
        COMPILER,
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-o",
        str(folder / "shim.so"),
        str(folder / "shim.c"),
        "-ldl",
    ]
    subprocess.run(built, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(folder / "shim.so"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as child:  # fmt: skip
        assert child.stdout.readline() == "ready\n"
        yield child
        child.stdin.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data folder with a history, written once."""
    folder = tmp_path_factory.mktemp("made")
    archive = Archive(folder)
    for number in range(12):
        entry = archive.history.add(name=f"m{number}", notes="before" * 200)
        archive.reports.keep(entry.id, {"before": number}, "<p>")
    return folder


@pytest.fixture
def before(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "before")


def _entries(folder):
    archive = Archive(folder)
    found = {entry.name: entry.notes for entry in archive.history.list()}
    return found, archive.take_warnings()


def _sound(folder):
    with contextlib.closing(sqlite3.connect(folder / NAME)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _tried(child, before, tmp_path, work, mode, check):
    """Do a change with the failure at its 1st, 2nd, … call, up to its last; return how many there are."""
    memory = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else tmp_path))
    for at in range(2000):
        folder = memory / f"{work}-{at}"
        shutil.copytree(before, folder)
        child.stdin.write(f"{work} {at} {mode} {folder}\n")
        child.stdin.flush()
        code = int(child.stdout.readline())
        check(folder, code % 10 if code >= 0 else code)
        shutil.rmtree(folder)
        if code >= 10:
            shutil.rmtree(memory)
            return at
    raise AssertionError


def _history_is_old_or_new(work, old, folder, code):
    new = {
        "add": {**old, "new": "y" * 9000},
        "update": {**old, "m1": "after" * 3000},
        "remove": {name: notes for name, notes in old.items() if name != "m1"},
        "report": old,
    }[work]
    found, warnings = _entries(folder)
    assert found == new if code == 0 else old if code > 0 else found in (old, new)
    assert code in (0, 3, -9)
    assert warnings == []
    assert _sound(folder)
    if work == "remove" and "m1" not in found:
        assert len(list((folder / "trash").glob("*.json"))) == 2  # the entry and its report
    Archive(folder).history.add(name="next")  # nothing stays locked


@pytest.mark.slow
@pytest.mark.parametrize("work", ["add", "update", "remove"])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_history(child, before, tmp_path, work):
    old, _ = _entries(before)
    calls = _tried(child, before, tmp_path, work, 0, lambda *found: _history_is_old_or_new(work, old, *found))
    assert calls > 5


@pytest.mark.slow
@pytest.mark.parametrize(("work", "mode"), [("add", 2), ("update", 1), ("remove", 2), ("report", 1)])
def test_a_full_disk_at_any_write_is_one_sentence_and_leaves_the_old_history(
    child, before, tmp_path, work, mode
):
    """After a full disk the list showed what was not on the disk, and SQLite's "readonly" and "disk I/O error" were
    told instead. Mode 1: once; 2: from then on.
    """
    old, _ = _entries(before)
    codes = []

    def check(folder, code):
        codes.append(code)
        _history_is_old_or_new(work, old, folder, code)

    _tried(child, before, tmp_path, work, mode, check)
    assert 3 in codes
    assert codes[-1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0, 2], ids=["kill", "full"])
def test_a_failure_at_any_call_of_mending_loses_nothing_that_could_be_read(child, before, tmp_path, mode):
    with contextlib.closing(sqlite3.connect(before / NAME, isolation_level=None)) as connection:
        connection.execute("DROP TABLE facts")  # broken, and every entry can still be read
    broken, old = (before / NAME).read_bytes(), {f"m{number}" for number in range(12)}

    def check(folder, code):
        assert code in (0, -9)
        archive = Archive(folder)
        archive.facts("header", 1).load()
        assert {entry.name for entry in archive.history.list()} == old
        copies = [path.read_bytes() for path in folder.glob("*.broken-*.sqlite3")]
        assert broken in copies
        for left in folder.glob(".*"):
            os.utime(left, (0, 0))
        store.write(folder / "presets.json", b"x")
        assert not list(folder.glob(".*"))  # nothing of a killed one stays for ever
        assert archive.history.rebuild(lambda: ()) == 0
        with contextlib.closing(sqlite3.connect(folder / NAME)) as connection:
            assert connection.execute("SELECT count(*) FROM reports").fetchone() == (12,)

    assert _tried(child, before, tmp_path, "mend", mode, check) > 3


@pytest.mark.slow
def test_a_kill_at_any_call_of_making_the_file_leaves_one_that_can_be_used(child, tmp_path):
    (tmp_path / "empty").mkdir()

    def check(folder, code):
        assert code in (0, -9)
        found, warnings = _entries(folder)
        assert found in ({}, {"new": ""})
        assert warnings == []
        Archive(folder).history.add(name="next")

    assert _tried(child, tmp_path / "empty", tmp_path, "make", 0, check) > 3


# -------------------------------------------------------------------------------------------- without a shim


@pytest.mark.parametrize(
    "text", ["attempt to write a readonly database", "disk I/O error", "unable to open database file"]
)
@pytest.mark.parametrize("how", ["disk", "quota", "room"])
def test_a_full_disk_that_sqlite_calls_something_else_is_named(tmp_path, monkeypatch, text, how):
    real = shutil.disk_usage(tmp_path)
    if how == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=100))
    elif how == "quota":  # the disk has room, and not for this user
        monkeypatch.setattr(store.os, "fsync", _full)
    sentence = str(databases._sentence(sqlite3.OperationalError(text), tmp_path / NAME))
    assert ("no space is left for lora-merge.sqlite3" in sentence) == (how != "room")


@pytest.mark.parametrize("moment", ["_fill", "set_aside", "move", "replace"])
def test_mending_that_fails_leaves_the_broken_file_to_be_mended_later(before, monkeypatch, moment):
    with contextlib.closing(sqlite3.connect(before / NAME, isolation_level=None)) as connection:
        connection.execute("DROP TABLE facts")
    broken = (before / NAME).read_bytes()
    (before / f"{NAME}-journal").write_bytes(b"")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace") if moment == "replace" else (databases, moment)), fail)
        archive = Archive(before)
        assert archive.facts("header", 1).load() == {}
        assert "no space is left for lora-merge.sqlite3" in archive.take_warnings()[0]
    assert (before / NAME).read_bytes() == broken
    archive = Archive(before)
    assert archive.facts("header", 1).load() == {}
    assert len(archive.history.list()) == 12
    [sentence] = archive.take_warnings()
    assert "was damaged" in sentence


def test_a_history_that_became_empty_comes_back_from_the_merges(before):
    (before / NAME).write_bytes(b"")
    os.utime(before / NAME, (time.time() - 1000,) * 2)
    archive = Archive(before)
    assert archive.history.list() == []
    [sentence] = archive.take_warnings()
    assert "lora-merge.sqlite3 was empty" in sentence
    merge = {"time": "2026", "name": "back", "key": "0/back.safetensors", "report": {"tensor_hash": "a"}}
    archive.rebuild(lambda: [merge])
    assert [entry.name for entry in archive.history.list()] == ["back"]


def test_a_file_that_another_process_is_just_making_is_not_taken_for_empty(tmp_path):
    (tmp_path / NAME).write_bytes(b"")
    archive = Archive(tmp_path)
    archive.history.add(name="a")
    assert archive.take_warnings() == []
    assert archive.history.rebuild(lambda: pytest.fail("nothing was lost")) == 0


def test_a_rebuild_that_cannot_be_written_is_a_warning(before, monkeypatch):
    (before / NAME).write_bytes(b"nonsense" * 1000)
    archive = Archive(before)
    archive.history.list()
    archive.take_warnings()

    def full(*_, **__):
        raise OutputError("no space is left for lora-merge.sqlite3: free some room or choose another disk.")

    with monkeypatch.context() as patch:
        patch.setattr(archive._database, "write", full)
        archive.rebuild(lambda: [{"name": "x", "key": "0/x", "report": {}}])
    [sentence] = archive.take_warnings()
    assert sentence.startswith("entries of the history are still missing: no space is left")
    archive.rebuild(lambda: [{"name": "x", "key": "0/x", "report": {}}])
    assert [entry.name for entry in archive.history.list()] == ["x"]


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_folder_without_locks_works_and_says_so(tmp_path, monkeypatch, number):
    import fcntl

    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", none)
    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(databases, "TIMEOUT", 0.1)
    archive = Archive(tmp_path / "a?b#c%20 é")
    entry = archive.history.add(name="a")
    with contextlib.closing(sqlite3.connect(archive._database.path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")  # whatever the system answers, it is not asked
        archive.history.update(entry.id, notes="x")
    assert [one.notes for one in Archive(tmp_path / "a?b#c%20 é").history.list()] == ["x"]
    [sentence] = archive.take_warnings()
    assert sentence.endswith("knows no locks: use its history from one program at a time.")


def test_a_copy_before_an_update_that_fails_leaves_no_half_copy(before, monkeypatch):
    monkeypatch.setattr(databases, "STEPS", (*STEPS, ("CREATE TABLE more (x)",)))
    with monkeypatch.context() as patch:
        patch.setattr(databases.store, "rename_new", _full)
        for _ in range(3):
            assert Archive(before).history.list() == []
            with pytest.raises(OutputError):
                Archive(before).history.add(name="x")
    assert [path.name for path in before.iterdir()] == [NAME]
    assert len(Archive(before).history.list()) == 12


def _full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_broken_file_is_copied_where_the_disk_knows_no_second_names(before, monkeypatch):
    monkeypatch.setattr(moving.os, "link", _full)
    (before / NAME).write_bytes(b"nonsense" * 1000)
    archive = Archive(before)
    assert archive.history.list() == []
    assert (before / "lora-merge.broken-1.sqlite3").read_bytes() == b"nonsense" * 1000


def test_a_database_is_asked_once_whether_its_folder_has_locks(before, monkeypatch):
    asked = []
    real = databases._has_locks
    monkeypatch.setattr(databases, "_has_locks", lambda folder: asked.append(folder) or real(folder))
    database = Database(before / NAME)
    for _ in range(5):
        assert database.read(
            lambda connection: connection.execute("SELECT count(*) FROM entries").fetchone(), None
        )
    assert asked == [before]
