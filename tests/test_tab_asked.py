"""What was asked for stays: Automatic, what a merge is based on, and a resize foreseen before it runs."""

from __future__ import annotations

import json

import pytest
import torch

from lib_merge.ui.operations import open_desk
from tests.factories import write, write_lora
from tests.test_tab_server import PAIR, _state, _wait, desk, host  # noqa: F401


def _merged(desk, **fields):  # noqa: F811
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR, **fields)}))
    assert done["state"] == "done", done
    return done["result"]


# -------------------------------------------------------------------------------------------- Automatic


def test_a_merge_made_with_automatic_opens_as_automatic_and_ties_can_follow(desk):  # noqa: F811
    made = _merged(desk)
    opened = desk.handle_dict({"op": "open", "entry": made["entry"]})["state"]
    assert opened["rank"] == {"mode": "auto", "value": None}
    ties = {**_state(*PAIR), **opened, "method": "ties", "output": {"template": "more"}}
    assert desk.handle_dict({"op": "plan", "state": ties})["ok"]


def test_a_rank_that_was_chosen_opens_as_it_was(desk):  # noqa: F811
    for name, rank in (("one", {"mode": "lossless"}), ("two", {"mode": "rank", "value": 3.0})):
        made = _merged(desk, rank=rank, output={"template": name})
        opened = desk.handle_dict({"op": "open", "entry": made["entry"]})["state"]
        assert opened["rank"] == {"value": None, **rank}


def test_what_was_merged_before_that_was_kept_opens_as_automatic(desk):  # noqa: F811
    made = _merged(desk)
    recipe = desk.history.get(made["entry"]).recipe
    assert recipe["rank"] == "lossless"
    old = desk.history.add(name="old", key=made["key"], recipe=recipe, method=recipe["method"])
    for asked in ({"entry": old.id}, {"key": made["key"]}, {"text": json.dumps(recipe)}):
        assert desk.handle_dict({"op": "open", **asked})["state"]["rank"]["mode"] == "auto", asked


def test_a_group_that_was_read_back_has_no_rank_of_its_own(desk):  # noqa: F811
    rows = [(key, ratio, {"group": "1"}) for key, ratio, _ in PAIR]
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*rows)}))
    opened = desk.handle_dict({"op": "open", "entry": done["result"]["entry"]})
    assert opened["notes"] == []


def test_again_keeps_what_was_automatic(desk):  # noqa: F811
    made = _merged(desk)
    again = _wait(desk, desk.handle_dict({"op": "again", "entry": made["entry"]}))["result"]
    assert again["same_tensors"]
    assert desk.history.get(again["entry"]).asked == {"rank": "auto"}


def test_advice_that_leaves_the_rank_alone_keeps_lossless(desk):  # noqa: F811
    state = _state(*PAIR, rank={"mode": "lossless", "value": None})
    changed = desk.handle_dict({"op": "apply", "state": state, "changes": {"ratios": [0.5, 0.5]}})["state"]
    assert changed["rank"]["mode"] == "lossless"


# -------------------------------------------------------------------------------------------- based on


def test_a_merge_is_based_on_nothing_it_shares_no_source_with(desk, host):  # noqa: F811
    made = _merged(desk)
    for name, seed in (("x", 8), ("y", 9)):
        write_lora(host.folder / f"{name}.safetensors", seed=seed)
    desk.library.refresh(wait=True)
    output = {"template": "second", "based_on": made["entry"]}

    def based_on(*keys):
        state = _state(*((key, 0.5, {}) for key in keys), output=output)
        plan = desk.handle_dict({"op": "plan", "state": state})["plan"]
        assert bool(plan["changes"]) == bool(plan["based_on"])
        return plan["based_on"], state

    assert based_on("0/a.safetensors", "0/x.safetensors")[0] == made["entry"]
    assert based_on(made["key"], "0/x.safetensors")[0] == made["entry"]  # merged further
    none, state = based_on("0/x.safetensors", "0/y.safetensors")
    assert none == ""
    entry = _wait(desk, desk.handle_dict({"op": "merge", "state": state}))["result"]["entry"]
    assert desk.history.get(entry).based_on == ""


def test_a_source_that_was_renamed_since_is_still_shared(desk, host):  # noqa: F811
    made = _merged(desk)
    (host.folder / "a.safetensors").rename(host.folder / "other.safetensors")
    desk.library.refresh(wait=True)
    output = {"template": "second", "based_on": made["entry"]}
    state = _state(("0/other.safetensors", 1.0, {}), output=output)
    assert desk.handle_dict({"op": "plan", "state": state})["plan"]["based_on"] == made["entry"]


# -------------------------------------------------------------------------------------------- names


def test_a_group_goes_into_the_name_by_its_files(desk):  # noqa: F811
    rows = [(PAIR[0][0], 0.6, {"group": "characters"}), (PAIR[1][0], 0.4, {"group": "characters"})]
    groups = {"characters": {"ratio": 0.5}}
    state = _state(*rows, groups=groups, output={"template": "{sources}_{weights}"})
    assert desk.handle_dict({"op": "plan", "state": state})["plan"]["name"] == "a+b_30-20.safetensors"
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": state}))["result"]
    assert desk.history.get(done["entry"]).sources == [{"name": "(a + b)", "ratio": 0.5}]


# -------------------------------------------------------------------------------------------- anew


@pytest.mark.parametrize("asked", [2, 4, 32])
def test_a_resize_is_foreseen_as_it_is_saved(desk, asked):  # noqa: F811
    rank = {"mode": "rank", "value": asked}
    reply = desk.handle_dict({"op": "anew", "key": "0/a.safetensors", "rank": rank})
    plan, most = reply["plan"], min(asked, 4)
    assert plan["rank"][1] == most
    assert plan["name"] == f"a_r{most}_v1.safetensors"
    assert any("rank 32" in line for line in reply["said"]) == (asked == 32)
    saved = _wait(desk, desk.handle_dict({"op": "merge", "state": reply["state"]}))["result"]
    assert (saved["output"], saved["bytes"]) == (plan["name"], plan["bytes"])
    assert saved["rank"]["max"] == most


def test_a_file_that_grows_is_said_before_it_is_written(host):  # noqa: F811
    stem = "lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{stem}.lokr_w1": torch.randn(16, 16),
        f"{stem}.lokr_w2_a": torch.randn(40, 4),
        f"{stem}.lokr_w2_b": torch.randn(4, 40),
        f"{stem}.alpha": torch.tensor(4.0),
    }
    write(host.folder / "k.safetensors", tensors)
    desk = open_desk(host)  # noqa: F811
    reply = desk.handle_dict({"op": "anew", "key": "0/k.safetensors"})
    assert reply["ok"], reply
    assert reply["larger"]
    assert "since LoKr becomes LoRA" in reply["said"][0]
    assert reply["before"]["bytes"] == (host.folder / "k.safetensors").stat().st_size
    saved = _wait(desk, desk.handle_dict({"op": "merge", "state": reply["state"]}))["result"]
    assert saved["bytes"] == reply["plan"]["bytes"]


def test_what_is_asked_of_one_that_is_gone_is_refused(desk):  # noqa: F811
    reply = desk.handle_dict({"op": "anew", "key": "0/none.safetensors"})
    assert "not in the LoRA folders" in reply["error"]
