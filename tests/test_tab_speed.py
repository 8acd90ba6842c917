"""Speed LoRAs in the tab's server: the mark in the list, the sentence before saving, and one click that sets it right."""

from __future__ import annotations

import pytest

from lib_merge.recipe_edits import with_changes
from lib_merge.ui.operations import open_desk
from lib_merge.ui.state import tab_state, to_recipe
from tests.factories import write_lora
from tests.test_tab_server import PAIR, Host, _state

SPEED = "lcm-lora-sdv1-5"
TOLD = {"modelspec.description": "consistency distillation"}
ROWS = (*PAIR, (f"0/{SPEED}.safetensors", 0.9, {"te": [0.45]}))


@pytest.fixture
def desk(tmp_path):
    host = Host(tmp_path)
    write_lora(host.folder / "a.safetensors", seed=1)
    write_lora(host.folder / "sub" / "b.safetensors", seed=2)
    write_lora(host.folder / f"{SPEED}.safetensors", seed=3, metadata=TOLD)
    found = open_desk(host)
    found.library.refresh(wait=True)
    return found


def _ask(desk, op, **fields):
    reply = desk.handle_dict({"op": op, **fields})
    assert reply["ok"], reply
    return reply


def _recipe(desk, state):
    return to_recipe(tab_state(state), desk.library.resolve)


def test_the_list_and_the_lora_itself_say_what_it_is(desk):
    items = {item["name"]: item for item in _ask(desk, "library")["items"]}
    [mark] = items[SPEED]["marks"]
    assert (mark["sort"], mark["what"], mark["sure"], mark["holds"]) == ("speed", "LCM", True, True)
    assert mark["said"] == "speed LoRA (LCM): the file's name and metadata: modelspec.description"
    assert "marks" not in items["a"]  # what is empty does not go over
    assert _ask(desk, "inspect", key=f"0/{SPEED}.safetensors")["found"]["marks"] == [mark]
    listed = {item["name"]: item for item in _ask(desk, "loras")["items"]}
    assert listed[SPEED]["marks"] == [mark]
    again = open_desk(desk.host)  # from what was kept
    again.library.refresh(wait=True)
    assert again.library.find(SPEED).marks == desk.library.find(SPEED).marks


def test_a_method_that_spoils_it_is_said_and_set_right_by_one_click(desk):
    state = _state(*ROWS, method="ties", knobs={"ties": {"trim_fraction": [0.1, 0.2, 0.3], "elect": "count"}})
    plan = _ask(desk, "plan", state=state)["plan"]
    [offer] = plan["offers"]
    assert offer["title"] == "Add C outside TIES"
    assert offer["reason"].startswith(
        f"C ({SPEED}) is a speed LoRA (the file's name and metadata: modelspec.description): TIES leaves"
    )
    after = _ask(desk, "apply", state=state, changes=offer["changes"])["state"]
    made = {**state, **after}
    asked = with_changes(_recipe(desk, state), {"aside": ["C"]})
    got = _recipe(desk, made)
    assert (
        [source.ratio for source in got.sources] == [source.ratio for source in asked.sources] == [1.0, 0.9]
    )
    assert got.method == asked.method == "weighted_sum"
    assert got.sources[0].recipe.method == "ties"
    assert got.sources[0].recipe.declared().settings(got.sources[0].recipe.knobs, 2)["trim_fraction"] == (
        0.1,
        0.2,
    )
    assert [source.path for source in got.leaves()] == [source.path for source in asked.leaves()]
    assert [row["te"] for row in made["sources"]] == [None, None, [0.45]]
    assert _ask(desk, "plan", state=made)["plan"]["offers"] == []


@pytest.mark.parametrize("method", ["weighted_sum", "decorrelated_sum"])
def test_sums_offer_nothing(desk, method):
    plan = _ask(desk, "plan", state=_state(*ROWS, method=method))["plan"]
    assert (plan["offers"], plan["notes"]) == ([], [])


def test_it_leaves_its_group_at_its_strength(desk):
    rows = [(key, ratio, {**more, "group": "1"}) for key, ratio, more in ROWS]
    state = _state(*rows, groups={"1": {"method": "core_ties", "ratio": 0.5}})
    [offer] = _ask(desk, "plan", state=state)["plan"]["offers"]
    after = _ask(desk, "apply", state=state, changes=offer["changes"])["state"]
    rows = after["sources"]
    assert [row["group"] for row in rows] == ["1", "1", ""]
    assert (rows[2]["ratio"], rows[2]["te"]) == (0.45, [0.225])
    assert after["groups"]["1"]["method"] == "core_ties"


def test_rows_that_are_off_and_letters_stay_where_they_are(desk):
    rows = (("0/a.safetensors", 1, {"on": False}), ROWS[2], *PAIR)
    state = _state(*rows, method="dare")
    [offer] = _ask(desk, "plan", state=state)["plan"]["offers"]
    assert offer["changes"]["aside"] == ["B"]
    after = _ask(desk, "apply", state=state, changes=offer["changes"])["state"]
    assert [(row["on"], row["group"]) for row in after["sources"]] == [
        (False, ""),
        (True, ""),
        (True, "1"),
        (True, "1"),
    ]


def test_where_it_cannot_be_done_by_a_click_it_is_said(desk):
    rows = [*((key, ratio, {"group": "1"}) for key, ratio, _ in PAIR), ("0/a.safetensors", 1, {}), ROWS[2]]
    state = _state(*rows, method="ties", groups={"1": {"method": "weighted_sum"}})
    plan = _ask(desk, "plan", state=state)["plan"]
    assert plan["offers"] == []
    assert any("is a speed LoRA" in note for note in plan["notes"])
    refused = desk.handle_dict({"op": "apply", "state": state, "changes": {"aside": ["D"]}})
    assert "group inside a group" in refused["error"]
    state = _state(*rows[:2], rows[3], method="ties", groups={"1": {"method": "weighted_sum"}})
    [offer] = _ask(desk, "plan", state=state)["plan"][
        "offers"
    ]  # beside one group alone there is nothing to elect
    after = _ask(desk, "apply", state=state, changes=offer["changes"])["state"]
    assert (after["method"], [row["group"] for row in after["sources"]]) == ("weighted_sum", ["1", "1", ""])
