"""Where PEFT keeps alpha: in the header, beside the file, per module, and what a stranger's configuration must not do."""

from __future__ import annotations

import json
import math
import os
import re

import pytest
import torch

from lib_merge import merge, open_lora
from lib_merge.errors import FamilyError
from lib_merge.library.inspect import inspect_file
from tests.factories import lora_tensors, write

STEM = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
MODULES = {f"{STEM}.attn1.to_q": (24, 20), f"{STEM}.attn2.to_k": (16, 768)}


def _file(path, metadata=None, prefix="", rank=4):
    tensors = {}
    for name, (out, columns) in MODULES.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.ones(rank, columns)
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.ones(out, rank)
    return write(path, tensors, metadata)


def _scales(path):
    with open_lora(path) as file:
        return {
            name.rsplit("_0_", 1)[1]: module.load(file.file).terms[0].scale
            for name, module in file.modules.items()
        }


def test_without_a_configuration_the_scale_is_one(tmp_path):
    assert _scales(_file(tmp_path / "a.safetensors")) == {"attn1_to_q": 1.0, "attn2_to_k": 1.0}


OWN = "adapter_model.safetensors"


def _notes(path):
    with open_lora(path) as file:
        return file.notes


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        (OWN, "adapter_config.json"),
        ("pytorch_lora_weights.safetensors", "adapter_config.json"),
        ("a.safetensors", "a.adapter_config.json"),
    ],
)
def test_alpha_comes_from_the_files_own_configuration_and_is_said(name, beside, tmp_path):
    (tmp_path / beside).write_text(json.dumps({"r": 4, "lora_alpha": 16}))
    path = _file(tmp_path / name)
    assert _scales(path) == {"attn1_to_q": 4.0, "attn2_to_k": 4.0}
    assert _notes(path) == [f"alpha/rank = 4 comes from {beside} beside {name}"]
    assert inspect_file(path)["alpha"] == f"16 (from {beside} beside {name})"
    assert inspect_file(path)["notes"] == _notes(path)


def test_a_strangers_configuration_in_the_folder_does_not_count(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 64}))
    path = _file(tmp_path / "style.safetensors")
    assert set(_scales(path).values()) == {1.0}
    assert not _notes(path)
    assert inspect_file(path)["alpha"] == "= rank"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"r": 16, "lora_alpha": 64}, "it says rank 16, and .* has rank 4"),
        ({"lora_alpha": 64}, "it says no rank"),
        ({"r": 4, "lora_alpha": 64, "target_modules": ["to_q"]}, "attn2.to_k is none of its target modules"),
        ({"r": 4, "lora_alpha": 64, "target_modules": r".*to_q"}, "attn2.to_k is none of its target modules"),
        ({"r": 4, "lora_alpha": 64, "rank_pattern": {"to_k": 8}}, "it says rank 8"),
    ],
)
def test_a_configuration_of_other_ranks_or_modules_is_not_used_and_that_is_said(config, why, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "flux"}))
    path = _file(tmp_path / OWN)
    assert set(_scales(path).values()) == {1.0}
    (note,) = _notes(path)
    assert re.search(rf"adapter_config\.json beside {OWN} was not used: .*{why}", note)
    with open_lora(path) as file:
        assert file.config is None


def test_patterns_of_ranks_and_modules_are_understood(tmp_path):
    targets = {
        "r": 2,
        "lora_alpha": 8,
        "rank_pattern": {"attn.*": 4},
        "target_modules": ["attn1.to_q", "to_k"],
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(targets))
    assert set(_scales(_file(tmp_path / OWN)).values()) == {2.0}


def test_rank_stabilised_files_divide_by_the_root_of_the_rank(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16, "use_rslora": True}))
    assert _scales(_file(tmp_path / OWN))["attn1_to_q"] == pytest.approx(16 / math.sqrt(4))


@pytest.mark.parametrize(
    "pattern",
    ["to_k", "attn2.to_k", r".*attn2\.to_k", "^down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k$"],
)
def test_patterns_give_single_modules_their_own_alpha(pattern, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 4, "alpha_pattern": {pattern: 12}})
    )
    path = _file(tmp_path / OWN)
    assert _scales(path) == {"attn1_to_q": 1.0, "attn2_to_k": 3.0}
    assert _notes(path) == [f"alpha/rank = 1 to 3 comes from adapter_config.json beside {OWN}"]


@pytest.mark.parametrize(
    "inside",
    [
        {
            "lora_adapter_metadata": json.dumps(
                {"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.lora_alpha": 7}
            )
        },
        {"unet.r": "4", "unet.lora_alpha": "8"},
        {"lora_alpha": "8"},
    ],
)
def test_what_a_header_says_of_alpha_is_told_and_not_applied_as_in_every_webui(inside, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 99}))
    path = _file(tmp_path / OWN, inside)
    assert set(_scales(path).values()) == {1.0}
    (note,) = _notes(path)
    assert "asks for alpha/rank = 2; Forge, ComfyUI and A1111 load the file at scale 1" in note
    assert "loaded as rank" in inspect_file(path)["alpha"]


def test_a_header_whose_alpha_is_the_rank_needs_no_word(tmp_path):
    inside = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 4})}
    assert not _notes(_file(tmp_path / "a.safetensors", inside))


def test_a_configuration_does_not_touch_a_kohya_file_beside_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 999}))
    with open_lora(write(tmp_path / OWN, lora_tensors(0))) as file:
        assert {module.load(file.file).terms[0].scale for module in file.modules.values()} == {0.5}
        assert not file.notes


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"r": 4, "lora_alpha": "much"}', '{"r": 4, "lora_alpha": 1e999}', f'{{"r": 4, "lora_alpha": 1{"0" * 400}}}', "\xff"],
)  # fmt: skip
def test_a_broken_configuration_blocks_nothing_and_is_said(text, tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    path = _file(tmp_path / OWN)
    assert set(_scales(path).values()) == {1.0}
    (note,) = _notes(path)
    assert f"adapter_config.json beside {OWN} was not used: " in note
    assert "\n" not in note
    assert len(note) < 300


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_the_place_of_a_configuration_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "adapter_config.json")
    assert "was not used: " in _notes(_file(tmp_path / OWN))[0]


def test_the_names_of_peft_meet_those_of_diffusers(tmp_path):
    with (
        open_lora(_file(tmp_path / "a.safetensors")) as one,
        open_lora(_file(tmp_path / "b.safetensors", prefix="base_model.model.")) as two,
    ):
        assert set(one.modules) == set(two.modules)


def test_a_configuration_tells_the_base_model_of_a_text_encoder_that_several_have(tmp_path):
    """SDXL's first text encoder has SD1's shapes: what the configuration names decides, and a merge is refused."""
    name = "base_model.model.text_model.encoder.layers.3.self_attn.q_proj"
    folder = tmp_path / "xl"
    folder.mkdir()
    encoder = write(
        folder / OWN,
        {f"{name}.lora_A.weight": torch.ones(8, 768), f"{name}.lora_B.weight": torch.ones(768, 8)},
    )
    first = write(tmp_path / "sd1.safetensors", lora_tensors(1))
    assert merge([first, encoder], save_to=tmp_path / "plain.safetensors").family == "SD1"
    base = "models--stabilityai--stable-diffusion-xl-base-1.0\\text_encoder"
    told = {"r": 8, "lora_alpha": 8, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(FamilyError, match="SDXL"):
        merge([first, encoder], save_to=tmp_path / "mixed.safetensors")
