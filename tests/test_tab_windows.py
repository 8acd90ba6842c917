"""What outlives a reload: set-ups and jobs of windows, cards of files that move, the checklist of a merge."""

from __future__ import annotations

import json
import sqlite3

import pytest

from lib_merge.analysis.triggers import trigger_words
from lib_merge.kept.database import NAME
from lib_merge.ui.operations import open_desk
from tests.factories import write_lora
from tests.test_tab_server import PAIR, _state, _wait, desk, host  # noqa: F401

ONE = {"window": "w-1", "browser": "b"}
TWO = {"window": "w-2", "browser": "b"}


def _page(desk, op, asked_in="", **fields):  # noqa: F811
    text = json.dumps({"op": op, "id": 1, "token": desk.token, "asked_in": asked_in, **fields})
    return json.loads(desk.handle(text))


def _merged(desk, **fields):  # noqa: F811
    return _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR, **fields)}))["result"]


# -------------------------------------------------------------------------------------------- windows


def test_two_windows_have_two_set_ups_and_a_new_one_is_offered_the_last(desk, host):  # noqa: F811
    for which, ratio in ((ONE, 0.1), (TWO, 0.2)):
        state = _state((PAIR[0][0], ratio, {}), output={"preview": {"data": "data:,x"}})
        assert desk.handle_dict({"op": "window_keep", "state": state, **which})["ok"]
    again = open_desk(host)  # the program was restarted
    own = again.handle_dict({"op": "window_open", **ONE})
    assert own["state"]["sources"][0]["ratio"] == 0.1
    assert own["state"]["output"]["preview"] is None
    assert own["last"] is None
    new = again.handle_dict({"op": "window_open", "window": "w-3", "browser": "b"})
    assert (new["state"], new["last"]["sources"][0]["ratio"]) == (None, 0.2)
    stranger = again.handle_dict({"op": "window_open", "window": "w-1", "browser": "another"})
    assert (stranger["state"], stranger["last"]) == (None, None)
    assert "named by" in again.handle_dict({"op": "window_open", "window": "../x", "browser": "b"})["error"]


def test_a_reload_finds_the_jobs_of_its_window_until_their_end_was_seen(desk):  # noqa: F811
    job = _page(desk, "merge", "w-1", state=_state(*PAIR))["job"]
    assert [one["job"] for one in _page(desk, "window_open", **ONE)["jobs"]] == [job]
    assert _page(desk, "window_open", **TWO)["jobs"] == []
    while not desk.jobs.get(job).ended:
        pass
    [unseen] = _page(desk, "window_open", **ONE)["jobs"]  # finished while nobody looked
    assert (unseen["state"], unseen["result"]["output"]) == ("done", "out.safetensors")
    assert _page(desk, "job", "w-1", job=job)["state"] == "done"
    assert _page(desk, "window_open", **ONE)["jobs"] == []


# -------------------------------------------------------------------------------------------- cards


def test_a_card_follows_its_file(desk, host):  # noqa: F811
    made = _merged(desk)
    ask = {"op": "card", "entry": made["entry"], "key": made["key"]}
    assert (desk.handle_dict(ask)["state"], desk.handle_dict(ask)["prompt"]) == ("there", "<lora:out:1>")
    desk.handle_dict({"op": "rename", "entry": made["entry"], "to": "other"})
    renamed = desk.handle_dict(ask)
    assert (renamed["state"], renamed["name"], renamed["prompt"]) == ("renamed", "other", "<lora:other:1>")
    (host.folder / "other.safetensors").rename(host.folder / "sub" / "by hand.safetensors")
    moved = desk.handle_dict(ask)
    assert (moved["state"], moved["key"]) == ("renamed", "0/sub/by hand.safetensors")
    (host.folder / "sub" / "by hand.safetensors").unlink()
    gone = desk.handle_dict(ask)
    assert (gone["state"], gone["prompt"], gone["thrown"]) == ("gone", "", "")


def test_a_card_of_a_file_in_the_trash_has_no_tag(desk, host):  # noqa: F811
    made = _merged(desk)
    ask = {"op": "card", "entry": made["entry"], "key": made["key"]}
    desk.handle_dict({"op": "remove", "entry": made["entry"]})
    thrown = desk.handle_dict(ask)
    assert (thrown["state"], thrown["prompt"], thrown["key"]) == ("trash", "", "")
    _merged(desk, rank={"mode": "rank", "value": 1})  # another merge takes the name
    assert desk.handle_dict(ask)["state"] == "trash"
    desk.handle_dict({"op": "remove", "entry": desk.history.list()[0].id})
    desk.handle_dict({"op": "restore", "thrown": thrown["thrown"]})
    assert desk.handle_dict(ask)["state"] == "there"


def test_a_card_whose_file_was_replaced_says_so(desk):  # noqa: F811
    made = _merged(desk)
    _merged(desk, rank={"mode": "rank", "value": 1}, output={"template": "out", "overwrite": True})
    card = desk.handle_dict({"op": "card", "entry": made["entry"], "key": made["key"]})
    assert (card["state"], card["said"]) == ("replaced", "another merge has replaced out.")


# -------------------------------------------------------------------------------------------- validation


class _Picture:
    def convert(self, mode):
        return self

    def thumbnail(self, size):
        pass

    def save(self, file, form, quality):
        file.write(b"jpeg")


def _compared(desk, entry):  # noqa: F811
    recipe = desk.history.get(entry).recipe
    labels = ("merge: Weighted sum", "merge × 0.6", "merge × 1.2")
    columns = [
        {"label": name, "kind": "variant" if "×" in name else "merge", "recipe": recipe} for name in labels
    ]
    columns.append({"label": "stack", "kind": "stack", "recipe": recipe})
    figures = [
        {"column": labels[0], "kind": "merge", "load": 0.1, "seconds": 2.0},
        {"column": "stack", "kind": "stack", "load": 0.3, "seconds": 2.0},
    ]
    prompts = [one for one in desk.handle_dict({"op": "test_prompts"})["prompts"] if one["extreme"]]
    rows = [one["text"].replace("{trigger}", "ink").replace("{empty}", "(empty)")[:60] for one in prompts]
    return desk.comparisons.add(
        _Picture(), sources=["a"], columns=columns, rows=rows, figures=figures, stopped=False
    )


def _steps(reply):
    return {one["step"]: one["state"] for one in reply["steps"]}


def test_the_checklist_fills_itself_and_the_rest_is_ticked(desk, host):  # noqa: F811
    entry = _merged(desk)["entry"]
    ask = {"op": "validation", "entry": entry}
    begun = desk.handle_dict(ask)
    assert begun["state"] == "open"
    assert _steps(begun) == {
        "loads": "passed", "pictures": "open", "strengths": "open", "prompts": "open", "speed": "open",
    }  # fmt: skip
    grid = _compared(desk, entry)
    seen = desk.handle_dict(ask)
    assert _steps(seen) == {
        "loads": "passed", "pictures": "open", "strengths": "passed", "prompts": "passed", "speed": "passed",
    }  # fmt: skip
    assert seen["steps"][4]["said"].startswith("0.10 s to load against 0.30 s of the stack")
    verdict = {"op": "verdict", "entry": entry, "comparison": grid, "verdict": {"decision": "keep"}}
    assert desk.handle_dict(verdict)["ok"]
    assert desk.handle_dict(ask)["state"] == "validated"
    failed = desk.handle_dict(
        {"op": "validation_set", "entry": entry, "step": "prompts", "mark": "failed", "note": "<b>hands</b>"}
    )
    assert (failed["state"], desk.history.get(entry).status) == ("revise", "revise")
    again = open_desk(host).handle_dict(ask)
    assert [one["note"] for one in again["steps"] if one["by"] == "hand"] == ["<b>hands</b>"]
    back = desk.handle_dict({"op": "validation_set", "entry": entry, "step": "prompts"})
    assert (back["state"], desk.history.get(entry).status) == ("validated", "ok")


def test_a_comparison_of_another_merge_says_nothing(desk):  # noqa: F811
    one = _merged(desk)["entry"]
    other = _merged(desk, rank={"mode": "rank", "value": 1}, output={"template": "two"})["entry"]
    _compared(desk, other)
    assert _steps(desk.handle_dict({"op": "validation", "entry": one}))["strengths"] == "open"


def test_the_ten_prompts_have_extremes_of_many_families(desk):  # noqa: F811
    reply = desk.handle_dict({"op": "test_prompts"})
    prompts = reply["prompts"]
    assert len(prompts) == len({one["family"] for one in prompts}) == reply["lines"].count("\n") + 1 == 10
    extremes = {one["family"] for one in prompts if one["extreme"]}
    assert extremes == {"other style", "empty", "conflicting", "long", "negative"}


def test_a_history_of_the_version_before_gets_its_new_tables(desk, host):  # noqa: F811
    entry = _merged(desk)["entry"]
    path = host.data_folder() / NAME
    connection = sqlite3.connect(path)
    connection.executescript("DROP TABLE windows; DROP TABLE validations; PRAGMA user_version = 1")
    connection.close()
    again = open_desk(host)
    assert again.handle_dict({"op": "validation_set", "entry": entry, "step": "speed", "mark": "passed"})[
        "ok"
    ]
    assert again.history.get(entry).name == "out"
    assert path.with_name("lora-merge.version-1.sqlite3").is_file()


# -------------------------------------------------------------------------------------------- trigger words


def _words(tmp_path, header):
    path = write_lora(tmp_path / "x.safetensors")
    return [(word.text, word.origin) for word in trigger_words(path, header)]


def _tags(**folders):
    return {"ss_tag_frequency": json.dumps(folders)}


def test_words_of_a_file_with_tag_counts_only(tmp_path):
    tags = {"1girl": 20, "red hair": 19, "mira": 20, "hat": 17, "solo": 20, "night": 3}
    assert _words(tmp_path, _tags(**{"10_mira woman": tags})) == [("mira", "concept"), ("red hair", "tags")]


@pytest.mark.parametrize(
    "header",
    [
        _tags(**{"10_mira": {"1girl": 20, "hat": 17}}),  # no caption has the folder's name
        _tags(**{"10_mira": {"mira": 2}}),  # too few pictures to say anything
        {**_tags(**{"10_mira": {"mira": 20}}), "ss_dataset_dirs": '{"10_mira": {"img_count": 40}}'},
        {**_tags(**{"1_dog": {"dog": 20}}), "ss_reg_dataset_dirs": '{"1_dog": {"img_count": 20}}'},
        {"ss_tag_frequency": "[[[", "ss_datasets": "{", "ss_output_name": "last-000010"},
    ],
)
def test_no_false_words(tmp_path, header):
    assert _words(tmp_path, header) == []


def test_words_are_ranked_by_who_says_them(tmp_path):
    (tmp_path / "x.json").write_text('{"activation text": "ink wash, Mira"}')
    (tmp_path / "x.civitai.info").write_text('{"trainedWords": ["splash", "mira"]}')
    header = {**_tags(**{"5_mira": {"mira": 9, "brush": 9}}), "modelspec.trigger_phrase": "line art"}
    assert _words(tmp_path, header) == [
        ("ink wash", "side-car"),
        ("Mira", "side-car"),
        ("line art", "phrase"),
        ("splash", "civitai"),
        ("brush", "tags"),
    ]


def test_the_name_of_a_training_is_a_guess_and_only_where_nothing_else_is_known(tmp_path):
    assert _words(tmp_path, {"ss_output_name": "mira_v2-000010"}) == [("mira", "name")]


def test_words_come_with_the_description_of_a_source(desk, host):  # noqa: F811
    write_lora(host.folder / "t.safetensors", metadata=_tags(**{"5_zed": {"zed": 9}}))
    desk.library.refresh(wait=True)
    found = desk.handle_dict({"op": "words", "keys": ["0/t.safetensors", "0/none.safetensors"]})["found"]
    assert found["0/none.safetensors"] == []
    [word] = found["0/t.safetensors"]
    assert (word["text"], word["share"], word["sure"]) == ("zed", 1.0, True)
    assert "100% of the captions of zed" in word["says"]
    inspected = desk.handle_dict({"op": "inspect", "key": "0/t.safetensors"})["found"]
    assert inspected["words"] == [word]
