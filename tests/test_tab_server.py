"""The tab's server side without a browser: library, jobs, naming, state, and every request."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import struct
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_merge.blocks.weights import resolve_blocks
from lib_merge.errors import MergeError, OutputError, RecipeError
from lib_merge.families import block_of, family_of
from lib_merge.kept.archive import Archive
from lib_merge.kept.changes import differences
from lib_merge.kept.database import NAME, Database
from lib_merge.library.library import VERSION as HEADERS
from lib_merge.library.library import Library
from lib_merge.ui import catalog
from lib_merge.ui.jobs import Jobs
from lib_merge.ui.naming import fill_template, output_path, sub_folder
from lib_merge.ui.operations import open_desk
from lib_merge.ui.prompt import PromptSource, infotext, read_prompt, write_prompt
from tests.factories import dense_of, relative, write_lora


class Host:
    name = "test"
    loader = ""

    def __init__(self, base: Path):
        self.base = base
        self.folder = base / "loras"
        (self.folder / "sub").mkdir(parents=True)
        self.refreshed = []
        self.locked = 0

    def lora_folders(self):
        return [self.folder]

    def data_folder(self):
        return self.base / "data"

    def extension_folders(self):
        return [self.base / "extensions"]

    def device(self):
        return torch.device("cpu")

    @contextlib.contextmanager
    def busy_lock(self):
        self.locked += 1
        yield

    def refresh_loras(self, changed):
        self.refreshed += list(changed)

    def alias_of(self, path):
        return path.stem

    def preview_url(self, path):
        return ""

    def can_generate(self):
        return False

    def option(self, name, default):
        return default

    def known_names(self, stems):
        return None

    def checkpoint(self):
        return "", ""

    def claims_name(self, stem):
        return next((path for path in self.folder.rglob("*.safetensors") if path.stem == stem), None)


@pytest.fixture
def host(tmp_path):
    found = Host(tmp_path)
    write_lora(found.folder / "a.safetensors", seed=1)
    write_lora(found.folder / "sub" / "b.safetensors", seed=2)
    return found


@pytest.fixture
def desk(host):
    found = open_desk(host)
    found.library.refresh(wait=True)
    return found


def _state(*rows, **fields):
    sources = [{"key": key, "ratio": ratio, "on": True, **more} for key, ratio, more in rows]
    return {"sources": sources, "method": "weighted_sum", "output": {"template": "out"}, **fields}


PAIR = (("0/a.safetensors", 0.6, {}), ("0/sub/b.safetensors", 0.4, {}))


def _wait(desk, reply):
    assert reply["ok"], reply
    for _ in range(600):
        reply = desk.handle_dict({"op": "job", "job": reply["job"]})
        if reply["state"] not in ("waiting", "running"):
            return reply
        time.sleep(0.02)
    raise AssertionError("the job did not end")


# -------------------------------------------------------------------------------------------- requests


def test_a_request_is_json_and_so_is_every_answer(desk):
    known = json.loads(desk.handle(json.dumps({"id": 7, "op": "init", "token": desk.token})))
    assert known["id"] == 7
    assert known["ok"]
    assert {"methods", "families", "presets", "settings"} <= set(known)
    for text in (
        "",
        "[]",
        "{",
        "null",
        "[" * 100_000,
        *(json.dumps({"op": op, "token": desk.token}) for op in (3, "__class__", "nothing", "plan")),
    ):
        reply = json.loads(desk.handle(text))
        assert reply["ok"] is False
        assert reply["error"]
        assert "Traceback" not in reply["error"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "sources",
                        "key",
                        "ratio",
                        "blocks",
                        "te",
                        "output",
                        "template",
                        "rank",
                        "mode",
                        "value",
                        "knobs",
                        "on",
                        "group",
                    ]
                ),
                x,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_state_brings_the_server_down(tmp_path_factory, value):
    base = getattr(test_no_state_brings_the_server_down, "desk", None)
    if base is None:
        base = test_no_state_brings_the_server_down.desk = open_desk(Host(tmp_path_factory.mktemp("host")))
    reply = base.handle_dict({"op": "plan", "state": value})
    assert reply["ok"] is False


def test_a_merge_from_plan_to_history(desk, host):
    plan = desk.handle_dict({"op": "plan", "state": _state(*PAIR)})["plan"]
    assert plan["name"] == "out.safetensors"
    assert plan["policy"] == "lossless"
    done = _wait(
        desk,
        desk.handle_dict(
            {
                "op": "merge",
                "state": _state(
                    *PAIR, output={"template": "out", "folder": "new", "triggers": "x, y", "notes": "try one"}
                ),
            }
        ),
    )
    assert done["state"] == "done", done
    saved = host.folder / "new" / "out.safetensors"
    assert done["result"]["key"] == "0/new/out.safetensors"
    assert abs(done["result"]["bytes"] - saved.stat().st_size) == 0
    assert host.refreshed == [saved]
    assert host.locked == 1
    a, b = dense_of(host.folder / "a.safetensors"), dense_of(host.folder / "sub" / "b.safetensors")
    assert relative(dense_of(saved), {n: 0.6 * a[n] + 0.4 * b[n] for n in a}) <= 1e-3
    side = json.loads(saved.with_suffix(".json").read_text(encoding="utf-8"))
    assert side["activation text"] == "x, y"
    assert side["notes"].startswith("try one")
    [entry] = desk.handle_dict({"op": "history"})["entries"]
    assert entry["name"] == "out"
    opened = desk.handle_dict({"op": "open", "entry": entry["id"]})["state"]
    assert [(row["key"], row["ratio"]) for row in opened["sources"]] == [
        (key, ratio) for key, ratio, _ in PAIR
    ]
    again = desk.handle_dict({"op": "open", "key": "0/new/out.safetensors"})["state"]
    assert again["sources"] == opened["sources"]
    same = _wait(
        desk, desk.handle_dict({"op": "merge", "state": {**opened, "output": {"template": "second"}}})
    )
    assert same["result"]["tensor_hash"] == done["result"]["tensor_hash"]
    checked = _wait(desk, desk.handle_dict({"op": "verify", "key": "0/new/out.safetensors"}))
    assert checked["state"] == "done"


def test_a_merge_is_renamed_and_thrown_away_with_what_lies_beside_it(desk, host):
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))["result"]
    saved = host.folder / "out.safetensors"
    saved.with_suffix(".preview.png").write_bytes(b"picture")
    for bad in ("", "a", "../x", "con", "out"):
        assert not desk.handle_dict({"op": "rename", "entry": done["entry"], "to": bad})["ok"]
    assert (
        desk.handle_dict({"op": "rename", "entry": done["entry"], "to": "fine"})["key"]
        == "0/fine.safetensors"
    )
    assert not saved.exists()
    assert {path.name for path in host.folder.glob("fine*")} == {
        "fine.safetensors",
        "fine.json",
        "fine.preview.png",
    }
    assert desk.handle_dict({"op": "history"})["entries"][0]["name"] == "fine"
    assert desk.handle_dict({"op": "remove", "entry": done["entry"]})["ok"]
    assert not list(host.folder.glob("fine*"))
    trash = {path.name for path in (host.data_folder() / "trash").iterdir() if "-report" not in path.name}
    assert len(trash) == 5  # the LoRA, its side-car and picture, the entry, where they lay
    assert f"{done['entry']}.json" in trash
    assert desk.handle_dict({"op": "history"})["entries"] == []
    assert not desk.handle_dict({"op": "remove", "entry": done["entry"]})["ok"]


def test_a_rename_never_takes_the_place_of_a_file_beside(desk, host):
    """Fault C1: a rename onto "config" replaced config.json."""
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))["result"]
    (host.folder / "config.json").write_text("mine")
    refused = desk.handle_dict({"op": "rename", "entry": done["entry"], "to": "config"})
    assert refused["error"] == "config.json exists already; choose another name."
    assert (host.folder / "config.json").read_text() == "mine"
    assert (host.folder / "out.safetensors").is_file()


def test_a_history_that_cannot_be_written_is_said_with_the_merge(desk, host, monkeypatch):
    """Fault C5: it said nothing."""
    import sqlite3

    def full(_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Database, "_connect", full)
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))["result"]
    assert done["entry"] == ""
    [warning] = [text for text in done["warnings"] if "not in the history" in text]
    assert "no space is left" in warning
    assert (host.folder / "out.safetensors").is_file()


def test_an_existing_name_is_refused_before_any_work(desk, host):
    for folder in ("", "sub"):
        before = desk.handle_dict(
            {"op": "merge", "state": _state(*PAIR, output={"template": "b", "folder": folder})}
        )
        assert before["ok"] is (folder == "")
    plan = desk.handle_dict(
        {"op": "plan", "state": _state(*PAIR, output={"template": "b", "folder": "other"})}
    )["plan"]
    assert plan["claimed"]


def test_rows_that_are_off_or_wrong_are_said(desk):
    off = _state(("0/a.safetensors", 1, {"on": False}))
    assert "pick a LoRA" in desk.handle_dict({"op": "plan", "state": off})["error"]
    gone = _state(("0/../../etc/passwd", 1, {}))
    assert "not in the LoRA folders" in desk.handle_dict({"op": "plan", "state": gone})["error"]
    bad = _state(("0/a.safetensors", "much", {}))
    assert "takes a number" in desk.handle_dict({"op": "plan", "state": bad})["error"]
    outside = _state(*PAIR, output={"template": "x", "folder": "../.."})
    assert "inside the LoRA folder" in desk.handle_dict({"op": "plan", "state": outside})["error"]


def test_blocks_groups_and_encoders_reach_the_file(desk, host):
    state = _state(
        ("0/a.safetensors", 1, {"group": "A", "blocks": {"IN01": 0}}),
        ("0/sub/b.safetensors", 1, {"group": "A", "te": [0.5]}),
        groups={"A": {"method": "average", "ratio": 0.5}},
    )
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": state}))
    assert done["state"] == "done", done
    a, b = dense_of(host.folder / "a.safetensors"), dense_of(host.folder / "sub" / "b.safetensors")
    wanted = {}
    for n in a:
        wa = 0.0 if block_of(n, "SD1") == "IN01" else 1.0
        wb = 0.5 if n.startswith("lora_te") else 1.0
        wanted[n] = 0.5 * (wa * a[n] + wb * b[n]) / (wa + wb)
    assert relative(dense_of(host.folder / "out.safetensors"), wanted) <= 1e-3


def test_looking_inspecting_and_presets(desk, host):
    for _ in range(200):
        found = desk.handle_dict({"op": "look", "keys": ["0/a.safetensors"]})
        if not found["reading"]:
            break
        time.sleep(0.02)
    assert sum(found["found"]["0/a.safetensors"]["block_energy"].values()) == pytest.approx(1)
    assert desk.handle_dict({"op": "inspect", "key": "0/a.safetensors"})["found"]["family"] == "SD1"
    saved = desk.handle_dict({"op": "preset_save", "name": "mine", "family": "SD1", "weights": {"IN01": 0.5}})
    assert any(item["name"] == "mine" and item["own"] for item in saved["presets"]["SD1"])
    assert desk.handle_dict({"op": "blocks", "text": "mine", "family": "SD1"})["weights"] == {"IN01": 0.5}
    assert desk.handle_dict({"op": "preset_rename", "name": "mine", "to": "ours"})["ok"]
    assert desk.handle_dict({"op": "preset_delete", "name": "ours"})["ok"]
    text = "A:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\nB:1\n"
    report = desk.handle_dict(
        {"op": "preset_import", "text": text, "name": "lbwpresets.txt", "family": "SD1"}
    )
    assert report["count"] == 1
    assert {line["outcome"] for line in report["lines"]} == {"read", "refused"}
    assert desk.handle_dict({"op": "preset_find"})["found"] == []


def test_prompts_by_request(desk):
    text = "a <lora:a:0.8> <lora:b:0.3:0.6:lbw=NONE> <lora:zz:1:stop=10>"
    reply = desk.handle_dict({"op": "prompt", "text": text})
    assert [row["key"] for row in reply["rows"]] == ["0/a.safetensors", "0/sub/b.safetensors", ""]
    assert reply["rows"][1]["te"] == [0.3]
    assert reply["rows"][1]["blocks"]["IN01"] == 0
    assert len(reply["notes"]) == 2
    back = desk.handle_dict({"op": "prompt_write", "state": {"sources": reply["rows"]}})["text"]
    assert back.startswith("<lora:a:0.8> <lora:b:0.3:0.6:lbw=")
    assert not desk.handle_dict({"op": "prompt", "image": "data:image/png;base64,AAAA"})["ok"]


def test_a_cancelled_job_leaves_nothing_and_the_next_one_runs():
    jobs = Jobs()
    begun = threading.Event()

    def slow(task):
        begun.set()
        while not task.stop.is_set():
            time.sleep(0.005)
        from lib_merge.errors import Cancelled

        raise Cancelled("stopped")

    first = jobs.start("merge", slow)
    second = jobs.start("merge", lambda task: {"fine": True})
    third = jobs.start("merge", lambda task: 1 / 0)
    fourth = jobs.start("merge", lambda task: {})
    begun.wait(5)
    assert second.state == "waiting"
    jobs.cancel(fourth.id)
    jobs.cancel(first.id)
    for task in (first, second, third, fourth):
        for _ in range(400):
            if task.ended:
                break
            time.sleep(0.01)
    assert [first.state, second.state, third.state, fourth.state] == [
        "cancelled",
        "done",
        "failed",
        "cancelled",
    ]
    assert "ZeroDivisionError" in third.error
    with pytest.raises(RecipeError, match="restarted"):
        jobs.get(99)


# -------------------------------------------------------------------------------------------- library


def test_the_library_notices_new_changed_and_vanished_files(host, tmp_path):
    def make():
        cache = Archive(tmp_path / "kept").facts("header", HEADERS)
        return Library(host.lora_folders, cache, lambda path: "", lambda path: path.stem)

    library = make()
    library.refresh(wait=True)
    assert [item.key for item in library.items()] == ["0/a.safetensors", "0/sub/b.safetensors"]
    assert {item.family for item in library.items()} == {"SD1"}
    write_lora(host.folder / "c.safetensors", rank=3)
    (host.folder / "a.safetensors").unlink()
    (host.folder / "broken.safetensors").write_bytes(b"nonsense")
    (host.folder / ".x.merging").write_bytes(b"")
    library.refresh(wait=True)
    assert [item.name for item in library.items()] == ["b", "broken", "c"]
    assert library.items()[1].problem
    assert library.find("B").name == "b"
    again = make()
    again.refresh(wait=True)
    assert [item.to_json() for item in again.items()] == [item.to_json() for item in library.items()]
    (tmp_path / "kept" / NAME).write_bytes(b"broken" * 100)
    third = make()
    third.refresh(wait=True)
    assert len(third.items()) == 3


def test_keys_never_lead_out_of_the_folders(host, tmp_path):
    library = Library(
        host.lora_folders,
        Archive(tmp_path / "kept").facts("header", HEADERS),
        lambda path: "",
        lambda path: path.stem,
    )
    write_lora(tmp_path / "secret.safetensors")
    for key in (
        "0/../secret.safetensors",
        "1/a.safetensors",
        "0/",
        "",
        "/a",
        "x/a.safetensors",
        "0//etc/passwd",
        "0/a.safetensors\x00",
        "0/sub",
    ):
        with pytest.raises(RecipeError):
            library.resolve(key)
    assert library.key_of(tmp_path / "secret.safetensors") == ""


def test_linked_folders_are_followed_once(host, tmp_path):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    write_lora(outside / "far.safetensors")
    try:
        (host.folder / "link").symlink_to(outside, target_is_directory=True)
        (outside / "loop").symlink_to(host.folder, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links without rights")
    library = Library(
        host.lora_folders,
        Archive(tmp_path / "kept").facts("header", HEADERS),
        lambda path: "",
        lambda path: path.stem,
    )
    library.refresh(wait=True)
    assert [item.key for item in library.items()] == [
        "0/a.safetensors",
        "0/sub/b.safetensors",
        "0/link/far.safetensors",
    ]
    assert library.resolve("0/link/far.safetensors").is_file()


# -------------------------------------------------------------------------------------------- naming


def test_names_count_up_and_stay_possible(tmp_path):
    stem = fill_template("{sources}_{method}_{weights}_v{n}", ["a/b", "c:d"], [0.6, -0.25], "ties", "32")
    assert stem == "a_b+c_d_ties_60-m25_v{n}"
    assert output_path(tmp_path, stem, overwrite=False).name.endswith("_v1.safetensors")
    output_path(tmp_path, stem, overwrite=False).touch()
    assert output_path(tmp_path, stem, overwrite=False).name.endswith("_v2.safetensors")
    assert output_path(tmp_path, stem, overwrite=True).name.endswith("_v1.safetensors")
    for bad in ("con", "a" * 300, "x?y", "../x", "/etc/x", "a/../../x", "..\\x", "sub/x"):
        with pytest.raises(OutputError):
            output_path(tmp_path, bad, overwrite=False)
    for bad in ("..", "/etc", "a/../..", "C:/x", "con"):
        with pytest.raises(OutputError):
            sub_folder(tmp_path, bad)
    assert sub_folder(tmp_path, "a\\b") == tmp_path / "a" / "b"


@pytest.mark.skipif(sys.platform == "win32", reason="making links asks for rights there")
def test_no_link_leads_what_is_saved_out_of_the_lora_folder(tmp_path):
    inside, outside = tmp_path / "loras", tmp_path / "elsewhere"
    (inside / "real").mkdir(parents=True)
    outside.mkdir()
    (inside / "out").symlink_to(outside)
    (inside / "in").symlink_to(inside / "real")
    (tmp_path / "linked").symlink_to(inside)
    for name in ("out", "out/deeper", "in/../out"):
        with pytest.raises(OutputError):
            sub_folder(inside, name)
    assert sub_folder(inside, "in/new") == inside / "in" / "new"
    assert sub_folder(tmp_path / "linked", "real") == tmp_path / "linked" / "real"


@given(st.lists(st.text(max_size=60), min_size=1, max_size=8), st.text(max_size=40))
def test_any_name_of_a_lora_gives_a_possible_name(names, template):
    stem = fill_template(template + "{sources}", names, [1.0] * len(names), "x", "y")
    assert len(stem) < 400
    with contextlib.suppress(OutputError):
        output_path(Path("/nowhere"), stem[:100], overwrite=False)


# -------------------------------------------------------------------------------------------- prompts

NAMES = (
    st.text(
        st.characters(blacklist_characters="<>:\x00", blacklist_categories=("Cs", "Cc")),
        min_size=1,
        max_size=20,
    )
    .map(str.strip)
    .filter(bool)
)
NUMBERS = st.integers(-200, 200).map(lambda n: n / 100)


@given(
    st.lists(
        st.builds(PromptSource, name=NAMES, ratio=NUMBERS, te_ratio=st.none() | NUMBERS),
        max_size=5,
    )
)
def test_tags_come_back(sources):
    text, notes = write_prompt(sources)
    back = read_prompt("a cat, " + text).sources
    assert not notes
    assert len(back) == len(sources)
    for one, other in zip(back, sources):
        assert one.name == other.name
        assert one.ratio == pytest.approx(other.ratio)
        te = None if other.te_ratio == other.ratio else other.te_ratio
        assert one.te_ratio == (None if te is None else pytest.approx(te))


@pytest.mark.parametrize("family", ["SD1", "SDXL", "Flux"])
@pytest.mark.parametrize("all_blocks", [True, False])
def test_block_weights_of_a_tag_come_back(family, all_blocks):
    """Whatever block is set, of a file that has all blocks and of one that has only the usual ones."""
    order = family_of(family).lists[0].blocks
    present = family_of(family).blocks if all_blocks else order
    for block in present:
        if block == "OTHER":
            continue
        source = PromptSource(name="x", ratio=1.0, blocks={block: 0.5}, family=family, present=present)
        text, notes = write_prompt([source])
        [back] = read_prompt(text).sources
        weights = resolve_blocks(back.blocks, family, present, random.Random(0), "x")[0]
        assert not notes
        assert {name: weights.get(name, 1.0) for name in present if name != "OTHER"} == {
            name: 0.5 if name == block else 1.0 for name in present if name != "OTHER"
        }


def test_what_a_tag_cannot_say_is_said():
    present = (*family_of("SDXL").blocks, "OTHER")
    source = PromptSource(name="x", ratio=1.0, blocks={"OTHER": 0.5}, family="SDXL", present=present)
    text, [note] = write_prompt([source])
    assert "OTHER" in note
    assert text.startswith("<lora:x:1")
    text, [note] = write_prompt([PromptSource(name="a<b", ratio=1.0)])
    assert not text
    assert "rename" in note
    text, [note] = write_prompt(
        [PromptSource(name="x", ratio=1.0, blocks={"B05": 0.5}, family="Wan", present=("B05",))]
    )
    assert text == "<lora:x:1>"
    assert "B05" in note


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        ("<lora:x>", (1.0, None, None)),
        ("<lora:x:0.5>", (0.5, None, None)),
        ("<lora:x:0.5:0.7>", (0.7, 0.5, None)),
        ("<lora:x:te=0.2:unet=0.9>", (0.9, 0.2, None)),
        ("<lyco:x:1:lbw=OUTALL>", (1.0, None, "OUTALL")),
        ("<lora:x:0.8:1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1>", (0.8, None, "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1")),
        ("<lora:x:much>", (1.0, None, None)),
    ],
)
def test_forms_of_tags(tag, wanted):
    [source] = read_prompt(f"{tag} a cat").sources
    assert (source.ratio, source.te_ratio, source.blocks) == wanted


def test_an_infotext_gives_its_positive_prompt_only():
    text = "a <lora:x:1>\nNegative prompt: <lora:bad:1>\nSteps: 20, Lora hashes: x"
    assert [source.name for source in read_prompt(text).sources] == ["x"]


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_a_pictures_text_is_found(kind, desk):
    text = "a <lora:a:0.5>\nSteps: 4"
    body = {
        "tEXt": b"parameters\0" + text.encode(),
        "zTXt": b"parameters\0\0" + zlib.compress(text.encode()),
        "iTXt": b"parameters\0\1\0\0\0" + zlib.compress(text.encode()),
    }[kind]
    data = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", bytes(13)) + _chunk(kind.encode(), body) + _chunk(b"IEND", b"")
    )
    assert infotext(data) == text
    image = "data:image/png;base64," + base64.b64encode(data).decode()
    assert desk.handle_dict({"op": "prompt", "image": image})["rows"][0]["ratio"] == 0.5


@given(st.binary(max_size=200))
def test_no_picture_brings_the_reader_down(data):
    exif = b"Exif\0\0MM\0*\0\0\0\x08"
    for start in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8",
        b"\xff\xd8\xff\xe1\x01\x00" + exif,
        b"RIFF\0\0\0\0WEBPEXIF\xff\0\0\0" + exif,
    ):
        with contextlib.suppress(MergeError):
            infotext(start + data)


# -------------------------------------------------------------------------------------------- history


def test_differences_are_sentences():
    before = {
        "method": "ties",
        "knobs": {"trim_fraction": 0.2},
        "sources": [{"name": "a", "ratio": 0.5}, {"name": "b", "ratio": 1}],
    }
    after = {
        "method": "ties",
        "knobs": {"trim_fraction": 0.3},
        "sources": [{"name": "a", "ratio": 0.7}, {"name": "c", "ratio": 1}],
    }
    assert differences(before, after) == [
        "Trim fraction: 0.2 → 0.3",
        "b was taken out",
        "c was added at 1",
        "a, ratio: 0.5 → 0.7",
    ]
    assert differences(before, before) == ["nothing changed"]


def test_every_block_has_a_hint_of_its_own_place():
    for family, known in catalog.families().items():
        assert set(known.hints) == set(known.blocks), family
    sd1, xl = catalog.families()["SD1"].hints, catalog.families()["SDXL"].hints
    assert "1/8 as wide" in sd1["IN01"]
    assert "1/64 as wide" in sd1["M00"]
    assert sd1["IN07"] != sd1["IN04"] != sd1["IN01"]
    assert "style" in xl["OUT01"]
    assert "shown" in xl["OUT00"]
    assert "1/32 as wide" in xl["M00"]


def test_the_history_comes_in_pages(desk):
    for number in range(5):
        desk.history.add(time=f"2026-01-0{number + 1}T00:00:00+00:00", name=f"m{number}")
    found = desk.handle_dict({"op": "history", "count": 2})
    assert [entry["name"] for entry in found["entries"]] == ["m4", "m3"]
    assert found["total"] == 5
    assert len(desk.handle_dict({"op": "history"})["entries"]) == 5
    refused = desk.handle_dict({"op": "history", "count": -3})["error"]
    assert refused == "count is -3; it takes a whole number from 1."


def test_a_saved_preset_keeps_the_rows_element_rules(desk):
    rules = "OUT03:attn1:0.5, IN01-IN08:ff proj:0.0"
    saved = desk.handle_dict(
        {"op": "preset_save", "name": "mixed", "family": "SD1", "weights": {"M00": 0.25}, "elements": rules}
    )
    [item] = [item for item in saved["presets"]["SD1"] if item["name"] == "mixed"]
    assert item["elements"] == rules
    assert item["weights"]["M00"] == 0.25
    assert open_desk(desk.host).presets.get("mixed", "SD1").elements[1].ratio == 0.0  # from the disk
    refused = desk.handle_dict({"op": "preset_save", "name": "bad", "family": "SD1", "elements": "no rule"})
    assert "blocks:elements:ratio" in refused["error"]
    assert open_desk(desk.host).presets.get("bad", "SD1") is None
