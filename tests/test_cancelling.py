"""Modules whose sources cancel each other are left out and said; where nothing else is left, nothing is saved."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lib_merge import METHODS, merge, run_recipe, verify
from lib_merge.analysis import analyze
from lib_merge.cli import main
from lib_merge.engine.cancelling import CANCELLED
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import open_tree
from lib_merge.errors import NumericsError, OutputError
from lib_merge.files.reader import SafetensorsFile
from lib_merge.recipe import Recipe, Source
from tests.factories import NAMES, lora_tensors, write
from tests.test_kinds import KINDS, _kind_tensors
from tests.test_odd_files import cases  # noqa: F401

NOTHING = "every module of the result is zero: nothing would be left to save"


def _negated(tensors, part="lora_up"):
    return {key: -value if part in key else value.clone() for key, value in tensors.items()}


@pytest.fixture
def one(tmp_path):
    tensors = lora_tensors(1, names=NAMES)
    tensors[f"{NAMES[0]}.diff_b"] = torch.ones(24)
    return tensors, write(tmp_path / "a.safetensors", tensors)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "float"])
@pytest.mark.parametrize("rank", [None, "lossless", "2", "energy:0.9", "budget:160KB"])
def test_a_lora_minus_itself_leaves_nothing(rank, precision, one, tmp_path):
    with pytest.raises(OutputError, match=NOTHING):
        merge(
            [one[1], one[1]],
            ratios=[0.7, -0.7],
            save_to=tmp_path / "m.safetensors",
            rank=rank,
            save_precision=precision,
        )
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("part", ["lora_up", "lora_down", "alpha"])
def test_a_lora_plus_its_negative_leaves_nothing(part, one, tmp_path):
    tensors = {key: value for key, value in one[0].items() if "diff_b" not in key}
    a = write(tmp_path / "plus.safetensors", tensors)
    b = write(tmp_path / "b.safetensors", _negated(tensors, part))
    for method in ("weighted_sum", "slerp", "core_ties", "svd_mean" if "svd_mean" in METHODS else "average"):
        if method in METHODS:
            with pytest.raises(OutputError, match=NOTHING):
                merge([a, b], save_to=tmp_path / "m.safetensors", method=method)


def test_three_that_cancel_leave_nothing(one, tmp_path):
    with pytest.raises(OutputError, match=NOTHING):
        merge([one[1]] * 3, ratios=[0.5, 0.3, -0.8], save_to=tmp_path / "m.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_of_any_kind_cancels(kind, tmp_path):
    name, tensors, _ = _kind_tensors(kind)
    odd = {f"{name}.{role}": value for role, value in tensors.items()}
    a = write(tmp_path / "a.safetensors", lora_tensors(1, names=NAMES[1:2], conv=False) | odd)
    b = write(tmp_path / "b.safetensors", lora_tensors(2, names=NAMES[1:2], conv=False) | odd)
    report = merge([a, b], ratios=[1, -1], save_to=tmp_path / "m.safetensors")
    assert report.left_out == {name: CANCELLED}
    assert not any(key.startswith(f"{name}.") for key in load_file(str(tmp_path / "m.safetensors")))
    assert report.worst().relative < 1e-3


@pytest.mark.parametrize("rank", [None, "lossless", "2", "budget:100KB"])
def test_only_what_cancels_is_left_out_and_said(rank, one, tmp_path):
    other = lora_tensors(2, names=NAMES)
    other.update({key: value for key, value in one[0].items() if key.startswith((NAMES[2], NAMES[4]))})
    b = write(tmp_path / "b.safetensors", other)
    out = tmp_path / "m.safetensors"
    report = merge([one[1], b], ratios=[1, -1], save_to=out, rank=rank)
    assert {name for name, why in report.left_out.items() if why in (CANCELLED, "zero")} == {
        NAMES[2],
        NAMES[4],
    }
    assert not any(key.startswith((NAMES[2], NAMES[4])) for key in load_file(str(out)))
    assert report.worst().relative < (1 if rank in ("2", "budget:100KB") else 1e-3)
    again = verify(out, [tmp_path])
    assert again.relative_error == pytest.approx(report.relative_error, rel=1e-6)


def test_near_equal_sources_do_not_cancel(one, tmp_path):
    near = {key: value * (1 + 1e-5) if "lora_up" in key else value for key, value in one[0].items()}
    b = write(tmp_path / "b.safetensors", near)
    report = merge([one[1], b], ratios=[1, -1], save_to=tmp_path / "m.safetensors", save_precision="float")
    assert CANCELLED not in report.left_out.values()
    assert len(report.modules) == 6


def test_modules_that_a_loader_wants_together_are_zeros(tmp_path):
    stem = "lora_te2_text_model_encoder_layers_0_self_attn_"
    one, two = {}, {}
    for seed, table in enumerate((one, two)):
        g = torch.Generator().manual_seed(seed)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            g = torch.Generator().manual_seed(7) if part == "k_proj" else g
            table[f"{stem}{part}.lora_up.weight"] = torch.randn(1280, 2, generator=g)
            table[f"{stem}{part}.lora_down.weight"] = torch.randn(2, 1280, generator=g)
            g = torch.Generator().manual_seed(seed + 50)
    a, b = write(tmp_path / "a.safetensors", one), write(tmp_path / "b.safetensors", two)
    report = merge([a, b], ratios=[1, -1], save_to=tmp_path / "m.safetensors", family="SDXL")
    saved = load_file(str(tmp_path / "m.safetensors"))
    assert report.left_out == {f"{stem}k_proj": CANCELLED}
    assert not saved[f"{stem}k_proj.lora_up.weight"].any()
    assert report.relative_error < 1e-3
    with pytest.raises(OutputError, match=NOTHING):
        merge([a, a], ratios=[1, -1], save_to=tmp_path / "n.safetensors", family="SDXL")


def test_analysis_reports_a_negated_copy_and_goes_on(one, tmp_path):
    b = write(tmp_path / "b.safetensors", _negated(one[0]))
    recipe = Recipe((Source(path=one[1], name="a"), Source(path=b, name="b")))
    assert "negated copy" in repr(analyze(recipe))


def test_cases_of_cancelling_end_in_one_sentence(cases, tmp_path, capsys):  # noqa: F811
    folder = cases / "cancelling"
    for sources, ratios in ((("a", "a_negated"), "1 1"), (("a", "a"), "1 -1")):
        models = [str(folder / f"{name}.safetensors") for name in sources]
        out = str(tmp_path / "m.safetensors")
        assert main(["merge", "--models", *models, "--ratios", *ratios.split(), "--save_to", out]) == 2
        assert NOTHING in capsys.readouterr().err
        assert main(["analyze", *models, "--ratios", *ratios.split()]) == 0
        capsys.readouterr()


def test_analysis_names_the_source_whose_alpha_is_no_number(one, tmp_path):
    broken = {**one[0], f"{NAMES[0]}.alpha": torch.tensor(float("nan"))}
    b = write(tmp_path / "b.safetensors", broken)
    recipe = Recipe((Source(path=one[1], name="a"), Source(path=b, name="b")))
    with pytest.raises(NumericsError, match=rf"b\.safetensors is broken: {NAMES[0]}\.alpha holds NaN"):
        analyze(recipe)


def _kind_file(kind, tmp_path, name, seed=0, *, turned=False):
    module, tensors, _ = _kind_tensors(kind)
    role = next(role for role in tensors if role != "alpha")
    if turned:
        tensors = {**tensors, role: -tensors[role]}
    odd = {f"{module}.{role}": value for role, value in tensors.items()}
    anchor = lora_tensors(seed + 1, names=NAMES[1:2], conv=False)
    return module, write(tmp_path / f"{name}.safetensors", anchor | odd)


def _planned(recipe):
    with open_tree(recipe) as tree:
        return foresee(tree)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cancels_is_foreseen_whatever_its_kind(kind, tmp_path):
    module, a = _kind_file(kind, tmp_path, "a")
    _, b = _kind_file(kind, tmp_path, "b", 1, turned=True)
    recipe = Recipe((Source(path=a, name="a"), Source(path=b, name="b")))
    size = _planned(recipe)
    assert size.exact
    assert size.cancelled == (module,)
    report = run_recipe(recipe, tmp_path / "m.safetensors")
    assert report.left_out == {module: CANCELLED}
    assert report.bytes == size.bytes
    foreseen = analyze(recipe, methods=[]).recipe
    assert foreseen.bytes == report.bytes
    assert foreseen.rank == (report.ranks()["min"], report.ranks()["max"])


def test_a_sum_of_files_is_merged_without_a_look_at_their_factors_before(one, tmp_path, monkeypatch):
    """To compare the beginnings of all factors first took a tenth of a lossless merge."""

    def read(file, *_):
        raise AssertionError(file.path)

    monkeypatch.setattr(SafetensorsFile, "beginning", read)
    b = write(tmp_path / "b.safetensors", lora_tensors(2, names=NAMES))
    for rank in ("lossless", "2", "budget:160KB"):
        merge([one[1], b], save_to=tmp_path / f"{rank[:3]}.safetensors", rank=rank)


@pytest.mark.parametrize("count", [3, 8])
def test_whole_matrices_and_biases_cancel_down_to_the_rounding_of_float32(count, tmp_path):
    g = torch.Generator().manual_seed(3)
    tensors = lora_tensors(1, names=NAMES[1:2], conv=False)
    tensors[f"{NAMES[2]}.diff"] = torch.randn(18, 18, generator=g)
    tensors[f"{NAMES[2]}.diff_b"] = torch.randn(18, generator=g)
    tensors["lora_unet_mid_block_attentions_0_norm.w_norm"] = torch.randn(16, generator=g)
    a = write(tmp_path / "a.safetensors", tensors)
    b = write(tmp_path / "b.safetensors", lora_tensors(9, names=NAMES[1:2], conv=False))
    shares = torch.rand(count - 1, generator=g).tolist()
    sources = [Source(path=a, name="a", ratio=ratio) for ratio in (*shares, -sum(shares))]
    recipe = Recipe((*sources, Source(path=b, name="b")), precision="float")
    size = _planned(recipe)
    report = run_recipe(recipe, tmp_path / "m.safetensors")
    saved = load_file(str(tmp_path / "m.safetensors"))
    assert {key.partition(".")[0] for key in saved} == {NAMES[1]}
    assert set(report.left_out.values()) == {CANCELLED}
    assert report.bytes <= size.bytes
    assert not size.exact  # what is alike may be made anew


def test_the_noise_of_fp16_is_a_difference_and_said_to_be_next_to_nothing(one, tmp_path):
    half = {key: value.half().float() for key, value in one[0].items()}
    b = write(tmp_path / "b.safetensors", half)
    report = merge([one[1], b], ratios=[1, -1], save_to=tmp_path / "m.safetensors", save_precision="float")
    assert report.relative_error < 1e-3
    assert any("next to nothing is left" in text for text in report.warnings)


@pytest.mark.parametrize("method", ["weighted_sum", "core_ties", "ties", "magnitude_prune", "tsv"])
def test_a_group_that_cancels_adds_nothing(method, one, tmp_path):
    b = write(tmp_path / "b.safetensors", lora_tensors(2, rank=3, names=NAMES))
    pair = (Source(path=one[1], name="a", ratio=0.6), Source(path=one[1], name="a", ratio=-0.6))
    group = Source(name="level", recipe=Recipe(pair, method=method))
    out = tmp_path / "m.safetensors"
    report = run_recipe(Recipe((group, Source(path=b, name="b"))), out)
    assert report.ranks()["max"] == 3
    assert report.relative_error < 1e-3
    with pytest.raises(OutputError, match=NOTHING):
        run_recipe(Recipe((group,)), tmp_path / "n.safetensors")


def test_modules_that_only_seem_alike_are_saved(one, tmp_path):
    """The same beginning of every factor, and another end."""
    other = {key: -value if "lora_up" in key else value.clone() for key, value in one[0].items()}
    for key, value in other.items():
        if "lora_up" in key:
            value.view(-1)[-1] += 1.0
    b = write(tmp_path / "b.safetensors", other)
    recipe = Recipe((Source(path=one[1], name="a"), Source(path=b, name="b")), precision="float")
    size = _planned(recipe)
    assert not size.exact
    assert set(size.cancelled) == set()
    assert run_recipe(recipe, tmp_path / "m.safetensors").bytes == size.bytes
