"""Knobs as they are typed: for all sources, for one of them, out of range; recipes keep them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

from lib_merge import METHODS, Job, merge, verify
from lib_merge.cli.commands import main
from lib_merge.errors import RecipeError
from lib_merge.recipe import loads
from tests.factories import NAMES, dense_of, relative, write_lora
from tests.reference import merge as basic
from tests.reference import methods as reference

FLOAT = {"save_precision": "float", "job": Job(overwrite=True, side_car=False)}
SMALL = (*NAMES[:1], *NAMES[1:4])
WEIGHTS = [0.8, 0.5, -0.6]
PER_SOURCE = sorted(
    (name, knob.name) for name, m in METHODS.items() for knob in m.knobs if knob.scope == "source"
)
TRIMMING = {
    "ties": {"elect": "mass", "normalize": True},
    "magnitude_prune": {},
    "breadcrumbs": {"gamma": 0.05},
    "knots_ties": {"elect": "mass", "normalize": True},
    "core_ties": {"elect": "count", "normalize": True},
}


@pytest.fixture
def paths(tmp_path):
    return [write_lora(tmp_path / f"{n}.safetensors", seed=20 + n, rank=2 + n, names=SMALL) for n in range(3)]


def _rank(name):
    return "768" if METHODS[name].space == "dense" else None


def test_every_trim_and_drop_is_a_value_per_source():
    assert {name for name, knob in PER_SOURCE if knob == "trim_fraction"} == set(TRIMMING)
    assert {name for name, knob in PER_SOURCE if knob == "drop_rate"} == {
        "dare", "dare_ties", "della", "knots_dare", "core_dare",
    }  # fmt: skip


@pytest.mark.parametrize("name", TRIMMING)
def test_a_trim_per_source_is_the_papers(name, paths, tmp_path):
    out = tmp_path / "m.safetensors"
    fractions = [0.1, 0.6, 0.0]
    knobs = {**TRIMMING[name], "trim_fraction": fractions}
    merge(paths, ratios=WEIGHTS, save_to=out, method=name, knobs=knobs, rank=_rank(name), **FLOAT)
    dense = [dense_of(path) for path in paths]
    made = getattr(reference, name, None) or getattr(basic, name)
    wanted = {n: made([d[n] for d in dense], WEIGHTS, **knobs) for n in dense[0]}
    assert relative(dense_of(out), wanted) <= 1e-5
    verify(out)


def test_a_global_trim_takes_each_sources_own_share(paths, tmp_path):
    out = tmp_path / "m.safetensors"
    knobs = {"trim_scope": "global", "trim_fraction": [0.5, 0.0, 0.2], "normalize": False}
    merge(paths, ratios=WEIGHTS, save_to=out, method="ties", knobs=knobs, rank="768", **FLOAT)
    dense = [dense_of(path) for path in paths]
    order = sorted(dense[0])
    flat = [np.concatenate([w * d[n].ravel() for n in order])[None] for d, w in zip(dense, WEIGHTS)]
    merged = basic.ties(flat, [1.0, 1.0, 1.0], knobs["trim_fraction"], "mass", False)[0]
    ends = np.cumsum([dense[0][n].size for n in order])
    wanted = {n: part.reshape(dense[0][n].shape) for n, part in zip(order, np.split(merged, ends))}
    assert relative(dense_of(out), wanted) <= 1e-4


@pytest.mark.parametrize("name", ["dare", "knots_dare", "core_dare", "dare_ties", "della"])
def test_a_source_whose_drop_rate_is_zero_stays_whole(name, paths, tmp_path):
    """All of the second is dropped but a twentieth; subtracting what the first alone makes leaves just that."""
    outs = [tmp_path / f"m{n}.safetensors" for n in range(2)]
    knobs = {"drop_rate": [0.0, 0.95], "rescale": False} | ({"epsilon": 0.0} if name == "della" else {})
    merge(paths[:2], ratios=[1.0, 1e-3], save_to=outs[0], method=name, knobs=knobs, rank=_rank(name), **FLOAT)
    assert relative(dense_of(outs[0]), dense_of(paths[0])) <= 2e-3
    knobs["drop_rate"] = [0.95, 0.0]
    merge(paths[:2], ratios=[1.0, 1e-3], save_to=outs[1], method=name, knobs=knobs, rank=_rank(name), **FLOAT)
    assert relative(dense_of(outs[1]), dense_of(paths[0])) >= 0.5


@pytest.mark.parametrize("order", [1, -1])
def test_the_command_line_takes_one_value_for_all_and_another_for_one(order, paths, tmp_path):
    out = tmp_path / "m.safetensors"
    typed = ["--knob", "trim_fraction=0.3", "--knob", "trim_fraction@2=0.7"]
    typed = typed if order == 1 else typed[2:] + typed[:2]
    models = [str(path) for path in paths]
    assert (
        main(["merge", "--models", *models, "--save_to", str(out), "--method", "magnitude_prune", *typed])
        == 0
    )
    with safe_open(str(out), "pt") as file:
        recipe = loads(file.metadata()["merge_recipe"])
    assert recipe.knobs["trim_fraction"] == (0.3, 0.7, 0.3)
    assert main(["verify", str(out)]) == 0


def test_a_recipe_holds_one_number_where_all_sources_have_the_same(paths, tmp_path):
    out = tmp_path / "m.safetensors"
    merge(paths, save_to=out, method="dare", knobs={"drop_rate": [0.2, 0.2, 0.2]}, **FLOAT)
    with safe_open(str(out), "pt") as file:
        assert json.loads(file.metadata()["merge_recipe"])["knobs"]["drop_rate"] == 0.2


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("trim_fraction@4=0.1", "there is no source 4; they count from 1 to 3"),
        ("trim_fraction@0=0.1", "there is no source 0"),
        ("trim_fraction@=0.1", "there is no source"),
        ("trim_fraction@x=0.1", "there is no source x"),
        ("trim_fraction@2=1", "from 0 to 0.95"),
        ("trim_fraction@2=nan", "is 'nan'"),
        ("trim_fraction@2=", "is ''"),
        ("elect@2=mass", "has one value for the whole merge"),
        ("elect=both", "mass or count"),
        ("trim_scope=all", "module or global"),
        ("nothing@1=2", "has no knob 'nothing'"),
        ("trim_fraction", "is not NAME=VALUE"),
    ],
)
def test_a_bad_knob_is_one_sentence_and_nothing_is_written(typed, says, paths, tmp_path, capsys):
    models = [str(path) for path in paths]
    out = tmp_path / "m.safetensors"
    assert (
        main(["merge", "--models", *models, "--save_to", str(out), "--method", "ties", "--knob", typed]) == 2
    )
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("name", METHODS)
def test_every_number_out_of_its_range_is_refused_with_the_range(name, paths, tmp_path):
    method = METHODS[name]
    roles = [None] * 3
    count = method.sources[1] or 3
    for knob in method.knobs:
        if knob.kind not in ("number", "whole"):
            continue
        for value in (knob.minimum - 0.01, knob.maximum + 1, "inf", "-inf", "", None, [], [0.1] * 7):
            sources = paths[: min(count, 3)]
            with pytest.raises(RecipeError, match=knob.name):
                _recipe(sources, roles, name, {knob.name: value}).check()
        for value in (knob.minimum, knob.maximum):  # closed at both ends
            assert method.settings({knob.name: value}, 2)[knob.name] in (value, (value, value))


def _recipe(paths, roles, method, knobs):
    from lib_merge import Recipe, Source

    roles = (list(METHODS[method].roles) + roles)[: len(paths)]
    return Recipe(tuple(Source(path=p, name=p.name, role=r) for p, r in zip(paths, roles)), method, knobs)


def test_roles_that_a_method_does_not_have_are_not_taken_in_silence(paths, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    models = [str(path) for path in paths[:2]]
    assert main(["merge", "--models", *models, "--save_to", str(out), "--roles", "style", "subject"]) == 2
    assert "weighted_sum has no roles" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["1,2,3,4", "x", "1,", "nan"])
def test_a_text_encoder_ratio_that_is_none_is_refused(typed, paths, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    assert main(["merge", "--models", str(paths[0]), "--save_to", str(out), "--te_ratios", typed]) == 2
    assert "text-encoder ratio" in capsys.readouterr().err
