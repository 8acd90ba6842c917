"""Words of PEFT, mergekit and guides are understood wherever settings are typed, and said back in ours."""

from __future__ import annotations

import json

import pytest

from lib_merge import METHODS, Job, Recipe, Source, merge, run_recipe
from lib_merge.cli import main
from lib_merge.engine.tree import open_tree
from lib_merge.errors import RecipeError
from lib_merge.methods.words import own_knob, understood
from lib_merge.recipe import loads
from lib_merge.recipe_edits import with_knob
from tests.factories import write_lora


@pytest.fixture
def pair(tmp_path):
    return [write_lora(tmp_path / f"{name}.safetensors", seed=seed) for seed, name in enumerate("ab")]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if own_knob(method, "density")])
def test_density_is_what_is_kept(name):
    mine = understood(METHODS[name], {"density": "0.8"})
    (knob,) = mine.knobs
    gone = 0.01 if any(knob.name == "gamma" for knob in METHODS[name].knobs) else 0.0
    assert mine.knobs[knob] == pytest.approx(0.2 - gone)
    assert mine.said == [f"density 0.8 is {knob} {0.2 - gone:g}"]
    each = understood(METHODS[name], {"density": [0.8, 1]})
    assert each.knobs[knob] == pytest.approx((0.2 - gone, 0.0))
    for wrong in ("0", "2", "much", "nan"):
        with pytest.raises(RecipeError, match="density is"):
            understood(METHODS[name], {"density": wrong})
    with pytest.raises(RecipeError, match="give one of them"):
        understood(METHODS[name], {"density": 0.8, knob: 0.2})


@pytest.mark.parametrize(
    ("given", "elected"),
    [
        ({"elect": "majority"}, "count"),
        ({"elect": "Frequency"}, "count"),
        ({"elect": "total"}, "mass"),
        ({"majority_sign_method": "frequency"}, "count"),
        ({"consensus_method": "sum"}, "mass"),
    ],
)
def test_an_election_is_called_by_any_of_its_names(given, elected):
    mine = understood(METHODS["ties"], given)
    assert mine.knobs == {"elect": elected}
    assert mine.said
    with pytest.raises(RecipeError):
        Recipe((Source(name="a"),), knobs=given).check()


def test_our_own_words_are_said_by_nobody():
    mine = understood(METHODS["ties"], {"elect": "mass", "trim_fraction": 0.3})
    assert (mine.said, mine.threshold) == ([], None)
    with pytest.raises(RecipeError, match="its knobs"):
        Recipe((Source(name="a"),), knobs={"density": 0.5}).check()


def test_the_command_line_understands_and_says_it(pair, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    words = ["--knob", "density=0.8", "--knob", "elect=majority", "--knob", "threshold=0.02"]
    assert (
        main(["merge", "--models", *map(str, pair), "--method", "ties", *words, "--save_to", str(out)]) == 0
    )
    said = capsys.readouterr().out
    for note in (
        "density 0.8 is trim_fraction 0.2",
        "elect majority is elect count",
        "threshold 0.02 is prune_below",
    ):
        assert note in said
    report = merge(
        pair,
        method="ties",
        knobs={"trim_fraction": 0.2, "elect": "count"},
        prune_below=0.02,
        save_to=tmp_path / "n.safetensors",
    )
    again = main(["run", str(out), "--save_to", str(tmp_path / "o.safetensors"), "--json"])
    assert again == 0
    assert json.loads(capsys.readouterr().out)["tensor_hash"] == report.tensor_hash


def test_one_source_has_a_density_of_its_own(pair, tmp_path):
    out = tmp_path / "m.safetensors"
    words = ["--knob", "density@2=0.5"]
    assert (
        main(["merge", "--models", *map(str, pair), "--method", "ties", *words, "--save_to", str(out)]) == 0
    )
    other = merge(
        pair, method="ties", knobs={"trim_fraction": [0.2, 0.5]}, save_to=tmp_path / "n.safetensors"
    )
    assert (
        merge(
            pair, method="ties", knobs={"density": [0.8, 0.5]}, save_to=tmp_path / "o.safetensors"
        ).tensor_hash
        == other.tensor_hash
    )


def test_a_recipe_and_an_axis_understand_them(pair):
    sources = [{"name": path.name, "ratio": 1} for path in pair]
    text = {"format": "lora-merge-recipe", "version": 1, "method": "ties", "sources": sources}
    recipe = loads(json.dumps({**text, "knobs": {"density": 0.7, "threshold": 0.01}}))
    assert recipe.knobs == {"trim_fraction": pytest.approx(0.3)}
    assert recipe.prune_below == 0.01
    again = loads(recipe.dumps())
    assert (again.prune_below, again.knobs["trim_fraction"], again.said) == (0.01, pytest.approx(0.3), ())
    changed = with_knob(recipe, "density", "0.5")
    assert changed.knobs["trim_fraction"] == pytest.approx(0.5)
    assert with_knob(recipe, "threshold", "0.2").prune_below == 0.2


def test_a_group_says_what_it_understood(pair, tmp_path):
    inner = Recipe(
        tuple(Source(path=path, name=path.name) for path in pair), method="dare", knobs={"density": 0.6}
    )
    recipe = Recipe((Source(name="styles", recipe=inner),))
    with open_tree(recipe) as tree:
        assert "density 0.6 is drop_rate 0.4" in tree.notes
    report = run_recipe(recipe, tmp_path / "m.safetensors", job=Job(side_car=False))
    assert "density 0.6 is drop_rate 0.4" in report.warnings
