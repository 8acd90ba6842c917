"""Block-weight presets: the shipped ones, a user's store under every mishap, and other tools' files."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_merge.adapters.blocks import BLOCKS, expand_block_list
from lib_merge.adapters.families import FAMILIES
from lib_merge.blockspec import ElementMatcher, parse_elements, resolve_blocks
from lib_merge.errors import FileFormatError, MergeError, OutputError, RecipeError
from lib_merge.presets import (
    ANY,
    Preset,
    PresetStore,
    complement,
    find_preset,
    find_preset_files,
    import_file,
    import_presets,
    lock,
    preset_hint,
    preset_names,
    storefile,
)
from lib_merge.presets.lock import held
from lib_merge.presets.tokens import draw_weight, parse_weight
from lib_merge.recipe import ElementRule

ROOT = Path(__file__).parents[1]
ONES17 = (1.0,) * 17
FACE = Preset("Face", "SD1", tuple(float(place % 2) for place in range(17)))
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"]}',
    "\u202egnp.exe",
    "../../etc/passwd",
    "a=b",
    "1",
    "OUT00=0.5 and more",
    "naïve 顔 🙂",
    "x" * 80,
    "${jndi:ldap://x}",
    "CON",
    "a,b:c\\d",
    "name x=0.5",
]


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "presets.json")


def _names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def _resolve(spec, family="SD1", store=None, present=("BASE", "B00")):
    return resolve_blocks(spec, family, present, random.Random(0), "a", store=store)


# ---- shipped -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shipped_preset_resolves_for_its_family(family):
    names = preset_names(family)
    assert {"ALL", "NONE", "ALL0.5", "NO-TEXT-ENCODER"} <= set(names)
    assert len(set(names)) == len(names)
    for name in names:
        assert preset_hint(name).endswith(".")
        weights, _ = _resolve(name.lower(), family)
        assert set(weights) <= {*BLOCKS.get(family, ("BASE", "B00")), "OTHER"}
        assert all(0.0 <= value <= 1.0 for value in weights.values())


def test_classic_presets_mean_what_they_are_called():
    for family in ("SD1", "SD2", "SDXL"):
        assert {"INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL", "STYLE", "CHARACTER"} <= set(
            preset_names(family)
        )
        ins, ind, inall, outs, outd, outall = (
            _resolve(name, family)[0] for name in ("INS", "IND", "INALL", "OUTS", "OUTD", "OUTALL")
        )
        for block in BLOCKS[family]:
            if block.startswith("IN"):
                assert ins[block] + ind[block] == inall[block]
                assert outall[block] == 0
            elif block.startswith("OUT"):
                assert outs[block] + outd[block] == outall[block]
                assert inall[block] == 0
        assert inall["BASE"] == outall["BASE"] == 1
    assert find_preset("outd", "SD1", BLOCKS["SD1"]) == [1.0, *[0.0] * 7, *[1.0] * 4, *[0.0] * 5]
    assert find_preset("OUTALL", "SDXL", BLOCKS["SDXL"]) == [1.0, *[0.0] * 5, *[1.0] * 6]
    assert find_preset("OUTALL", "Flux", BLOCKS["Flux"]) is None


def test_pairs():
    for family in ("SD1", "SDXL"):
        style, character = (_resolve(name, family)[0] for name in ("STYLE", "CHARACTER"))
        assert all(style[b] > character[b] for b in BLOCKS[family] if b.startswith("OUT"))
        assert all(style[b] < character[b] for b in BLOCKS[family] if b.startswith("IN"))
        out, into = (_resolve(name, family)[0] for name in ("STYLE-OUT", "CHARACTER-IN"))
        assert complement(out) == {**into, "OTHER": 1.0}
    double, single = (_resolve(name, "Flux")[0] for name in ("DOUBLE", "SINGLE"))
    assert double["D18"] == single["S37"] == 1
    assert double["S00"] == single["D00"] == 0
    assert _resolve("NO-TEXT-ENCODER", "Flux")[0]["T5"] == 0
    assert _resolve("NO-TEXT-ENCODER", "Wan")[0] == {"BASE": 0.0, "B00": 1.0}


# ---- tokens --------------------------------------------------------------------------------------------------------


def test_tokens():
    plain = {" 0.5": 0.5, "-1": -1.0, ".5": 0.5, "1e-1": 0.1, "X + 0.10": "X+0.1", "X0.5": "X", "R*3-1.5": "R*3-1.5"}
    assert {text: parse_weight(text) for text in plain} == plain
    for bad in ("", "r", "nan", "inf", "1_0", "1e9", "X+..", "١", "0x1", "--1", "1,2", "R" * 99, "X*1e9"):
        assert parse_weight(bad) is None, bad
    draw = random.Random(1)
    assert draw_weight("X*-1+1", 0.3, draw) == (0.7, False)
    drawn = [draw_weight("R*3", 1.0, draw)[0] for _ in range(200)]
    assert 0 <= min(drawn) < 0.3 < 2.7 < max(drawn) <= 3
    drawn = [draw_weight("R*3-1.5", 1.0, draw)[0] for _ in range(200)]
    assert -1.5 <= min(drawn) < -1.2 < 1.2 < max(drawn) <= 1.5


def test_tokens_in_a_request(store):
    store.save(Preset("Mix", "SD1", ("X", "X-0.2", "R", *[1.0] * 14)))
    weights, notes = _resolve("mix x=0.7", store=store)
    assert weights["BASE"] == 0.7
    assert weights["IN01"] == pytest.approx(0.5)
    assert "drawn as" in notes[0]
    with pytest.raises(RecipeError, match="is not a number"):
        _resolve("X+..," + ",".join(["1"] * 16))


# ---- store ---------------------------------------------------------------------------------------------------------


def test_nothing_happens_before_the_first_save(store, tmp_path):
    assert store.list() == ()
    assert store.get("x") is None
    assert list(store.take_warnings()) == []
    assert list(tmp_path.iterdir()) == []


def test_save_get_rename_delete(store, tmp_path):
    store.save(FACE)
    store.save(Preset(" Hands ", "Wan", {"B00": 0.5, "BASE": 1}))
    again = PresetStore(store.path)
    assert again.names() == ("Face", "Hands")
    assert again.get("fACE ") == FACE
    assert again.get("face", "SD2") == FACE
    assert again.get("face", "SDXL") is None
    assert again.names("SD1") == ("Face",)
    assert again.get("Hands").weights == {"B00": 0.5, "BASE": 1.0}
    assert again.rename("FACE", "Gesicht") == "Gesicht"
    assert again.rename("gesicht", "GESICHT") == "GESICHT"
    assert store.names() == ("GESICHT", "Hands")
    store.delete("hands")
    assert again.names() == ("GESICHT",)
    assert _names(tmp_path) == ["presets.json"]
    data = json.loads(store.path.read_text("utf-8"))
    assert (data["format"], data["version"]) == ("lora-merge-presets", 1)


def test_one_name_has_weights_for_several_families(store):
    store.save(FACE)
    store.save(Preset("FACE", "SDXL", (0.5,) * 12))
    store.save(Preset("face", "SD2", (0.25,) * 17))
    assert store.names() == ("face",)
    assert len(store.list()) == 3
    assert store.get("face", "SD1").weights == FACE.weights
    assert store.get("face", "SD2").weights[0] == 0.25
    assert [preset.family for preset in store.list("SD1")] == ["SD1"]
    store.delete("face", "SD2")
    assert store.get("face", "SD2").family == "SD1"
    assert store.rename("face", "Kopf") == "Kopf"
    assert {preset.name for preset in store.list()} == {"Kopf"}
    store.delete("kopf")
    assert store.list() == ()


def test_saving_again_replaces_unless_told_not_to(store):
    store.save(FACE)
    store.save(Preset("Face", "SD1", ONES17))
    assert store.get("Face").weights == ONES17
    with pytest.raises(RecipeError, match="already a preset 'FACE' for SD1"):
        store.save(Preset("FACE", "SD1", FACE.weights), overwrite=False)
    assert store.get("Face") == Preset("Face", "SD1", ONES17)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_kept_as_they_are(store, name):
    store.save(Preset(name, "SD1", FACE.weights))
    assert PresetStore(store.path).get(name.upper().lower() if name.isascii() else name).name == name
    assert find_preset(name, "SD1", BLOCKS["SD1"], store) == list(FACE.weights)
    assert _resolve(name, store=store)[0]["IN01"] == 1.0
    store.rename(name, "tame")
    store.rename("tame", name)
    store.delete(name)
    assert store.list() == ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "needs a name"),
        (" \t", "needs a name"),
        ("x" * 81, "80 is the limit"),
        ("a\nb", "control character"),
        ("a\x00", "control character"),
        ("a\u2028b", "control character"),
        ("\ud800", "control character"),
        ("outall", "OUTALL is a preset of this program"),
        (" Style ", "STYLE is a preset of this program"),
        (None, "needs a name"),
    ],
)
def test_names_that_cannot_be(store, tmp_path, name, says):
    with pytest.raises(RecipeError, match=says) as error:
        store.save(Preset(name, "Wan", {}))
    assert "\n" not in str(error.value)
    assert "\x00" not in str(error.value)
    store.save(FACE)
    if name:
        with pytest.raises(RecipeError, match=says):
            store.rename("Face", name)
    assert store.names() == ("Face",)


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        (Preset("a", "SD9", {}), "'SD9' is not a family"),
        (Preset("a", "SD1", (1.0,) * 12), "a list of 12 block weights does not fit SD1"),
        (Preset("a", "Wan", (1.0,) * 17), "takes no lists"),
        (Preset("a", "SD1", {"OUT99": 1.0}), "no block of SD1"),
        (Preset("a", "Wan", {"<b>": 1.0}), "no block of Wan"),
        (Preset("a", "SD1", {"BASE": float("nan")}), "not a number"),
        (Preset("a", "SD1", {"BASE": True}), "not a number"),
        (Preset("a", "SD1", {"BASE": "R"}), "not a number"),
        (Preset("a", "SD1", {"BASE": 10**400}), "not a number"),
        (Preset("a", "SD1", ("q", *ONES17[1:])), "weight 1 is 'q'"),
        (Preset("a", "SD1", None), "neither a list"),
        (Preset("a", "SDXL", {}, (ElementRule("IN11", "attn", 0.0),)), "a block that SDXL does not have"),
        (Preset("a", "SD1", {}, (ElementRule("IN01:", "attn", 0.0),)), "is not blocks:elements:ratio"),
        (Preset("a", "SD1", {}, (ElementRule("", "attn", float("inf")),)), "is not a number"),
        (Preset("a", "SD1", {}, (ElementRule("", "attn", 0.0),) * 999), "200 is the limit"),
    ],
)
def test_weights_that_cannot_be(store, tmp_path, preset, says):
    with pytest.raises(RecipeError, match=says) as error:
        store.save(preset)
    assert len(str(error.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_names_that_do_not_exist(store):
    store.save(FACE)
    for action in (lambda: store.delete("x"), lambda: store.rename("x", "y"), lambda: store.delete("Face", "SDXL")):
        with pytest.raises(RecipeError, match="there is no preset"):
            action()
    store.save(Preset("Other", "SD1", ONES17))
    with pytest.raises(RecipeError, match="already a preset 'FACE'"):
        store.rename("Other", "FACE")
    assert store.names() == ("Face", "Other")


def test_element_rules_are_kept_and_said(store):
    rules = (ElementRule("IN05-OUT05", "attn", 0.0), ElementRule("", "NOT ff_net", 0.5))
    store.save(Preset("Attn", ANY, {}, rules))
    assert store.get("attn", "SDXL").elements == rules
    assert store.get("attn", "Flux") is None
    assert store.get("attn", "Wan").elements == rules
    ElementMatcher(store.get("attn", "SD1").elements, BLOCKS["SD1"], "a")
    weights, notes = _resolve("attn", store=store)
    assert weights == {}
    assert "element rules of the preset Attn" in notes[0]
    assert parse_elements("IN05-OUT05:attn:0,\n:NOT ff_net:0.5") == rules


def test_a_change_from_elsewhere_is_seen(store):
    other = PresetStore(store.path)
    store.save(FACE)
    assert other.names() == ("Face",)
    text = store.path.read_text("utf-8").replace("Face", "Hand-made")
    store.path.write_text("\ufeff" + text.replace("\n", "\r\n"), "utf-8")
    assert store.names() == other.names() == ("Hand-made",)
    assert list(store.take_warnings()) == []
    store.path.unlink()
    assert other.names() == ()


def test_a_linked_file_stays_a_link(store, tmp_path):
    real = tmp_path / "elsewhere" / "mine.json"
    real.parent.mkdir()
    try:
        store.path.symlink_to(real)
    except OSError:
        pytest.skip("no links here")
    store.save(FACE)
    assert store.path.is_symlink()
    assert PresetStore(real).names() == ("Face",)


def test_folders_are_made(tmp_path):
    store = PresetStore(tmp_path / "a" / "b" / "presets.json")
    store.save(FACE)
    assert store.names() == ("Face",)


# ---- broken files --------------------------------------------------------------------------------------------------

BROKEN = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b'{"format":"x"}',
    b"null",
    b"[" * 100_000,
    b'{"presets": NaN}',
    b"\x00" * 50,
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_set_aside_and_named(store, tmp_path, data):
    store.path.write_bytes(data)
    (tmp_path / "presets.broken-1.json").write_text("earlier")
    assert store.list() == ()
    warnings = list(store.take_warnings())
    assert len(warnings) == 1
    assert "presets.broken-2.json" in warnings[0]
    assert (tmp_path / "presets.broken-1.json").read_text() == "earlier"
    assert (tmp_path / "presets.broken-2.json").read_bytes() == data
    assert list(store.take_warnings()) == []
    store.save(FACE)
    assert _names(tmp_path) == ["presets.broken-1.json", "presets.broken-2.json", "presets.json"]


def test_saving_over_a_broken_file_sets_it_aside_too(store, tmp_path):
    store.path.write_bytes(b"{ half")
    store.save(FACE)
    assert (tmp_path / "presets.broken-1.json").read_bytes() == b"{ half"
    assert store.names() == ("Face",)
    assert "presets.broken-1.json" in store.take_warnings()[0]


def test_sound_entries_of_a_damaged_file_stay(store, tmp_path):
    store.save(FACE)
    data = json.loads(store.path.read_text("utf-8"))
    bad = [
        {"name": "x"},
        7,
        {"name": "y", "families": {"SD1": {"weights": [1, 2]}}},
        {"name": 3, "families": {"SD1": 1}},
    ]
    bad.append({"name": "z", "families": {"SD1": {"weights": {}, "elements": [["a"]]}}})
    bad.append({"name": "w", "families": {"SD1": {"weights": {"BASE": 1e999}}}})
    data["presets"] = [*bad, *data["presets"]]
    store.path.write_text(json.dumps(data), "utf-8")
    fresh = PresetStore(store.path)
    assert fresh.list() == (FACE,)
    assert "6 entries that cannot be read" in fresh.take_warnings()[0]
    assert json.loads((tmp_path / "presets.broken-1.json").read_text("utf-8")) == data
    assert PresetStore(store.path).list() == (FACE,)


def test_names_taken_by_hand_are_numbered_not_lost(store):
    entry = {"families": {"SD1": {"weights": list(FACE.weights)}}}
    data = {"format": "lora-merge-presets", "version": 1}
    data["presets"] = [{"name": name, **entry} for name in ("Outall", "Face", "FACE", "Face")]
    store.path.write_text(json.dumps(data), "utf-8")
    assert store.names() == ("Outall 2", "Face", "FACE 2", "Face 3")
    assert len(store.take_warnings()) == 3
    assert find_preset("OUTALL", "SD1", BLOCKS["SD1"], store)[1] == 0.0


def test_a_newer_file_is_left_alone(store):
    text = json.dumps({"format": "lora-merge-presets", "version": 99, "presets": []})
    store.path.write_text(text)
    assert store.list() == ()
    assert "newer version" in store.take_warnings()[0]
    with pytest.raises(OutputError, match="newer version"):
        store.save(FACE)
    assert store.path.read_text() == text


def test_a_broken_file_that_cannot_be_moved_is_not_overwritten(store, monkeypatch):
    store.path.write_bytes(b"{ half")

    def refuse(*_):
        raise OSError(errno.EIO, "the disk is upset")

    monkeypatch.setattr(storefile, "rename_new", refuse)
    assert store.list() == ()
    assert "the disk is upset" in store.take_warnings()[0]
    with pytest.raises(OutputError, match="cannot be set aside"):
        store.save(FACE)
    assert store.path.read_bytes() == b"{ half"


# ---- disks and locks -----------------------------------------------------------------------------------------------


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
        patch.setattr(storefile, "_PAUSES", (0.0,))
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
    with pytest.raises(OutputError, match=r"presets\.json cannot be read"):
        folder.save(FACE)


def test_a_store_never_outgrows_what_it_reads(store, monkeypatch):
    monkeypatch.setattr(storefile, "MAX_BYTES", 600)
    store.save(FACE)
    with pytest.raises(OutputError, match="delete some presets"):
        store.save(Preset("B", "SDXL", dict.fromkeys(BLOCKS["SDXL"], 0.123456)))
    assert store.names() == ("Face",)


def test_a_lock_kept_too_long_is_one_sentence(store):
    store.save(FACE)
    impatient = PresetStore(store.path, timeout=0.1)
    with held(store.path.resolve(), 1.0):
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

    monkeypatch.setattr(lock, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setitem(sys.modules, "msvcrt", Fake)
    store.save(FACE)
    assert Fake.steps == [1, 2]
    with held(store.path, 1.0), pytest.raises(OutputError, match="held by another program"), held(store.path, 0.05):
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


def _python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_lose_nothing(store, tmp_path):
    code = """
        import sys
        from lib_merge.presets import Preset, PresetStore
        store = PresetStore(sys.argv[1], 60.0)
        for index in range(20):
            store.save(Preset(f"{sys.argv[2]}-{index}", "SD1", (0.5,) * 17))
            if index % 5 == 4:
                store.rename(f"{sys.argv[2]}-{index}", f"{sys.argv[2]}-renamed-{index}")
    """
    workers = [_python(code, store.path, name) for name in "ab"]
    for worker in workers:
        assert worker.communicate(timeout=120)[1] == ""
        assert worker.returncode == 0
    assert len(store.names()) == 40
    assert sum("renamed" in name for name in store.names()) == 8
    assert list(store.take_warnings()) == []
    assert _names(tmp_path) == ["presets.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_in_the_middle_of_a_save_keeps_the_old_file(store, tmp_path, moment):
    store.save(FACE)
    before = store.path.read_bytes()
    code = """
        import os, signal, sys
        from lib_merge.presets import Preset, PresetStore
        setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        PresetStore(sys.argv[1]).save(Preset("B", "SD1", (0.5,) * 17))
    """
    killed = _python(code, store.path, moment)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert store.path.read_bytes() == before
    assert len(_names(tmp_path)) == 2  # the temporary file of the killed one
    start = time.monotonic()
    store.save(Preset("C", "SD1", ONES17))
    assert time.monotonic() - start < 3  # the lock died with its holder
    assert store.names() == ("Face", "C")
    assert _names(tmp_path) == ["presets.json"]


NAMES = st.text(max_size=90)
VALUES = st.one_of(st.floats(), st.integers(), st.text(max_size=5), st.none(), st.sampled_from(["R", "X+0.1", "1"]))


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


# ---- importing -----------------------------------------------------------------------------------------------------


def _import(text, name="lbwpresets.txt", family=None):
    report = import_presets(text, name, family)
    return {preset.name: preset for preset in report.entries}, {line.number: line for line in report.lines}


def test_lbwpresets():
    text = "\r\n".join([
        "# mine",
        "OUTD:1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
        "",
        "XL12:" + ",".join(["0.5"] * 12),
        "XL20: " + " , ".join([".5"] * 20),
        "SD26:" + ",".join(["-1"] * 26),
        "FLUX:" + ",".join(["1e-1"] * 61),
        "TOKENS:R,U,X,X+0.1,X - 0.2,X0.5" + ",1" * 11,
        "SHORT:1,1,1",
        "COMMA:" + "1," * 17,
        "HASH#:" + ",".join(["1"] * 17),
        "just some text",
        ":" + ",".join(["1"] * 17),
        "A:B:" + ",".join(["1"] * 17),
        "WORD:one" + ",1" * 16,
        "HOLE:1,," + ",1" * 15,
        "XYZ:" + ",".join(["1"] * 17),
        "low:r" + ",1" * 16,
        "TAB\t" + ",".join(["1"] * 12),
        "outd:" + ",".join(["1"] * 12),
        "Outd:" + ",".join(["1"] * 17),
        "x" * 81 + ":" + ",".join(["1"] * 17),
    ])  # fmt: skip
    found, lines = _import(text)
    assert sorted(lines) == [1, 2, *range(4, 23)]
    outcomes = {number for number, line in lines.items() if line.outcome == "refused"}
    assert outcomes == {9, 12, 13, 15, 16, 22}
    assert {number for number, line in lines.items() if line.outcome == "skipped"} == {1, 11, 17}
    assert found["XL12"].family == found["XL20"].family == "SDXL"
    assert found["SD26"].weights == (-1.0,) * 26
    assert found["FLUX"].family == "Flux"
    assert found["TOKENS"].weights[:6] == ("R", "U", "X", "X+0.1", "X-0.2", "X")
    assert "R and U will be drawn once" in lines[8].says
    assert "3 weights; a list has 12, 17, 20, 26 or 61" in lines[9].says
    assert "comma at the end" in lines[10].says
    assert found["A:B"].weights == ONES17
    assert "weight 1 of 'WORD' is 'one'" in lines[15].says.lower().replace("word", "WORD")
    assert "is missing" in lines[16].says
    assert found["low"].weights[0] == "R"
    assert found["TAB"].family == "SDXL"
    assert found["Outd"].weights == ONES17
    assert "replaces line 2" in lines[21].says
    assert found["outd"].family == "SDXL"
    assert all(line.says.endswith(".") and "\n" not in line.says for line in lines.values())


def test_the_family_given_settles_what_is_open():
    ones = ",".join(["1"] * 17)
    found, lines = _import(f"A:{ones}", family="SD2")
    assert found["A"].family == "SD2"
    found, lines = _import(f"A:{ones}", family="SDXL")
    assert found["A"].family == "SD1"
    assert "does not fit SDXL" in lines[1].says
    with pytest.raises(RecipeError, match="is not a family"):
        import_presets("", "x.txt", "SD7")


def test_mbwpresets_as_text_and_table():
    text = "\n".join([
        "preset_name\tpreset_weights",
        "GRAD_V\t0,1,0.9166666667" + ",0.5" * 22 + ",1.",
        "OLD\t" + ",".join(["0.25"] * 25),
        "COLON:" + ",".join(["1"] * 26),
        "XL\t" + ",".join(["1"] * 20),
        "XL19\t" + ",".join(["1"] * 19),
        "LBW\t" + ",".join(["1"] * 17),
    ])  # fmt: skip
    for name in ("mbwpresets.txt", "mbwpresets.tsv", "mine.tsv", "mine.txt"):
        found, lines = _import(text, name)
        assert lines[1].outcome == "skipped"
        assert len(found["GRAD_V"].weights) == 26
        assert found["OLD"].weights[:2] == (0.0, 0.25)
        assert "no place for BASE" in lines[3].says
        assert len(found["COLON"].weights) == 26
        assert found["XL"].family == "SDXL"
        assert found["XL19"].weights[0] == 0.0
        assert lines[7].outcome == "refused"


def test_elempresets():
    text = "\n".join([
        "ATTNDEEPON:IN05-OUT05:attn:1",
        "",
        "TWO:IN05-OUT05:attn:0,NOT M00:NOT ff_net to_k:0.5",
        "OUT00:proj:2",
        "",
        "XYZ:::1",
        "NEXT:IN09::0.5",
        "FLUX:D00-S05:attn:0",
        "",
        "LATER:",
        ":conv:0",
        "",
        "HALF:IN01:attn:0,IN02:attn,IN03:attn:0",
        "",
        "WRONG:IN0:attn:0",
        "",
        "MIXED:IN05 D00:attn:0",
        "",
        "EMPTY:",
        "",
        "no name here",
        "# end",
    ])  # fmt: skip
    found, lines = _import(text, "elempresets.txt")
    assert found["ATTNDEEPON"].family == ANY
    assert found["TWO"].elements == (
        ElementRule("IN05-OUT05", "attn", 0.0), ElementRule("NOT M00", "NOT ff_net to_k", 0.5), ElementRule("OUT00", "proj", 2.0)
    )  # fmt: skip
    assert found["NEXT"].family == "SD1"
    assert found["FLUX"].family == "Flux"
    assert found["LATER"].elements == (ElementRule("", "conv", 0.0),)
    assert set(found) == {"ATTNDEEPON", "TWO", "NEXT", "FLUX", "LATER"}
    assert lines[6].outcome == "skipped"
    assert "The preset 'HALF' is left out" in lines[13].says
    assert "no family has a block 'IN0'" in lines[15].says
    assert "different families" in lines[17].says
    assert "has no rules" in lines[19].says
    assert "no name" in lines[21].says
    for preset in found.values():
        family = "SD1" if preset.family == ANY else preset.family
        ElementMatcher(preset.elements, BLOCKS[family], "a")


def test_inspire_presets():
    text = "\n".join([
        "SD-ALL:" + ",".join("1" * 17),
        "SD-AB:A,b,R,U" + ",0" * 13,
        "SD-LyC-OUTALL:1" + ",0" * 14 + ",1" * 12,
        "SDXL-ALL:" + ",".join("1" * 12),
        "SDXL-LyC-MID:1" + ",0" * 8 + ",0,1,0.5" + ",0" * 9,
        "FLUX-DBL-FRONT7:" + ",".join("1" * 8 + "0" * 12),
        "FLUX-DBL-TAIL6:1" + ",0" * 13 + ",1" * 6,
        "FLUX-SINGLE-31to37:1" + ",0" * 49 + ",1" * 8,
        "@FLUX-DBL-FULL:19",
        "@SD-BLOCK1-TEST:17,12,1",
        "FLUX-OWN:%default=1,base=0,double3=.2,single5-9=0.4",
        "SD-OWN:%default=1,in1-2=.5,out=0,mid=.7",
        "SDXL-OWN:%in8=0,mid1=0",
        "OWN:%in1=0",
        "SD-PARTS:1,1 0.5" + ",1" * 15,
        "SD-15:" + ",".join("1" * 15),
        "SD-BAD:%in1",
    ])  # fmt: skip
    found, lines = _import(text, "lbw-preset.custom.txt")
    assert found["SD-AB"].weights[:4] == ("X", 0.5, "R*3", "R*3-1.5")
    assert "B was taken as 1" in lines[2].says
    outs = expand_block_list(found["SD-LyC-OUTALL"].weights, "SD1")[0]
    assert {block for block, value in outs.items() if value} == {"BASE", "OTHER", *(f"OUT{n:02d}" for n in range(12))}
    middle = expand_block_list(found["SDXL-LyC-MID"].weights, "SDXL")[0]
    assert {block for block, value in middle.items() if value} == {"BASE", "M00", "OTHER"}
    assert "M00 takes the second" in lines[5].says
    front = expand_block_list(found["FLUX-DBL-FRONT7"].weights, "Flux")[0]
    assert [b for b, v in front.items() if v] == ["CLIP", "T5", "IN", *(f"D{n:02d}" for n in range(7)), "OUT", "OTHER"]
    tail = expand_block_list(found["FLUX-DBL-TAIL6"].weights, "Flux")[0]
    assert tail["D12"] == 0
    assert tail["D13"] == tail["S37"] == 1
    assert "repeat its last weight" in lines[7].says
    single = expand_block_list(found["FLUX-SINGLE-31to37"].weights, "Flux")[0]
    assert [b for b, v in single.items() if v and b[0] == "S"] == [f"S{n:02d}" for n in range(30, 38)]
    assert lines[9].outcome == lines[10].outcome == "skipped"
    own = found["FLUX-OWN"].weights
    assert (own["CLIP"], own["D01"], own["D02"], own["S04"], own["S08"], own["S09"]) == (0, 1, 0.2, 0.4, 0.4, 1)
    own = found["SD-OWN"].weights
    assert (own["IN01"], own["IN02"], own["IN04"], own["M00"], own["OUT00"], own["OUT11"]) == (0.5, 0.5, 1, 0.7, 0, 0)
    assert found["SDXL-OWN"].weights["IN08"] == 0
    assert found["SDXL-OWN"].weights["M00"] == 1
    assert "which family" in lines[14].says
    assert "parts of a block" in lines[15].says
    assert "15 weights" in lines[16].says
    assert lines[17].outcome == "refused"
    assert import_presets("FLUX-DBL-X:" + ",".join("1" * 20), "any.txt").kind == "inspire"
    assert import_presets("SD-OWN:%mid=0", "any.txt").kind == "inspire"


def test_kinds_are_told_by_content_where_the_name_says_nothing():
    ones = ",".join("1" * 17)
    assert import_presets(f"A:{ones}", "upload (1).txt").kind == "lbw"
    assert import_presets("A:IN01:attn:0", "C:\\x\\upload.txt").kind == "elements"
    assert import_presets(f"A\t{ones}", "upload.txt").kind == "mbw"
    assert import_presets("", "upload.txt").entries == ()


def test_encodings():
    ones = ",".join("1" * 17)
    for name, data, says in (
        ("Füße", f"Füße:{ones}".encode(), ""),
        ("Füße", f"Füße:{ones}".encode("utf-8-sig"), ""),
        ("Füße", f"Füße:{ones}".encode("utf-16"), "UTF-16"),
        ("Füße", f"Füße:{ones}".encode("cp1252"), "cp1252"),
        ("动漫脸", f"动漫脸:{ones}".encode("gbk"), "GBK"),
    ):
        found, lines = _import(data)
        assert set(found) == {name}
        assert says in (lines[0].says if 0 in lines else "")
    assert set(_import(f"\ufeffA:{ones}")[0]) == {"A"}


@pytest.mark.parametrize("data", [b"\x00" * 90, os.urandom(50) + b"\x00", b"A:1\x07", b"\xff\xfe\x00\xd8", "A:\x001"])
def test_binary_files_are_one_sentence(data):
    with pytest.raises(FileFormatError, match="is not a text file") as error:
        import_presets(data, "lbwpresets.txt")
    assert str(error.value).count(".") <= 2


def test_huge_and_missing_files_are_one_sentence(tmp_path):
    big = tmp_path / "lbwpresets.txt"
    big.write_bytes(b"A:1\n" * 400_000)
    with pytest.raises(FileFormatError, match="has at most"):
        import_file(big)
    with pytest.raises(FileFormatError, match="lines"):
        import_presets("\n" * 6000, "x.txt")
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(FileFormatError, match="cannot be read"):
            import_file(path)


def test_an_import_goes_into_the_store_and_overwrites_nothing(store):
    store.save(FACE)
    rows = ["OUTD:1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0", "OUTALL:0" + ",0" * 7 + ",1" * 9, "face:" + ",".join("1" * 17)]
    rows += ["FLUXALL:" + ",".join("1" * 61), "NEW:R" + ",1" * 16, "Face:" + ",".join("1" * 12)]
    entries = import_presets("\n".join(rows), "lbwpresets.txt").entries
    said = store.add(entries)
    assert len(said) == len(entries) == 6
    assert "comes with this program" in said[0]
    assert "as 'OUTALL 2'" in said[1]
    assert "as 'face 2'" in said[2]
    assert "comes with this program" in said[3]
    assert store.names() == ("Face", "OUTALL 2", "face 2", "NEW")
    assert store.get("Face", "SD1") == FACE
    assert store.get("face", "SDXL").name == "Face"
    assert all("already" in sentence for sentence in store.add(entries))
    assert len(store.list()) == 5
    with pytest.raises(RecipeError):
        store.add([Preset("fine", "SD1", ONES17), Preset("", "SD1", ONES17)])
    assert store.get("fine") is None


def test_a_large_import_is_quick(store):
    ones = ",".join("1" * 12)
    report = import_presets("\n".join(f"n{index}:{ones}" for index in range(4000)), "lbwpresets.txt")
    start = time.monotonic()
    store.add(report.entries)
    assert time.monotonic() - start < 10
    assert len(store.list()) == 4000


PIECES = st.sampled_from([
    "A", "SD-A", "FLUX-A", "@", ":", "::", "\t", ",", ",,", "1", "0.5", "-", "R", "U", "X", "X+0.1", "a", "B", "%", "in1-4=.5",
    "mid=", "double3=1", "IN05-OUT05", "NOT ", "attn", "#", "\n", "\r\n", " ", ",".join("1" * 12), ",".join("1" * 17),
    ",".join("0" * 61), ",".join("1" * 27), "preset_name\tpreset_weights", "\u202e", "é", "١", "1e999", "\ud800", "=",
])  # fmt: skip
FILES = st.sampled_from(
    ["lbwpresets.txt", "elempresets.txt", "mbwpresets.tsv", "lbw-preset.txt", "x.txt", "", "a/../b", "\x00"]
)


def _hold(report):
    for line in report.lines:
        assert line.outcome in ("read", "skipped", "refused")
        assert line.says.endswith(".")
        assert line.says.isprintable()
        line.says.encode("utf-8")
    for preset in report.entries:
        for family in FAMILIES:
            if preset.family == family:
                weights = preset.weights if isinstance(preset.weights, tuple) else dict(preset.weights)
                resolve_blocks(weights, family, ("BASE",), random.Random(0), "a")
                ElementMatcher(preset.elements, BLOCKS[family], "a")


@given(text=st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=200)), name=FILES, family=st.sampled_from([None, "SD2", "SDXL", "Chroma", "Wan", ANY]))  # fmt: skip
def test_no_text_upsets_an_importer(text, name, family):
    try:
        _hold(import_presets(text, name, family))
    except MergeError as error:
        assert "\n" not in str(error)


@given(data=st.binary(max_size=300), name=FILES)
def test_no_bytes_upset_an_importer(data, name):
    try:
        _hold(import_presets(data, name))
    except MergeError as error:
        assert "\n" not in str(error)


@given(text=st.lists(PIECES, max_size=30).map("".join), name=FILES)
def test_what_was_imported_can_be_stored(tmp_path_factory, text, name):
    try:
        entries = import_presets(text, name).entries
    except MergeError:
        return
    store = PresetStore(tmp_path_factory.mktemp("s") / "p.json")
    assert len(store.add(entries)) == len(entries)
    assert all("already" in sentence for sentence in store.add(entries))
    assert list(PresetStore(store.path).take_warnings()) == []


def test_neighbours_files_are_found(tmp_path):
    webui = tmp_path / "webui"
    places = {
        "extensions/sd-webui-lora-block-weight/scripts/lbwpresets.txt": "lbw",
        "extensions/sd-webui-lora-block-weight/scripts/elempresets.txt": "elements",
        "extensions/sd-webui-supermerger/scripts/mbwpresets.txt": "mbw",
        "extensions/sd-webui-model-mixer/data/mbwpresets.tsv": "mbw",
        "scripts/lbwpresets.txt": "lbw",
        "custom_nodes/ComfyUI-Inspire-Pack/resources/lbw-preset.txt": "inspire",
        "custom_nodes/ComfyUI-Inspire-Pack/resources/lbw-preset.custom.txt": "inspire",
    }
    for place in places:
        path = webui / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("A:" + ",".join("1" * 17))
    (webui / "extensions" / "fake" / "scripts" / "lbwpresets.txt").mkdir(parents=True)
    found = find_preset_files([webui / "extensions", webui / "custom_nodes", webui / "none", webui / "extensions"])
    assert {(item.path.relative_to(webui).as_posix(), item.kind) for item in found} == set(places.items())
    assert any("sd-webui-supermerger" in item.title for item in found)
    single = find_preset_files(sorted((webui / "extensions").iterdir()))
    assert len(single) == 5  # given one by one, the WebUI's own old folder included
    assert import_file(single[0].path).entries
    assert find_preset_files([]) == []
