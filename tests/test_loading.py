"""What is saved is what a host loads: names against the host's own tables, numbers against known cases."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from lib_merge import merge, open_lora
from lib_merge.adapters.keys import parse_keys
from lib_merge.errors import FamilyError, UnsupportedKindError
from lib_merge.families import FAMILIES, ModuleFacts, block_of, family_of, tell_family
from lib_merge.families.layers import Layers, Piece, Size, cut, expand
from lib_merge.files.header import TensorInfo
from tests.conftest import DATA
from tests.loading import LoaderTable, load, tables

MAPS = DATA / "keys" / "neo_key_maps.json.gz"
CASES = DATA.parent / "cases"
NAMED = {
    "flux1": ("Flux", "Flux.1"), "klein4b": ("Flux.2", "Klein 4B"), "klein9b": ("Flux.2", "Klein 9B"),
    "zimage": ("Z-Image", "Z-Image"), "lumina2": ("Lumina2", "Lumina 2"), "qwen": ("Qwen-Image", "Qwen-Image"),
    "wan14b": ("Wan", "Wan 14B"), "wani2v": ("Wan", "Wan 2.1 14B image to video"), "anima": ("Anima", "Anima"),
    "krea2": ("Krea2", "Krea 2"), "ernie": ("Ernie", "Ernie-Image"), "chroma": ("Chroma", "Chroma"),
}  # fmt: skip
SPELLINGS = ("lora_unet_", "diffusion_model.", "transformer.", "lycoris_", "lora_transformer_", "")
# rows that Neo counts wrongly: Lumina's k and v as if it had as many heads for them as for q, and the feed-forward
# of Flux.2's single blocks, which has two halves, as one
WRONG_THERE = {
    "lumina2": re.compile(r"attention[._]to_[kv]$"),
    "klein4b": re.compile(r"single_transformer_blocks[._]\d+[._]proj_mlp$"),
    "klein9b": re.compile(r"single_transformer_blocks[._]\d+[._]proj_mlp$"),
}


@pytest.fixture(scope="session")
def maps(keys) -> dict[str, LoaderTable]:
    return tables(MAPS)


@pytest.fixture(scope="session")
def cases() -> Path:
    if not CASES.is_dir():
        pytest.skip("the folder shared/cases is not beside this checkout")
    return CASES


def _spelling(name: str) -> str:
    return next(front for front in SPELLINGS if name.startswith(front))


def _size(model: str):
    family, name = NAMED[model]
    return next(size for size in family_of(family).layers.sizes if size.name == name)


def _parsed(names, table):
    tensors = {}
    for name in names:
        weight, rows = table.names[name]
        shape = table.shapes[weight]
        tensors[f"{name}.lora_up.weight"] = TensorInfo(
            "F16", (rows[1] - rows[0] if rows else shape[0], 4), 0, 0
        )
        tensors[f"{name}.lora_down.weight"] = TensorInfo("F16", (4, *(shape[1:] or (1,))), 0, 0)
    return parse_keys(tensors, {}, None, "x").modules


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("model", NAMED)
def test_every_name_of_every_weight_is_placed_on_its_weight_and_saved_as_one_that_is_loaded(
    model, spelling, maps
):
    table, family, size = maps[model], family_of(NAMED[model][0]), _size(model)
    names = [
        n for n, (weight, _) in table.names.items() if _spelling(n) == spelling and weight in table.shapes
    ]
    if not names:
        pytest.skip(f"{model} has no names that begin with {spelling!r}")
    wrong = []
    for raw in _parsed(names, table):
        name = next(iter(raw.roles.values())).removesuffix(".lora_up.weight")
        if model in WRONG_THERE and WRONG_THERE[model].search(name):
            continue
        wanted = table.names[name]
        placed = family.place(raw.component, raw.path, raw.spelt, size)
        pieces = [placed.name]
        if placed.rows and placed.name not in table.names:  # a piece of several others is cut
            cut = [p for p in family.split(placed.fused, size) if placed.rows[0] <= p[1][0] < placed.rows[1]]
            assert (cut[0][1][0], cut[-1][1][1]) == wanted[1]
            pieces = [piece for piece, _ in cut]
        found = [table.names.get(piece) for piece in pieces]
        if None in found or {weight for weight, _ in found} != {wanted[0]}:
            wrong.append((name, placed.name))
        elif wanted[1] is None:
            assert placed.rows is None
            assert found == [wanted]
        else:
            assert placed.rows == wanted[1]
            assert table.names[placed.fused] == (wanted[0], None)
            assert len(found) > 1 or found == [wanted]
    assert wrong == []


@pytest.mark.parametrize("model", NAMED)
def test_the_modules_of_a_record_are_the_models_own(model, maps):
    table = {
        weight.removesuffix(".weight"): shape
        for weight, shape in maps[model].shapes.items()
        if weight.endswith(".weight") and shape
    }
    # Neo has Anima's adapter in its text encoder
    own = {path: shape for path, shape in _size(model).modules.items() if not path.startswith("llm_adapter")}
    assert own == table


@pytest.mark.parametrize("family", [f for f in FAMILIES.values() if f.layers], ids=lambda family: family.name)
def test_aliases_lead_to_modules_and_pieces_cover_them_once(family):
    for size in family.layers.sizes:
        for path, shape in size.modules.items():
            name = family.place("unet", path.replace(".", "_"), path, size).name
            assert family.place("unet", _path(name), name, size).name == name
            pieces = family.split(name, size)
            if pieces:
                bounds = [rows for _, rows in pieces]
                assert (bounds[0][0], bounds[-1][1]) == (0, shape[0])
                assert all(one[1] == other[0] for one, other in zip(bounds, bounds[1:]))
                for piece, rows in pieces:
                    placed = family.place("unet", _path(piece), piece, size)
                    assert (placed.name, placed.fused, placed.rows) == (piece, name, rows)


def _path(name: str) -> str:
    for front in ("lora_unet_", "lora_transformer_", "lycoris_", "diffusion_model.", "transformer."):
        name = name.removeprefix(front)
    return name.replace(".", "_")


# ---------------------------------------------------------------- known cases


def _rows(weight: str, *names: str, width: int) -> dict:
    return {name: (weight, (width * n, width * (n + 1))) for n, name in enumerate(names)}


_SD35 = "lora_transformer_transformer_blocks_0_attn_"
# what ComfyUI loads of the modules in these cases
COMFY = {
    "sd35_diffusers": LoaderTable({
        **_rows("joint_blocks.0.x_block.attn.qkv.weight", *(f"{_SD35}to_{c}" for c in "qkv"), width=2432),
        **_rows("joint_blocks.0.context_block.attn.qkv.weight", *(f"{_SD35}add_{c}_proj" for c in "qkv"), width=2432),
        "lora_unet_joint_blocks_0_x_block_attn_proj": ("joint_blocks.0.x_block.attn.proj.weight", None),
        "lora_unet_joint_blocks_0_x_block_mlp_fc1": ("joint_blocks.0.x_block.mlp.fc1.weight", None),
        "lora_unet_joint_blocks_0_x_block_mlp_fc2": ("joint_blocks.0.x_block.mlp.fc2.weight", None),
    }, {}),
    "hunyuanvideo": LoaderTable({
        f"lora_unet_{path.replace('.', '_')}": (f"{path}.weight", None)
        for path in ("double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj", "double_blocks.0.img_mlp.0",
                     "double_blocks.0.img_mlp.2", "double_blocks.0.img_mod.lin", "single_blocks.0.linear1",
                     "single_blocks.0.linear2", "single_blocks.0.modulation.lin")
    }, {}),
    "onetrainer_omi_sdxl": LoaderTable({
        name: (name, None)
        for name in ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
                     "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj",
                     "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
                     # A1111 wants all four of a layer: the other three are zeros
                     *(f"lora_te2_text_model_encoder_layers_0_self_attn_{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")))
    }, {}),
}  # fmt: skip
LOADED = [
    ("flux2_klein_diffusers_vs_bfl", "simpletuner.safetensors", "klein9b", "Flux.2"),
    ("flux2_klein_diffusers_vs_bfl", "aitoolkit.safetensors", "klein9b", "Flux.2"),
    ("flux_transformer_base_model_model", "a.safetensors", "flux1", "Flux"),
    ("hunyuanvideo_diffusion_pipe", "a.safetensors", "hunyuanvideo", "HunyuanVideo"),
    ("hunyuanvideo_musubi", "a.safetensors", "hunyuanvideo", "HunyuanVideo"),
    ("onetrainer_omi_sdxl", "a.safetensors", "onetrainer_omi_sdxl", "SDXL"),
    ("sd35_diffusers", "a.safetensors", "sd35_diffusers", "SD3"),
    ("zimage_split_vs_fused", "aitoolkit_split.safetensors", "zimage", "Z-Image"),
    ("zimage_split_vs_fused", "diffusers_split.safetensors", "zimage", "Z-Image"),
    ("zimage_split_vs_fused", "musubi_fused.safetensors", "zimage", "Z-Image"),
]


@pytest.mark.parametrize(("case", "file", "table", "family"), LOADED, ids=lambda value: value)
def test_a_merge_of_one_file_changes_every_weight_as_much_as_the_file(
    case, file, table, family, cases, maps, tmp_path
):
    expected = json.loads((cases / case / "expected_norms.json").read_text())[file]
    out = tmp_path / "m.safetensors"
    assert merge([cases / case / file], save_to=out, save_precision="float").family == family
    found = load(out, COMFY[table] if table in COMFY else maps[table])
    assert found.unknown == []
    assert found.misfits == []
    assert found.norms(expected) == pytest.approx(expected, rel=1e-5)
    listed = {weight.partition("[")[0] for weight in expected}
    assert listed <= set(found.changes)


def test_split_and_fused_files_of_other_widths_meet(cases, maps, tmp_path):
    for case, one, other, model in (
        ("flux2_klein_diffusers_vs_bfl", "simpletuner.safetensors", "aitoolkit.safetensors", "klein9b"),
        ("zimage_split_vs_fused", "aitoolkit_split.safetensors", "musubi_fused.safetensors", "zimage"),
    ):
        paths, out = [cases / case / one, cases / case / other], tmp_path / f"{model}.safetensors"
        merge(paths, ratios=[1.0, 1.0], save_to=out, save_precision="float")
        found = load(out, maps[model])
        assert (found.unknown, found.misfits) == ([], [])
        singles = []
        for path in paths:
            alone = tmp_path / f"{model}_{path.name}"
            merge([path], save_to=alone, save_precision="float")
            singles.append(load(alone, maps[model]))
        for weight in found.changes:
            # random factors are all but orthogonal: what both change is as large as both together
            squares = sum(single.norm(weight) ** 2 for single in singles)
            assert found.norm(weight) ** 2 == pytest.approx(squares, rel=0.05), weight


def test_the_attention_twice_in_one_file_is_refused(cases):
    path = cases / "zimage_split_vs_fused" / "both_in_one_file.safetensors"
    with pytest.raises(Exception, match=r"ambiguous"):
        merge([path], save_to=path.with_name("never.safetensors"))


def test_text_encoders_of_other_spellings_are_found(cases):
    with open_lora(cases / "onetrainer_omi_sdxl" / "a.safetensors") as file:
        assert {name.split("_")[1] for name in file.modules} == {"unet", "te1", "te2"}
    with open_lora(cases / "sd2_comfy_clip_h" / "a.safetensors") as file:
        assert file.family == "SD2"
        assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in file.modules
    tensors = {
        f"text_encoders.qwen3_06b.transformer.model.layers.0.self_attn.q_proj.lora_{side}.weight": TensorInfo(
            "F16", shape, 0, 0
        )
        for side, shape in (("up", (2048, 4)), ("down", (4, 1024)))
    }
    (raw,) = parse_keys(tensors, {}, None, "x").modules
    assert (raw.component, raw.path) == ("lm", "layers_0_self_attn_q_proj")
    assert (
        family_of("Anima").place(raw.component, raw.path, raw.spelt).name
        == "lora_te_layers_0_self_attn_q_proj"
    )
    assert family_of("Z-Image").place(raw.component, raw.path, raw.spelt).name == raw.spelt


def test_a_name_that_nobody_knows_is_kept(tmp_path):
    import torch

    from tests.factories import write

    names = ("diffusion_model.strange.0.part", "lora_unet_strange_1_part", "base_model.model.strange.2.part")
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_up.weight"] = torch.randn(6, 2)
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, 5)
    path = write(tmp_path / "a.safetensors", tensors)
    merge([path], save_to=tmp_path / "m.safetensors")
    with open_lora(tmp_path / "m.safetensors") as file:
        assert set(file.modules) == set(names)


# ---------------------------------------------------------------- which base model


def _first(cases: Path, case: str, name: str = "a.safetensors") -> Path:
    return cases / case / name


DIFFERENT = [
    ("hunyuanvideo_musubi", "a.safetensors", "flux_transformer_base_model_model", "a.safetensors"),
    ("hunyuanvideo_diffusion_pipe", "a.safetensors", "flux_transformer_base_model_model", "a.safetensors"),
    (
        "flux2_klein_diffusers_vs_bfl",
        "aitoolkit.safetensors",
        "flux_bfl_control_lora",
        "style_with_img_in.safetensors",
    ),
    ("pixart_diffusers", "a.safetensors", "sd35_diffusers", "a.safetensors"),
]


@pytest.mark.parametrize("case", DIFFERENT, ids=lambda case: f"{case[0]}, {case[2]}")
def test_different_base_models_are_refused_by_name(case, cases, tmp_path):
    one, other = cases / case[0] / case[1], cases / case[2] / case[3]
    with pytest.raises(FamilyError, match="LoRAs of different base models cannot be merged"):
        merge([one, other], save_to=tmp_path / "m.safetensors")


def _made(tmp_path: Path, name: str, modules: dict[str, tuple[int, int]], metadata=None) -> Path:
    import torch

    from tests.factories import write

    tensors = {}
    for module, (rows, columns) in modules.items():
        tensors[f"{module}.lora_up.weight"] = torch.randn(rows, 1) * 0.01
        tensors[f"{module}.lora_down.weight"] = torch.randn(1, columns) * 0.01
    return write(tmp_path / f"{name}.safetensors", tensors, metadata)


def _attention(name: str, blocks: range, rows: int, columns: int) -> dict[str, tuple[int, int]]:
    return {name.format(block): (rows, columns) for block in blocks}


def test_attention_alone_tells_by_the_blocks_it_is_in(tmp_path):
    name = "lora_unet_double_blocks_{}_img_attn_qkv"
    flux = _made(tmp_path, "flux", _attention(name, range(19), 9216, 3072))
    klein = _made(tmp_path, "klein", _attention(name, range(5), 9216, 3072))
    some = _made(tmp_path, "some", _attention(name, range(2, 4), 9216, 3072))
    with open_lora(flux) as file:
        assert file.family == "Flux"
    with open_lora(klein) as file:
        assert file.family == "Flux.2"
        assert {"Flux", "Flux.2"} <= set(file.guess.arguable)
    with open_lora(some) as file:
        assert file.family == "Flux"  # a few blocks alone are what almost every file is
    with pytest.raises(
        FamilyError, match=r"flux.safetensors is for Flux .* and klein.safetensors for Flux.2"
    ):
        merge([flux, klein], save_to=tmp_path / "m.safetensors")
    assert merge([flux, klein], save_to=tmp_path / "m.safetensors", family="Flux").family == "Flux"
    with pytest.raises(FamilyError, match="different base models"):
        merge([some, klein], save_to=tmp_path / "n.safetensors")
    assert merge([some, klein], save_to=tmp_path / "n.safetensors", family="Flux.2").family == "Flux.2"
    said = _made(
        tmp_path, "said", _attention(name, range(2, 4), 9216, 3072), {"ss_base_model_version": "flux2"}
    )
    assert merge([said, klein], save_to=tmp_path / "o.safetensors").family == "Flux.2"


def test_flux_and_auraflow_lumina_and_z_image_are_told_apart(tmp_path):
    flux = _made(tmp_path, "flux", {"lora_unet_double_blocks_0_img_mlp_0": (12288, 3072)})
    aura = _made(tmp_path, "aura", {"transformer.single_transformer_blocks.0.ff.linear_1": (8192, 3072),
                                    "transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)})  # fmt: skip
    z = _made(tmp_path, "z", {"diffusion_model.layers.3.feed_forward.w1": (10240, 3840)})
    lumina = _made(tmp_path, "lumina", {"diffusion_model.layers.2.feed_forward.w1": (9216, 2304)})
    for path, family in ((flux, "Flux"), (aura, "AuraFlow"), (z, "Z-Image"), (lumina, "Lumina2")):
        with open_lora(path) as file:
            assert file.family == family
    for pair in ((flux, aura), (z, lumina)):
        with pytest.raises(FamilyError, match="different base models"):
            merge(list(pair), save_to=tmp_path / "m.safetensors")


def test_a_model_with_more_blocks_than_flux_is_not_flux(tmp_path):
    """HunyuanVideo in diffusers' names, which no host loads: its modules keep them."""
    names = (
        "transformer.transformer_blocks.{}.attn.to_q",
        "transformer.single_transformer_blocks.{}.attn.to_q",
    )
    double, single = (_attention(name, range(20), 3072, 3072) for name in names)
    video = _made(tmp_path, "video", {**double, **single})
    del double[names[0].format(19)]
    image = _made(tmp_path, "image", {**double, **single})
    with open_lora(video) as file:
        assert file.family == "other"
        assert names[0].format(19) in file.modules
    with open_lora(image) as file:
        assert file.family == "Flux"
    with pytest.raises(FamilyError, match="different base models"):
        merge([video, image], save_to=tmp_path / "m.safetensors")


def test_two_sizes_of_one_family_are_refused_by_name(tmp_path):
    small = _made(tmp_path, "small", {"lora_unet_blocks_0_self_attn_q": (1536, 1536)})
    large = _made(tmp_path, "large", {"lora_unet_blocks_1_self_attn_q": (5120, 5120)})
    with pytest.raises(
        FamilyError, match=r"small.safetensors is for Wan 1.3B and large.safetensors for Wan 14B"
    ):
        merge([small, large], save_to=tmp_path / "m.safetensors")


def test_a_file_that_fits_two_families_follows_the_other(cases, tmp_path):
    folder = cases / "chroma_onetrainer"
    paths = [folder / "a.safetensors", folder / "chroma_attention_only.safetensors"]
    assert merge(paths, save_to=tmp_path / "m.safetensors").family == "Chroma"
    with pytest.raises(FamilyError, match="fits Flux and Qwen-Image"):
        merge(paths[1:], save_to=tmp_path / "n.safetensors")
    for family in ("Flux", "Chroma", "Qwen-Image"):
        out = tmp_path / f"{family}.safetensors"
        assert merge(paths[1:], save_to=out, family=family).family == family


def test_metadata_breaks_ties_and_never_overrules_shapes(cases, tmp_path):
    folder = cases / "slider_noxattn_sd1"
    assert merge([folder / "slider.safetensors"], save_to=tmp_path / "m.safetensors").family == "SD1"
    wrong = _made(
        tmp_path,
        "wrong",
        {"lora_unet_blocks_1_self_attn_q": (5120, 5120)},
        {"ss_base_model_version": "sd_v1"},
    )
    with open_lora(wrong) as file:
        assert file.family == "Wan"


def test_what_is_written_decides_what_shapes_leave_open_also_beside_another_file(loras, tmp_path):
    paths = [loras / "diffusers_sd15_r4_pokemon.safetensors", loras / "peft_sdxl_te1_r8.safetensors"]
    with pytest.raises(
        FamilyError, match=r"for SDXL \(its configuration or header says so\): LoRAs of different"
    ):
        merge(paths, save_to=tmp_path / "m.safetensors")
    assert merge(paths, save_to=tmp_path / "n.safetensors", family="SD1").family == "SD1"


def test_wan_fun_and_motion_loras(cases, tmp_path):
    folder = cases / "wan_fun_double_underscore"
    paths = [folder / "wan_fun_reward.safetensors", folder / "style_aitoolkit.safetensors"]
    assert merge(paths, save_to=tmp_path / "m.safetensors").family == "Wan"
    with pytest.raises(UnsupportedKindError, match="is a motion LoRA of AnimateDiff"):
        open_lora(cases / "animatediff_motion_lora" / "a.safetensors")


def test_pixart_has_names_that_comfyui_loads(cases, tmp_path):
    out = tmp_path / "m.safetensors"
    assert merge([cases / "pixart_diffusers" / "a.safetensors"], save_to=out).family == "PixArt"
    with open_lora(out) as file:
        assert set(file.modules) == {
            *(f"transformer.transformer_blocks.0.attn1.to_{letter}" for letter in "qkv"),
            "lora_unet_blocks_0_attn_proj", "lora_unet_blocks_0_cross_attn_q_linear",
            "lora_unet_blocks_0_mlp_fc1", "lora_unet_blocks_0_mlp_fc2",
        }  # fmt: skip


SIZES = [(family, size) for family in FAMILIES.values() if family.layers for size in family.layers.sizes]


def _whole(size) -> list[ModuleFacts]:
    return [
        ModuleFacts("unet", path.replace(".", "_"), shape[0], shape[1])
        for path, shape in size.modules.items()
        if len(shape) > 1
    ]


@pytest.mark.parametrize(("family", "size"), SIZES, ids=[size.name for _, size in SIZES])
def test_a_lora_on_the_whole_model_is_told_with_its_size(family, size):
    facts = _whole(size)
    guess = tell_family(facts)
    assert guess.candidates == (family.name,)
    assert size in family.layers.fitting(facts)
    assert family.layers.likeliest(facts).modules.keys() >= size.modules.keys()


@pytest.mark.parametrize(("family", "size"), SIZES, ids=[size.name for _, size in SIZES])
def test_every_module_lies_in_a_block_of_the_record(family, size):
    found = {}
    for path in size.modules:
        placed = family.place("unet", path.replace(".", "_"), path, size)
        block = found[path] = block_of(placed.name, family.name)
        for piece, _ in family.split(placed.name, size) or ():
            assert block_of(piece, family.name) == block
    assert set(found.values()) <= set(family.blocks)
    # what has a number of a layer in it lies in no block called OTHER
    loose = [path for path, block in found.items() if block == "OTHER"]
    assert not [path for path in loose if re.search(r"^(layers|\w*blocks)\.\d", path)]


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES.values() if f.layers and f.blocks], ids=lambda family: family.name
)
def test_every_block_of_a_table_is_in_some_size_of_the_model(family):
    modules = {path for size in family.layers.sizes for path in size.modules}
    found = {
        block_of(family.place("unet", path.replace(".", "_"), path).name, family.name) for path in modules
    }
    texts = {block for block in family.blocks if not re.search(r"\d\d$", block)}
    assert set(family.blocks) - texts <= found


def test_a_block_of_no_table_is_told_by_its_number_in_every_spelling():
    for name in (
        "lora_unet_layers_7_x",
        "lycoris_layers_7_x",
        "diffusion_model.layers.7.x",
        "transformer.layers.7.x",
    ):
        assert block_of(name, "other") == "B07"


def test_a_deeper_model_than_those_known_is_placed_alike():
    placed = family_of("Flux").place("unet", "transformer_blocks_30_attn_to_k", "transformer.x")
    assert placed.name == "lora_transformer_transformer_blocks_30_attn_to_k"
    assert (placed.fused, placed.rows) == ("lora_unet_double_blocks_30_img_attn_qkv", (3072, 6144))
    placed = family_of("Wan").place("unet", "blocks_50_attn1_to_q", "diffusion_model.x")
    assert placed.name == "lora_unet_blocks_50_self_attn_q"


def test_patterns_stand_for_modules_and_rows_are_counted_in_columns():
    assert list(expand("a.{0-1}.{q,k}.b")) == ["a.0.q.b", "a.0.k.b", "a.1.q.b", "a.1.k.b"]
    size = Size("toy", {"a.{0-2}.qkv": (30, 10), "head": (7, 10, 3, 3)})
    assert size.modules == {
        "a.0.qkv": (30, 10),
        "a.1.qkv": (30, 10),
        "a.2.qkv": (30, 10),
        "head": (7, 10, 3, 3),
    }
    assert size.by_flat_name["a_1_qkv"] == "a.1.qkv"
    assert (size.shape("a.1.qkv"), size.shape("a.9.qkv"), size.shape("b")) == ((30, 10), (30, 10), ())
    assert Piece("a", 1, 2).rows((30, 10)) == (10, 20)
    assert Piece("a", Fraction(3, 2)).rows((30, 10)) == (15, 30)
    layers = Layers(
        sizes=(size,),
        aliases={**cut("a.{n}.qkv", "b.{n}.q", "b.{n}.k", "b.{n}.v"), "a.{n}.qk": Piece("a.{n}.qkv", 0, 2)},
    )
    assert layers.find("b_2_k") == ("a.2.qkv", (30, 10), (10, 20), False)
    assert layers.find("c_2_k") is None
    assert [rows for _, rows in layers.split("lora_unet_a_0_qkv")] == [(0, 10), (10, 20), (20, 30)]
    coarse = layers.place("a_0_qk")
    assert (coarse.fused, coarse.rows) == ("lora_unet_a_0_qkv", (0, 20))
    for columns in (10, 90):  # a convolution's columns are told with or without its kernel
        assert layers.fitting([ModuleFacts("unet", "head", 7, columns)]) == (size,)
    assert layers.fitting([ModuleFacts("unet", "head", 8, 10)]) == ()


def test_a_piece_of_several_pieces_is_cut_before_it_is_saved(maps, tmp_path):
    path = _made(tmp_path, "a", {"diffusion_model.single_blocks.3.linear1_qkv": (9216, 3072)})
    out = tmp_path / "m.safetensors"
    merge([path], save_to=out, save_precision="float")
    found, table = load(out, maps["flux1"]), maps["flux1"]
    assert (found.unknown, found.misfits) == ([], [])
    assert {table.names[name][1] for name in _names(out)} == {(0, 3072), (3072, 6144), (6144, 9216)}
    asked = load(path, table)
    for rows in ("", "[0:3072]", "[3072:6144]", "[6144:9216]", "[9216:21504]"):
        weight = f"single_blocks.3.linear1.weight{rows}"
        assert found.norm(weight) == pytest.approx(asked.norm(weight), rel=1e-5, abs=1e-12)


def _names(path: Path) -> list[str]:
    with open_lora(path) as file:
        return list(file.modules)
