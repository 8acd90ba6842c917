"""Key styles, families and blocks on the key lists of real files."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch

from lib_merge import open_lora
from lib_merge.adapters.cloneofsimo import cloneofsimo_text_order, cloneofsimo_unet_order
from lib_merge.adapters.file import guess_family
from lib_merge.adapters.keys import parse_keys
from lib_merge.errors import MergeError, ModuleError, RecipeError
from lib_merge.families import FAMILIES, block_of, encoder_of, expand_block_list, family_of
from lib_merge.families.unet import to_diffusers, to_sgm
from lib_merge.files.header import TensorInfo
from lib_merge.samples import sd15_modules
from tests.factories import NAMES, dense_of, lora_tensors, relative, write

LISTS = {
    "anima_lora_kohya": "Anima", "anima_lora_kohya_with_te": "Anima", "anima_lora_lokr": "Anima", "anima_lora_peft": "Anima",
    "flux_control_lora": "Flux", "flux_dora_onetrainer": "Flux", "flux_lokr_bfl": "Flux", "flux_lora_aitoolkit": "Flux",
    "flux_lora_diffusers": "Flux", "flux_lora_diffusers_base_model": "Flux", "flux_lora_diffusers_no_proj_mlp": "Flux",
    "flux_lora_kohya": "Flux", "flux_lora_kohya_with_te1": "Flux", "flux_lora_xlabs": "Flux", "flux_peft_r4": "Flux",
    "kohya_sd15_r128": "SD1", "kohya_sdxl_r32": "SDXL", "krea2_lora_kohya": "Krea2", "qwen_image_lora_kohya": "Qwen-Image",
}  # fmt: skip

# lists that are committed: {"family": name, "blocks": {module: block}, "keys": {key: [dtype, [shape]]}}
OWN = sorted((Path(__file__).parent / "reference" / "keys").glob("*.json"))


def _read(keys, name):
    table = json.loads((keys / f"{name}.json").read_text())
    return {key: TensorInfo("F16", tuple(shape), 0, 0) for key, (_, shape) in table.items()}


def _placed(keys, name, family):
    tensors = _read(keys, name)
    placed = [
        family_of(family).place(raw.component, raw.path)
        for raw in parse_keys(tensors, {}, None, name).modules
    ]
    return {placement.name: placement for placement in placed}


def _understood(tensors, name, family):
    """Hold that every key is read and that the family is told; return the names of the modules."""
    parsed = parse_keys(tensors, {}, None, name)
    assert parsed.unknown == ()
    assert guess_family(parsed, tensors).candidates == (family,)
    placed = [family_of(family).place(raw.component, raw.path) for raw in parsed.modules]
    assert len({p.name for p in placed}) == len(placed)
    claimed = sum(len(raw.roles) for raw in parsed.modules)
    assert claimed == len([key for key in tensors if not key.startswith("metadata_key")])
    return {p.name for p in placed}


@pytest.mark.parametrize("name", LISTS)
def test_a_real_key_list_is_understood_whole_and_its_family_told(name, keys):
    _understood(_read(keys, name), name, LISTS[name])


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_a_key_list_of_ours_tells_its_family_and_its_blocks(path):
    own = json.loads(path.read_text(encoding="utf-8"))
    tensors = {key: TensorInfo(dtype, tuple(shape), 0, 0) for key, (dtype, shape) in own["keys"].items()}
    names = _understood(tensors, path.name, own["family"])
    assert set(own["blocks"]) <= names, f"modules of {path.name}: {sorted(names)}"
    assert {name: block_of(name, own["family"]) for name in own["blocks"]} == own["blocks"]


def test_a_file_that_shapes_cannot_tell_is_left_open(keys):
    tensors = _read(keys, "qwen_image_lora_diffusers")
    assert guess_family(parse_keys(tensors, {}, None, "q"), tensors).candidates == ("Flux", "Qwen-Image")


@pytest.mark.parametrize("name", ["kohya_sd15_r128", "kohya_sdxl_r32", "flux_lora_kohya", "krea2_lora_kohya"])
def test_kohya_names_stay_as_they_are(name, keys):
    assert set(_placed(keys, name, LISTS[name])) == {key.split(".")[0] for key in _read(keys, name)}


def test_every_spelling_of_flux_meets(keys):
    kohya = set(_placed(keys, "flux_lora_kohya", "Flux"))
    assert set(_placed(keys, "flux_lora_aitoolkit", "Flux")) <= kohya
    assert set(_placed(keys, "flux_lora_xlabs", "Flux")) <= kohya
    for name in ("flux_lora_diffusers", "flux_lora_diffusers_base_model", "flux_peft_r4"):
        for placed in _placed(keys, name, "Flux").values():
            assert (
                (placed.fused or placed.name) in kohya
                or "_final_layer_" in placed.name
                or "_in" in placed.name
            )
    pieces = {piece for fused in kohya for piece, _ in family_of("Flux").split(fused) or ()}
    split = {p.name for p in _placed(keys, "flux_lora_diffusers", "Flux").values() if p.fused}
    assert split == pieces


def test_the_pieces_of_a_fused_module_cover_its_rows_once(keys):
    table = json.loads((keys / "modules.json").read_text())["flux"]
    checked = 0
    for name, _, out, _, _ in table:
        pieces = family_of("Flux").split(name)
        if pieces:
            rows = sorted(rows for _, rows in pieces)
            assert rows[0][0] == 0
            assert rows[-1][1] == out
            assert all(a[1] == b[0] for a, b in zip(rows, rows[1:]))
            checked += 1
    assert checked == 19 * 2 + 38


@pytest.mark.parametrize("key", ["sdxl", "sdxl_locon"])
def test_sgm_and_diffusers_names_of_sdxl_are_one_to_one(key, keys):
    names = [
        row[0].removeprefix("lora_unet_") for row in json.loads((keys / "modules.json").read_text())[key]
    ]
    unet = [name for name in names if not name.startswith("lora_te")]
    diffusers = [to_diffusers(name) for name in unet]
    assert len(set(diffusers)) == len(unet)
    assert [to_sgm(name) for name in diffusers] == unet
    assert any(name.startswith("up_blocks_1_attentions_2") for name in diffusers)


def test_the_samples_have_the_real_module_list(keys):
    real = json.loads((keys / "modules.json").read_text())["sd15"]
    assert sorted(sd15_modules()) == sorted(map(tuple, real))


TABLE = {
    "SD1": {
        "lora_unet_conv_in": "IN00", "lora_unet_down_blocks_0_resnets_0_conv1": "IN01",
        "lora_unet_down_blocks_0_attentions_1_proj_in": "IN02", "lora_unet_down_blocks_0_downsamplers_0_conv": "IN03",
        "lora_unet_down_blocks_2_attentions_1_proj_in": "IN08", "lora_unet_down_blocks_3_resnets_1_conv1": "IN11",
        "lora_unet_mid_block_resnets_1_conv2": "M00", "lora_unet_mid_block_attentions_0_proj_in": "M00",
        "lora_unet_up_blocks_0_upsamplers_0_conv": "OUT02", "lora_unet_up_blocks_1_attentions_0_proj_in": "OUT03",
        "lora_unet_up_blocks_1_upsamplers_0_conv": "OUT05", "lora_unet_up_blocks_3_attentions_2_proj_in": "OUT11",
        "lora_unet_conv_out": "OTHER", "lora_unet_time_embedding_linear_1": "OTHER",
        "lora_te_text_model_encoder_layers_3_mlp_fc1": "BASE",
    },
    "SDXL": {
        "lora_unet_input_blocks_0_0": "IN00", "lora_unet_input_blocks_3_0_op": "IN03", "lora_unet_input_blocks_6_0_op": "IN06",
        "lora_unet_input_blocks_8_1_proj_in": "IN08", "lora_unet_middle_block_1_proj_in": "M00",
        "lora_unet_output_blocks_2_2_conv": "OUT02", "lora_unet_output_blocks_5_1_proj_in": "OUT05",
        "lora_unet_output_blocks_8_0_in_layers_2": "OUT08", "lora_unet_out_2": "OTHER", "lora_unet_label_emb_0_0": "OTHER",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": "BASE", "lora_te2_text_model_encoder_layers_31_mlp_fc1": "BASE",
        "lora_te2_text_projection": "OTHER",
    },
    "Flux": {
        "lora_unet_double_blocks_18_img_attn_qkv": "D18", "lora_unet_single_blocks_37_linear1": "S37",
        "lora_transformer_transformer_blocks_3_attn_to_q": "D03", "lora_transformer_single_transformer_blocks_9_proj_mlp": "S09",
        "lora_unet_img_in": "IN", "lora_unet_time_in_in_layer": "IN", "lora_unet_final_layer_linear": "OUT",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": "CLIP", "lora_te3_encoder_block_0_layer_0_SelfAttention_q": "T5",
    },
}  # fmt: skip


@pytest.mark.parametrize("family", TABLE)
def test_modules_lie_in_the_blocks_the_tables_say(family):
    assert {name: block_of(name, family) for name in TABLE[family]} == TABLE[family]
    assert [encoder_of(name) for name in ("lora_unet_x", "lora_te_x", "lora_te2_x")] == [0, 1, 2]


def test_block_lists_are_read_in_their_own_order():
    assert [[len(listed) for listed in family.lists] for family in FAMILIES.values()][:6] == [
        [17, 26], [17, 26], [12, 20], [], [61], [],
    ]  # fmt: skip
    weights, unnamed = expand_block_list([index / 10 for index in range(17)], "SD1")
    assert weights["BASE"] == 0.0
    assert weights["IN04"] == 0.3
    assert weights["M00"] == 0.7
    assert weights["OUT11"] == 1.6
    assert weights["IN00"] == 0.0
    assert weights["OTHER"] == 1.0
    assert "OUT02" in unnamed
    assert expand_block_list([1.0] * 61, "Flux")[1] == []
    assert len(family_of("Flux").blocks) == 62
    with pytest.raises(RecipeError, match="which takes 12 or 20"):
        expand_block_list([1.0] * 17, "SDXL")


def test_two_keys_for_one_tensor_are_an_error(tmp_path):
    a = f"{NAMES[0]}.lora_up.weight"
    twin = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    tensors = lora_tensors(0) | {twin: torch.ones(24, 4)}
    with pytest.raises(ModuleError, match="both mean lora_up"):
        open_lora(write(tmp_path / "a.safetensors", tensors))
    assert a in tensors
    sgm = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    tensors = lora_tensors(0) | {
        f"{sgm}.lora_up.weight": torch.ones(24, 4),
        f"{sgm}.lora_down.weight": torch.ones(4, 20),
    }
    with pytest.raises(ModuleError, match="two groups of keys both mean"):
        open_lora(write(tmp_path / "b.safetensors", tensors))


def test_a_thousand_modules_are_placed_in_a_blink(keys):
    tensors = _read(keys, "kohya_sdxl_r32")
    start = time.perf_counter()
    for _ in range(3):
        parsed = parse_keys(tensors, {}, None, "x")
        [family_of("SDXL").place(raw.component, raw.path) for raw in parsed.modules]
        guess_family(parsed, tensors)
    assert time.perf_counter() - start < 3  # generous: it takes a tenth of that


def test_random_keys_never_break_the_parser():
    rng = random.Random(3)
    words = ["lora_unet_", "down_blocks", ".", "_", "0", "12", "attn1", "processor", "to_q_lora", "down", "up", "weight", "lora_A", "alpha",
             "unet:", ":", "transformer", "double_blocks", "qkv_lora1", "<s1>", "bundle_emb", "ü", "\u202e", "\n"]  # fmt: skip
    for _ in range(1500):
        tensors = {
            "".join(rng.choices(words, k=rng.randrange(1, 9))): TensorInfo(
                "F16", tuple(rng.choices([0, 1, 4, 768], k=rng.randrange(4))), 0, 0
            )
            for _ in range(rng.randrange(1, 6))
        }
        try:
            parsed = parse_keys(tensors, {}, None, "x")
            family = guess_family(parsed, tensors).candidates[0]
            [
                block_of(family_of(family).place(raw.component, raw.path).name, family)
                for raw in parsed.modules
            ]
        except MergeError as error:
            assert str(error)


def _tiny_flux(split, seed):
    """A few Flux modules in one of the two spellings, with the real 3072 rows and small columns."""
    g = torch.Generator().manual_seed(seed)
    rows = {"to_q": 3072, "to_k": 3072, "to_v": 3072}
    if split:
        names = {f"transformer.transformer_blocks.0.attn.{name}": out for name, out in rows.items()}
        names["transformer.transformer_blocks.0.ff.net.2"] = 3072
        names["transformer.norm_out.linear"] = 64
        a, b = "lora_A", "lora_B"
    else:
        names = {"lora_unet_double_blocks_0_img_attn_qkv": 9216, "lora_unet_double_blocks_0_img_mlp_2": 3072,
                 "lora_unet_final_layer_adaLN_modulation_1": 64}  # fmt: skip
        a, b = "lora_down", "lora_up"
    found = {}
    for name, out in names.items():
        found[f"{name}.{b}.weight"] = torch.randn(out, 2, generator=g)
        found[f"{name}.{a}.weight"] = torch.randn(2, 8, generator=g)
    return found


def test_split_and_fused_flux_meet_per_slice_without_tripling_the_rank(tmp_path):
    from safetensors.torch import load_file

    from lib_merge import merge

    fused, split = _tiny_flux(False, 1), _tiny_flux(True, 2)
    a, b = write(tmp_path / "a.safetensors", fused), write(tmp_path / "b.safetensors", split)
    out = tmp_path / "m.safetensors"
    merge([a, b], ratios=[0.5, 0.25], save_to=out, save_precision="float")
    found = dense_of(out)
    whole = (fused["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].double()
             @ fused["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].double())  # fmt: skip
    for number, name in enumerate(("to_q", "to_k", "to_v")):
        own = f"transformer.transformer_blocks.0.attn.{name}"
        mine = split[f"{own}.lora_B.weight"].double() @ split[f"{own}.lora_A.weight"].double()
        wanted = 0.5 * whole[3072 * number : 3072 * (number + 1)] + 0.25 * mine
        key = f"lora_transformer_transformer_blocks_0_attn_{name}"
        assert relative({key: found[key]}, {key: wanted.numpy()}) < 1e-6
    saved = load_file(str(out))
    assert max(value.shape[0] for key, value in saved.items() if "lora_down" in key) == 4
    own, key = "transformer.norm_out.linear", "lora_unet_final_layer_adaLN_modulation_1"
    mine = split[f"{own}.lora_B.weight"].double() @ split[f"{own}.lora_A.weight"].double()
    theirs = fused[f"{key}.lora_up.weight"].double() @ fused[f"{key}.lora_down.weight"].double()
    wanted = 0.5 * theirs + 0.25 * torch.cat([mine[32:], mine[:32]])
    assert relative({key: found[key]}, {key: wanted.numpy()}) < 1e-6


def test_fused_flux_alone_stays_fused(tmp_path):
    from lib_merge import merge

    path = write(tmp_path / "a.safetensors", _tiny_flux(False, 1))
    merge([path, path], save_to=tmp_path / "m.safetensors")
    assert set(dense_of(tmp_path / "m.safetensors")) == {key.split(".")[0] for key in _tiny_flux(False, 1)}


def test_krea2_spellings_meet():
    pairs = {
        "transformer_blocks_3_attn_to_q": "blocks_3_attn_wq", "transformer_blocks_3_attn_to_out_0": "blocks_3_attn_wo",
        "transformer_blocks_3_attn_to_gate": "blocks_3_attn_gate", "transformer_blocks_3_ff_up": "blocks_3_mlp_up",
        "img_in": "first", "final_layer_linear": "last_linear", "time_embed_linear_2": "tmlp_2", "txt_in_linear_1": "txtmlp_1",
        "time_mod_proj": "tproj_1", "text_fusion_layerwise_blocks_0_attn_to_k": "txtfusion_layerwise_blocks_0_attn_wk",
    }  # fmt: skip
    for diffusers, native in pairs.items():
        assert family_of("Krea2").place("unet", diffusers).name == f"lora_unet_{native}"


def test_cloneofsimo_positions():
    order = cloneofsimo_unet_order()
    assert len(order) == 144
    assert len(cloneofsimo_unet_order(geglu=False)) == 128
    assert order[4].endswith("down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj")
    assert order[135].startswith("lora_unet_mid_block")
    assert cloneofsimo_text_order(12)[:4] == tuple(
        f"lora_te_text_model_encoder_layers_0_self_attn_{name}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj")
    )


def test_a_wrong_number_of_positional_pairs_is_said():
    tensors = {
        f"unet:{n}:{half}": TensorInfo("F16", (320, 4) if half == "up" else (4, 320), 0, 0)
        for n in range(5)
        for half in ("up", "down")
    }
    with pytest.raises(ModuleError, match="5 UNet pairs"):
        parse_keys(tensors, {}, None, "old.safetensors")


FAMILIES_OF_FILES = {
    "cloneofsimo_sd15_r1_disney.safetensors": "SD1", "cloneofsimo_sd15_r4_analog.safetensors": "SD1", "cloneofsimo_sd2_r4_kiriko.pt": "SD2",
    "diffusers_oldest_sd15_r4.safetensors": "SD1", "diffusers_oldest_sd15_r4_dog.bin": "SD1", "diffusers_sd15_r4_pokemon.safetensors": "SD1",
    "lokr_kohya_sd15_r4.safetensors": "SD1", "peft_sd15_r4_alpha16.safetensors": "SD1", "peft_sdxl_te1_r8.safetensors": "SDXL",
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES_OF_FILES)
def test_a_real_files_family_is_told(name, loras):
    with open_lora(loras / name) as file:
        assert file.family == FAMILIES_OF_FILES[name]
        assert not file.left_out
