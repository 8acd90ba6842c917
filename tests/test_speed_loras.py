"""Speed LoRAs keep their ratio, whatever is set for the others, and stay outside methods that would spoil them."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch

from lib_merge import Recipe, Source, merge
from lib_merge.analysis import analyze
from lib_merge.analysis.aside import outside
from lib_merge.analysis.recognition import mark
from lib_merge.cli.commands import main
from lib_merge.errors import RecipeError
from lib_merge.methods import METHODS
from lib_merge.recipe_edits import with_aside, with_changes
from lib_merge.samples import sd15_modules, synthetic_lora
from tests.factories import dense_of, relative, write, write_lora

look = functools.partial(analyze, carry_out=False)
ROWS = [row for row in sd15_modules() if row[0].startswith("lora_unet_")][::6]
SPEED = "Hyper-SD15-8steps-lora"
TOLD = {"modelspec.description": "step distillation"}
SURE = mark("speed", "LCM", ["the file's name", "its modules"], sure=True)
PERHAPS = mark("speed", "LCM", ["the file's name"], sure=False)


def _lora(path, seed, factor=1.0, metadata=None):
    tensors = synthetic_lora(ROWS, 4, seed=seed, dtype=torch.float32)
    return write(path, {k: v * factor if "lora_up" in k else v for k, v in tensors.items()}, metadata)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    loud = _lora(folder / "loud.safetensors", 1, 6.0)
    quiet = _lora(folder / "quiet.safetensors", 2)
    return [loud, quiet, _lora(folder / f"{SPEED}.safetensors", 3, 4.0, TOLD)]


def _recipe(paths, ratios, **kw):
    return Recipe(
        tuple(Source(path=path, name=path.name, ratio=ratio) for path, ratio in zip(paths, ratios)), **kw
    )


def _advice(report):
    return {advice.id: advice for advice in report.advice}


# ------------------------------------------------------------------------ advice on ratios


def test_balance_leaves_its_ratio_and_says_why(paths):
    report = look(_recipe(paths, [0.5, 0.5, 0.8]))
    advice = _advice(report)["balance"]
    assert advice.apply["ratios"][2] == 0.8
    assert advice.apply["ratios"] == pytest.approx(
        [*_advice(look(_recipe(paths[:2], [0.5, 0.5])))["balance"].apply["ratios"], 0.8]
    )
    assert (
        f"{SPEED} keeps its ratio: speed LoRA (Hyper-SD): the file's name and metadata: modelspec.description"
        in advice.reason
    )
    for item in report.advice:
        assert all(weights == {} for weights in item.apply.get("blocks", [])[2:])


def test_balance_of_two_files_of_which_one_is_a_speed_lora_is_no_advice(paths):
    report = look(_recipe([paths[1], paths[2]], [0.5, 0.5]))
    assert report.sources[1].marks[0].holds
    assert "balance" not in _advice(report)
    renamed = _lora(paths[2].with_name("plain.safetensors"), 3, 4.0)
    assert "balance" in _advice(look(_recipe([paths[1], renamed], [0.5, 0.5])))


def test_a_lower_total_is_of_the_others(paths, tmp_path):
    loud = [_lora(tmp_path / f"{seed}.safetensors", seed) for seed in (11, 12, 13, 14)]
    report = look(_recipe([*loud, paths[2]], [1.0, 1.0, 1.0, 1.0, 0.9]))
    ratios = _advice(report)["strength"].apply["ratios"]
    assert ratios[4] == 0.9
    assert ratios[:4] == _advice(look(_recipe(loud, [1.0] * 4)))["strength"].apply["ratios"]
    assert max(ratios[:4]) < 0.6


def test_starting_points_and_tries_leave_its_ratio(paths):
    report = look(_recipe(paths, [0.5, 0.5, 0.8]))
    changed = [item.apply["ratios"] for item in report.starts]
    changed += [
        item.apply["ratios"]
        for symptom in report.symptoms
        for item in symptom.tries
        if "ratios" in item.apply
    ]
    assert len(changed) > 8
    assert all(ratios[2] in (None, 0.8) for ratios in changed)
    even = next(item for item in report.starts if item.id == "start-even")
    assert even.apply["ratios"] == [0.5, 0.5, None]
    assert {item.numbers["source"] for item in report.starts if "source" in item.numbers} == {0, 1}
    moved = look(_recipe([paths[2], *paths[:2]], [0.8, 0.5, 0.5]))
    assert {item.numbers["source"] for item in moved.starts if "source" in item.numbers} == {1, 2}


# ------------------------------------------------------------------------ outside the merge


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if (method.thins or method.dilutes) and method.takes(3)]
)
def test_methods_that_spoil_it_are_told_so(paths, name):
    recipe = _recipe(paths, [0.5, 0.5, 0.8], method=name)
    [advice] = outside(recipe, [(), (), (SURE,)])
    assert METHODS[name].title in advice.reason
    assert "C (Hyper-SD15-8steps-lora) is a speed LoRA (the file's name and its modules)" in advice.reason
    [perhaps] = outside(recipe, [(), (), (PERHAPS,)])
    assert "may be a speed LoRA (the file's name only)" in perhaps.reason
    after = with_changes(recipe, json.loads(json.dumps(dict(advice.apply))))
    assert (after.method, [source.ratio for source in after.sources]) == ("weighted_sum", [1.0, 0.8])
    assert after.sources[0].recipe.method == name
    assert not list(outside(after, [(), (), (SURE,)]))


@pytest.mark.parametrize("name", ["ties", "dare", "core_ties", "della", "breadcrumbs", "sce", "average"])
def test_electing_dropping_and_averaging_methods_are_among_them(name):
    assert METHODS[name].thins or METHODS[name].dilutes


@pytest.mark.parametrize("name", ["weighted_sum", "decorrelated_sum", "tsv", "ema"])
def test_sums_are_not(paths, name):
    assert not list(outside(_recipe(paths, [0.5, 0.5, 0.8], method=name), [(), (), (SURE,)]))


def test_the_merge_outside_is_the_others_merge_and_the_speed_lora(paths, tmp_path):
    recipe = _recipe(paths, [0.7, 0.4, 0.8], method="core_ties", precision="float")
    report = look(recipe)
    after = with_changes(recipe, dict(_advice(report)["outside"].apply))
    merge(list(after.sources), save_to=tmp_path / "all.safetensors", save_precision="float")
    merge(
        paths[:2],
        ratios=[0.7, 0.4],
        method="core_ties",
        save_to=tmp_path / "two.safetensors",
        save_precision="float",
    )
    two, speed = dense_of(tmp_path / "two.safetensors"), dense_of(paths[2])
    wanted = {name: two[name] + 0.8 * speed[name] for name in speed}
    assert relative(dense_of(tmp_path / "all.safetensors"), wanted) < 1e-5


def test_the_command_line_says_it_and_does_it(paths, tmp_path, capsys):
    out = tmp_path / "cli.safetensors"
    command = ["merge", "--models", *map(str, paths), "--ratios", "0.7", "0.4", "0.8", "--method", "core_ties",
               "--save_to", str(out), "--save_precision", "float", "--overwrite"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"note: C ({SPEED}) is a speed LoRA" in said
    assert "--aside C does that." in said
    assert main([*command, "--aside", "C"]) == 0
    assert "speed LoRA" not in capsys.readouterr().out
    recipe = with_aside(_recipe(paths, [0.7, 0.4, 0.8], method="core_ties"), ["C"])
    merge(list(recipe.sources), save_to=tmp_path / "api.safetensors", save_precision="float")
    assert relative(dense_of(out), dense_of(tmp_path / "api.safetensors")) < 1e-6
    assert main([*command, "--aside", "Q"]) == 2
    assert "there is no source Q" in capsys.readouterr().err


def test_one_that_is_left_alone_is_added_as_it_is(paths):
    recipe = _recipe(paths[1:], [0.5, 0.8], method="ties", knobs={"trim_fraction": [0.1, 0.2]})
    after = with_aside(recipe, ["B"])
    assert after.flat
    assert (after.method, after.knobs, [source.ratio for source in after.sources]) == (
        "weighted_sum",
        {},
        [0.5, 0.8],
    )
    with pytest.raises(RecipeError, match="nothing would be left"):
        with_aside(recipe, ["A", "B"])


def test_a_setting_for_each_source_goes_with_the_sources(paths):
    recipe = _recipe(
        paths, [0.5, 0.6, 0.8], method="ties", knobs={"trim_fraction": [0.1, 0.2, 0.3], "elect": "count"}
    )
    inner = with_aside(recipe, ["B"]).sources[0].recipe
    assert inner.knobs == {"trim_fraction": [0.1, 0.3], "elect": "count"}
    inner.check(1)


def test_out_of_a_group_it_keeps_its_strength(paths):
    a, b, c = _recipe(paths, [0.5, 0.6, 0.8]).sources
    group = Source(recipe=Recipe((a, b, replace(c, te_ratio=0.4)), "ties"), ratio=0.5)
    recipe = Recipe((group,), "weighted_sum")
    [advice] = outside(recipe, [(), (), (SURE,)])
    assert advice.apply == {"aside": ["C"]}
    after = with_changes(recipe, dict(advice.apply))
    assert [source.ratio for source in after.sources] == [0.5, 0.4]
    assert after.sources[1].te_ratio == pytest.approx(0.2)
    assert len(after.sources[0].recipe.sources) == 2
    # where the groups are elected over, there is no such way, and it is said all the same
    [told] = outside(Recipe((group, a), "ties"), [(), (), (SURE,), ()])
    assert told.apply == {}
    with pytest.raises(RecipeError, match="only where the merge adds"):
        with_aside(Recipe((group, a), "ties"), ["C"])


# ------------------------------------------------------------------------ epochs


def test_the_mean_of_epochs_is_offered_for_all_and_for_some(tmp_path):
    session = {"ss_session_id": "7"}
    runs = [
        _lora(
            tmp_path / f"run-{number:06d}.safetensors",
            5,
            1 + number / 10,
            {**session, "ss_epoch": str(number)},
        )
        for number in (1, 2)
    ]
    runs = [write_changed(path, number) for number, path in enumerate(runs)]
    everyone = _recipe(runs, [1.0, 1.0])
    advice = _advice(look(everyone))["epochs-mean"]
    after = with_changes(everyone, dict(advice.apply))
    assert (after.method, [source.ratio for source in after.sources]) == ("average", [1.0, 1.0])
    assert "epochs-mean" not in _advice(look(after))
    other = _lora(tmp_path / "other.safetensors", 9)
    some = _recipe([runs[0], other, runs[1]], [0.8, 0.6, 0.8])
    after = with_changes(some, dict(_advice(look(some))["epochs-mean"].apply))
    assert [source.ratio for source in after.sources] == [0.4, 0.6, 0.4]
    assert after.method == "weighted_sum"


def write_changed(path, seed):
    """Write a file anew with a little of its own in it: a later epoch."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    noise = torch.Generator().manual_seed(seed)
    tensors = {
        k: v + 0.2 * v.std() * torch.randn(v.shape, generator=noise) if "lora_up" in k else v
        for k, v in load_file(str(path)).items()
    }
    return write(path, tensors, metadata)


def test_epochs_are_known_by_output_name_and_epoch(tmp_path):
    meta = {"ss_output_name": "ink"}
    for number in (1, 2):
        _lora(tmp_path / f"x{'yz'[number - 1]}.safetensors", 5, 1.0, {**meta, "ss_epoch": str(number)})
        write_changed(tmp_path / f"x{'yz'[number - 1]}.safetensors", number)
    report = look([tmp_path / "xy.safetensors", tmp_path / "xz.safetensors"])
    assert report.pairs[0].relation == "epochs"
    unlike = write_lora(tmp_path / "q.safetensors", seed=1, metadata={**meta, "ss_epoch": "3"})
    assert look([tmp_path / "xy.safetensors", unlike]).pairs[0].relation != "epochs"
