"""What either kind of pruning saves and costs is told before saving, and is what a merge with it reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lib_merge import Recipe, Source, run_recipe
from lib_merge.analysis import analyze
from lib_merge.cli import main
from lib_merge.ranks.policy import parse_policy
from tests.factories import write_lora


@pytest.fixture
def pair(tmp_path):
    return [write_lora(tmp_path / f"{name}.safetensors", seed=seed) for seed, name in enumerate("ab")]


def _recipe(pair, *ratios, **more):
    sources = tuple(Source(path=path, name=path.name, ratio=ratio) for path, ratio in zip(pair, ratios))
    return Recipe(sources, **more)


SETTINGS = {
    "usual": {},
    "set": {"prune": 0.3, "prune_below": 2.0},
    "rank": {"rank": parse_policy("3"), "prune": 0.4},
    "energy and convolutions": {"rank": parse_policy("energy:0.95"), "conv_rank": 2, "prune_below": 1.0},
    "a mean": {"method": "average", "prune": 0.5},
    "float": {"precision": "float", "prune": 0.5},
}


@pytest.mark.parametrize("more", list(SETTINGS.values()), ids=list(SETTINGS))
def test_each_is_what_a_merge_with_it_reports(more, pair, tmp_path):
    recipe = _recipe(pair, 0.8, 0.6, **more)
    told = analyze(recipe, methods=[]).recipe.pruning
    assert [one.field for one in told] == ["prune", "prune_below"]
    for one in told:
        assert (one.threshold, one.chosen) == (more.get(one.field, 0.01), one.field in more)
        alone = replace(recipe, **{"prune": 0.0, "prune_below": 0.0, one.field: one.threshold})
        report = run_recipe(alone, tmp_path / f"{one.field}.safetensors")
        assert (one.modules, one.saved) == (report.pruned["modules"], report.pruned["bytes_saved"])
        assert one.error == pytest.approx(report.pruned["relative_error"], rel=1e-4, abs=1e-6)
    if "prune" in more and "prune_below" in more:
        assert all(one.saved > 0 for one in told)


def test_what_cancels_is_not_pruned(pair, tmp_path):
    recipe = _recipe([pair[0], pair[0], pair[1]], 0.5, -0.5, 0.6, prune=0.4)
    one = analyze(recipe, methods=[]).recipe.pruning[0]
    report = run_recipe(recipe, tmp_path / "m.safetensors")
    assert (one.modules, one.saved) == (report.pruned["modules"], report.pruned["bytes_saved"])


def test_under_a_budget_nothing_is_told(pair):
    assert analyze(_recipe(pair, 1.0, 1.0, rank=parse_policy("budget:100KB"))).recipe.pruning == ()


def test_the_command_line_and_the_page_say_both(pair, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["analyze", *map(str, pair), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    for text in (said, page.read_text(encoding="utf-8")):
        assert "pruning at 0.01 of the largest saves" in text
        assert "pruning at 0.01 absolute saves" in text
