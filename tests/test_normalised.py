"""Where a method divides the ratios' total out, that and what it inflates is said before saving, with what mends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lib_merge import METHODS, Recipe, Source, merge, run_recipe
from lib_merge.analysis.normalised import normalised
from lib_merge.cli import main
from lib_merge.engine.tree import open_tree
from lib_merge.recipe_edits import with_knob
from tests.factories import write_lora

KNOB = [name for name, method in METHODS.items() if any(knob.name == "normalize" for knob in method.knobs)]


@pytest.fixture
def pair(tmp_path):
    return [write_lora(tmp_path / f"{name}.safetensors", seed=seed) for seed, name in enumerate("ab")]


def _recipe(pair, *ratios, **more):
    sources = tuple(Source(path=path, name=path.name, ratio=ratio) for path, ratio in zip(pair, ratios))
    return Recipe(sources, **more)


def _said(recipe):
    with open_tree(recipe) as tree:
        return list(normalised(tree))


@pytest.mark.parametrize("method", KNOB)
def test_an_inflated_merge_is_foreseen_with_what_mends_it(method, pair, tmp_path):
    recipe = _recipe(pair, 0.2, 0.1, method=method)
    (advice,) = _said(recipe)
    assert "0.2 : 0.1" in advice.reason
    assert advice.apply == {"knobs": {"normalize": False}}
    report = run_recipe(recipe, tmp_path / "m.safetensors")
    (text,) = [text for text in report.warnings if "inflated" in text]
    told = float(text.split(" times")[0].rpartition(" ")[2])
    assert advice.numbers["strength"] == pytest.approx(told, rel=0.25)
    mended = with_knob(recipe, "normalize", False)
    assert _said(mended) == []
    after = run_recipe(mended, tmp_path / "n.safetensors")
    assert not any("inflated" in text for text in after.warnings)


@pytest.mark.parametrize("method", KNOB)
def test_how_ratios_act_is_said_where_nothing_is_inflated(method, pair):
    (advice,) = _said(_recipe(pair, 0.9, 0.8, method=method))
    assert "only the proportion of the ratios counts (0.9 : 0.8), their total 1.7 is ignored" in advice.reason
    assert not advice.apply


def test_a_group_is_named(pair):
    inner = _recipe(pair, 0.2, 0.1, method="ties")
    (advice,) = _said(Recipe((Source(name="styles", recipe=inner), _recipe(pair, 1.0).sources[0])))
    assert "TIES of styles" in advice.reason
    assert not advice.apply


def test_sums_are_passed_in_silence(pair):
    assert _said(_recipe(pair, 0.2, 0.1)) == []
    assert _said(replace(_recipe(pair, 0.2, 0.1), method="dare")) == []


def test_the_command_line_says_it_before_it_merges(pair, tmp_path, capsys):
    out = str(tmp_path / "m.safetensors")
    models = ["--models", *map(str, pair), "--ratios", "0.2", "0.1", "--method", "ties"]
    assert main(["merge", *models, "--save_to", out]) == 0
    said = capsys.readouterr()
    assert "times as strong as its sources together" in said.err
    assert "--knob normalize=off" in said.err
    assert "their total 0.3 is ignored" in said.out


def test_the_note_follows_what_merge_does(pair, tmp_path):
    """The same bytes for the same proportion: the sentence is true."""
    reports = [
        merge(
            pair,
            ratios=ratios,
            method="ties",
            save_to=tmp_path / f"{ratios[0]}.safetensors",
            save_precision="float",
        )
        for ratios in ((0.5, 0.25), (2.0, 1.0))
    ]
    assert reports[0].modules[0].size == pytest.approx(reports[1].modules[0].size, rel=1e-5)
