"""Names and paths as Windows reads them, on whatever system this runs: what a stranger's text names stays in its folder,
is a file of its own there, and what another program holds open is left whole.
"""

from __future__ import annotations

import errno
import json
import ntpath
import os
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lib_merge import Job, merge, metadata
from lib_merge.blocks.presets import Preset
from lib_merge.blocks.store import PresetStore
from lib_merge.engine.merge import _level
from lib_merge.errors import MergeError, OutputError
from lib_merge.files import store
from lib_merge.files.names import MAX_NAME, check_stem, parts_below
from lib_merge.files.trash import Trash
from lib_merge.library import library as libraries
from lib_merge.library.recipes import RecipeBook
from lib_merge.recipe import Recipe, Source, loads
from lib_merge.ui.naming import output_path, sub_folder
from lib_merge.ui.operations import open_desk
from tests.factories import NAMES, write_lora
from tests.test_tab_server import Host

ROOT = PureWindowsPath("C:\\loras")
# as they stand below a folder: none of them may lead out of it, to a device, to a stream of another file
ELSEWHERE = (
    "..\\x.safetensors", "a\\..\\..\\x.safetensors", "a/..\\..\\x.safetensors", "C:\\x.safetensors", "C:x.safetensors", "c:/x.safetensors",
    "\\x.safetensors", "\\\\server\\share\\x.safetensors", "//server/share/x.safetensors", "\\\\?\\C:\\x.safetensors", "\\\\.\\pipe\\x.safetensors",
    "a.safetensors:b.safetensors", "sub\\a:b.safetensors", "::$DATA", "con.safetensors", "sub/NUL.pt", "aux", "COM1.safetensors", "lpt³.pt",
    "sub./x.safetensors", "sub \\x.safetensors", "x.safetensors.", "x.safetensors ", ".. \\x.safetensors", "...\\x.safetensors", "", "..", "/", "a\0.pt",
)  # fmt: skip
INSIDE = (
    "a.safetensors",
    "sub/a.safetensors",
    "sub\\a.safetensors",
    "Ü b.safetensors",
    "conquest.safetensors",
    "a.b/c.pt",
    ".x/a.pt",
)


def _stays(parts):
    """Hold what Windows makes of a place below the folder against the folder."""
    path = ROOT.joinpath(*parts)
    whole = PureWindowsPath(ntpath.normpath(path))
    return (
        whole.is_relative_to(ROOT) and whole != ROOT and not path.is_reserved() and ":" not in str(path)[2:]
    )


@pytest.mark.parametrize("relative", ELSEWHERE, ids=ascii)
def test_what_leads_elsewhere_on_windows_is_no_path_below_a_folder(relative):
    assert parts_below(relative, windows=True) is None


@pytest.mark.parametrize("relative", INSIDE, ids=ascii)
def test_what_lies_below_a_folder_is_found_there(relative):
    parts = parts_below(relative, windows=True)
    assert parts == PureWindowsPath(relative).parts
    assert _stays(parts)


@given(st.text(st.sampled_from("ab.:/\\ \0?*ConNUL1$"), max_size=12), st.booleans())
@example("////x.pt", False)
@example("a/../../x", False)
def test_whatever_is_let_through_stays_in_its_folder(relative, windows):
    parts = parts_below(relative, windows=windows)
    if parts is None:
        return
    if windows:
        assert _stays(parts), parts
    else:
        whole = Path(os.path.normpath(Path("/loras").joinpath(*parts)))
        assert whole.is_relative_to("/loras"), parts
        assert whole != Path("/loras")


@given(st.text(st.characters(), min_size=1, max_size=40))
@example("CON")
@example("com¹.x")
@example("a.safetensors:b")
@example("x ")
def test_a_name_that_the_rule_lets_through_is_a_file_of_its_own_on_windows(name):
    try:
        check_stem(name)
    except OutputError:
        return
    for ending in ("", ".safetensors", ".json", ".preview.png", ".json.bak"):
        path = ROOT / f"{name}{ending}"
        assert path.parent == ROOT
        assert path.name == f"{name}{ending}"
        assert _stays((path.name,))
        assert path.name == path.name.rstrip(" .")
        assert parts_below(path.name, windows=True) == (path.name,)


# -------------------------------------------------------------------------------------------- every place


@pytest.fixture
def as_windows(monkeypatch):
    """Let the library and the trash read paths as Windows does."""
    monkeypatch.setattr(libraries, "parts_below", lambda relative: parts_below(relative, windows=True))


@pytest.mark.parametrize("relative", [one for one in ELSEWHERE if one], ids=ascii)
def test_no_key_of_the_library_leads_elsewhere(relative, tmp_path, as_windows):
    library = open_desk(Host(tmp_path)).library
    for key in (f"0/{relative}", f"0//{relative}".replace("\\", "\\\\"), f"0///{relative}"):
        with pytest.raises(MergeError, match="not in the LoRA folders") as refused:
            library.resolve(key)
        assert str(refused.value).isprintable()


def test_a_key_of_many_slashes_leads_nowhere_else(tmp_path):
    library = open_desk(Host(tmp_path)).library
    secret = write_lora(tmp_path / "secret.safetensors")
    for slashes in range(1, 7):
        with pytest.raises(MergeError):
            library.resolve(f"0{'/' * slashes}{str(secret).lstrip('/')}")


@pytest.mark.parametrize("name", [one.removesuffix(".safetensors") for one in ELSEWHERE], ids=ascii)
def test_every_place_that_takes_a_name_refuses_it(name, tmp_path):
    book = RecipeBook(tmp_path / "recipes")
    recipe = Recipe((Source(name="a.safetensors"),))
    for check in (
        lambda: output_path(tmp_path, name, overwrite=False),
        lambda: book.save(name, recipe),
        lambda: sub_folder(tmp_path, f"{name}\\x"),
    ):
        try:
            check()
        except MergeError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 300
        else:
            assert name.strip(" ") in ("", "x.safetensors", "/", "x"), name
    assert not [path for path in tmp_path.rglob("*") if ":" in path.name or path.name.endswith((" ", "."))]


@pytest.mark.parametrize("name", ELSEWHERE, ids=ascii)
def test_a_name_in_a_recipe_or_of_a_level_is_one_name(name):
    text = json.dumps({**Recipe((Source(name="a"),)).to_json(), "sources": [{"name": name, "ratio": 1.0}]})
    assert "/" not in loads(text).sources[0].name
    assert "\\" not in loads(text).sources[0].name
    level = _level("", 1, name)
    assert _stays((f"{level}.safetensors",))


@pytest.mark.parametrize(
    "name", [one for one in ELSEWHERE if "\\" in one or "/" in one or ".." in one], ids=ascii
)
def test_a_note_in_the_trash_takes_no_file_elsewhere(name, tmp_path):
    note = {"version": 1, "time": "2026-01-01T00:00:00+00:00", "why": "deleted", "folder": str(tmp_path), "files": {"0123abcd-x.kept": name}}  # fmt: skip
    (tmp_path / "0123abcd.trash.json").write_text(json.dumps(note))
    (tmp_path / "0123abcd-x.kept").write_bytes(b"x")
    assert Trash(tmp_path).things() == []


def test_a_long_path_is_one_sentence_where_windows_has_no_long_paths(monkeypatch, tmp_path):
    target = tmp_path / ("d" * 100) / ("e" * 100) / "m.json"
    target.parent.mkdir(parents=True)
    error = store.write_error(FileNotFoundError(errno.ENOENT, "no"), target)
    assert "is too long for this system" in str(error)
    assert (
        len(f"{'x' * MAX_NAME}.safetensors.lock".encode())
        > 255
        > len(f"{'x' * (MAX_NAME - 12)}.safetensors".encode())
    )


def test_a_twin_in_another_case_goes_into_the_trash(tmp_path):
    """Where the disk knows one name in any case, the file that is there is another merge's all the same."""
    sources = [write_lora(tmp_path / f"{name}.safetensors", seed=ord(name), names=NAMES[:2]) for name in "xy"]
    out = tmp_path / "out"
    out.mkdir()
    merge(sources, save_to=out / "a.safetensors")
    first = (out / "a.safetensors").read_bytes()
    # what a disk without case does when "A" is asked for: it gives "a"
    (out / "a.safetensors").rename(out / "A.safetensors")
    (out / "a.json").rename(out / "A.json")
    report = merge(sources, ratios=[1.0, 0.3], save_to=out / "A.safetensors", job=Job(overwrite=True))
    assert any("kept in" in one for one in report.warnings)
    assert any(path.read_bytes() == first for path in (out / ".lora-merge" / "trash").iterdir())
    assert metadata.read_side_car(out / "A.safetensors")["description"].count("0.3") == 1


# -------------------------------------------------------------------------------------------- held open


def _held(monkeypatch, ending, *, times=10**9):
    """Let another program hold every file of an ending, for so many attempts to replace, rename or remove it."""
    left = [times]
    calls = {name: getattr(os, name) for name in ("replace", "rename", "link", "unlink")}

    def held(name):
        def call(*paths, **more):
            busy = [path for path in paths if str(path).endswith(ending) and os.path.lexists(path)]
            if busy and left[0] > 0:
                left[0] -= 1
                error = PermissionError(errno.EACCES, "The process cannot access the file", str(busy[0]))
                error.winerror = 32
                raise error
            return calls[name](*paths, **more)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, held(name))


def _temporaries(folder):
    return [path.name for path in folder.rglob("*.merging")]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(store, "PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.parametrize("times", [2, 10**9], ids=["for a moment", "for good"])
def test_a_merge_over_a_held_file_is_saved_and_the_old_one_whole(few, tmp_path, times, quick, monkeypatch):
    out = tmp_path / "out" / "m.safetensors"
    out.parent.mkdir()
    merge(few, save_to=out)
    before = out.read_bytes()
    _held(monkeypatch, ".safetensors", times=times)
    report = merge(few, ratios=[1.0, 0.3], save_to=out, job=Job(overwrite=True))
    assert Path(report.output).read_bytes() != before
    if times > 2:
        assert Path(report.output).name != out.name
        assert out.read_bytes() == before
        assert any(out.name in one for one in report.warnings)
    assert json.loads(Path(report.output).with_suffix(".json").read_text())["description"].count("0.3") == 1
    assert _temporaries(tmp_path) == []


@pytest.mark.parametrize("times", [2, 10**9], ids=["for a moment", "for good"])
def test_a_held_card_stays_whole_and_is_named(few, tmp_path, times, quick, monkeypatch):
    out = tmp_path / "m.safetensors"
    merge(few, save_to=out)
    card = out.with_suffix(".json")
    before = card.read_bytes()
    _held(monkeypatch, ".json", times=times)
    report = merge(few, ratios=[1.0, 0.3], save_to=out, job=Job(overwrite=True))
    if times > 2:
        assert card.read_bytes() == before
        assert any("held open by another program" in one for one in report.warnings), report.warnings
        assert any("describes an earlier merge" in one for one in report.warnings), report.warnings
    else:
        assert json.loads(card.read_text())["description"].count("0.3") == 1
    assert _temporaries(tmp_path) == []


@pytest.mark.parametrize("times", [2, 10**9], ids=["for a moment", "for good"])
def test_held_presets_and_recipes_stay_whole(tmp_path, times, quick, monkeypatch):
    presets, book = PresetStore(tmp_path / "presets.json"), RecipeBook(tmp_path / "recipes")
    presets.save(Preset("one", "SD1", {"IN04": 0.5}))
    recipe = Recipe((Source(name="a.safetensors", ratio=0.5),))
    book.save("mix", recipe)
    files = {path: path.read_bytes() for path in (presets.path, tmp_path / "recipes" / "mix.json")}
    _held(monkeypatch, ".json", times=times)
    for save in (
        lambda: presets.save(Preset("two", "SD1", {"IN04": 0.25})),
        lambda: book.save("mix", Recipe((Source(name="a.safetensors", ratio=0.7),)), overwrite=True),
    ):
        try:
            save()
        except OutputError as error:
            assert times > 2
            assert "is held open by another program: close it there and save again." in str(error)
        else:
            assert times == 2
    if times > 2:
        assert {path: path.read_bytes() for path in files} == files
        assert presets.names() == ("one",)
    assert _temporaries(tmp_path) == []
