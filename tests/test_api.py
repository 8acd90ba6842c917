"""Python's public verbs: what is exported, and device, overwrite and progress by keyword."""

from __future__ import annotations

import inspect as signatures
import typing

import pytest
import torch

import lib_merge
from lib_merge import (
    MergeError,
    analyze,
    convert,
    inspect,
    load_recipe,
    merge,
    presets,
    resize,
    run_recipe,
    verify,
)
from lib_merge.analysis import to_html
from lib_merge.families import family_of
from tests.factories import dense_of, relative, write_lora

VERBS = (analyze, convert, merge, resize, run_recipe, verify)


@pytest.fixture
def pair(tmp_path):
    return [
        write_lora(tmp_path / f"{name}.safetensors", seed=seed) for seed, name in enumerate(("ink", "mira"))
    ]


def test_everything_promised_is_there_documented_and_typed():
    for name in lib_merge.__all__:
        assert hasattr(lib_merge, name), name
    for verb in (*VERBS, inspect, presets, load_recipe):
        assert verb.__name__ in lib_merge.__all__
        said, hints = verb.__doc__, typing.get_type_hints(verb)
        for parameter in signatures.signature(verb).parameters:
            assert parameter in hints, (verb, parameter)
            assert f"        {parameter}: " in said or "see `merge`" in said, (verb, parameter)
        assert "return" in hints
    for verb in VERBS:
        assert {"device", "progress", "job"} <= set(signatures.signature(verb).parameters)


def test_device_overwrite_and_progress_are_given_by_name(pair, tmp_path):
    out, told = tmp_path / "m.safetensors", []
    note = lambda stage, done, total: told.append((stage, done, total))  # noqa: E731
    merge(pair, save_to=out, device=torch.device("cpu"), progress=note)
    assert {"merge", "verify"} <= {stage for stage, _, _ in told}
    assert all(done <= total for _, done, total in told)
    with pytest.raises(MergeError, match="exists already"):
        merge(pair, save_to=out)
    merge(pair, save_to=out, overwrite=True, ratios=[1, 2])
    with pytest.raises(MergeError, match="'quantum' is not available"):
        merge(pair, save_to=out, overwrite=True, device="quantum")
    again = load_recipe(out)
    told.clear()
    run_recipe(again, out, overwrite=True, progress=note)
    verify(out, progress=note)
    assert told
    for verb, more in ((resize, {"rank": 2}), (convert, {"target": "diffusers"})):
        small = tmp_path / f"{verb.__name__}.safetensors"
        told.clear()
        verb(out, save_to=small, progress=note, **more)
        assert told
        with pytest.raises(MergeError, match="exists already"):
            verb(out, save_to=small, **more)
        verb(out, save_to=small, overwrite=True, device="cpu", **more)


def test_what_is_given_replaces_what_the_job_says(pair, tmp_path):
    out = tmp_path / "m.safetensors"
    job = lib_merge.Job(overwrite=True, side_car=False)
    merge(pair, save_to=out, job=job)
    merge(pair, save_to=out, job=job)
    assert not out.with_suffix(".json").exists()
    with pytest.raises(MergeError, match="exists already"):
        merge(pair, save_to=out, job=job, overwrite=False)


def test_an_analysis_takes_files_or_a_recipe(pair, tmp_path):
    told = []
    report = analyze(pair, ratios=[0.6, 0.4], compare=["average"], progress=lambda *now: told.append(now))
    assert told
    assert list(report.recipe.ratios) == [0.6, 0.4]
    assert [row.name for row in report.methods] == ["weighted_sum", "average"]
    assert "<html" in to_html(report)
    merge(pair, save_to=tmp_path / "m.safetensors", method="slerp")
    recipe = load_recipe(tmp_path / "m.safetensors")
    assert analyze(recipe).recipe.method == "slerp"
    assert analyze(recipe, method="average").recipe.method == "average"
    for wrong, says in (
        ({"ratios": [1]}, "1 ratio values for 2 sources"),
        ({"compare": ["tie"]}, "Did you mean ties"),
        ({"method": "tie"}, "Did you mean ties"),
    ):
        with pytest.raises(MergeError, match=says):
            analyze(pair, **wrong)


def test_inspect_says_what_the_command_line_does(pair):
    found = inspect(pair[0])
    assert (found["family"], found["file"], found["rank"]) == ("SD1", "ink.safetensors", {"min": 4, "max": 4})


def test_presets_name_every_block_and_can_be_given_to_a_merge(pair, tmp_path):
    found = presets("SD1")
    assert all(list(weights) == list(family_of("SD1").blocks) for weights in found.values())
    assert found["ALL"]["M00"] == found["STYLE"]["OUT05"] == 1.0
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    merge(pair, save_to=one, blocks=[found["STYLE"], found["CHARACTER"]])
    merge(pair, save_to=other, blocks=["STYLE", "CHARACTER"])
    assert relative(dense_of(one), dense_of(other)) == 0
    with pytest.raises(MergeError, match="there are no block presets for 'nothing'"):
        presets("nothing")


def test_a_persons_own_presets_come_after_those_of_the_program(tmp_path):
    from lib_merge.blocks import Preset, PresetStore

    PresetStore(tmp_path / "presets.json").save(Preset("mine", "SD1", {"IN01": 0.25}))
    found = presets("SD1", file=tmp_path / "presets.json")
    assert list(found)[-1] == "mine"
    assert found["mine"]["IN01"] == 0.25
    assert found["mine"]["M00"] == 1.0
