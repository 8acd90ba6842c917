"""Merges of real files against the float64 reference, and what the saved file says of itself."""

from __future__ import annotations

import itertools
import json
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lib_merge import Job, merge, open_lora, resize, verify
from lib_merge.errors import FamilyError
from lib_merge.recipe import loads
from tests.factories import dense_of, relative, write, write_lora
from tests.reference import merge as reference

SD1 = (
    "cloneofsimo_sd15_r1_disney.safetensors", "cloneofsimo_sd15_r4_analog.safetensors", "diffusers_oldest_sd15_r4.safetensors",
    "diffusers_oldest_sd15_r4_dog.bin", "diffusers_sd15_r4_pokemon.safetensors", "lokr_kohya_sd15_r4.safetensors",
    "peft_sd15_r4_alpha16.safetensors",
)  # fmt: skip


def _modules(path):
    with open_lora(path) as file:
        return {n: m.load(file.file).dense(dtype=torch.float64).numpy() for n, m in file.modules.items()}


@pytest.mark.parametrize("pair", list(itertools.combinations(SD1, 2))[::3], ids="+".join)
def test_real_files_of_different_styles_merge_exactly_and_verify(pair, loras, tmp_path):
    out = tmp_path / "m.safetensors"
    report = merge([loras / name for name in pair], ratios=[0.6, 0.4], save_to=out)
    assert report.relative_error <= 5e-4
    assert verify(out, [loras]).relative_error == pytest.approx(report.relative_error, rel=1e-6)


@pytest.mark.slow
def test_a_real_merge_equals_the_reference(loras, tmp_path):
    names = ("peft_sd15_r4_alpha16.safetensors", "diffusers_sd15_r4_pokemon.safetensors")
    out = tmp_path / "m.safetensors"
    merge([loras / name for name in names], ratios=[0.6, 0.4], save_to=out, save_precision="float")
    dense = [_modules(loras / name) for name in names]
    # by hand for one module: alpha 16 of rank 4 from the configuration, none in the other file
    from safetensors.torch import load_file

    peft, old = (load_file(str(loras / name)) for name in names)
    stem = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    own = (
        0.6
        * 4
        * peft[f"base_model.model.{stem}.lora_B.weight"].double()
        @ peft[f"base_model.model.{stem}.lora_A.weight"].double()
    )
    own += 0.4 * old[f"unet.{stem}.lora.up.weight"].double() @ old[f"unet.{stem}.lora.down.weight"].double()
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    saved = dense_of(out)
    assert relative({key: saved[key]}, {key: own.numpy()}) < 1e-6
    wanted = {n: reference.weighted_sum([d[n] for d in dense], [0.6, 0.4]) for n in dense[0]}
    assert relative(saved, wanted) < 1e-6


@pytest.mark.slow
def test_a_real_truncation_is_the_best_there_is(loras, tmp_path):
    names = ("peft_sd15_r4_alpha16.safetensors", "diffusers_oldest_sd15_r4.safetensors")
    out = tmp_path / "m.safetensors"
    merge([loras / name for name in names], ratios=[0.2, 0.8], save_to=out, rank="4", save_precision="float")
    dense, saved = [_modules(loras / name) for name in names], dense_of(out)
    for name in sorted(saved)[::16]:
        wanted = 0.2 * dense[0][name] + 0.8 * dense[1][name]
        best = reference.truncate(wanted, 4)[1]
        assert np.linalg.norm(saved[name] - wanted) <= 1.01 * best + 1e-6 * np.linalg.norm(wanted)


def test_the_family_of_a_text_encoder_alone_comes_from_its_companions(loras, tmp_path):
    clip = tmp_path / "clip.safetensors"
    clip.write_bytes((loras / "peft_sdxl_te1_r8.safetensors").read_bytes())  # without its configuration
    out = tmp_path / "m.safetensors"
    with pytest.raises(FamilyError, match="say which with --family"):
        merge([clip], save_to=out)
    merge([clip], save_to=out, family="SDXL")
    assert all(name.startswith("lora_te1_") for name in dense_of(out))
    report = merge(
        [clip, loras / "diffusers_sd15_r4_pokemon.safetensors"], save_to=out, job=Job(overwrite=True)
    )
    assert report.family == "SD1"
    assert any(name.startswith("lora_te_text") for name in dense_of(out))
    with pytest.raises(FamilyError):
        merge(
            [loras / "cloneofsimo_sd2_r4_kiriko.pt", loras / "diffusers_sd15_r4_pokemon.safetensors"],
            save_to=tmp_path / "n.safetensors",
        )


def test_the_openclip_text_encoder_gets_its_missing_projections_as_zeros(tmp_path):
    stem = "lora_te2_text_model_encoder_layers_0_self_attn_"
    tensors = {f"{stem}{p}_proj.lora_up.weight": torch.ones(1280, 2) for p in "qv"}
    tensors |= {f"{stem}{p}_proj.lora_down.weight": torch.ones(2, 1280) for p in "qv"}
    out = tmp_path / "m.safetensors"
    merge([write(tmp_path / "a.safetensors", tensors)], save_to=out, family="SDXL")
    found = dense_of(out)
    assert set(found) == {f"{stem}{p}_proj" for p in ("q", "k", "v", "out")}
    assert not found[f"{stem}k_proj"].any()
    verify(out)


def test_block_weights_text_encoder_ratios_and_element_rules_multiply_as_they_say(tmp_path):
    from lib_merge import Source
    from lib_merge.blocks.weights import parse_elements

    path = write_lora(tmp_path / "a.safetensors", seed=1)
    out = tmp_path / "m.safetensors"
    source = Source(
        path=path,
        name="a",
        ratio=0.5,
        te_ratio=0.2,
        blocks="IN04=0.5,M00=2,BASE=3",
        elements=parse_elements("OUT03-OUT08:ff:0.25,:conv1:0"),
    )
    merge([source], save_to=out, save_precision="float")
    before, after = dense_of(path), dense_of(out)
    factor = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": 0.25,
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v": 1.0,
        "lora_unet_up_blocks_2_attentions_1_transformer_blocks_0_ff_net_2": 0.125,
        "lora_te_text_model_encoder_layers_3_self_attn_q_proj": 0.6,
    }
    for name, value in factor.items():
        assert relative({name: after[name]}, {name: value * before[name]}) < 1e-6
    assert "lora_unet_up_blocks_1_resnets_0_conv1" not in after
    verify(out)


def test_random_block_tokens_are_drawn_once_and_written_as_numbers(tmp_path):
    path = write_lora(tmp_path / "a.safetensors", seed=1)
    out = tmp_path / "m.safetensors"
    spec = "1,R,U,X,X+0.25,1,1,1,1,1,1,1,1,1,1,1,1 x=0.5"
    report = merge([path], blocks=[spec], save_to=out, seed=5)
    with safe_open(str(out), "pt") as file:
        blocks = json.loads(file.metadata()["merge_recipe"])["sources"][0]["blocks"]
    assert 0 <= blocks["IN01"] <= 1
    assert -0.5 <= blocks["IN02"] <= 1.5
    assert blocks["IN04"] == 0.5
    assert blocks["IN05"] == 0.75
    assert any("was drawn as" in warning for warning in report.warnings)
    verify(out)


def test_the_saved_file_says_what_it_is_and_nothing_that_is_not_true(loras, tmp_path, samples):
    out = tmp_path / "ink+mira.safetensors"
    merge(samples[:2], ratios=[0.6, 0.4], save_to=out)
    raw = out.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    with safe_open(str(out), "pt") as file:
        found = file.metadata()
    assert found["ss_output_name"] == "ink+mira"
    assert found["ss_network_module"] == "networks.lora"
    assert found["ss_base_model_version"] == "sd_v1"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert set(json.loads(found["ss_tag_frequency"])) == {
        "1_sample-ink-style_inkwash",
        "2_sample-mira-character_mira",
    }
    assert found["modelspec.trigger_phrase"] == "inkwash, mira"
    assert not {
        "ss_session_id",
        "ss_training_started_at",
        "ss_steps",
        "ss_num_epochs",
        "modelspec.date",
    } & set(found)
    text = raw[8 : 8 + length].decode()
    assert str(tmp_path) not in text
    assert str(samples[0].parent) not in text
    recipe = loads(found["merge_recipe"])
    assert [source.name for source in recipe.sources] == [path.name for path in samples[:2]]
    assert recipe.dumps() == found["merge_recipe"]
    merged_again = tmp_path / "twice.safetensors"
    merge([out, samples[2]], save_to=merged_again)
    with safe_open(str(merged_again), "pt") as file:
        assert file.metadata()["merge_recipe"].count("ink+mira") == 1
        assert "sample-ink-style.safetensors" not in file.metadata()["merge_recipe"]
    side = json.loads((tmp_path / "ink+mira.json").read_text())
    assert side["activation text"] == "inkwash, mira"
    assert side["preferred weight"] == 1.0
    assert side["sd version"] == "SD1"


def test_a_persons_notes_survive_a_new_merge_and_ours_are_renewed(samples, tmp_path):
    out = tmp_path / "m.safetensors"
    merge(samples[:2], ratios=[0.6, 0.4], save_to=out)
    side = tmp_path / "m.json"
    edited = json.loads(side.read_text()) | {"activation text": "my own words", "preferred weight": 0.8}
    side.write_text(json.dumps(edited))
    merge(samples[:2], ratios=[0.5, 0.5], save_to=out, job=Job(overwrite=True))
    after = json.loads(side.read_text())
    assert after["activation text"] == "my own words"
    assert after["preferred weight"] == 0.8
    assert "@0.5" in after["description"]


def test_the_clock_leaves_no_trace(samples, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        merge(samples[:2], ratios=[0.6, 0.4], save_to=tmp_path / name / "m.safetensors")
    assert (tmp_path / "a" / "m.safetensors").read_bytes() == (tmp_path / "b" / "m.safetensors").read_bytes()


def test_resize_reaches_the_rank_and_states_its_error(samples, tmp_path):
    report = resize(samples[0], rank="4", save_to=tmp_path / "r.safetensors", save_precision="float")
    assert report.ranks() == {"min": 4, "max": 4, "mean": 4.0}
    assert report.energy_kept == pytest.approx(1 - report.relative_error**2, rel=1e-4)
    report = resize(samples[0], rank="energy:0.9", save_to=tmp_path / "e.safetensors")
    assert report.energy_kept >= 0.9
    assert report.ranks()["max"] < 16
    report = resize(samples[0], rank="error:0.2", save_to=tmp_path / "f.safetensors")
    assert report.worst().relative <= 0.2 * 1.001


def test_a_lossless_merge_copies_down_factors_as_bytes(samples, tmp_path):
    out = tmp_path / "m.safetensors"
    merge(samples[:2], ratios=[0.6, 0.4], save_to=out)
    with safe_open(str(out), "pt") as saved, safe_open(str(samples[0]), "pt") as source:
        key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
        assert torch.equal(saved.get_tensor(key)[:16], source.get_tensor(key))
