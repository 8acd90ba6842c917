"""A user's own presets: names, weights, families, and what is done with a broken file."""

from __future__ import annotations

import errno
import json
import os
import random

import pytest

from lib_merge.blocks import ANY, Preset, PresetStore, find_preset
from lib_merge.blocks.weights import ElementMatcher, parse_elements, resolve_blocks
from lib_merge.errors import OutputError, RecipeError
from lib_merge.families import family_of
from lib_merge.files import moving
from lib_merge.recipe import ElementRule

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
    assert find_preset(name, "SD1", family_of("SD1").blocks, store) == list(FACE.weights)
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
    for action in (
        lambda: store.delete("x"),
        lambda: store.rename("x", "y"),
        lambda: store.delete("Face", "SDXL"),
    ):
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
    assert store.get("attn", "Wan") is None
    assert store.get("attn", "other").elements == rules
    ElementMatcher(store.get("attn", "SD1").elements, family_of("SD1").blocks, "a")
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


def test_what_could_be_read_is_never_missing(store, monkeypatch):
    store.save(FACE)
    data = json.loads(store.path.read_text("utf-8"))
    text = json.dumps({**data, "presets": [*data["presets"], 7]})
    store.path.write_text(text, "utf-8")

    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        fresh = PresetStore(store.path)
        assert fresh.list() == (FACE,)
        assert any("no space is left" in sentence for sentence in fresh.take_warnings())
    assert store.path.read_text("utf-8") == text
    assert PresetStore(store.path).list() == (FACE,)


def test_names_taken_by_hand_are_numbered_not_lost(store):
    entry = {"families": {"SD1": {"weights": list(FACE.weights)}}}
    data = {"format": "lora-merge-presets", "version": 1}
    data["presets"] = [{"name": name, **entry} for name in ("Outall", "Face", "FACE", "Face")]
    store.path.write_text(json.dumps(data), "utf-8")
    assert store.names() == ("Outall 2", "Face", "FACE 2", "Face 3")
    assert len(store.take_warnings()) == 3
    assert find_preset("OUTALL", "SD1", family_of("SD1").blocks, store)[1] == 0.0


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

    monkeypatch.setattr(moving, "rename_new", refuse)
    assert store.list() == ()
    assert "the disk is upset" in store.take_warnings()[0]
    with pytest.raises(OutputError, match="cannot be set aside"):
        store.save(FACE)
    assert store.path.read_bytes() == b"{ half"
