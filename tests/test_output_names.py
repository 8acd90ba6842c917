"""One rule for the names of files, wherever they are typed; and nothing that lies under a name is taken silently."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lib_merge import Job, merge
from lib_merge.cli import main
from lib_merge.errors import MergeError, OutputError
from lib_merge.files.names import MAX_NAME, check_name, check_output_name, check_stem
from lib_merge.ui.naming import output_path, sub_folder
from tests.factories import write_lora
from tests.test_tab_server import PAIR, _state, _wait, desk, host  # noqa: F401 - fixtures

REFUSED = (
    "con", "CON", "nul", "NUL.tar.gz", "aux.x", "prn", "COM1", "com0", "COM¹", "lpt³.old", "LPT9", "CONIN$", "com1 .x",
    ".hid", ".", "..", "...", " ", "out.", "out ", "a/b", "a\\b", "../x", "/etc/x", "C:\\x", "x:stream",
    "a?", "a*", 'a"', "a<", "a>", "a|b", "a\0b", "a\nb", "a\tb", "a\x1bb", "a\x7f", "a\x85b", "a\u202egnp.exe", "a\u2028b",
    "a" * 300, "é" * 121, "a\ud800",
)  # fmt: skip
# a name's outer blanks are slips of the hand in a field, and are left out there
TYPED = tuple(name for name in REFUSED if name.strip(" ") == name)


@pytest.fixture
def pair(tmp_path):
    return [write_lora(tmp_path / "a.safetensors", seed=1), write_lora(tmp_path / "b.safetensors", seed=2)]


def _one_sentence(text):
    assert text.endswith(".")
    assert text.isprintable(), ascii(text)
    assert len(text) < 300


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_cannot_be_kept_everywhere_is_refused_by_every_check(name, tmp_path):
    checks = [lambda: check_name(name), lambda: check_stem(name), lambda: sub_folder(tmp_path, name)]
    checks.append(lambda: output_path(tmp_path, name, overwrite=False))
    if name.strip() and not set(name) & set("/\0"):
        checks.append(lambda: check_output_name(tmp_path / f"{name}.safetensors"))
    refused = 0
    for check in checks:
        with contextlib.suppress(OutputError):
            check()
            continue
        refused += 1
    # a folder's name may have several parts, and . and blanks are none
    assert refused >= len(checks) - (set(name) <= set(" .") or "/" in name or "\\" in name)
    with pytest.raises(OutputError) as error:
        check_name(name)
    _one_sentence(str(error.value))


@pytest.mark.parametrize("name", [name for name in REFUSED if not set(name) & set("/\0")], ids=ascii)
def test_the_command_line_refuses_it_before_any_work_and_writes_nothing(name, pair, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(MergeError) as error:
        merge(pair, save_to=f"{tmp_path}/out/{name}.safetensors", job=Job(overwrite=True, open_file=_never))
    _one_sentence(str(error.value))
    assert list((tmp_path / "out").iterdir()) == []


def _never(path):
    raise AssertionError(path)


def test_the_tab_and_rest_refuse_it_for_a_merge_a_rename_and_another_run(desk, host):  # noqa: F811
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))["result"]
    before = sorted(path.name for path in host.folder.rglob("*"))
    for name in TYPED:
        for request in (
            {"op": "merge", "state": _state(*PAIR, output={"template": name})},
            {"op": "rename", "entry": done["entry"], "to": name},
            {"op": "again", "entry": done["entry"], "name": name},
            {"op": "recipe_save", "name": name, "state": _state(*PAIR)},
        ):
            reply = desk.handle_dict(request)
            assert not reply["ok"], (request, reply)
            _one_sentence(reply["error"])
            assert "Error:" not in reply["error"], reply  # a sentence of ours, not Python's
    assert sorted(path.name for path in host.folder.rglob("*")) == before
    assert desk.handle_dict({"op": "history"})["entries"][0]["name"] == "out"


@given(st.text(st.characters(), min_size=1, max_size=30))
@example("x" * (MAX_NAME - 12))
@example("ink + mira_v1.5 (2)")
@example("日本語のLoRA")
def test_what_the_rule_lets_through_the_disk_keeps_under_that_name(tmp_path_factory, name):
    try:
        check_stem(name)
    except OutputError as error:
        _one_sentence(str(error))
        return
    folder = tmp_path_factory.mktemp("n")
    path = folder / f"{name}.safetensors"
    check_output_name(path)
    path.write_bytes(b"x")
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    path.with_suffix(".preview.jpeg").write_bytes(b"x")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows says not found")
def test_a_path_that_is_too_long_is_one_sentence(pair, tmp_path):
    deep = tmp_path.joinpath(*["d" * 200] * 25) / "m.safetensors"
    with pytest.raises(OutputError, match=r"the path of m\.safetensors is too long") as error:
        merge(pair, save_to=deep)
    assert len(str(error.value)) < 300
    assert main(["merge", "--models", *map(str, pair), "--save_to", str(deep)]) == 2


# -------------------------------------------------------------------------------------------- names in use


@pytest.mark.parametrize(
    "ending", [".json", ".txt", ".png", ".preview.png", ".preview.webp", ".civitai.info"]
)
@pytest.mark.parametrize("own", [True, False])
def test_a_rename_takes_no_name_that_something_lies_under(desk, host, ending, own):  # noqa: F811
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))["result"]
    if not own:  # nothing beside the merge that could be in the way of it
        (host.folder / "out.json").unlink()
    theirs = host.folder / f"config{ending}"
    theirs.write_bytes(b'{"theirs": 1}')
    reply = desk.handle_dict({"op": "rename", "entry": done["entry"], "to": "config"})
    assert reply["error"] == f"config{ending} exists already; choose another name."
    assert theirs.read_bytes() == b'{"theirs": 1}'
    assert (host.folder / "out.safetensors").exists()


def test_another_programs_json_is_neither_renamed_nor_thrown_away(desk, host):  # noqa: F811
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))["result"]
    theirs = host.folder / "out.json"
    theirs.write_text('{"samples_save": true}')
    assert desk.handle_dict({"op": "rename", "entry": done["entry"], "to": "fine"})["ok"]
    assert theirs.read_text() == '{"samples_save": true}'
    (host.folder / "fine.json").write_text("{")
    assert desk.handle_dict({"op": "remove", "entry": done["entry"]})["ok"]
    assert (host.folder / "fine.json").read_text() == "{"
    assert not (host.folder / "fine.safetensors").exists()


def test_a_version_skips_what_lies_under_a_number(tmp_path):
    (tmp_path / "x_v1.safetensors").write_bytes(b"x")
    (tmp_path / "x_v2.preview.png").write_bytes(b"x")
    assert output_path(tmp_path, "x_v{n}", overwrite=False).name == "x_v3.safetensors"
    assert output_path(tmp_path, "x_v{n}", overwrite=True).name == "x_v1.safetensors"


@pytest.mark.parametrize("there", ["folder", "pipe", "link"])
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_what_is_no_file_is_refused_before_any_work(pair, tmp_path, there):
    out = tmp_path / "m.safetensors"
    {"folder": out.mkdir, "pipe": lambda: _pipe(out), "link": lambda: out.symlink_to("nowhere")}[there]()
    with pytest.raises(OutputError, match=r"m\.safetensors (exists already|is there and is no file)"):
        merge(pair, save_to=out, job=Job(overwrite=there != "link", open_file=_never))


def _pipe(path: Path) -> None:
    import os

    os.mkfifo(path)
