"""Refusals of plan and merge: every one is mended by its remedy, or says why nothing mends it."""

from __future__ import annotations

import itertools

import pytest

from lib_merge.methods import METHODS
from tests.factories import lora_tensors, write, write_lora
from tests.test_tab_server import PAIR, _state, desk, host  # noqa: F401

A, B = PAIR
GROUP = [(key, ratio, {"group": "1"}) for key, ratio, _ in PAIR]
IDS = {name for name in METHODS if "_" in name}


def _refused(desk, state, op="plan"):  # noqa: F811
    reply = desk.handle_dict({"op": op, "state": state})
    assert not reply["ok"], "it was to be refused"
    return reply


def _mends(desk, state, op="plan"):  # noqa: F811
    """The remedy of a refusal, which was seen to mend it."""
    reply = _refused(desk, state, op)
    assert reply["remedy"], reply
    mended = desk.handle_dict({"op": "plan", "state": {**state, **reply["remedy"]["edit"]}})
    assert mended["ok"], (reply, mended)
    for said in (reply["error"], reply["remedy"]["label"]):
        assert not IDS & set(said.replace(".", " ").replace(",", " ").split()), said
        assert "energy:" not in said
        assert "--" not in said
    return reply


def test_ties_after_lossless_has_a_button(desk):  # noqa: F811
    reply = _mends(desk, _state(*PAIR, method="ties", rank={"mode": "lossless"}))
    assert reply["error"] == "TIES cannot be saved without loss as a LoRA: it needs a rank."
    assert reply["remedy"]["label"] == "Let the method choose the rank"
    assert reply["remedy"]["edit"] == {"rank": {"mode": "auto", "value": None}}


FAULTS = {
    "no value": {"rank": {"mode": "rank", "value": None}},
    "rank 0": {"rank": {"mode": "rank", "value": 0}},
    "half a rank": {"rank": {"mode": "rank", "value": 1.5}},
    "energy 2": {"rank": {"mode": "energy", "value": 2}},
    "error 1": {"rank": {"mode": "error", "value": 1}},
    "budget 0": {"rank": {"mode": "budget", "value": 0}},
    "prune": {"prune": 3},
    "prune below": {"prune_below": -1},
    "conv rank": {"conv_rank": 0},
    "names": {"names": "nobody's"},
    "method": {"method": "nobody's"},
    "knob": {"method": "dare", "knobs": {"dare": {"drop_rate": 7}}},
    "knobs of three": {"method": "dare", "knobs": {"dare": {"drop_rate": [0.1, 0.2, 0.3]}}},
    "family": {"family": "SDXL"},
    "folder": {"output": {"template": "out", "folder": "../out"}},
    "sign": {"output": {"template": "a:b?"}},
    "long": {"output": {"template": "x" * 300}},
    "dots": {"output": {"template": ".."}},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_setting_that_cannot_be_is_mended(desk, fault):  # noqa: F811
    _mends(desk, _state(*PAIR, **FAULTS[fault]))


def test_two_and_three_faults_are_mended_by_one_button(desk):  # noqa: F811
    ties = {"method": "ties", "rank": {"mode": "lossless"}}
    for one, other in itertools.combinations(("prune", "conv rank", "folder", "family"), 2):
        _mends(desk, _state(*PAIR, **{**ties, **FAULTS[one], **FAULTS[other]}))


@pytest.mark.parametrize("method", METHODS)
def test_whatever_count_and_rank_are_clicked_there_is_a_way_out(desk, method):  # noqa: F811
    for rows, mode in itertools.product([(A,), PAIR, (*PAIR, A), GROUP], ["auto", "lossless", "rank"]):
        state = _state(*rows, method=method, rank={"mode": mode, "value": None})
        if not desk.handle_dict({"op": "plan", "state": state})["ok"]:
            _mends(desk, state)


@pytest.mark.parametrize("method", METHODS)
def test_a_group_by_any_method_has_a_way_out(desk, method):  # noqa: F811
    state = _state(*GROUP, (A[0], 0.2, {}), groups={"1": {"method": method}})
    if not desk.handle_dict({"op": "plan", "state": state})["ok"]:
        _mends(desk, state)


@pytest.mark.parametrize(
    "row",
    [{"ratio": 1e9}, {"te": [1e9, None]}, {"te": [0, 0, 0, 0]}, {"elements": "::::"}, {"elements": "x"}],
)
def test_a_row_that_cannot_be_is_mended(desk, row):  # noqa: F811
    state = _state(*PAIR)
    state["sources"][1].update(row)
    _mends(desk, state)


def test_files_that_do_not_fit_are_left_out_by_their_letter(desk, host):  # noqa: F811
    (host.folder / "bad.safetensors").write_bytes(b"not a LoRA")
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    tensors = lora_tensors(conv=False, names=())
    import torch

    tensors |= {
        f"{name}.lora_up.weight": torch.randn(640, 2),
        f"{name}.lora_down.weight": torch.randn(2, 2048),
    }
    write(host.folder / "xl.safetensors", tensors)
    desk.library.refresh(wait=True)
    for key in ("0/bad.safetensors", "0/xl.safetensors", "0/gone.safetensors"):
        reply = _mends(desk, _state(A, (key, 0.5, {}), B))
        assert reply["remedy"]["label"] == "Leave B out"


def test_what_cancels_and_what_weighs_nothing(desk):  # noqa: F811
    assert _mends(desk, _state((A[0], 0, {}), (B[0], 0, {})))["remedy"]["label"] == "Set every ratio to 1"
    _mends(desk, _state((A[0], 1, {}), (A[0], -1, {})))


def test_a_taken_name_is_refused_by_merge_with_a_way_out(desk, host):  # noqa: F811
    write_lora(host.folder / "out.safetensors")
    reply = _mends(desk, _state(*PAIR), op="merge")
    assert reply["remedy"] == {
        "label": "Count its versions",
        "edit": {"output": {**reply["remedy"]["edit"]["output"], "template": "out_v{n}", "overwrite": False}},
    }


def test_nothing_picked_has_no_remedy_and_says_why(desk):  # noqa: F811
    reply = _refused(desk, _state())
    assert (reply["remedy"], reply["unmended"]) == (None, "pick a LoRA first")
    alone = _refused(desk, _state(("0/gone.safetensors", 1, {})))
    assert alone["remedy"] is None
    assert alone["unmended"]
