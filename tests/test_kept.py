"""What only the program keeps: one SQLite file, shared by processes, mended when broken, taken over from 0.1."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from lib_merge.errors import OutputError, RecipeError
from lib_merge.files import store
from lib_merge.kept import database as databases
from lib_merge.kept.archive import Archive
from lib_merge.kept.database import NAME, STEPS, Database
from lib_merge.kept.reports import MOST, packed, unpacked
from lib_merge.library.inspect import VERSION as ENERGIES
from lib_merge.library.inspect import Energies
from lib_merge.library.library import VERSION as HEADERS
from lib_merge.library.library import Library
from lib_merge.recipe import from_json

ROOT = Path(__file__).parents[1]
V01 = ROOT / "tests" / "reference" / "v01"
RECIPE = {"method": "ties", "sources": []}


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path)


def _python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _sql(folder, query, *values):
    with contextlib.closing(sqlite3.connect(folder / NAME, isolation_level=None)) as connection:
        return connection.execute(query, values).fetchall()


# -------------------------------------------------------------------------------------------- the history


def test_nothing_is_made_before_it_is_needed(archive, tmp_path):
    assert list(tmp_path.iterdir()) == []
    assert archive.history.list() == []
    assert archive.take_warnings() == []


def test_entries_come_back_newest_first_and_stay_after_a_restart(archive, tmp_path):
    entries = [archive.history.add(name=f"m{number}", recipe=RECIPE) for number in range(3)]
    archive.history.update(entries[0].id, notes="good", verdict={"decision": "keep"}, status="revise")
    again = Archive(tmp_path).history
    assert [entry.name for entry in again.list()] == ["m2", "m1", "m0"]
    assert again.get(entries[0].id).verdict == {"decision": "keep"}
    assert [entry.name for entry in again.list("REVISE good")] == ["m0"]
    for bad in ("", "../../x", "000001", entries[0].id[:-1] + "z"):
        with pytest.raises(RecipeError):
            again.get(bad)
    with pytest.raises(RecipeError, match="no recipe that could be changed"):
        again.update(entries[0].id, recipe={})
    with pytest.raises(RecipeError, match="gone"):
        again.update("000009-00000000", notes="x")


def test_a_removed_entry_and_its_report_become_files_in_the_trash(archive, tmp_path):
    entry = archive.history.add(name="a", recipe=RECIPE)
    archive.reports.keep(entry.id, {"n": 1}, "<p>page")
    archive.history.remove(entry.id)
    assert archive.history.list() == []
    assert archive.reports.text(entry.id, "json") is None
    trash = tmp_path / "trash"
    assert sorted(path.name for path in trash.iterdir()) == [f"{entry.id}-report.html", f"{entry.id}-report.json", f"{entry.id}.json"]  # fmt: skip
    assert json.loads((trash / f"{entry.id}.json").read_text())["recipe"] == RECIPE
    with pytest.raises(RecipeError, match="gone already"):
        archive.history.remove(entry.id)


def test_an_entry_whose_trash_cannot_be_written_stays(archive, tmp_path):
    entry = archive.history.add(name="a")
    (tmp_path / "trash").write_text("a file")
    with pytest.raises(OutputError, match="trash"):
        archive.history.remove(entry.id)
    assert archive.history.get(entry.id).name == "a"


def test_names_that_are_no_text_do_not_harm(archive, tmp_path):
    name = os.fsdecode(b"caf\xe9") if sys.platform != "win32" else "caf\ud800"
    entry = archive.history.add(name=name, key=f"0/{name}.safetensors", recipe=RECIPE)
    assert Archive(tmp_path).history.get(entry.id).name == name
    facts = archive.facts("header", 1)
    if sys.platform != "win32":
        facts.put({f"/loras/{name}": (1, 2, {"tags": [name]})})
        assert facts.get(Path(f"/loras/{name}"), 1, 2) == {"tags": [name]}


def test_one_broken_entry_harms_no_other(archive, tmp_path):
    entries = [archive.history.add(name=f"m{number}") for number in range(4)]
    for entry, text in zip(entries[:3], ("{", '{"name": 5}', b"\xff")):
        _sql(tmp_path, "UPDATE entries SET entry = ? WHERE id = ?", text, entry.id)
    again = Archive(tmp_path).history
    assert [entry.status for entry in again.list()] == ["ok", "broken", "broken", "broken"]
    with pytest.raises(RecipeError, match="broken"):
        again.get(entries[0].id)
    with pytest.raises(RecipeError, match="broken"):
        again.update(entries[0].id, notes="x")
    again.remove(entries[1].id)


def test_what_another_process_changed_is_seen(archive, tmp_path):
    other = Archive(tmp_path)
    entry = archive.history.add(name="a")
    assert [one.name for one in other.history.list()] == ["a"]
    archive.history.update(entry.id, name="b")
    assert [one.name for one in other.history.list()] == ["b"]
    other.history.remove(entry.id)
    assert archive.history.list() == []


# -------------------------------------------------------------------------------------------- many at once


@pytest.mark.slow
def test_eight_processes_of_forty_updates_lose_none(archive, tmp_path):
    """6 of 40 concurrent updates were lost."""
    entry = archive.history.add(name="shared", verdict={})
    code = """
        import sys
        from pathlib import Path
        from lib_merge.kept.archive import Archive
        history = Archive(Path(sys.argv[1])).history
        for number in range(20):
            history.add(name=f"{sys.argv[3]}-{number}")
            history.update(sys.argv[2], notes=f"{sys.argv[3]}-{number}")
    """
    workers = [_python(code, tmp_path, entry.id, name) for name in range(8)]
    for worker in workers:
        assert worker.communicate(timeout=300)[1] == ""
    entries = archive.history.list()
    assert {one.name for one in entries} == {"shared"} | {f"{a}-{b}" for a in range(8) for b in range(20)}
    assert len({one.id[:6] for one in entries}) == len(entries) == 161
    assert archive.history.get(entry.id).notes.endswith("-19")


def test_read_and_changed_in_one_step(archive, tmp_path):
    """A change reads what it changes under the lock: two that count lose no number."""
    database = Database(tmp_path / NAME)
    database.write(lambda connection: connection.execute("INSERT INTO state VALUES ('n', '0')"))

    def add(connection):
        (value,) = connection.execute("SELECT value FROM state WHERE name = 'n'").fetchone()
        connection.execute("UPDATE state SET value = ? WHERE name = 'n'", (str(int(value) + 1),))

    def work():
        for _ in range(25):
            database.write(add)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _sql(tmp_path, "SELECT value FROM state WHERE name = 'n'") == [("100",)]


@pytest.mark.slow
def test_eight_processes_make_the_file_together(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from lib_merge.kept.archive import Archive
        archive = Archive(Path(sys.argv[1]))
        archive.history.add(name=sys.argv[2])
        assert archive.take_warnings() == [], archive.take_warnings()
    """
    shutil.copytree(V01 / "data", tmp_path / "data")
    workers = [_python(code, tmp_path / "data", name) for name in range(8)]
    for worker in workers:
        assert worker.communicate(timeout=300)[1] == ""
    archive = Archive(tmp_path / "data")
    names = [entry.name for entry in archive.history.list()]
    assert len(names) == len(set(names)) == 4 + 8
    assert archive.take_warnings() == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_kill_in_the_middle_of_a_change_takes_it_back(archive, tmp_path):
    entry = archive.history.add(name="a", notes="before")
    code = """
        import os, signal, sys
        from pathlib import Path
        from lib_merge.kept.archive import Archive
        archive = Archive(Path(sys.argv[1]))
        def work(connection):
            connection.execute("DELETE FROM entries")
            os.kill(os.getpid(), signal.SIGKILL)
        archive._database.write(work)
    """
    killed = _python(code, tmp_path)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    begun = time.monotonic()
    assert archive.history.update(entry.id, name="b").notes == "before"
    assert time.monotonic() - begun < 5
    assert archive.take_warnings() == []


# -------------------------------------------------------------------------------------------- disks that fail


def _limited(monkeypatch, pragma):
    real = Database._connect

    def connect(self):
        connection = real(self)
        connection.execute(pragma)
        return connection

    monkeypatch.setattr(Database, "_connect", connect)


def test_a_full_disk_is_one_sentence_and_loses_nothing(archive, tmp_path, monkeypatch):
    entry = archive.history.add(name="a", notes="before")
    [pages] = _sql(tmp_path, "PRAGMA page_count")[0]
    with monkeypatch.context() as patch:
        _limited(patch, f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutputError, match=rf"^no space is left for {NAME}: free some room"):
            archive.history.update(entry.id, notes="x" * 100_000)
        assert [one.notes for one in archive.history.list()] == ["before"]  # not what is not on the disk
        with pytest.raises(OutputError, match="no space"):
            archive.history.add(name="b", notes="x" * 100_000)
        with pytest.raises(OutputError, match="no space"):
            archive.reports.keep(entry.id, {"x": [os.urandom(9).hex() for _ in range(10_000)]}, "")
    assert [one.name for one in Archive(tmp_path).history.list()] == ["a"]
    archive.history.add(name="b", notes="x" * 100_000)


def test_a_folder_that_cannot_be_written_is_one_sentence(archive, tmp_path, monkeypatch):
    entry = archive.history.add(name="a")
    with monkeypatch.context() as patch:
        _limited(patch, "PRAGMA query_only = 1")
        again = Archive(tmp_path)
        assert [one.name for one in again.history.list()] == ["a"]
        with pytest.raises(OutputError, match=r"the folder .* is read-only"):
            again.history.update(entry.id, notes="x")
        with pytest.raises(OutputError, match=r"the folder .* is read-only"):
            again.history.add(name="b")
    assert [one.name for one in archive.history.list()] == ["a"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    archive = Archive(tmp_path / "file" / "data")
    assert archive.history.list() == []
    assert archive.comparisons.newest() == ""
    assert archive.facts("header", 1).load() == {}
    [sentence] = archive.take_warnings()
    assert "the folder data does not exist" in sentence
    with pytest.raises(OutputError, match="the folder data does not exist"):
        archive.history.add(name="a")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="becomes another user")
def test_a_read_only_folder_of_the_system(archive, tmp_path):
    entry = archive.history.add(name="a")
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == 0 and folder != Path("/") and folder.stat().st_mode & 5 != 5:
            folder.chmod(0o755)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:  # no import: the environment may be closed to that user
        os.setuid(65534)
        try:
            again = Archive(tmp_path)
            said = [one.name for one in again.history.list()]
            try:
                again.history.update(entry.id, notes="x")
            except OutputError as error:
                said.append(str(error))
            empty = Archive(tmp_path / "none")
            said += [len(empty.history.list()), *empty.take_warnings()]
            os.write(writer, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    said = json.loads(os.read(reader, 10_000))
    assert said[0] == "a"
    assert "read-only" in said[1]
    assert said[2] == 0
    assert "does not exist" in said[3]
    assert archive.history.get(entry.id).notes == ""


def test_a_file_that_is_held_for_long_is_one_sentence(archive, tmp_path, monkeypatch):
    archive.history.add(name="a")
    monkeypatch.setattr(databases, "TIMEOUT", 0.1)
    with contextlib.closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutputError, match=r"has been held by another program for 0\.1 s; try again"):
            archive.history.add(name="b")
        assert archive.history.list() == []
        assert "held by another program" in archive.take_warnings()[0]
    assert [entry.name for entry in archive.history.list()] == ["a"]


# -------------------------------------------------------------------------------------------- versions


def test_a_file_of_a_newer_version_is_left_alone(archive, tmp_path):
    archive.history.add(name="a")
    _sql(tmp_path, "PRAGMA user_version = 99")
    before = (tmp_path / NAME).read_bytes()
    again = Archive(tmp_path)
    assert again.history.list() == []
    assert "newer version" in again.take_warnings()[0]
    with pytest.raises(OutputError, match="newer version"):
        again.history.add(name="b")
    assert (tmp_path / NAME).read_bytes() == before


def test_a_file_of_an_older_version_is_copied_and_brought_up_to_date(archive, tmp_path, monkeypatch):
    archive.history.add(name="a")
    monkeypatch.setattr(databases, "STEPS", (*STEPS, ("CREATE TABLE more (x)",), ("INSERT INTO more VALUES (5)",)))  # fmt: skip
    again = Archive(tmp_path)
    assert [entry.name for entry in again.history.list()] == ["a"]
    assert _sql(tmp_path, "SELECT x FROM more") == [(5,)]
    assert _sql(tmp_path, "PRAGMA user_version") == [(len(STEPS) + 2,)]
    copy = tmp_path / f"lora-merge.version-{len(STEPS)}.sqlite3"
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (1,)


def test_a_step_that_fails_changes_nothing(archive, tmp_path, monkeypatch):
    archive.history.add(name="a")
    with monkeypatch.context() as patch:
        patch.setattr(databases, "STEPS", (*STEPS, ("DROP TABLE entries", "nonsense")))
        with pytest.raises(OutputError):
            Archive(tmp_path).history.add(name="b")
    assert [entry.name for entry in archive.history.list()] == ["a"]
    assert (tmp_path / f"lora-merge.version-{len(STEPS)}.sqlite3").is_file()


# -------------------------------------------------------------------------------------------- damage


def _damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "half":
        data = data[: len(data) // 2 // 4096 * 4096 + 100]
    elif kind == "noise":
        data[:4096] = os.urandom(4096)
    elif kind == "page":
        data[4096 * 2 : 4096 * 3] = b"\xaa" * 4096
    elif kind == "text":
        data = bytearray(b'{"version": 1}' * 100)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["half", "noise", "page", "text", "foreign", "table"])
def test_a_broken_file_is_set_aside_and_the_history_comes_back_from_merged_loras(tmp_path, kind):
    loras = tmp_path / "loras"
    shutil.copytree(V01 / "loras", loras)
    archive = Archive(tmp_path)
    library = Library(lambda: [loras], archive.facts("header", HEADERS), lambda _: "", lambda path: path.stem)
    for number in range(40):
        archive.history.add(name=f"lost {number}", notes="x" * 500)
    if kind == "foreign":
        (tmp_path / NAME).unlink()
        _sql(tmp_path, "CREATE TABLE theirs (x)")
    elif kind == "table":
        _sql(tmp_path, "DROP TABLE entries")
    else:
        _damage(tmp_path / NAME, kind)
    broken = (tmp_path / NAME).read_bytes()
    again = Archive(tmp_path)
    for _ in range(2):  # whatever is asked for first
        again.history.list()
        again.comparisons.newest()
        again.reports.text("000001-00000000", "json")
        again.facts("header", 1).load()
    [sentence] = again.take_warnings()
    assert "kept as lora-merge.broken-1.sqlite3" in sentence
    assert (tmp_path / "lora-merge.broken-1.sqlite3").read_bytes() == broken
    library.refresh(wait=True)
    assert again.history.rebuild(library.merges) == 1
    assert again.history.rebuild(library.merges) == 0
    [entry] = [one for one in again.history.list() if one.name == "ink mira v1"]
    assert entry.key == "0/merged/ink mira v1.safetensors"
    assert from_json(entry.recipe).method == entry.method
    assert len(entry.report["tensor_hash"]) == 64
    assert entry.time.startswith("20")
    again.history.add(name="next")
    assert Archive(tmp_path).take_warnings() == []


def test_the_desk_brings_the_history_back_by_itself(tmp_path):
    from lib_merge.ui.operations import open_desk
    from tests.test_tab_server import Host

    host = Host(tmp_path)
    shutil.copytree(V01 / "loras", host.folder, dirs_exist_ok=True)
    desk = open_desk(host)
    assert desk.history.list() == []
    desk.library.refresh(wait=True)
    assert desk.history.list() == []  # what was merged elsewhere is not the history of this place
    (host.data_folder() / NAME).write_bytes(b"nonsense" * 1000)
    desk = open_desk(host)
    warnings = desk.handle_dict({"op": "init"})["warnings"]
    assert sum("was damaged" in sentence for sentence in warnings) == 1
    desk.library.refresh(wait=True)
    assert [entry["name"] for entry in desk.handle_dict({"op": "history"})["entries"]] == ["ink mira v1"]


def test_what_can_be_read_of_a_broken_file_is_kept(archive, tmp_path):
    entries = [archive.history.add(name=f"m{n}", verdict={"decision": "keep"}, notes="x" * 3000) for n in range(60)]  # fmt: skip
    size = (tmp_path / NAME).stat().st_size
    data = bytearray((tmp_path / NAME).read_bytes())
    data[size // 2 // 4096 * 4096 : size // 2 // 4096 * 4096 + 4096] = b"\xaa" * 4096
    (tmp_path / NAME).write_bytes(data)
    listed = Archive(tmp_path).history.list()
    assert 30 < len(listed) < 60
    assert {entry.id for entry in listed} < {entry.id for entry in entries}
    assert all(entry.verdict == {"decision": "keep"} for entry in listed if entry.status == "ok")


def test_the_history_is_only_rebuilt_after_damage(archive):
    def merges():
        raise AssertionError

    archive.history.add(name="a")
    assert archive.history.rebuild(merges) == 0


@pytest.mark.slow
def test_many_processes_mend_one_broken_file(archive, tmp_path):
    archive.history.add(name="a")
    (tmp_path / NAME).write_bytes(b"nonsense" * 1000)
    code = """
        import sys
        from pathlib import Path
        from lib_merge.kept.archive import Archive
        archive = Archive(Path(sys.argv[1]))
        archive.history.add(name=sys.argv[2])
    """
    workers = [_python(code, tmp_path, name) for name in range(4)]
    for worker in workers:
        assert worker.communicate(timeout=300)[1] == ""
    assert {entry.name for entry in Archive(tmp_path).history.list()} == {"0", "1", "2", "3"}
    assert [path.name for path in tmp_path.glob("*.broken-*")] == ["lora-merge.broken-1.sqlite3"]


# -------------------------------------------------------------------------------------------- from 0.1


@pytest.fixture
def old(tmp_path):
    """The data folder of 0.1, its LoRAs at the paths and times that its caches name."""
    shutil.copytree(V01 / "data", tmp_path / "data")
    shutil.copytree(V01 / "loras", tmp_path / "loras")
    names = {"ink": 1, "sub/mira": 2, "neon": 3}
    for name, number in names.items():
        nanoseconds = 1_700_000_000 * 10**9 + number
        os.utime(tmp_path / "loras" / f"{name}.safetensors", ns=(nanoseconds, nanoseconds))
    for cache in ("library.json",):
        data = json.loads((V01 / "data" / cache).read_text())
        data["files"] = {
            f"{tmp_path / 'loras'}/{_below(path)}": facts for path, facts in data["files"].items()
        }
        (tmp_path / "data" / cache).write_text(json.dumps(data))
    return tmp_path / "data"


def _below(path):
    for folder in ("sub/", "merged/"):
        if folder in path:
            return folder + path.rpartition(folder)[2]
    return path.rpartition("/")[2]


def _contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("lora-merge.")
    }


def test_all_of_01_is_taken_over_once_and_left_as_it_is(old):
    before = _contents(old)
    archive = Archive(old)
    entries = archive.history.list()
    assert [entry.id[:6] for entry in entries] == ["000004", "000003", "000002", "000001"]
    for entry in entries:
        data = json.loads((old / "history" / "entries" / f"{entry.id}.json").read_text())
        assert {**entry.to_json(), "version": 1} == {**data, "asked": {}}  # 0.1 did not note what was asked
    first = entries[-1]
    assert first.verdict
    for form in ("json", "html"):
        text = (old / "history" / "reports" / f"{first.id}.{form}").read_bytes().decode("utf-8")
        assert archive.reports.text(first.id, form) == text
    assert archive.reports.read(first.id)["format"] == "lora-merge-analysis"
    assert archive.reports.read(entries[0].id) is None
    newest = archive.comparisons.newest()
    data = json.loads((old / "comparisons" / f"{newest}.json").read_text())
    assert archive.comparisons.get(newest) == {**data, "id": newest}
    assert archive.comparisons.picture(newest).startswith("data:image/jpeg;base64,/9j/")
    assert archive.take_warnings() == []
    assert _contents(old) == before  # 0.1 finds everything as it left it


def test_what_was_taken_over_and_removed_stays_removed_and_what_01_adds_comes_along(old):
    archive = Archive(old)
    gone = archive.history.list()[0]
    archive.history.remove(gone.id)
    archive.history.update(archive.history.list()[0].id, notes="changed in 0.2")
    again = Archive(old)
    assert len(again.history.list()) == 3
    assert again.history.list()[0].notes == "changed in 0.2"
    later = {"version": 1, "name": "made by 0.1 meanwhile", "recipe": RECIPE}
    (old / "history" / "entries" / "000005-0123abcd.json").write_text(json.dumps(later))
    assert Archive(old).history.list()[0].name == "made by 0.1 meanwhile"
    assert len(Archive(old).history.list()) == 4


@pytest.mark.parametrize("depth", [300, 900, 5000])
def test_an_entry_of_any_depth_is_taken_over_or_broken(old, depth):
    entry = '{"version": 1, "name": "deep", "recipe": {"a": ' + "[" * depth + "]" * depth + "}}"
    (old / "history" / "entries" / "000009-0123abcd.json").write_text(entry)
    [newest, *others] = Archive(old).history.list()
    assert newest.name == "deep" or newest.status == "broken"
    assert len(others) == 4


def test_headers_and_energies_that_01_kept_are_read_anew_once(old, monkeypatch):
    from lib_merge.library import library

    archive = Archive(old)
    read = []
    real = library.read_facts
    monkeypatch.setattr(library, "read_facts", lambda path: read.append(path.name) or real(path))
    loras = old.parent / "loras"
    shelf = Library(lambda: [loras], archive.facts("header", HEADERS), lambda _: "", lambda path: path.stem)
    shelf.refresh(wait=True)
    files = sorted(path.name for path in loras.rglob("*.safetensors"))
    assert sorted(read) == files  # 0.1 did not look for speed LoRAs, sliders, epochs
    read.clear()
    shelf = Library(lambda: [loras], archive.facts("header", HEADERS), lambda _: "", lambda path: path.stem)
    shelf.refresh(wait=True)
    assert read == []
    assert {item.name: item.family for item in shelf.items()}["mira"]
    energies = Energies(archive.facts("energy", ENERGIES))  # 0.1 did not measure encoders apart
    while (facts := energies.get(loras / "ink.safetensors")) is None:
        time.sleep(0.01)
    assert facts["norm"] > 0


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1, "files": [3]}', '{"version": 1, "files": {"a": 1, "b|1|2": 3, "c": [1e400, 1, {}]}}', '{"version": 1, "files": {"\\ud800": [1, 2, {}], "\\ud800|1|2": {}}}', '{"version": 1, "files": {"a": [99999999999999999999, 2, {}], "a|99999999999999999999|2": {}}}', '{"version": 7}'])  # fmt: skip
def test_a_broken_file_of_01_costs_nothing_else(old, text):
    (old / "library.json").write_text(text)
    entry = next((old / "history" / "entries").iterdir())
    entry.write_text(text)
    comparison = next((old / "comparisons").glob("*.json"))
    comparison.write_text(text)
    archive = Archive(old)
    states = {one.id: one.status for one in archive.history.list()}
    assert len(states) == 4
    assert [one for one, status in states.items() if status == "broken"] == (
        [] if text[:2] == '{"' else [entry.stem]
    )
    with contextlib.suppress(RecipeError):
        archive.comparisons.get(comparison.stem)
    assert archive.take_warnings() == []
    assert entry.read_text() == text


def test_what_cannot_be_read_today_is_taken_over_tomorrow(old, monkeypatch):
    one = sorted((old / "history" / "entries").iterdir())[0]
    content = one.read_bytes()
    one.unlink()
    one.mkdir()
    assert len(Archive(old).history.list()) == 3
    one.rmdir()
    one.write_bytes(content)
    assert len(Archive(old).history.list()) == 4


# -------------------------------------------------------------------------------------------- reports, facts


@pytest.mark.parametrize("blob", [b"", b"x", "text", packed("[]"), packed("{"), packed("{}")[:-3], 5])
def test_a_damaged_report_is_no_error(archive, tmp_path, blob):
    entry = archive.history.add(name="a")
    archive.reports.keep(entry.id, {"x": 1}, "page")
    _sql(tmp_path, "UPDATE reports SET json = ?", blob)
    assert archive.reports.read(entry.id) is None
    assert archive.reports.text(entry.id, "html") == "page"


@pytest.mark.parametrize("entry", ["", "../../x", "000001-0123abcd/..", "000001"])
def test_only_entries_have_reports(archive, entry):
    with pytest.raises(RecipeError):
        archive.reports.text(entry, "json")
    with pytest.raises(RecipeError):
        archive.reports.keep(entry, {}, "")
    with pytest.raises(RecipeError):
        archive.reports.text("000001-0123abcd", "exe")


def test_a_report_that_unpacks_to_gigabytes_is_none(monkeypatch):
    from lib_merge.kept import reports

    monkeypatch.setattr(reports, "MOST_BYTES", 1000)
    assert unpacked(packed("x" * 1000)) == "x" * 1000
    assert unpacked(packed("x" * 1001)) is None


class _Picture:
    """As much of PIL's Image as is asked for."""

    def convert(self, mode):
        assert mode == "RGB"
        return self

    def thumbnail(self, size):
        assert size == (1600, 1600)

    def save(self, file, form, quality):
        file.write(f"{form} {quality}".encode())


def _compare(archive, number):
    columns = [{"label": str(number), "kind": "merge", "recipe": None}]
    return archive.comparisons.add(_Picture(), sources=["a"], columns=columns, rows=["1"], figures=[], stopped=False)  # fmt: skip


def test_the_newest_comparisons_are_kept(archive, monkeypatch):
    ids = [_compare(archive, number) for number in range(MOST + 3)]
    assert archive.comparisons.newest() == ids[-1]
    assert archive.comparisons.get(ids[-1])["columns"][0]["label"] == str(MOST + 2)
    assert archive.comparisons.picture(ids[3]) == "data:image/jpeg;base64,SlBFRyA4OA=="
    for gone in (*ids[:3], "../x", ""):
        with pytest.raises(RecipeError):
            archive.comparisons.get(gone)
    monkeypatch.setattr(Database, "_connect", _fails)
    assert _compare(archive, 0) == ""
    assert "no space is left" in archive._database.take_warnings()[0]


def _fails(_):
    raise sqlite3.OperationalError("database or disk is full")


def test_facts_hold_while_file_and_reader_stay(archive, tmp_path):
    facts = archive.facts("header", 1)
    facts.put({"/a": (1, 2, {"x": [1]}), "/b": (3, 4, {})})
    assert Archive(tmp_path).facts("header", 1).load() == {"/a": (1, 2, {"x": [1]}), "/b": (3, 4, {})}
    assert facts.get(Path("/a"), 1, 2) == {"x": [1]}
    assert facts.get(Path("/a"), 1, 3) is None
    assert facts.get(Path("/a"), 2, 2) is None
    assert archive.facts("header", 2).get(Path("/a"), 1, 2) is None
    assert archive.facts("energy", 1).load() == {}
    archive.facts("energy", 1).put({"/a": (1, 2, {"y": 1})})
    facts.put({"/c": (5, 6, {})}, gone=["/a"])
    assert facts.load().keys() == {"/b", "/c"}
    assert archive.facts("energy", 1).get(Path("/a"), 1, 2) == {"y": 1}


def test_the_first_facts_go_when_there_are_too_many(archive):
    facts = archive.facts("energy", 1, most=3)
    for number in range(5):
        facts.put({f"/{number}": (1, 1, {})})
    assert facts.load().keys() == {"/2", "/3", "/4"}
    facts.put({"/2": (1, 2, {})})
    facts.put({"/9": (1, 2, {})})
    assert facts.load().keys() == {"/2", "/4", "/9"}


def test_the_writer_of_shared_files_is_not_asked(archive, monkeypatch):
    """What only the program keeps goes into the one file: nothing else appears beside it."""
    monkeypatch.setattr(store, "write", lambda *_, **__: pytest.fail("a file was written"))
    entry = archive.history.add(name="a")
    archive.reports.keep(entry.id, {}, "")
    archive.facts("header", 1).put({"/a": (1, 2, {})})
    _compare(archive, 1)
    assert [path.name for path in archive._database.path.parent.iterdir()] == [NAME]
