"""Who loads what: the tables of the hosts against what Forge Neo's own mapping gave for twelve families."""

from __future__ import annotations

import functools
import gzip
import json

import pytest

from lib_merge.families import family_of
from lib_merge.loaders import HOSTS, How, verdict, why
from lib_merge.loaders.check import Contents, Written, where
from tests.readme import LOADERS, loaders_markdown
from tests.test_loading import NAMED, WRONG_THERE


@pytest.fixture
def maps(keys):
    return _read(keys / "neo_key_maps.json.gz")


@functools.lru_cache(maxsize=1)
def _read(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def _model(name):
    family, size = NAMED[name]
    return family_of(family), next(one for one in family_of(family).layers.sizes if one.name == size)


@pytest.mark.parametrize("name", NAMED)
def test_neo_loads_every_name_of_its_map_to_its_weight(maps, name):
    family, size = _model(name)
    loads = HOSTS["neo"].families[family.name]
    wrong = []
    for weight, names in maps[name]["names"].items():
        if (
            not weight.endswith(".weight")
            or weight[len("diffusion_model.") : -len(".weight")] not in size.modules
        ):
            continue
        for entry in names:
            spelt, rows = entry if isinstance(entry, list) else (entry, None)
            if name in WRONG_THERE and WRONG_THERE[name].search(spelt):
                continue  # rows that do not fit the model: it does not load
            place = where(loads, family, spelt, size)
            wanted = weight[len("diffusion_model.") : -len(".weight")].replace(".", "_")
            piece = None if rows is None else (rows[1], rows[1] + rows[2])
            if place is None or (place.weight, place.rows) != (wanted, piece):
                wrong.append((spelt, place))
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("name", NAMED)
def test_neo_loads_nothing_that_its_map_has_not(maps, name):
    """Every name of the map with another front, a dot for an underscore, or a block too many."""
    family, size = _model(name)
    loads = HOSTS["neo"].families[family.name]
    there = {
        entry[0] if isinstance(entry, list) else entry
        for names in maps[name]["names"].values()
        for entry in names
    }
    fronts = {"lora_unet_", "diffusion_model.", "transformer.", "lycoris_", "lora_transformer_", "unet.", ""}
    wrong = set()
    for spelt in sorted(there)[::7]:
        front = max((front for front in fronts if spelt.startswith(front)), key=len)
        rest = spelt[len(front) :]
        for other in fronts:
            for form in (rest, rest.replace(".", "_")):
                candidate = f"{other}{form}"
                if candidate not in there and where(loads, family, candidate, size) is not None:
                    wrong.add(candidate)
    assert not wrong, sorted(wrong)[:8]


def test_every_host_says_where_its_table_comes_from():
    for host in HOSTS.values():
        assert host.source
        assert host.commit
        for family, loads in host.families.items():
            assert loads.own
            assert isinstance(loads.how, How)
            assert family_of(family).layers is not None, family


def _contents(family, *stems, roles=("lora_up", "lora_down", "alpha")):
    record = family_of(family)
    size = record.layers.sizes[0]
    modules = []
    for stem in stems:
        place = where(HOSTS["comfyui"].families[family], record, stem, size)
        modules.append(Written(stem, stem, frozenset(roles), place))
    return Contents(record, size, tuple(modules))


def test_a_name_that_a_host_does_not_know_is_lost_and_said():
    contents = _contents(
        "SD3", "lora_transformer_transformer_blocks_0_attn_to_q", "lora_unet_joint_blocks_0_x_block_attn_proj"
    )
    forge = verdict(HOSTS["forge"], contents, {contents.modules[0].name: 3.0, contents.modules[1].name: 4.0})
    assert (forge.loaded, forge.total) == (1, 2)
    assert forge.share == pytest.approx(9 / 25)
    assert list(forge.lost) == ["lora_transformer_transformer_blocks_0_attn_to_q"]
    assert "Forge does not load 1 of 2 modules, 36 % of ΔW" in why([forge])[0].replace("36%", "36 %")
    assert verdict(HOSTS["comfyui"], contents).whole


def test_a1111_wants_the_whole_attention_of_clip_g():
    names = [f"lora_te2_text_model_encoder_layers_3_self_attn_{part}_proj" for part in ("q", "k", "v", "out")]
    assert verdict(HOSTS["a1111"], _contents("SDXL", *names)).whole
    part = verdict(HOSTS["a1111"], _contents("SDXL", *names[:2]))
    assert part.loaded == 0
    assert "wants all of" in next(iter(part.lost.values()))
    assert verdict(HOSTS["forge"], _contents("SDXL", *names[:2])).whole


def test_neo_refuses_a_file_that_is_mostly_unknown_to_it():
    known = "lora_unet_layers_0_attention_qkv"
    strangers = [f"lora_unet_layers_{number}_attention_to_q" for number in range(2)]
    lost = verdict(HOSTS["neo"], _contents("Z-Image", known, *strangers))
    assert lost.loaded == 0
    assert "more than 50" in lost.lost[known]


@pytest.mark.parametrize("roles", [("lora_up", "lora_down", "lora_A"), ("diff_b",), ("alpha",), ("w_norm",)])
def test_a1111_loses_the_whole_file_over_a_module_of_which_it_can_make_nothing(roles):
    contents = _contents("SD1", "lora_unet_mid_block_attentions_0_proj_in")
    odd = contents.modules[0]._replace(
        name="lora_unet_mid_block_attentions_0_proj_out", roles=frozenset(roles)
    )
    both = contents._replace(modules=(*contents.modules, odd))
    assert verdict(HOSTS["a1111"], contents).whole
    assert verdict(HOSTS["a1111"], both).loaded == 0
    assert verdict(HOSTS["forge"], both).loaded == 2


def test_a_kind_that_a_host_does_not_read_is_lost():
    contents = _contents("Flux", "lora_unet_double_blocks_0_img_attn_proj", roles=("oft_blocks", "alpha"))
    assert (
        "reads no oft_blocks"
        in verdict(HOSTS["neo"], contents).lost["lora_unet_double_blocks_0_img_attn_proj"]
    )


def test_the_table_of_the_documentation_is_the_tables():
    text = LOADERS.read_text(encoding="utf-8")
    table = text.split("<!-- loaders:begin -->")[1].split("<!-- loaders:end -->")[0]
    assert table.strip() == loaders_markdown().strip(), "run: python -m tests.readme"
