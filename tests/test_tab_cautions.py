"""What the tab says before saving: from headers alone, without a button, within half a second."""

from __future__ import annotations

import shutil
import time

import pytest
import torch
from safetensors.torch import save_file

from lib_merge.ui.operations import open_desk
from tests.factories import NAMES, lora_tensors, write, write_lora
from tests.test_tab_server import PAIR, _state, _wait, desk, host  # noqa: F401 - fixtures

UNET = tuple(name for name in NAMES if name.startswith("lora_unet"))


def _notes(host, *files, **fields):  # noqa: F811
    """Return the plan's notes for files of the host's folder, at ratio 0.5 each."""
    desk = open_desk(host)  # noqa: F811
    desk.library.refresh(wait=True)
    reply = desk.handle_dict(
        {"op": "plan", "state": _state(*((f"0/{name}", 0.5, {}) for name in files), **fields)}
    )
    assert reply["ok"], reply
    return reply["plan"]["notes"]


def _file(host, name, metadata, **more):  # noqa: F811
    write_lora(host.folder / f"{name}.safetensors", metadata=metadata, **more)
    return f"{name}.safetensors"


def test_two_alike_sources_are_unremarkable(host):  # noqa: F811
    assert _notes(host, "a.safetensors", "sub/b.safetensors") == []


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            {"ss_sd_model_name": "ponyDiffusionV6XL.safetensors"},
            {"ss_sd_model_name": "sd_xl_base_1.0.safetensors"},
            "Pony",
        ),
        ({"ss_sd_model_name": "Illustrious-XL-v0.1"}, {"ss_sd_model_name": "sd_xl_base_1.0"}, "Illustrious"),
        ({"ss_v_parameterization": "True"}, {"ss_v_parameterization": "False"}, "v-prediction"),
        ({"ss_unet_lr": "1e-3"}, {"ss_unet_lr": "1e-5"}, "learning rate 0.001 in A, 1e-05 in B"),
        ({"ss_steps": "200"}, {"ss_steps": "20000"}, "training steps 20000 in B, 200 in A"),
        (
            {"ss_network_dim": "32", "ss_network_alpha": "32"},
            {"ss_network_dim": "32", "ss_network_alpha": "1"},
            "strength (alpha / rank) 1 in A, 0.03125 in B",
        ),
    ],
)
def test_sources_that_do_not_go_together_are_named(host, one, other, said):  # noqa: F811
    files = [_file(host, "x", one, seed=3), _file(host, "y", other, seed=4)]
    [note] = _notes(host, *files)
    assert said in note


def test_nonsense_in_the_metadata_is_no_reason_to_warn(host):  # noqa: F811
    bad = {"ss_unet_lr": "nan", "ss_steps": "many", "ss_network_alpha": "inf", "ss_network_dim": "0"}
    assert (
        _notes(
            host,
            _file(host, "x", bad, seed=3),
            _file(host, "y", {"ss_unet_lr": "1e-4", "ss_steps": "5"}, seed=4),
        )
        == []
    )


def test_a_large_difference_in_rank_is_said(host):  # noqa: F811
    files = [_file(host, "x", None, rank=1, seed=3), _file(host, "y", None, rank=14, seed=4)]
    assert _notes(host, *files) == ["trained very differently: rank 14 in B, 1 in A"]


def test_a_text_encoder_in_only_one_is_said(host):  # noqa: F811
    write(host.folder / "x.safetensors", lora_tensors(3, names=UNET))
    [note] = _notes(host, "a.safetensors", "x.safetensors")
    assert note.startswith("A has text-encoder weights, B has none")


def test_the_same_file_and_a_copy_of_it_are_said(host):  # noqa: F811
    shutil.copy(host.folder / "a.safetensors", host.folder / "copy.safetensors")
    assert _notes(host, "a.safetensors", "a.safetensors") == [
        "A and B are the same file: their ratios add up"
    ]
    three = _notes(host, "a.safetensors", "sub/b.safetensors", "a.safetensors", "a.safetensors")
    assert three == ["A, C and D are the same file: their ratios add up"]
    [note] = _notes(host, "a.safetensors", "copy.safetensors")
    assert note == "A (a) and B (copy) are copies of the same file: their ratios add up"
    # of the same size and layout, and yet another LoRA
    assert _notes(host, "a.safetensors", "sub/b.safetensors") == []


def test_letters_are_those_of_the_rows_whatever_is_off_or_grouped(host):  # noqa: F811
    write(host.folder / "x.safetensors", lora_tensors(3, names=UNET))
    desk = open_desk(host)  # noqa: F811
    desk.library.refresh(wait=True)
    rows = (
        ("0/a.safetensors", 1, {"on": False}),
        ("0/x.safetensors", 1, {}),
        ("0/a.safetensors", 1, {"group": "A"}),
        ("0/sub/b.safetensors", 1, {}),
        ("0/x.safetensors", 1, {"group": "A"}),
    )
    notes = desk.handle_dict({"op": "plan", "state": _state(*rows)})["plan"]["notes"]
    assert "B and E are the same file: their ratios add up" in notes
    assert any(note.startswith("C and D have text-encoder weights, B has none") for note in notes)


def test_a_row_whose_lora_is_gone_is_not_left_out_silently(desk):  # noqa: F811
    state = _state(*PAIR)
    state["sources"].insert(1, {"key": "", "name": "lost", "ratio": 1, "on": True})
    assert desk.handle_dict({"op": "plan", "state": state})["plan"]["notes"] == [
        "B (lost) is missing: the merge is without it"
    ]


def test_families_that_do_not_fit_are_refused_in_a_sentence(host, desk):  # noqa: F811
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_up.weight": torch.ones(640, 2), f"{name}.lora_down.weight": torch.ones(2, 2048)}
    save_file(tensors, str(host.folder / "xl.safetensors"))
    desk.library.refresh(wait=True)
    reply = desk.handle_dict({"op": "plan", "state": _state(*PAIR, ("0/xl.safetensors", 1, {}))})
    assert not reply["ok"]
    assert "SDXL" in reply["error"]
    assert "SD1" in reply["error"]


def test_what_weighs_nothing_is_counted(desk):  # noqa: F811
    rows = [(key, ratio, {"blocks": {"IN04": 0, "M00": 0}}) for key, ratio, _ in PAIR]
    full = desk.handle_dict({"op": "plan", "state": _state(*PAIR)})["plan"]
    part = desk.handle_dict({"op": "plan", "state": _state(*rows)})["plan"]
    assert full["emptied"] == 0
    assert part["emptied"] > 0
    assert part["modules"] + part["emptied"] == full["modules"]
    assert part["bytes"] < full["bytes"]


def test_ranks_and_size_are_those_of_the_file_where_a_source_is_silent_in_some_blocks(desk, host):  # noqa: F811
    write(host.folder / "wide.safetensors", lora_tensors(3, rank=12))
    desk.library.refresh(wait=True)
    state = _state(("0/a.safetensors", 1, {}), ("0/wide.safetensors", 1, {"blocks": {"IN04": 0, "M00": 0}}))
    plan = desk.handle_dict({"op": "plan", "state": state})["plan"]
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": state}))["result"]
    assert plan["rank"] == [done["rank"]["min"], done["rank"]["max"]] == [4, 16]
    assert plan["bytes"] == (host.folder / "out.safetensors").stat().st_size


def test_a_moved_slider_reads_no_header(desk, monkeypatch):  # noqa: F811
    from lib_merge.adapters import file as adapters_file

    first = desk.handle_dict({"op": "plan", "state": _state(*PAIR)})["plan"]
    monkeypatch.setattr(adapters_file, "open_tensors", lambda path: pytest.fail(f"{path} was opened"))
    moved = [(key, ratio + 0.1, more) for key, ratio, more in PAIR]
    again = desk.handle_dict({"op": "plan", "state": _state(*moved)})
    assert again["ok"]
    assert again["plan"]["bytes"] == first["bytes"]


def test_a_merge_that_is_cut_is_not_called_exact(desk):  # noqa: F811
    state = _state(*PAIR)
    whole = desk.handle_dict({"op": "plan", "state": state})["plan"]
    assert (whole["exact"], whole["cut"]) == (True, False)
    state["conv_rank"] = 2
    cut = desk.handle_dict({"op": "plan", "state": state})["plan"]
    assert (cut["exact"], cut["cut"]) == (False, True)
    assert cut["rank"][0] == 2
    assert cut["bytes"] < whole["bytes"]


@pytest.mark.slow
def test_two_large_loras_are_planned_within_half_a_second(tmp_path, keys):
    import json

    from lib_merge.samples import synthetic_lora
    from tests.test_tab_server import Host

    host = Host(tmp_path)  # noqa: F811
    rows = json.loads((keys / "modules.json").read_text(encoding="utf-8"))["sdxl"]
    for name, seed in (("p", 1), ("q", 2)):
        save_file(
            {k: v.contiguous() for k, v in synthetic_lora(rows, 4, seed=seed).items()},
            str(host.folder / f"{name}.safetensors"),
        )
    desk = open_desk(host)  # noqa: F811
    desk.library.refresh(wait=True)
    state = _state(("0/p.safetensors", 1, {}), ("0/q.safetensors", 1, {}))
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        assert desk.handle_dict({"op": "plan", "state": state})["ok"]
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.5
