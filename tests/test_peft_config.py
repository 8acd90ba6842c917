"""Where PEFT keeps alpha: in the header, beside the file, per module, and what a stranger's configuration must not do."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lib_merge import open_lora
from lib_merge.errors import FileFormatError
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


@pytest.mark.parametrize("beside", ["adapter_config.json", "a.adapter_config.json"])
def test_alpha_comes_from_the_configuration_beside_the_file(beside, tmp_path):
    (tmp_path / beside).write_text(json.dumps({"r": 4, "lora_alpha": 16}))
    assert _scales(_file(tmp_path / "a.safetensors")) == {"attn1_to_q": 4.0, "attn2_to_k": 4.0}


def test_rank_stabilised_files_divide_by_the_root_of_the_rank(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16, "use_rslora": True}))
    assert _scales(_file(tmp_path / "a.safetensors"))["attn1_to_q"] == pytest.approx(16 / math.sqrt(4))


@pytest.mark.parametrize(
    "pattern",
    ["to_k", "attn2.to_k", r".*attn2\.to_k", "^down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k$"],
)
def test_patterns_give_single_modules_their_own_alpha(pattern, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 4, "alpha_pattern": {pattern: 12}})
    )
    assert _scales(_file(tmp_path / "a.safetensors")) == {"attn1_to_q": 1.0, "attn2_to_k": 3.0}


def test_the_headers_own_metadata_wins_and_speaks_per_component(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 99}))
    inside = {"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.lora_alpha": 77}
    assert (
        _scales(_file(tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(inside)}))[
            "attn1_to_q"
        ]
        == 0.5
    )


def test_a_configuration_does_not_touch_a_kohya_file_beside_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 999}))
    with open_lora(write(tmp_path / "a.safetensors", lora_tensors(0))) as file:
        assert {module.load(file.file).terms[0].scale for module in file.modules.values()} == {0.5}


@pytest.mark.parametrize("text", ["{", "[1]", '{"lora_alpha": "much"}', '{"lora_alpha": 1e999}'])
def test_a_broken_configuration_is_one_sentence(text, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(FileFormatError) as error:
        _scales(_file(tmp_path / "a.safetensors"))
    assert "\n" not in str(error.value)
    assert "adapter_config.json" in str(error.value)


def test_the_names_of_peft_meet_those_of_diffusers(tmp_path):
    with (
        open_lora(_file(tmp_path / "a.safetensors")) as one,
        open_lora(_file(tmp_path / "b.safetensors", prefix="base_model.model.")) as two,
    ):
        assert set(one.modules) == set(two.modules)
