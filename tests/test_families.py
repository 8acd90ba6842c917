"""Each record of a base family is complete and fits itself; a family is added by one file."""

from __future__ import annotations

import ast
import inspect
import json
import math
import random
import re
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from lib_merge import families, merge, open_lora
from lib_merge.blocks import PresetStore, find_preset, import_presets, preset_hint, preset_names
from lib_merge.blocks.weights import resolve_blocks
from lib_merge.engine.threads import Job
from lib_merge.errors import FamilyError, RecipeError
from lib_merge.families import FAMILIES, Family, block_of, blocks_present, expand_block_list, family_of
from lib_merge.families.layers import Layers, Piece, Size, flat
from lib_merge.families.record import (
    EVEN,
    NO_TEXT_ENCODER,
    REST,
    BlockList,
    Fact,
    Hint,
    HostModel,
    NameRules,
    ShippedPreset,
    numbered,
)
from lib_merge.metadata import build, read_side_car
from lib_merge.ui import catalog
from tests.factories import write

ROOT = Path(families.__file__).parent
RECORDS = list(FAMILIES.values())
# lists of every module that a LoRA can sit on, and modules that lie in no block
MODULES = {"sd15": "SD1", "sdxl": "SDXL", "sdxl_locon": "SDXL", "flux": "Flux"}


def test_the_families_stand_in_the_order_that_people_see():
    known = [
        "SD1", "SD2", "SDXL", "SD3", "Flux", "Flux.2", "Chroma", "Qwen-Image", "Krea2", "Anima", "Z-Image", "Lumina2",
        "Ernie", "Wan", "HunyuanVideo", "LTX", "AuraFlow", "PixArt", "AnimateDiff", "other",
    ]  # fmt: skip
    assert [name for name in FAMILIES if name in known] == known  # another may stand between them
    assert list(FAMILIES)[-1] == "other"


def test_every_file_with_a_record_is_found_and_holds_one_of_its_own():
    files = {path.stem for path in ROOT.glob("*.py") if "\nFAMILY = " in path.read_text(encoding="utf-8")}
    assert len(files) == len(FAMILIES)
    for name in FAMILIES:
        assert re.sub(r"\W", "_", name.lower()) in files


@pytest.mark.parametrize("family", RECORDS, ids=list(FAMILIES))
def test_blocks_lists_hints_and_presets_of_a_record_fit_each_other(family):
    assert len(set(family.blocks)) == len(family.blocks)
    if family.blocks:
        assert family.blocks[-1] == "OTHER"
    lengths = [len(listed) for listed in family.lists]
    assert lengths == sorted(set(lengths))
    for listed in family.lists:
        assert listed.name
        assert len(set(listed.blocks)) == len(listed)
        assert set(listed.blocks) < set(family.blocks)
        assert family.list_of(len(listed)) is listed
    for block in family.blocks:
        hint = family.hint(block)
        assert hint is not None, block
        assert hint.says
        assert hint.source, block
    assert set(family.hints) <= set(family.blocks)
    for side in family.sides:
        assert any(re.fullmatch(rf"{side}\d\d", block) for block in family.blocks)
    for name, preset in family.presets.items():
        assert preset.hint.endswith(".")
        assert all(block in family.blocks for block in preset.rules if re.fullmatch(r"[A-Z]+\d\d", block))
        assert name == name.upper()
        assert not preset.values or family.lists[0].blocks
        assert not preset.values or len(preset.values) == len(family.lists[0]), name
        weights = preset.weights(family.blocks or ("BASE", "B00"))
        numbers = weights if isinstance(weights, list) else list(weights.values())
        assert all(math.isfinite(number) for number in numbers)
        assert preset_hint(name) == preset.hint  # families that share a name share its sentence


@pytest.mark.parametrize("family", [f for f in RECORDS if f.counting], ids=lambda family: family.name)
def test_what_the_inspire_pack_counts_are_blocks_of_the_family(family):
    counting = family.counting
    for order in counting.orders.values():
        named = [block for blocks in order.values() for block in blocks if block]
        assert len(set(named)) == len(named)
        assert set(named) <= set(family.blocks)
    assert {*counting.base, *filter(None, counting.places)} <= set(family.lists[-1].blocks)
    assert counting.takes(1 + len(counting.places))
    assert not counting.takes(2 + len(counting.places))


@pytest.mark.parametrize("listed", MODULES)
def test_the_blocks_of_a_record_cover_every_module_of_a_real_model(listed, keys):
    family = family_of(MODULES[listed])
    names = [row[0] for row in json.loads((keys / "modules.json").read_text())[listed]]
    found = {name: block_of(name, family.name) for name in names}
    assert set(found.values()) <= set(family.blocks)
    # what lies in no block is outside them in the model, too
    loose = {name for name, block in found.items() if block == "OTHER"}
    assert all(re.search(r"time_embed|label_emb|_out_2|_conv_out|text_projection", name) for name in loose)
    # and every block that the usual list names has a module, but for those that lists of convolutions name
    usual = set(family.lists[0].blocks) - set(found.values())
    assert usual <= ({"CLIP", "T5", "IN", "OUT"} if listed == "flux" else {"BASE"})
    assert blocks_present(names, family.name) == tuple(b for b in family.blocks if b in set(found.values()))


@pytest.mark.parametrize("listed", MODULES)
def test_placing_a_placed_name_changes_nothing(listed, keys):
    family = family_of(MODULES[listed])
    for name, *_ in json.loads((keys / "modules.json").read_text())[listed]:
        if name.startswith("lora_unet_"):
            assert family.place("unet", name.removeprefix("lora_unet_")).name == name


@pytest.mark.parametrize("family", RECORDS, ids=list(FAMILIES))
def test_names_of_a_record_are_ones_that_loaders_write(family):
    for component in ("unet", "te", "te0", "te1", "te2", "te3"):
        assert re.match(r"lora_(unet|transformer|te[123]?)_", family.place(component, "x_0_y").name)
    assert set(family.encoders) <= {"te", "te0", "te1", "te2", "te3", "lm"}
    assert family.encoder_ratios
    assert family.base_version
    assert family.architecture.endswith("/lora")
    assert family.implementation.startswith("https://")
    assert family.gives_way_to == "" or family.gives_way_to in FAMILIES


def test_facts_are_told_apart_by_what_people_read():
    reasons: dict[str, Fact] = {}
    for family in RECORDS:
        assert family.facts, f"nothing tells {family.name}"
        for fact in family.facts:
            assert reasons.setdefault(fact.reason, fact) == fact
            assert fact.path is not None or fact.component != "unet", fact.reason


def test_orders_of_names_are_each_taken_once():
    for rules in ("config_names", "lines"):
        orders = [getattr(family, rules).order for family in RECORDS if getattr(family, rules).rules]
        assert len(set(orders)) == len(orders)
    assert len({family.order for family in RECORDS}) == len(RECORDS)


def test_families_that_share_blocks_share_lists():
    for one in RECORDS:
        for other in RECORDS:
            if one.blocks and one.blocks == other.blocks:
                assert one.lists == other.lists
                assert one.hints == other.hints


def test_an_unknown_name_is_what_every_other_model_is():
    unknown = family_of("Nobody-9")
    assert (unknown.name, unknown.blocks, unknown.base_version) == ("Nobody-9", (), "nobody-9")
    assert unknown.architecture == "nobody-9/lora"
    assert block_of("lora_unet_layers_7_attention_qkv", "Nobody-9") == "B07"
    assert family_of("Nobody-9") is unknown


def test_two_records_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two records of the family SD1"):
        families.register(Family(name="SD1"))


def test_nothing_outside_the_records_names_a_family():
    """What is known of a family is in its record: elsewhere its name is text for people, not a choice."""
    names = {*FAMILIES} - {"other"}
    wrong = []
    for path in sorted(ROOT.parent.rglob("*.py")):
        if path.parent in (ROOT, ROOT.parent / "loaders"):  # tables of families by host
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names:
                wrong.append(f"{path.relative_to(ROOT.parent)}:{node.lineno}: {node.value}")
    # the samples are made for one family, and say which; what is recognised is told of a family
    allowed = ("samples.py", "analysis/recognition.py", "analysis/names.py")
    assert [item for item in wrong if not item.startswith(allowed)] == []


def test_the_catalog_serves_every_family_with_blocks_and_its_encoders():
    known = catalog.families()
    assert list(known) == [family.name for family in RECORDS if family.blocks]
    assert known["SDXL"].te_ratios == ["TE1", "TE2"]
    assert known["SD1"].te_ratios == ["text encoder"]
    assert known["SD2"].list == list(family_of("SD2").lists[0].blocks)


# ---------------------------------------------------------------- a family of one's own

TOY_BLOCKS = ("TXT", *numbered("L", 0, 1, 2))


def _toy_block(name, encoder):
    match = re.search(r"toys_(\d)_", name)
    return "TXT" if encoder else f"L{int(match[1]):02d}" if match and int(match[1]) < 3 else "OTHER"


TOY_LAYERS = Layers(
    sizes=(Size("Toy", {"toys.{0-2}.qv": (14, 6)}),),
    aliases={
        "toys.{n}.q": Piece("toys.{n}.qv", 0, Fraction(8, 6)),
        "toys.{n}.v": Piece("toys.{n}.qv", Fraction(8, 6)),
    },
    front="lora_unet_",
)
TOY = Family(
    name="Toy",
    order=75,
    layers=TOY_LAYERS,
    facts=(Fact("toys with a lid", re.compile(r"^toys_\d_")), Fact("a lid of 14 rows", re.compile("_qv$"), rows=14)),
    config_names=NameRules.of(1, ("toy-base", "Toy")),
    lines=NameRules.of(1, ("toybox", "Toybox")),
    blocks=(*TOY_BLOCKS, "OTHER"),
    block=_toy_block,
    lists=(BlockList("all", TOY_BLOCKS), BlockList("like Flux in length", (*TOY_BLOCKS, *numbered("X", *range(57))))),
    parts={**REST, "TXT": Hint("words", "me"), "L": Hint("toys", "me")},
    presets={**EVEN, "LIDS": ShippedPreset("Only the lids.", values=(0.0, 1.0, 0.0, 0.5)), **NO_TEXT_ENCODER},
    base_version="toy_v1",
    card_version="Toy",
    hosts=HostModel("toymodel"),
)  # fmt: skip


@contextmanager
def _registered(family):
    families.register(family)
    try:
        yield family
    finally:
        families.unregister(family.name)


def _toy_tensors(seed, *names):
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, rows in names:
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=g)
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(2, 6, generator=g)
    return tensors


def test_a_family_is_one_record_and_everything_follows(tmp_path):
    """Telling, names, blocks, lists, presets, imports, merging, metadata, the tab: no other place is touched."""
    fused = write(tmp_path / "a.safetensors", _toy_tensors(1, ("toys.0.qv", 14), ("toys.2.qv", 14)))
    split = write(tmp_path / "b.safetensors", _toy_tensors(2, ("toys.0.q", 8), ("toys.0.v", 6)))
    with open_lora(fused) as file:
        assert file.family == "other"
    with _registered(TOY):
        assert list(FAMILIES)[8] == "Toy"
        with open_lora(fused) as file:
            assert (file.family, file.guess.reason) == ("Toy", "toys with a lid")
            assert blocks_present(file.modules, "Toy") == ("L00", "L02")
            assert file.parts({"lora_unet_toys_0_qv"}).keys() == {
                "lora_unet_toys_0_q", "lora_unet_toys_0_v", "lora_unet_toys_2_qv",
            }  # fmt: skip
        out = tmp_path / "m.safetensors"
        report = merge([fused, split], save_to=out, blocks=["LIDS", "L00=0.5"])
        assert report.family == "Toy"
        assert read_side_car(out)["sd version"] == "Toy"
        with open_lora(out) as file:
            assert file.metadata["ss_base_model_version"] == "toy_v1"
            assert file.family == "Toy"
        assert preset_names("Toy")[-2:] == ("LIDS", "NO-TEXT-ENCODER")
        assert find_preset("lids", "Toy", TOY.blocks) == [0.0, 1.0, 0.0, 0.5]
        assert expand_block_list([1, 2, 3, 4], "Toy")[0] == {
            "TXT": 1,
            "L00": 2,
            "L01": 3,
            "L02": 4,
            "OTHER": 1,
        }
        assert resolve_blocks("L00-L01=0.25", "Toy", (), None, "a")[0] == {"L00": 0.25, "L01": 0.25}
        assert "Toy" in catalog.families()
        assert catalog.families()["Toy"].hints["L01"] == "toys"
        assert "Toy" in catalog.presets(PresetStore(tmp_path / "presets.json"))
        assert families.family_in_name("me/Toy-Base-v2") == "Toy"
        assert families.line_in_name("toybox 3") == "Toybox"
        assert import_presets("A:1,1,1,0", "lbwpresets.txt").entries[0].family == "Toy"
        with pytest.raises(RecipeError, match=r"does not fit Toy, which takes 4 or 61"):
            expand_block_list([1.0] * 17, "Toy")
    assert "Toy" not in FAMILIES
    assert block_of("lora_unet_toys_0_q", "Toy") == "OTHER"
    with pytest.raises(FamilyError, match="no family 'Toy'"):
        merge([fused], save_to=tmp_path / "n.safetensors", family="Toy", job=Job())


def test_a_length_that_two_tables_have_tells_no_family():
    ones = ",".join(["1"] * 61)
    assert import_presets(f"A:{ones}", "lbwpresets.txt").entries[0].family == "Flux"
    assert families.family_with_list(61) == "Flux"
    with _registered(TOY):
        assert families.family_with_list(61) is None
        report = import_presets(f"A:{ones}", "lbwpresets.txt")
        assert report.entries == ()
        assert "which fits Flux and Toy; choose one" in report.lines[0].says
        assert import_presets(f"A:{ones}", "lbwpresets.txt", "Toy").entries[0].family == "Toy"
        assert import_presets(f"A:{ones}", "lbwpresets.txt", "Flux").entries[0].family == "Flux"


def test_the_host_tells_a_new_family(monkeypatch):
    import sys
    from types import SimpleNamespace

    from lib_merge.webui import checkpoint

    model = type("ToyModel", (), {})()
    monkeypatch.setitem(
        sys.modules, "modules.sd_models", SimpleNamespace(model_data=SimpleNamespace(sd_model=model))
    )
    assert checkpoint.loaded_family() == ""
    with _registered(TOY):
        assert checkpoint.loaded_family() == "Toy"
        with pytest.raises(RecipeError, match="is for SDXL and the loaded checkpoint is Toy"):
            checkpoint.check_family("SDXL")


def test_the_record_says_what_its_fields_are():
    text = inspect.getdoc(Family) or ""
    for field in Family.__dataclass_fields__:
        assert re.search(rf"\b{field}\b", text), field


def test_the_metadata_of_a_family_is_its_records():
    from lib_merge.recipe import Recipe, Source

    made = build(Recipe((Source(path=Path("/x/a.safetensors"), name="a"),)), "SD2", "t", [], [4])
    assert (made["ss_v2"], made["ss_base_model_version"]) == ("True", "sd_v2")


def test_tables_are_made_for_files_whose_first_module_may_be_theirs():
    """Eight families made theirs for every file: a pattern that begins with a choice stood for any beginning."""
    for family in FAMILIES.values():
        if family.layers is not None:
            assert "" not in family.layers._heads, family.name
            for size in family.layers.sizes:
                assert all(flat(path).startswith(family.layers._heads) for path in size.modules)


def test_the_numbers_of_a_spelling_are_those_that_its_pattern_finds():
    draw = random.Random(1)
    for family in FAMILIES.values():
        for form, spellings in (family.layers._spellings if family.layers is not None else {}).items():
            paths = [
                re.sub("#", lambda _: draw.choice(["0", "1", "2", "12", "007", "#"]), form) for _ in range(8)
            ]
            for spelling in spellings:
                pattern = r"(\d+)".join(map(re.escape, re.split(r"\{\d\}", spelling.name)))
                for path in [*paths, spelling.name.format(3, 17)]:
                    match = re.fullmatch(pattern, path)
                    assert spelling.numbers(path) == (match and list(match.groups())), (family.name, path)
