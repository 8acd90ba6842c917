"""From what was written back into the tab: history, moved sources, prompts and pictures, groups, previews."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil

import pytest

from lib_merge.blocks import ANY, Preset
from lib_merge.recipe import ElementRule, Recipe, Source
from lib_merge.ui import locating
from lib_merge.ui.prompt import infotext, read_prompt
from lib_merge.ui.protocol import write
from lib_merge.ui.state import from_recipe, tab_state, to_recipe, unshown
from tests.factories import dense_of, exif_comment, relative, write_lora
from tests.test_tab_server import PAIR, _state, _wait, desk, host  # noqa: F401 - fixtures


def _merge(desk, name="out", **output):  # noqa: F811
    done = _wait(
        desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR, output={"template": name, **output})})
    )
    assert done["state"] == "done", done
    return done["result"]


def _again(desk, entry, name=""):  # noqa: F811
    return _wait(desk, desk.handle_dict({"op": "again", "entry": entry, "name": name}))


# -------------------------------------------------------------------------------------------- run again


def test_run_again_under_the_same_name_gives_the_same_bytes(desk, host):  # noqa: F811
    first = _merge(desk, folder="new")
    path = host.folder / "new" / "out.safetensors"
    before = path.read_bytes()
    os.utime(path, (1, 1))
    done = _again(desk, first["entry"])
    assert done["state"] == "done", done
    assert path.read_bytes() == before
    assert path.stat().st_mtime > 1, "it was not written anew"
    assert done["result"]["same_tensors"] is True


def test_run_again_under_another_name_gives_the_same_tensors(desk, host):  # noqa: F811
    first = _merge(desk)
    done = _again(desk, first["entry"], "other")
    assert done["result"]["same_tensors"] is True
    assert done["result"]["tensor_hash"] == first["tensor_hash"]
    assert (host.folder / "other.safetensors").read_bytes() != (host.folder / "out.safetensors").read_bytes()
    assert (
        "exists already"
        in desk.handle_dict({"op": "again", "entry": first["entry"], "name": "other"})["error"]
    )
    for bad in ("../x", "a/b", "..\\x", "/x", "con"):
        assert not desk.handle_dict({"op": "again", "entry": first["entry"], "name": bad})["ok"], bad


def test_run_again_with_a_source_that_changed_is_refused_by_name(desk, host):  # noqa: F811
    first = _merge(desk)
    write_lora(host.folder / "a.safetensors", seed=99)
    desk.library.refresh(wait=True)
    reply = desk.handle_dict({"op": "again", "entry": first["entry"]})
    assert not reply["ok"]
    assert reply["error"].startswith(
        "it cannot be run again: a has changed since: a.safetensors holds something else now"
    )


# -------------------------------------------------------------------------------------------- moved sources


def test_a_moved_and_renamed_source_is_found_and_only_candidates_are_hashed(desk, host, monkeypatch):  # noqa: F811
    first = _merge(desk)
    (host.folder / "deep").mkdir()
    shutil.move(host.folder / "a.safetensors", host.folder / "deep" / "renamed.safetensors")
    write_lora(host.folder / "large.safetensors", seed=5, rank=9)
    write_lora(host.folder / "like.safetensors", seed=6)  # the same size, other tensors
    desk.library.refresh(wait=True)
    hashed = []
    real = locating.file_hash
    monkeypatch.setattr(locating, "file_hash", lambda path: hashed.append(path.name) or real(path))
    opened = desk.handle_dict({"op": "open", "entry": first["entry"]})
    assert [row["key"] for row in opened["state"]["sources"]] == [
        "0/deep/renamed.safetensors",
        "0/sub/b.safetensors",
    ]
    assert opened["notes"] == []
    assert "large.safetensors" not in hashed
    assert "out.safetensors" not in hashed
    count = len(hashed)
    desk.handle_dict({"op": "open", "entry": first["entry"]})
    assert len(hashed) == count, "a file that stayed as it is was hashed twice"
    assert _again(desk, first["entry"], "moved")["result"]["same_tensors"] is True


def test_a_source_that_is_gone_is_named(desk, host):  # noqa: F811
    first = _merge(desk)
    (host.folder / "a.safetensors").unlink()
    desk.library.refresh(wait=True)
    opened = desk.handle_dict({"op": "open", "entry": first["entry"]})
    assert opened["notes"] == ["a is not in the LoRA folders any more"]
    assert [row["key"] for row in opened["state"]["sources"]] == ["", "0/sub/b.safetensors"]


def test_changes_to_the_merge_it_is_based_on_are_said_before_and_after(desk):  # noqa: F811
    first = _merge(desk)
    rows = (("0/a.safetensors", 0.9, {"blocks": {"M00": 0.5, "IN04": 0.5}}), PAIR[1])
    state = _state(*rows, output={"template": "next", "based_on": first["entry"]})
    wanted = ["a, ratio: 0.6 → 0.9", "a, block weights: IN04 M00 1 → 0.5"]
    assert desk.handle_dict({"op": "plan", "state": state})["plan"]["changes"] == wanted
    second = _wait(desk, desk.handle_dict({"op": "merge", "state": state}))["result"]
    assert (
        desk.handle_dict({"op": "history_diff", "entry": second["entry"], "other": first["entry"]})["lines"]
        == wanted
    )
    gone = _state(*rows, output={"template": "x", "based_on": "000009-00000000"})
    assert desk.handle_dict({"op": "plan", "state": gone})["plan"]["changes"] == []


# -------------------------------------------------------------------------------------------- element rules and groups


def test_element_rules_go_into_the_file_and_come_back(desk, host):  # noqa: F811
    rules = ":attn:0.25"
    state = _state(("0/a.safetensors", 1, {"elements": rules}), output={"template": "ruled"})
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": state}))
    assert done["state"] == "done", done
    a = dense_of(host.folder / "a.safetensors")
    wanted = {name: (0.25 if "attn" in name else 1.0) * value for name, value in a.items()}
    assert relative(dense_of(host.folder / "ruled.safetensors"), wanted) <= 1e-3
    [row] = desk.handle_dict({"op": "open", "key": "0/ruled.safetensors"})["state"]["sources"]
    assert row["elements"] == ":attn:0.25"


def test_a_recipe_goes_through_the_tab_unchanged(host):  # noqa: F811
    a, b = host.folder / "a.safetensors", host.folder / "sub" / "b.safetensors"
    inner = Recipe(
        (
            Source(a, name=a.name, ratio=0.3, size=a.stat().st_size),
            Source(b, name=b.name, blocks={"M00": 0.1}, size=b.stat().st_size),
        ),
        "ties",
        {"trim_fraction": 0.4},
    )
    one = Source(
        a, name=a.name, te_ratio=0.2, elements=(ElementRule("IN01", "attn", 1 / 3),), size=a.stat().st_size
    )
    recipe = Recipe(
        (one, Source(recipe=inner, ratio=0.7, name="group 1")), "dare", {"drop_rate": 0.1}, seed=4
    )
    keys = {a: "0/a.safetensors", b: "0/sub/b.safetensors"}
    state = from_recipe(recipe, lambda source: keys[source.path], lambda blocks: dict(blocks or {}))
    again = to_recipe(tab_state(json.loads(json.dumps(write(state)))), lambda key: host.folder / key[2:])
    assert again.to_json() == recipe.to_json()
    assert unshown(recipe) == []


def test_what_the_tab_has_no_control_for_is_said():
    leaf = Source(name="x.safetensors")
    deep = Recipe((Source(recipe=Recipe((leaf,)), name="inner"), leaf))
    recipe = Recipe(
        (
            Source(recipe=deep, name="outer", blocks={"M00": 0.0}),
            Source(recipe=Recipe((leaf,), seed=3), name="g"),
        )
    )
    assert len(unshown(recipe)) == 3


# -------------------------------------------------------------------------------------------- prompts and pictures


def test_element_rules_of_a_prompt_are_taken_over_or_named(desk):  # noqa: F811
    desk.presets.save(Preset("ATT", ANY, {}, (ElementRule("", "attn", 0.5),)))
    text = "<lora:a:1:lbw=ALL0.5:lbwe=ATT> <lora:b:1:lbwe=NOBODY>"
    reply = desk.handle_dict({"op": "prompt", "text": text})
    assert reply["rows"][0]["elements"] == ":attn:0.5"
    assert reply["rows"][0]["blocks"]["M00"] == 0.5
    assert reply["rows"][1]["elements"] == ""
    assert reply["notes"] == ["b: the element rules 'NOBODY' are not known here and are left out"]


def test_one_bad_argument_does_not_cost_the_other_rows(desk):  # noqa: F811
    reply = desk.handle_dict({"op": "prompt", "text": "<lora:a:1:lbw=NOSUCHPRESET> <lora:b:0.5>"})
    assert [row["ratio"] for row in reply["rows"]] == [1.0, 0.5]
    assert any("a: its block weights were not taken over" in note for note in reply["notes"])


def test_what_cannot_be_baked_is_named_one_by_one():
    [source] = read_prompt("<lora:x:1:start=5:stop=10:step=2-4>").sources
    assert [note.partition(" (")[0] for note in source.notes] == ["start", "stop", "step range"]


def test_what_tags_cannot_say_is_said(desk):  # noqa: F811
    rows = [{"key": "0/a.safetensors", "ratio": 1, "te": [0.2, 0.4], "elements": ":attn:0", "on": True}]
    reply = desk.handle_dict({"op": "prompt_write", "state": {"sources": rows}})
    assert reply["text"] == "<lora:a:0.2:1>"
    assert len(reply["notes"]) == 2


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_the_prompt_of_a_jpeg_and_a_webp_is_read(desk, kind, order):  # noqa: F811
    image = pytest.importorskip("PIL.Image")
    text = "ein Mädchen, 桜 <lora:a:0.25>\nNegative prompt: <lora:b:1>\nSteps: 20, Sampler: Euler"
    file = io.BytesIO()
    image.new("RGB", (16, 16)).save(file, kind, exif=exif_comment(text, order))
    assert infotext(file.getvalue()) == text
    data = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    [row] = desk.handle_dict({"op": "prompt", "image": data})["rows"]
    assert (row["name"], row["ratio"]) == ("a", 0.25)


def test_a_picture_of_a_live_merge_brings_its_whole_recipe(desk, host):  # noqa: F811
    inner = Recipe(
        (Source(name="a.safetensors", ratio=0.3), Source(name="gone.safetensors")),
        "ties",
        {"trim_fraction": 0.4},
    )
    text = f"a cat\nSteps: 4, Merge recipe: {json.dumps(json.dumps(inner.to_json()))}, Version: x"
    reply = desk.handle_dict({"op": "prompt", "text": text})
    assert (reply["state"]["method"], reply["state"]["knobs"]["ties"]["trim_fraction"]) == ("ties", 0.4)
    assert [row["key"] for row in reply["state"]["sources"]] == ["0/a.safetensors", ""]
    assert reply["notes"] == ["gone is not in the LoRA folders any more"]


def test_a_picture_without_parameters_is_said_so(desk):  # noqa: F811
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.new("RGB", (4, 4)).save(file, "PNG")
    data = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    assert "no generation parameters" in desk.handle_dict({"op": "prompt", "image": data})["error"]


# -------------------------------------------------------------------------------------------- the card's picture

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def test_a_preview_comes_from_the_browser_or_from_a_source(desk, host):  # noqa: F811
    data = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert _merge(desk, "one", preview={"data": data})["warnings"] == []
    assert (host.folder / "one.preview.png").read_bytes() == PNG
    (host.folder / "a.preview.jpg").write_bytes(b"\xff\xd8\xff old")
    (host.folder / "two.preview.png").write_bytes(b"left over")
    _merge(desk, "two", preview={"like": "0/a.safetensors"})
    assert (host.folder / "two.preview.jpg").read_bytes() == b"\xff\xd8\xff old"
    assert not (host.folder / "two.preview.png").exists(), "the older picture would be shown instead"


def test_a_bad_preview_costs_no_merge_and_leaves_no_file(desk, host):  # noqa: F811
    for number, data in enumerate(("<script>", "data:,!!", base64.b64encode(b"<html>").decode())):
        report = _merge(desk, f"m{number}", preview={"data": data})
        assert any("preview picture was not saved" in text for text in report["warnings"]), data
    gone = _merge(desk, "m9", preview={"like": "0/../../x.safetensors"})
    assert any("preview picture" in text for text in gone["warnings"])
    assert not [path for path in host.folder.rglob("*") if "preview" in path.name]


# -------------------------------------------------------------------------------------------- looking closer


def test_inspecting_tells_the_training_and_the_recipe_in_words(desk, host):  # noqa: F811
    meta = {"ss_unet_lr": "1e-4", "ss_sd_model_name": "v1-5-pruned", "ss_training_comment": "x" * (1 << 20)}
    write_lora(host.folder / "told.safetensors", metadata=meta)
    desk.library.refresh(wait=True)
    found = desk.handle_dict({"op": "inspect", "key": "0/told.safetensors"})["found"]
    assert ["Learning rate, UNet", "1e-4"] in found["training"]
    assert found["made_of"] == ""
    assert len(json.dumps(found)) < 20_000
    _merge(desk)
    assert desk.handle_dict({"op": "inspect", "key": "0/out.safetensors"})["found"]["made_of"].startswith(
        "merged: a@0.6"
    )


def test_energies_are_kept_over_a_restart_and_measured_anew_when_the_file_changes(desk, host, monkeypatch):  # noqa: F811
    import time

    from lib_merge.library import inspect as looking
    from lib_merge.ui.operations import open_desk

    def look(of):
        for _ in range(500):
            found = of.handle_dict({"op": "look", "keys": ["0/a.safetensors"]})
            if not found["reading"]:
                return found["found"]["0/a.safetensors"]
            time.sleep(0.01)
        raise AssertionError

    first = look(desk)
    facts = desk.archive.facts("energy", looking.VERSION)
    while not facts.load():
        time.sleep(0.01)
    measured = []
    real = looking.inspect_file
    monkeypatch.setattr(looking, "inspect_file", lambda path: measured.append(path.name) or real(path))
    assert look(open_desk(host)) == first
    assert measured == []
    write_lora(host.folder / "a.safetensors", seed=50, rank=7)
    assert look(open_desk(host)) != first
    assert measured == ["a.safetensors"]
    state = (host.folder / "a.safetensors").stat()
    facts.put({str(host.folder / "a.safetensors"): (state.st_size, state.st_mtime_ns, {"norm": 3})})
    assert look(open_desk(host))["norm"] > 0  # not all of it is there: measured again
    assert measured == ["a.safetensors", "a.safetensors"]


def test_only_what_changed_in_the_list_is_sent(desk, host):  # noqa: F811
    everything = desk.handle_dict({"op": "library", "since": ""})
    assert everything["full"]
    assert {item["key"] for item in everything["items"]} == {"0/a.safetensors", "0/sub/b.safetensors"}
    nothing = desk.handle_dict({"op": "library", "since": everything["since"]})
    assert (nothing["items"], nothing["gone"], nothing["full"]) == ([], [], False)
    write_lora(host.folder / "c.safetensors", rank=3)
    (host.folder / "a.safetensors").unlink()
    desk.library.refresh(wait=True)
    changed = desk.handle_dict({"op": "library", "since": everything["since"]})
    assert [item["key"] for item in changed["items"]] == ["0/c.safetensors"]
    assert changed["gone"] == ["0/a.safetensors"]
    for strange in ("x:1", "1", "::", everything["since"] + "x"):
        assert desk.handle_dict({"op": "library", "since": strange})["full"]
    short, whole = changed["items"][0], desk.library.find("c").to_json()
    assert {**whole, **short, "mtime": 0} == {**whole, "blocks": " ".join(whole["blocks"]), "mtime": 0}


def test_a_recipe_that_is_none_is_refused(desk):  # noqa: F811
    assert "no recipe in it" in desk.handle_dict({"op": "open", "key": "0/a.safetensors"})["error"]


def test_presets_of_a_neighbour_are_found_and_imported_with_a_line_each(desk, host):  # noqa: F811
    scripts = host.base / "extensions" / "sd-webui-lora-block-weight" / "scripts"
    scripts.mkdir(parents=True)
    lines = "MINE:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\nSHORT:1,0\n# a remark\n"
    (scripts / "lbwpresets.txt").write_text(lines, encoding="utf-8")
    (scripts / "elempresets.txt").write_text("NOATTN:IN05-OUT05:attn:0\n", encoding="utf-8")
    found = desk.handle_dict({"op": "preset_find"})["found"]
    assert len(found) == 2
    replies = [
        desk.handle_dict({"op": "preset_import", "found": item["id"], "family": "SD1"}) for item in found
    ]
    assert sum(reply["count"] for reply in replies) == 2
    outcomes = [line["outcome"] for reply in replies for line in reply["lines"]]
    assert outcomes.count("read") == 2
    assert outcomes.count("refused") == 1
    own = {item["name"]: item for item in replies[-1]["presets"]["SD1"] if item["own"]}
    assert own["MINE"]["weights"]["IN01"] == 0
    assert own["NOATTN"]["elements"] == "IN05-OUT05:attn:0.0"
    assert not desk.handle_dict({"op": "preset_import", "found": "9"})["ok"]
