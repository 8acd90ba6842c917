"""A merge gets its name and its notes in one go, whoever else is writing; what it replaces is kept."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from lib_merge import Job, Recipe, Source, merge, metadata, verify
from lib_merge.api import run_recipe
from lib_merge.cli import main
from lib_merge.engine import merge as merging
from lib_merge.engine import publish as publishing
from lib_merge.errors import FileFormatError, OutputError, RecipeError
from lib_merge.files import moving, store
from lib_merge.files.hashes import file_hash
from lib_merge.files.reader import open_tensors
from lib_merge.files.trash import Trash
from lib_merge.recipe import loads
from tests.factories import NAMES, write_lora
from tests.test_tab_server import PAIR, _state, _wait, desk, host  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[1]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and signals")
AGAIN = Job(overwrite=True)


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "sources").mkdir()
    return [write_lora(tmp_path / "sources" / f"{name}.safetensors", seed=ord(name)) for name in "ab"]


def _files(folder):
    """Every file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _said(lora):
    """What a file and the notes beside it say they are made of; None where they do not say."""
    with open_tensors(lora) as file:
        text = metadata.recipe_of(file.metadata)
    card = metadata.card_at(lora.with_suffix(".json"))
    return (
        None if text is None else metadata.describe_recipe(loads(text)),
        card.fields["description"] if card.ours else None,
    )


# -------------------------------------------------------------------------------------------- many at once


# 12 rounds find in a suite what more rounds found; tests.campaigns does hundreds
@pytest.mark.slow
def test_of_four_merges_into_one_file_the_last_has_file_and_notes(few, out, forked):
    """5 of 30 side-cars described another merge."""
    code = """
        store.LEFT_BEHIND = -60.0  # the locks alone must do
        number, a, b, out = arguments
        merge([a, b], ratios=[number, 0.5], save_to=out, job=Job(overwrite=True))
    """
    seen = set()
    for turn in range(12):
        assert forked(code, [(turn * 4 + number, *few, out) for number in range(1, 5)]) == [0] * 4
        made, described = _said(out)
        assert made == described
        assert sorted(path.name for path in out.parent.iterdir()) == ["m.json", "m.safetensors"]
        with open_tensors(out) as file:
            seen.add(loads(metadata.recipe_of(file.metadata)).sources[0].ratio % 4)
    assert len(seen) > 1, "the same one was last every time: nothing was tried"
    verify(out, [few[0].parent])


@pytest.mark.slow
def test_of_eight_merges_at_once_all_side_cars_are_there(few, out, forked):
    """7 of 320 side-cars were lost to the sweeps of others."""
    code = """
        store.LEFT_BEHIND = -60.0
        name, a, b, folder = arguments
        for number in range(4):
            report = merge([a, b], save_to=f"{folder}/{name}-{number}.safetensors")
            assert report.warnings == [], report.warnings
    """
    assert forked(code, [(name, *few, out.parent) for name in "abcdefgh"]) == [0] * 8
    names = {f"{name}-{number}" for name in "abcdefgh" for number in range(4)}
    found = {path.name for path in out.parent.iterdir()}
    assert found == {f"{name}{ending}" for name in names for ending in (".json", ".safetensors")}
    for name in names:
        assert metadata.card_at(out.parent / f"{name}.json").ours


def test_of_threads_that_may_not_overwrite_one_wins_and_its_notes_stay(pair, out):
    done, refused = [], []

    def work(number):
        try:
            merge(pair, ratios=[number, 1], save_to=out)
            done.append(number)
        except OutputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    assert all("exists already" in sentence for sentence in refused)
    made, described = _said(out)
    assert f"a@{done[0]} " in made
    assert made == described


# -------------------------------------------------------------------------------------------- what is replaced


@pytest.mark.parametrize("old", ["lora", "other name", "changed", "text"])
def test_what_is_no_merge_of_that_name_goes_into_the_trash_with_what_lies_beside_it(pair, out, tmp_path, old):
    """Overwriting an original kept no copy."""
    if old == "text":
        out.write_bytes(b"not a LoRA")
    elif old == "lora":
        write_lora(out, seed=9)
    else:
        merge(pair, save_to=out.with_name("x.safetensors" if old == "other name" else out.name))
        if old == "other name":
            out.with_name("x.safetensors").rename(out)
            out.with_name("x.json").unlink()
        else:
            data = out.read_bytes()
            out.write_bytes(data[:-4] + b"\0\0\0\0")
    out.with_suffix(".json").write_text('{"notes": "of the old one", "activation text": "old"}')
    out.with_suffix(".preview.png").write_bytes(b"old picture")
    before = _files(out.parent)
    trash = tmp_path / "trash"
    report = merge(pair, save_to=out, job=Job(overwrite=True, trash=trash))
    [note] = report.warnings
    assert note == f"the old m.safetensors and 2 files beside it were kept in {trash}"
    assert sorted(path.name for path in out.parent.iterdir()) == ["m.json", "m.safetensors"]
    card = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert "of the old one" not in card["notes"]
    assert card["activation text"] == ""
    verify(out, [pair[0].parent])
    [thrown] = Trash(trash).things()
    assert (thrown.name, thrown.why) == ("m.safetensors", "replaced")
    for path in (out, out.with_suffix(".json")):
        path.rename(path.with_name(f"new{path.suffix}"))
    Trash(trash).restore(thrown)
    assert {name: data for name, data in _files(out.parent).items() if name[:3] != "new"} == before
    assert Trash(trash).things() == []
    assert list(trash.iterdir()) == []


def test_an_earlier_merge_of_that_name_is_replaced(pair, out, tmp_path):
    merge(pair, save_to=out)
    out.with_suffix(".preview.png").write_bytes(b"picture")
    report = merge(pair, ratios=[1, 2], save_to=out, job=AGAIN)
    assert report.warnings == []
    assert sorted(_files(out.parent)) == ["m.json", "m.preview.png", "m.safetensors"]


def test_an_earlier_merge_that_was_written_to_is_kept_whatever_its_size_and_time_say(few, out, tmp_path):
    merge(few, save_to=out)
    written, data = out.stat(), out.read_bytes()[:-4] + b"\0\0\0\0"
    with out.open("r+b") as file:
        file.write(data)
    os.utime(out, ns=(written.st_atime_ns, written.st_mtime_ns))
    merge(few, ratios=[1, 2], save_to=out, job=Job(overwrite=True, trash=tmp_path / "trash"))
    [kept] = (tmp_path / "trash").glob("*.safetensors.kept")
    assert kept.read_bytes() == data


def test_without_a_trash_of_its_own_the_old_file_lies_beside_it(pair, out):
    write_lora(out, seed=9)
    before = out.read_bytes()
    merge(pair, save_to=out, job=AGAIN)
    kept = [data for name, data in _files(out.parent / ".lora-merge" / "trash").items() if name.endswith(".safetensors.kept")]  # fmt: skip
    assert kept == [before]


def test_nothing_in_a_trash_is_a_lora_to_a_webui(pair, out, tmp_path):
    """WebUIs list what lies in hidden folders: the replaced original was there again, under another name."""
    for name in ("m.safetensors", "n.safetensors"):
        write_lora(out.with_name(name), seed=9)
    merge(pair, save_to=out, job=AGAIN)
    trash = Trash(out.parent / ".lora-merge" / "trash")
    thrown = trash.take([out.with_name("n.safetensors")])
    assert len(trash.things()) == 2
    listed = [path for path in out.parent.rglob("*") if path.suffix in (".safetensors", ".pt", ".ckpt")]
    assert listed == [out]
    assert [path.name for path in trash.restore(thrown)] == ["n.safetensors"]


def test_what_went_into_the_trash_under_its_whole_name_goes_back(tmp_path):
    trash = Trash(tmp_path / "trash")
    thrown = trash.take([write_lora(tmp_path / "m.safetensors")])
    [kept] = thrown.files
    note = trash.folder / f"{thrown.id}.trash.json"
    (trash.folder / kept).rename(trash.folder / kept.removesuffix(".kept"))
    note.write_text(note.read_text().replace(".kept", ""))
    [before] = trash.things()
    assert trash.restore(before) == [tmp_path / "m.safetensors"]
    assert not list(trash.folder.iterdir())


@POSIX
def test_a_link_is_replaced_and_what_it_leads_to_stays(pair, out, tmp_path):
    victim = write_lora(tmp_path / "far.safetensors", seed=9)
    before = victim.read_bytes()
    out.symlink_to(victim)
    merge(pair, save_to=out, job=Job(overwrite=True, trash=tmp_path / "trash"))
    assert not out.is_symlink()
    assert victim.read_bytes() == before
    [thrown] = Trash(tmp_path / "trash").things()
    out.rename(out.with_name("new.safetensors"))
    out.with_suffix(".json").unlink()
    [back] = Trash(tmp_path / "trash").restore(thrown)
    assert back.readlink() == victim


def test_an_old_file_that_cannot_be_kept_is_not_replaced(pair, out, tmp_path):
    write_lora(out, seed=9)
    (tmp_path / "trash").write_text("a file")
    before = _files(out.parent)
    with pytest.raises(OutputError, match="trash"):
        merge(pair, save_to=out, job=Job(overwrite=True, trash=tmp_path / "trash"))
    assert _files(out.parent) == before


def test_a_disk_without_hard_links_keeps_a_copy(pair, out, tmp_path, monkeypatch):
    write_lora(out, seed=9)
    os.utime(out, (1000, 1000))
    before = out.read_bytes()

    def none(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    merge(pair, save_to=out, job=Job(overwrite=True, trash=tmp_path / "trash"))
    [kept] = (tmp_path / "trash").glob("*.safetensors.kept")
    assert kept.read_bytes() == before
    assert kept.stat().st_mtime == 1000


def test_a_held_output_keeps_its_place_and_nothing_is_in_the_trash(pair, out, tmp_path, monkeypatch):
    write_lora(out, seed=9)
    out.with_suffix(".json").write_text("{}")
    before = _files(out.parent)
    real = os.replace

    def held(source, target):
        if Path(target) == out:
            raise PermissionError(errno.EACCES, "in use")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", held)
        patch.setattr(store, "PAUSES", ())
        report = merge(pair, save_to=out, job=Job(overwrite=True, trash=tmp_path / "trash"))
    assert Path(report.output).name == "m_v2.safetensors"
    assert before.items() <= _files(out.parent).items()
    assert out.with_name("m_v2.json").exists()
    assert list((tmp_path / "trash").iterdir()) == []


# -------------------------------------------------------------------------------------------- under its name


@pytest.mark.parametrize("ending", [".txt", ".png", ".preview.jpg", ".civitai.info"])
def test_what_lies_under_a_new_name_is_kept_and_named(pair, out, ending):
    theirs = out.with_suffix(ending)
    theirs.write_bytes(b"theirs")
    report = merge(pair, save_to=out)
    assert (
        f"{theirs.name} lay there under the name of the merge; it is kept as {theirs.name}.bak"
        in report.warnings
    )
    assert not theirs.exists()
    assert theirs.with_name(f"{theirs.name}.bak").read_bytes() == b"theirs"


@pytest.mark.parametrize("theirs", ['{"samples_save": true}', "[1]", "{,", '\ufeff{"notes": "mine"}'])
def test_a_json_under_a_new_name_is_kept_and_named(pair, out, theirs):
    out.with_suffix(".json").write_text(theirs, encoding="utf-8")
    report = merge(pair, save_to=out)
    assert report.warnings == ["m.json was not written by a merge; it is kept as m.json.bak"]
    assert out.with_name("m.json.bak").read_text(encoding="utf-8") == theirs
    assert metadata.card_at(out.with_suffix(".json")).ours


def test_what_a_deleted_merge_left_is_the_next_ones(pair, out):
    merge(pair, save_to=out)
    out.with_suffix(".preview.png").write_bytes(b"picture")
    out.unlink()
    assert merge(pair, save_to=out).warnings == []
    assert sorted(_files(out.parent)) == ["m.json", "m.preview.png", "m.safetensors"]


RUNS = {
    "no name": ([], "mix"),
    "its own": (["--save_to", "mix.safetensors"], "mix"),
    "other case": (["--save_to", "MIX.safetensors"], "MIX"),
    "linked": (["--save_to", "link.safetensors"], "link"),
    "overwriting": (["--save_to", "mix.safetensors", "--overwrite"], "mix"),
    "another": (["--save_to", "free.safetensors"], "free"),
}


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("there", [False, True])
def test_running_a_recipe_never_writes_into_it(pair, out, monkeypatch, capsys, case, there):
    """`run mix.json` rewrote mix.json."""
    options, stem = RUNS[case]
    monkeypatch.chdir(out.parent)
    recipe = Recipe(tuple(Source(name=path.name) for path in pair))
    text = json.dumps(recipe.to_json())
    Path("mix.json").write_text(text)
    if case == "linked":
        Path("link.json").symlink_to("mix.json")
    if there and case == "overwriting":
        write_lora(Path("mix.safetensors"), seed=9)
    code = main(["run", "mix.json", "--lora_dir", str(pair[0].parent), *options])
    assert code == 0
    assert Path("mix.json").read_text() == text
    assert Path(f"{stem}.safetensors").is_file()
    said = capsys.readouterr().out
    assert (f"{stem}.json is the recipe" in said) == (case != "another")
    assert Path("free.json").exists() == (case == "another")
    assert not list(Path().glob("mix.json.*"))
    verify(Path(f"{stem}.safetensors"), [pair[0].parent])


def test_levels_do_not_write_into_the_recipe(pair, out):
    inner = Recipe(tuple(Source(path, name=path.name) for path in pair))
    recipe = Recipe((Source(recipe=inner), Source(pair[0], name=pair[0].name)))
    given = out.with_name("level-1.json")
    given.write_text("the recipe")
    run_recipe(recipe, out, job=Job(recipe_file=given), keep_levels=out.parent)
    assert given.read_text() == "the recipe"
    assert out.with_name("level-1.safetensors").exists()


def test_a_page_takes_no_place_but_a_pages(pair, tmp_path, capsys):
    before = pair[0].read_bytes()
    assert main(["analyze", *map(str, pair), "--html", str(pair[0])]) == 2
    assert "is no page" in capsys.readouterr().err
    assert pair[0].read_bytes() == before


# -------------------------------------------------------------------------------------------- bad moments


def _written(monkeypatch, at, act, *, lasting=False):
    """Let `act` happen instead of the write of that number, or of each from it on."""
    real, count = io.FileIO.write, iter(range(10_000))

    class File(io.FileIO):
        def write(self, data):
            number = next(count)
            if number == at or (lasting and number > at):
                act(self, data)
            return real(self, data)

    made = Path.open

    def opened(self, mode="r", buffering=-1, **options):
        if mode == "x+b":
            return File(os.open(self, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "r+b")
        return made(self, mode, buffering, **options)

    monkeypatch.setattr(Path, "open", opened)
    return count


def _lay(case, pair, out):
    """Put what is going to be replaced; return what of it must never be lost."""
    if case in ("own", "left"):
        merge(pair, save_to=out)
        card = json.loads(out.with_suffix(".json").read_text())
        out.with_suffix(".json").write_text(json.dumps({**card, "negative text": "a person's"}))
        out.with_suffix(".preview.png").write_bytes(b"picture")
        if case == "left":  # of a merge that was deleted without it
            out.unlink()
        return {b"picture"}
    if case == "renamed":  # its card says that it is of another merge than the next one
        merge(pair, save_to=out.with_name("x.safetensors"))
        for ending in (".safetensors", ".json"):
            out.with_name(f"x{ending}").rename(out.with_suffix(ending))
    elif case == "foreign":
        write_lora(out, seed=9, names=NAMES[:2], conv=False)
        out.with_suffix(".json").write_text('{"notes": "old"}')
        out.with_suffix(".png").write_bytes(b"picture")
    return set(_files(out.parent).values())


def _anew(folders, before):
    """Empty the folders and put into the first what lay there."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            path.unlink()
    for name, data in before.items():
        (folders[0] / name).write_bytes(data)


def _agree(out, case):
    """Hold a file and its card to be of one merge, or the card to say nothing; what a person wrote is there."""
    if case in ("own", "left"):
        cards = [path.read_text() for path in out.parent.glob("m.json*")]
        assert any("a person's" in card for card in cards)
    if not out.exists():
        assert not metadata.card_at(out.with_suffix(".json")).ours or case == "left"
        return
    made, described = _said(out)
    assert described in (None, made)
    if case == "foreign" and made is not None:
        card = out.with_suffix(".json")
        assert not card.exists() or "old" not in card.read_text()


CASES = ("new", "own", "left", "renamed", "foreign")


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("case", [*CASES, "no links"])
def test_a_full_disk_at_any_write_loses_nothing(few, out, tmp_path, monkeypatch, case, lasting):
    """The notes of the earlier merge stayed beside the new one."""
    safe = _lay("foreign" if case == "no links" else case, few, out)
    before, trash, at, published = _files(out.parent), tmp_path / "trash", 0, 0
    while True:
        _anew([out.parent, trash], before)
        with monkeypatch.context() as patch:
            if case == "no links":
                patch.setattr(os, "link", _no_links)

            def full(file, data):
                os.write(file.fileno(), bytes(data)[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")

            count = _written(patch, at, full, lasting=lasting)
            try:
                report = merge(few, ratios=[1, 2], save_to=out, job=Job(overwrite=True, trash=trash))
            except OutputError as error:
                assert "no space is left" in str(error)
                assert _files(out.parent) == before
                assert not trash.is_dir() or not list(trash.iterdir())
            else:
                published += 1
                kept = _files(trash) if trash.is_dir() else {}
                assert safe <= {*_files(out.parent).values(), *kept.values()}
                verify(out, [few[0].parent])
                _agree(out, case)
                if next(count) <= at:  # every write was tried
                    break
                _says_that_it_has_no_notes(report, out, case)
            assert not list(out.parent.glob(".*"))
        at += 1
    assert at > 5
    assert published > 1  # the notes alone may be missing
    assert _said(out)[1] is not None
    assert not list(out.parent.glob("*.bak"))


def _says_that_it_has_no_notes(report, out, case):
    assert not out.with_suffix(".json").exists()
    assert any("no space is left" in note for note in report.warnings)
    kept = "m.json described an earlier merge; it is kept as m.json.bak"
    assert (kept in report.warnings) == (case in ("own", "left"))


def test_a_full_disk_that_says_so_only_at_the_end_stops_the_merge(few, out, monkeypatch):
    """Quotas and folders of a network do: a file with a hole was taken for a merge."""
    merge(few, save_to=out)
    before = _files(out.parent)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"no space is left for m\.safetensors"):
        merge(few, ratios=[1, 2], save_to=out, job=AGAIN)
    assert _files(out.parent) == before


def _no_links(*_, **__):
    raise OSError(errno.EPERM, "Operation not permitted")


_KILLED = """
    import signal
    from pathlib import Path
    at, a, b, out, trash = arguments
    count = 0
    def hooked(real):
        def step(*given, **options):
            global count
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*given, **options)
        return step
    for name in ("fsync", "link", "rename", "replace", "unlink", "mkdir"):
        setattr(os, name, hooked(getattr(os, name)))
    Temporary.write = hooked(Temporary.write)
    merge([a, b], ratios=[1, 2], save_to=out, job=Job(overwrite=True, trash=Path(trash)))
"""


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_step_loses_nothing(few, out, tmp_path, case, forked):
    """A file lay beside the notes of the merge that it replaced."""
    safe = _lay(case, few, out)
    before, trash, at = _files(out.parent), tmp_path / "trash", 0
    while True:
        _anew([out.parent, trash], before)
        [code] = forked(_KILLED, [(at, *few, out, trash)])
        _whole(out, before, trash, safe)
        _agree(out, case)
        if code == 0:
            break
        assert code == -9
        at += 1
    assert at > 10
    assert _said(out)[1] is not None
    for left in out.parent.glob(".*"):
        os.utime(left, (0, 0))
    merge(few, save_to=out, job=AGAIN)
    assert not list(out.parent.glob(".*"))


def _whole(out, before, trash, safe):
    """Hold what a killed merge left against what was there."""
    kept = _files(trash) if trash.is_dir() else {}
    now = _files(out.parent)
    assert safe <= {*now.values(), *kept.values()}
    assert out.name in now or out.name not in before
    if out.name in now:
        with open_tensors(out) as file:
            for key in file.tensors:
                file.read(key)
    card = now.get("m.json")
    assert card is None or isinstance(json.loads(card), dict)
    for thrown in Trash(trash).things():
        assert set(thrown.files.values()) <= set(before)


# -------------------------------------------------------------------------------------------- sources that change


def _rewrite(path, seed):
    """Write other numbers into a file in its place, as a trainer or a download does."""
    fresh = write_lora(path.with_name("fresh.safetensors"), seed=seed).read_bytes()
    path.with_name("fresh.safetensors").unlink()
    with path.open("r+b") as file:
        file.write(fresh)
    os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)


@pytest.mark.parametrize("moment", ["_write", "_seal", "prove", "check_proof"])
@pytest.mark.parametrize("method", ["weighted_sum", "ties", "dare"])
def test_a_source_written_to_in_the_middle_stops_the_merge_with_a_sentence(
    pair, out, monkeypatch, moment, method
):
    """The new content was merged under the old hash."""
    real = getattr(merging, moment)

    def changed(*given):
        _rewrite(pair[0], seed=77)
        return real(*given)

    monkeypatch.setattr(merging, moment, changed)
    with pytest.raises(FileFormatError, match=r"^a\.safetensors was changed while it was read"):
        merge(pair, save_to=out, method=method)
    assert list(out.parent.iterdir()) == []


@POSIX
@pytest.mark.parametrize("moment", ["_write", "_seal", "prove"])
def test_a_source_that_another_file_replaces_is_merged_as_it_was_and_so_hashed(
    pair, out, monkeypatch, moment
):
    before, hashed = pair[0].read_bytes(), file_hash(pair[0])
    real = getattr(merging, moment)

    def changed(*given):
        new = write_lora(pair[0].with_name("fresh.safetensors"), seed=77, rank=6)
        new.replace(pair[0])
        return real(*given)

    monkeypatch.setattr(merging, moment, changed)
    merge(pair, save_to=out)
    with open_tensors(out) as file:
        recipe = json.loads(file.metadata["merge_recipe"])
    assert hashed.startswith(recipe["sources"][0]["sha256"])
    with pytest.raises(RecipeError, match="its file has changed since"):
        verify(out, [pair[0].parent])
    pair[0].write_bytes(before)
    verify(out, [pair[0].parent])


def test_the_tab_stops_too_and_hashes_what_it_opens(desk, host, monkeypatch):  # noqa: F811
    real = merging.prove

    def changed(*given):
        _rewrite(host.folder / "a.safetensors", seed=77)
        return real(*given)

    monkeypatch.setattr(merging, "prove", changed)
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))
    assert done["state"] == "failed"
    assert "a.safetensors was changed" in done["error"]
    assert not (host.folder / "out.safetensors").exists()


# -------------------------------------------------------------------------------------------- the tab


def _merged(desk, **output):  # noqa: F811
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR, output=output)}))
    assert done["state"] == "done", done
    return done["result"]


def test_what_was_deleted_goes_back_with_its_entry_and_report(desk, host):  # noqa: F811
    done = _merged(desk, template="m", notes="good one")
    (host.folder / "m.preview.png").write_bytes(b"picture")
    before = _files(host.folder)
    desk.reports.keep(done["entry"], {"n": 1}, "<p>page")
    assert desk.handle_dict({"op": "remove", "entry": done["entry"]})["ok"]
    assert not list(host.folder.glob("m.*"))
    assert desk.handle_dict({"op": "history"})["entries"] == []
    [thrown] = desk.handle_dict({"op": "trash"})["thrown"]
    assert (thrown["name"], thrown["why"]) == ("m.safetensors", "deleted")
    assert desk.handle_dict({"op": "restore", "thrown": thrown["id"]})["key"] == "0/m.safetensors"
    assert _files(host.folder) == before
    [entry] = desk.handle_dict({"op": "history"})["entries"]
    assert (entry["id"], entry["notes"]) == (done["entry"], "good one")
    assert desk.reports.read(done["entry"]) == {"n": 1}
    assert list((host.data_folder() / "trash").iterdir()) == []
    assert "not in the trash" in desk.handle_dict({"op": "restore", "thrown": thrown["id"]})["error"]


def test_an_original_that_the_tab_replaces_goes_back(desk, host):  # noqa: F811
    original = write_lora(host.folder / "m.safetensors", seed=9)
    before = original.read_bytes()
    done = _merged(desk, template="m", overwrite=True, triggers="mine", notes="why")
    assert any("the old m.safetensors was kept in" in text for text in done["warnings"])
    card = json.loads((host.folder / "m.json").read_text())
    assert card["activation text"] == "mine"
    assert card["notes"].startswith("why\n")
    [thrown] = desk.handle_dict({"op": "trash"})["thrown"]
    reply = desk.handle_dict({"op": "restore", "thrown": thrown["id"]})
    assert reply["error"] == "m.safetensors exists already; choose another name."
    assert desk.handle_dict({"op": "rename", "entry": done["entry"], "to": "merged"})["ok"]
    assert desk.handle_dict({"op": "restore", "thrown": thrown["id"]})["ok"]
    assert original.read_bytes() == before


def test_notes_of_the_tab_are_not_taken_for_a_persons_at_the_next_merge(desk, host):  # noqa: F811
    _merged(desk, template="m", notes="why", triggers="one")
    _merged(desk, template="m", notes="why", overwrite=True)
    card = json.loads((host.folder / "m.json").read_text())
    assert card["notes"].count("why") == 1
    assert card["notes"].count("merged:") == 1


@pytest.mark.parametrize("note", [
    {"folder": "/etc"}, {"folder": "{folder}/../.."}, {"files": {"ID-x": "../../x.safetensors"}}, {"files": {"../x": "x"}},
    {"files": {"ID-x": ".."}}, {"files": {"ID-x": 5}}, {"files": []}, {"files": {}}, {"version": 9}, {"time": None}, None,
])  # fmt: skip
def test_a_note_that_leads_elsewhere_moves_nothing(desk, host, note):  # noqa: F811
    folder = host.data_folder() / "trash"
    folder.mkdir(parents=True)
    (folder / "0123abcd-x").write_bytes(b"x")
    whole = {
        "version": 1,
        "time": "",
        "why": "",
        "folder": str(host.folder),
        "files": {"ID-x": "x.safetensors"},
    }
    text = json.dumps([] if note is None else {**whole, **note})
    text = text.replace("ID", "0123abcd").replace("{folder}", str(host.folder))
    (folder / "0123abcd.trash.json").write_text(text)
    assert not desk.handle_dict({"op": "restore", "thrown": "0123abcd"})["ok"]
    assert (folder / "0123abcd-x").exists()
    assert not list(host.folder.parent.rglob("x.safetensors"))
    assert not desk.handle_dict({"op": "restore", "thrown": "../0123abcd"})["ok"]


@pytest.mark.parametrize("op", ["rename", "remove"])
def test_a_history_that_cannot_be_written_moves_no_file(desk, host, monkeypatch, op):  # noqa: F811
    done = _merged(desk, template="m")
    before = _files(host.folder)

    def full(*_, **__):
        raise OutputError("no space is left for lora-merge.sqlite3: free some room or choose another disk.")

    with monkeypatch.context() as patch:
        patch.setattr(desk.archive._database, "write", full)
        reply = desk.handle_dict(
            {"op": op, "entry": done["entry"], **({"to": "other"} if op == "rename" else {})}
        )
    assert "no space is left" in reply["error"]
    assert _files(host.folder) == before
    [entry] = desk.handle_dict({"op": "history"})["entries"]
    assert entry["key"] == "0/m.safetensors"
    assert desk.handle_dict({"op": "trash"})["thrown"] == []


@pytest.mark.parametrize("op", ["rename", "remove"])
def test_a_file_that_cannot_be_moved_takes_the_others_back(desk, host, monkeypatch, op):  # noqa: F811
    done = _merged(desk, template="m")
    (host.folder / "m.preview.png").write_bytes(b"picture")
    before = _files(host.folder)
    real = moving.move

    def held(source, target):
        if source == host.folder / "m.preview.png":
            raise PermissionError(errno.EACCES, "in use")
        real(source, target)

    monkeypatch.setattr(moving, "move", held)
    reply = desk.handle_dict(
        {"op": op, "entry": done["entry"], **({"to": "other"} if op == "rename" else {})}
    )
    assert "m.preview.png cannot be moved" in reply["error"]
    assert _files(host.folder) == before
    assert desk.handle_dict({"op": "history"})["entries"][0]["name"] == "m"


def test_a_merge_that_the_history_cannot_take_is_said(desk, host, monkeypatch):  # noqa: F811
    def full(*_, **__):
        raise OutputError("no space is left for lora-merge.sqlite3: free some room or choose another disk.")

    monkeypatch.setattr(desk.archive._database, "write", full)
    done = _merged(desk, template="m")
    assert any("the merge is not in the history: no space is left" in text for text in done["warnings"])
    assert (host.folder / "m.safetensors").exists()


def test_only_our_own_merge_counts_as_own(pair, out):
    merge(pair, save_to=out)
    assert publishing.is_own(out)
    assert not publishing.is_own(pair[0])
    assert not publishing.is_own(out.with_name("none.safetensors"))
    out.write_bytes(out.read_bytes()[:-1])
    assert not publishing.is_own(out)


def test_an_earlier_picture_goes_into_the_trash(desk, host):  # noqa: F811
    from tests.test_tab_reopening import PNG

    _merged(desk, template="m")
    (host.folder / "m.preview.webp").write_bytes(b"theirs")
    data = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for _ in range(2):
        assert _merged(desk, template="m", overwrite=True, preview={"data": data})["warnings"] == []
        assert sorted(path.name for path in host.folder.glob("m.preview*")) == ["m.preview.png"]
    [kept] = [path for path in (host.data_folder() / "trash").iterdir() if path.suffix != ".json"]
    assert kept.read_bytes() == b"theirs"


@POSIX
def test_a_preview_is_not_written_through_a_link(desk, host):  # noqa: F811
    from tests.test_tab_reopening import PNG

    _merged(desk, template="m")
    victim = host.base / "victim.png"
    victim.write_bytes(b"theirs")
    (host.folder / "m.preview.png").symlink_to(victim)
    data = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert _merged(desk, template="m", overwrite=True, preview={"data": data})["warnings"] == []
    assert victim.read_bytes() == b"theirs"
    assert (host.folder / "m.preview.png").read_bytes() == PNG


@pytest.mark.parametrize("called", ["x" * 200, "日" * 100, "a.b.", "..", "con", "a/b:c", "\u202e"])
def test_levels_of_levels_have_names_and_replace_nothing_silently(pair, out, called):
    inner = Recipe(tuple(Source(path, name=path.name) for path in pair))
    middle = Recipe((Source(recipe=inner, name=called), Source(pair[0], name=pair[0].name)))
    recipe = Recipe((Source(recipe=middle, name=called), Source(pair[1], name=pair[1].name)))
    levels = out.parent / "levels"
    first = run_recipe(recipe, out, keep_levels=levels)
    names = sorted(path.name for path in levels.glob("*.safetensors"))
    assert len(names) == 2, first.warnings
    before = write_lora(levels / names[0], seed=9).read_bytes()
    again = run_recipe(recipe, out, job=AGAIN, keep_levels=levels)
    assert any(f"the old {names[0]} and 1 files beside it were kept in" in note for note in again.warnings)
    assert before in _files(levels / ".lora-merge" / "trash").values()
