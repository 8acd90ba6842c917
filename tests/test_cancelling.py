"""Modules whose sources cancel each other are left out and said; where nothing else is left, nothing is saved."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lib_merge import METHODS, merge, verify
from lib_merge.analysis import analyze
from lib_merge.cli import main
from lib_merge.engine.cancelling import CANCELLED
from lib_merge.errors import NumericsError, OutputError
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
