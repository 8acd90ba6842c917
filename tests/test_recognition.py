"""What LoRAs are recognised as, what that rests on, and silence about everything else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lib_merge import merge
from lib_merge.adapters import open_lora
from lib_merge.analysis import analyze
from lib_merge.analysis.names import epoch_name, noise_name, speed_name
from lib_merge.analysis.recognition import SORTS, recognise, recognised, traits_of, with_flatness
from lib_merge.errors import MergeError, ModuleError, UnsupportedKindError
from lib_merge.library.inspect import inspect_file
from lib_merge.library.library import read_facts
from lib_merge.samples import sd15_modules, synthetic_lora
from tests.factories import lora_tensors, write, write_lora

# names of published files
SPEED = [
    "sdxl_lightning_4step_lora",
    "Hyper-SDXL-8steps-lora",
    "Hyper-SD15-8steps-CFG-lora",
    "Hyper-FLUX.1-dev-8steps-lora",
    "lcm-lora-sdxl",
    "lcm-lora-sdv1-5",
    "LCM_LoRA_Weights_SD15",
    "dmd2_sdxl_4step_lora_fp16",
    "sd_xl_turbo_lora_v1",
    "FLUX.1-Turbo-Alpha",
    "TCD-SDXL-LoRA",
    "pcm_sdxl_normalcfg_8step_converted",
    "Wan21_CausVid_14B_T2V_lora_rank32_v2",
    "Wan21_AccVid_T2V_14B_lora_rank32_fp16",
    "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32",
    "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise",
    "Wan2.2-Lightning_I2V-A14B-4steps-lora_HIGH_fp16",
    "Qwen-Image-Lightning-8steps-V1.0",
    "flash-sdxl",
    "Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16",
    "FastWan_T2V_14B_480p_lora_rank_128_bf16",
    "Wan2.1_T2V_14B_SelfForcing_rank64",
]
# names that only share a word with them
ORDINARY = [
    "turbo_car_style",
    "lightning_bolt",
    "lightning_lora",
    "hyper_realism_sdxl",
    "z_image_turbo_character_v1",
    "mychar_zit",
    "flash_gordon",
    "mychar_sdxl_lightning",
    "LCM",
    "lcm_girl",
    "add-detail-xl",
    "flux_dedistilled_style",
    "step_by_step",
    "speedpaint",
    "steps_of_a_temple",
    "pcm_portrait",
    "turbo",
    "hyperion",
    "schnell_portrait",
    "distilled_whisky",
]


def _marks(path):
    with open_lora(path) as file:
        return recognised(file)


def _sorts(path):
    return [mark.sort for mark in _marks(path)]


def _unet(names):
    """A UNet LoRA on the modules of the given names, as small as shapes allow."""
    tensors = {}
    for name in names:
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.full((8, 2), 0.1)
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.full(
            (2, 768 if "attn2_to_k" in name else 8), 0.1
        )
    return tensors


ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_"
WHOLE = _unet([
    f"{ATTENTION}attn1_to_q", f"{ATTENTION}attn2_to_k", f"{ATTENTION}ff_net_0_proj", "down_blocks_0_resnets_0_time_emb_proj",
    "down_blocks_0_resnets_0_conv1", "down_blocks_0_downsamplers_0_conv", "up_blocks_1_upsamplers_0_conv",
])  # fmt: skip


# ------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", SPEED)
def test_names_of_speed_loras_tell(name):
    found = speed_name(name)
    assert found is not None
    assert found.telling


@pytest.mark.parametrize("name", ORDINARY)
def test_a_word_in_a_name_tells_nothing(name, tmp_path):
    found = speed_name(name)
    assert found is None or not found.telling
    assert _sorts(write_lora(tmp_path / f"{name}.safetensors")) == []


@pytest.mark.parametrize(
    ("name", "level", "partner"),
    [
        ("PenInsert_high_noise", "high", "PenInsert_low_noise"),
        ("X_HighNoise_Wan2.2", "high", "X_LowNoise_Wan2.2"),
        ("ink-low-noise-e5", "low", "ink-high-noise-e5"),
        ("Wan2.2-Lightning-4steps-lora_HIGH_fp16", "high", "Wan2.2-Lightning-4steps-lora_LOW_fp16"),
        ("style_LN", "low", "style_HN"),
        ("ink-22-H-e8", "high", "ink-22-L-e8"),
        ("low_noise_model", "low", "high_noise_model"),
        ("noise_high_ink", "high", "noise_low_ink"),
    ],
)
def test_noise_levels_and_their_partners(name, level, partner):
    found = noise_name(name)
    assert (found.level, found.partner) == (level, partner)
    assert noise_name(partner).partner == name


@pytest.mark.parametrize("name", ["highlands", "slow", "ink", "LNER_train", "halo"])
def test_no_noise_level(name):
    assert noise_name(name) is None


@pytest.mark.parametrize(
    ("name", "run", "number"),
    [
        ("ink-000004", "ink", 4), ("ink-e5", "ink", 5), ("ink_step_1000", "ink", 1000), ("ink_epoch_3", "ink", 3),
        ("ink_000000250", "ink", 250), ("surf_000000100_high_noise", "surf_high_noise", 100), ("ink-step00001000", "ink", 1000),
    ],
)  # fmt: skip
def test_epochs_by_name(name, run, number):
    assert epoch_name(name) == (run, number)


@pytest.mark.parametrize("name", ["ink-v2", "ink-2024", "ink_1.5", "sd15", "e5", "000004"])
def test_no_epochs_by_name(name):
    assert epoch_name(name) is None


# ------------------------------------------------------------------------ speed LoRAs


def test_a_name_alone_is_a_perhaps_and_says_so(tmp_path):
    [mark] = _marks(write_lora(tmp_path / "sdxl_lightning_4step_lora.safetensors"))
    assert (mark.sort, mark.what, mark.sure) == ("speed", "Lightning", False)
    assert mark.said == "perhaps speed LoRA (Lightning): the file's name only"


def test_a_name_and_the_modules_are_sure(tmp_path):
    [mark] = _marks(write(tmp_path / "lcm-lora-sdv1-5.safetensors", WHOLE))
    assert (mark.sort, mark.what, mark.sure, mark.holds) == ("speed", "LCM", True, True)
    assert mark.evidence == ("the file's name", "its modules")
    text = {
        **WHOLE,
        **lora_tensors(names=("lora_te_text_model_encoder_layers_3_self_attn_q_proj",), conv=False),
    }
    [mark] = _marks(write(tmp_path / "lcm-lora-sdv1-5-te.safetensors", text))
    assert not mark.sure  # no distillation trains a text encoder
    # a whole network that people trained on lightnings is a perhaps at most
    [mark] = _marks(write(tmp_path / "lightning_bolt.safetensors", WHOLE))
    assert not mark.sure


def test_a_name_and_what_the_metadata_says_are_sure(tmp_path):
    told = {"modelspec.description": "A 4-step distilled LoRA, made by trajectory distillation."}
    [mark] = _marks(write_lora(tmp_path / "turbo_render.safetensors", metadata=told))
    assert mark.sure
    assert mark.evidence == ("the file's name", "metadata: modelspec.description")
    [mark] = _marks(write_lora(tmp_path / "render.safetensors", metadata=told))
    assert not mark.sure
    friendly = {"modelspec.description": "Works well with lightning models at 4 steps."}
    assert _marks(write_lora(tmp_path / "ink.safetensors", metadata=friendly)) == ()


def test_a_renamed_file_is_known_by_the_name_in_its_metadata(tmp_path):
    named = {"ss_output_name": "lcm-lora-sdv1-5"}
    [mark] = _marks(write_lora(tmp_path / "x.safetensors", metadata=named))
    assert (mark.sure, mark.evidence) == (False, ("metadata: ss_output_name",))
    [mark] = _marks(write(tmp_path / "y.safetensors", WHOLE, named))
    assert mark.sure


def test_what_a_merge_says_of_itself_is_a_name(tmp_path):
    """A merge lists its sources in its comment: that is no second witness beside the name it has from them."""
    path = write_lora(tmp_path / "lcm-lora-sdv1-5.safetensors")
    out = tmp_path / "ink+lcm-lora-sdv1-5.safetensors"
    merge([path, write_lora(tmp_path / "ink.safetensors", seed=2)], save_to=out)
    with open_lora(out) as file:
        assert "lcm-lora" in file.metadata["ss_training_comment"]
        [mark] = recognised(file)
    assert not mark.sure


def test_nonsense_in_metadata_and_names_is_no_error(tmp_path):
    wild = {
        "ss_epoch": "9" * 5000,
        "ss_num_epochs": "²",
        "ss_output_name": "-" * 50_000,
        "modelspec.title": "lcm_" * 9000,
    }
    assert all(mark.sort in SORTS for mark in _marks(write_lora(tmp_path / "x.safetensors", metadata=wild)))
    with open_lora(_wan(tmp_path / "y.safetensors")) as file:
        traits = replace(traits_of(file), path=tmp_path / f"{'x' * 239}_LOW.safetensors")
    assert [mark.sort for mark in recognise(traits)] == [
        "low noise"
    ]  # its partner's name is too long for the disk


def test_a_flat_spectrum_supports_a_name_and_never_speaks_alone(tmp_path):
    rows = list(sd15_modules())[::16]
    even = synthetic_lora(rows, 16, seed=1, dtype=torch.float32)
    even = {key: torch.randn(value.shape, generator=torch.Generator().manual_seed(5)) if value.ndim > 1 else value
            for key, value in even.items()}  # fmt: skip
    decaying = synthetic_lora(rows, 16, seed=1, dtype=torch.float32)
    for name, tensors, sure in (
        ("Hyper-SD15-8steps-lora", even, True), ("Hyper-SD15-4steps-lora", decaying, False), ("noise", even, None),
        ("turbo_car_style", even, None),
    ):  # fmt: skip
        path = write(tmp_path / f"{name}.safetensors", tensors)
        marks = analyze([path], carry_out=False).sources[0].marks
        assert [mark.sure for mark in marks] == ([] if sure is None else [sure])
        assert ("its spectrum" in marks[0].evidence if marks else None) == sure
    with open_lora(path) as file:
        traits = traits_of(file)
    assert with_flatness(traits, 3.9, (4, 4)).flatness is None  # four directions have no shape
    assert with_flatness(traits, 8.0, (16, 16)).flatness == 0.5


def test_wan_speed_loras_are_known_by_their_modules_and_name(shared_data):
    path = shared_data.parent / "cases" / "wan_lightx2v_1d_diff" / "lightx2v_distill.safetensors"
    if not path.is_file():
        pytest.skip("the case is not there")
    [mark] = _marks(path)
    assert mark.said == "speed LoRA (lightx2v): the file's name and its modules"


# ------------------------------------------------------------------------ edit, control, sliders, epochs


def test_edit_models_by_their_base_and_by_name(tmp_path):
    for base, what in (
        ("flux1-kontext-dev.safetensors", "Kontext"),
        ("Qwen-Image-Edit-2509", "Qwen-Image-Edit"),
    ):
        [mark] = _marks(write_lora(tmp_path / "ink.safetensors", metadata={"ss_sd_model_name": base}))
        assert (mark.sort, mark.what, mark.sure, mark.evidence) == (
            "edit",
            what,
            True,
            ("metadata: ss_sd_model_name",),
        )
    [mark] = _marks(write_lora(tmp_path / "ink_kontext.safetensors"))
    assert (mark.sort, mark.sure, mark.holds) == ("edit", False, False)


def test_a_control_lora_is_known_without_name_and_metadata(tmp_path):
    def flux(columns):
        return {
            "double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(2, 3072),
            "double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(9216, 2),
            "img_in.lora_A.weight": torch.ones(2, columns),
            "img_in.lora_B.weight": torch.ones(3072, 2),
        }

    [mark] = _marks(write(tmp_path / "x.safetensors", flux(128)))
    assert (mark.sort, mark.sure, mark.evidence) == ("control", True, ("its modules",))
    assert _marks(write(tmp_path / "y.safetensors", flux(64))) == ()


def test_sliders(tmp_path):
    narrow = _unet([f"{ATTENTION}attn1_to_q", f"{ATTENTION}attn1_to_v", "mid_block_resnets_0_conv1"])
    name = "age_alpha1.0_rank4_noxattn_last.safetensors"
    meta = {"ss_base_model_version": "sd_v1"}
    [mark] = _marks(write(tmp_path / name, narrow, meta))
    assert (mark.sort, mark.sure, mark.evidence) == ("slider", True, ("the file's name", "its modules"))
    [mark] = _marks(write_lora(tmp_path / "baseball_slider.safetensors"))
    assert (mark.sort, mark.sure) == ("slider", False)
    assert _marks(write(tmp_path / "age.safetensors", narrow, meta)) == ()  # renamed: missed, never guessed


def _wan(path, metadata=None):
    return write(path, {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 64),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(64, 2),
    }, metadata)  # fmt: skip


def test_noise_levels_are_of_wan_and_a_lone_letter_needs_its_partner(tmp_path):
    [mark] = _marks(_wan(tmp_path / "ink_high_noise.safetensors"))
    assert (mark.sort, mark.sure) == ("high noise", False)
    _wan(tmp_path / "ink_low_noise.safetensors")
    [mark] = _marks(tmp_path / "ink_high_noise.safetensors")
    assert (mark.sure, mark.evidence) == (True, ("the file's name", "a partner file beside it"))
    assert _marks(_wan(tmp_path / "surf_H.safetensors")) == ()
    _wan(tmp_path / "surf_L.safetensors")
    assert _sorts(tmp_path / "surf_H.safetensors") == ["high noise"]
    assert _marks(write_lora(tmp_path / "film_high_noise.safetensors")) == ()


def test_epochs_by_metadata_and_by_name(tmp_path):
    meta = {"ss_epoch": "4", "ss_num_epochs": "10"}
    [mark] = _marks(write_lora(tmp_path / "ink-000004.safetensors", metadata=meta))
    assert (mark.sort, mark.what, mark.sure) == ("epoch", "4", True)
    [mark] = _marks(write_lora(tmp_path / "ink-000006.safetensors"))
    assert (mark.what, mark.sure) == ("6", False)
    last = {"ss_epoch": "10", "ss_num_epochs": "10"}
    assert _marks(write_lora(tmp_path / "ink.safetensors", metadata=last)) == ()


# ------------------------------------------------------------------------ no false alarms


def test_nothing_is_recognised_in_ordinary_files(loras, samples, tmp_path):
    real = [path for path in loras.iterdir() if path.suffix in (".safetensors", ".bin", ".pt")]
    drawn = [
        write_lora(tmp_path / f"drawn{seed}.safetensors", seed=seed, rank=seed + 1) for seed in range(20)
    ]
    assert {path.name: _sorts(path) for path in (*real, *samples, *drawn) if _sorts(path)} == {}


def test_nothing_is_recognised_in_renamed_files_without_metadata(loras, samples, tmp_path):
    """With their spectra, too: every file that holds numbers, under a name that says nothing."""
    tried = 0
    for source in (*loras.glob("*.safetensors"), *samples):
        plain = tmp_path / f"file{tried}.safetensors"
        write(plain, load_file(str(source)))
        with safe_open(str(plain), "pt") as file:
            assert not file.metadata()
        try:
            found = analyze([plain], carry_out=False, family="SD1").sources[0].marks
        except MergeError:  # what cannot be measured is asked by its header
            found = _marks(plain)
        assert found == (), source.name
        tried += 1
    assert tried >= 8
    # speed LoRAs, sliders and epochs under such a name are missed
    for number, tensors in enumerate((WHOLE, _unet([f"{ATTENTION}attn1_to_q"]))):
        assert _marks(write(tmp_path / f"missed{number}.safetensors", tensors, {"ss_v2": "False"})) == ()


def test_real_keys_tell_nothing_but_the_control_lora(keys, tmp_path):
    found = {}
    for listed in sorted(keys.glob("*lora*.json")):
        shapes = json.loads(listed.read_text(encoding="utf-8"))
        if not all(isinstance(shape, list) for shape in shapes.values()):
            continue
        tensors = {key: torch.zeros(shape[1], dtype=torch.float16) for key, shape in shapes.items()}
        path = write(tmp_path / "x.safetensors", tensors)
        if listed.stem == "flux_control_lora":
            with pytest.raises(UnsupportedKindError, match="is a control LoRA"):
                _marks(path)
            continue
        if listed.stem == "qwen_image_lora_kohya":
            with pytest.raises(ModuleError, match="no layer of a known model is that large"):
                _marks(path)
            continue
        if listed.stem == "anima_lora_lokr":  # made up, with sizes that the family has not
            with pytest.raises(ModuleError, match="16,384 × 16,384, and the layer has 2,048 × 2,048"):
                _marks(path)
            continue
        marks = _marks(path)
        if marks:
            found[listed.stem] = [mark.sort for mark in marks]
    assert found == {}


# ------------------------------------------------------------------------ where it is shown


def test_the_words_come_from_a_fixed_list(tmp_path):
    """Names and metadata of strangers never get into a mark."""
    evil = "<img src=x onerror=alert(1)>"
    told = {"ss_output_name": f"lcm-lora {evil}", "modelspec.description": f"step distilled {evil}", "ss_epoch": evil,
            "ss_sd_model_name": f"kontext {evil}", "modelspec.title": f"slider {evil}", "ss_num_epochs": evil}  # fmt: skip
    marks = _marks(
        write_lora(tmp_path / f"hyper-sd slider kontext {'x' * 40}-000004.safetensors", metadata=told)
    )
    assert [mark.sort for mark in marks] == ["speed", "edit", "slider", "epoch"]
    assert "onerror" not in json.dumps([mark.said for mark in marks])
    assert all(mark.sort in SORTS for mark in marks)


def test_library_and_inspect_tell_the_same(tmp_path):
    path = write(tmp_path / "lcm-lora-sdv1-5.safetensors", WHOLE)
    facts = json.loads(json.dumps(read_facts(path)))
    assert facts["marks"] == json.loads(json.dumps(inspect_file(path)["marks"]))
    assert facts["marks"][0]["said"] == "speed LoRA (LCM): the file's name and its modules"
    shutil.copy(path, tmp_path / "plain.safetensors")
    assert read_facts(tmp_path / "plain.safetensors")["marks"] == []


def test_recognise_says_the_same_twice(tmp_path):
    with open_lora(write(tmp_path / "lcm-lora-sdv1-5.safetensors", WHOLE)) as file:
        assert recognise(traits_of(file)) == recognised(file)
