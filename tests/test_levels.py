"""A level inside a merge is the level kept: the group's own file, cut as it is, and its cut is in the report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lib_merge import METHODS, Job, Recipe, Source, parse_policy, run_recipe
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import open_tree
from tests.factories import dense_of, lora_tensors, relative, write

RANDOM = [name for name, method in METHODS.items() if method.drops]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for seed, (name, rank) in enumerate((("a", 4), ("b", 3), ("c", 5))):
        write(folder / f"{name}.safetensors", lora_tensors(seed + 1, rank=rank))
    return folder


def _file(folder, name, ratio=1.0):
    return Source(path=folder / f"{name}.safetensors", name=name, ratio=ratio)


def _kept(folder, tmp_path, group, *before):
    """Merge files and a level; return the report, the level's contribution and the level's own file."""
    others = [_file(folder, name, 0.4) for name in before]
    level = Source(name="styles", recipe=group, ratio=0.7)
    recipe = Recipe((*others, level), precision="float")
    report = run_recipe(
        recipe, tmp_path / "m.safetensors", job=Job(side_car=False), keep_levels=tmp_path / "levels"
    )
    inside = dense_of(tmp_path / "m.safetensors")
    for name in before:
        for module, matrix in dense_of(folder / f"{name}.safetensors").items():
            inside[module] = inside[module] - 0.4 * matrix
    number = len(before) + 1
    own = dense_of(tmp_path / "levels" / f"level-{number}-styles.safetensors")
    return recipe, report, {name: matrix / 0.7 for name, matrix in inside.items()}, own


@pytest.mark.parametrize(
    "more",
    [
        {"method": "ties"},
        {"method": "dare_ties", "seed": 3},
        {"method": "core_ties"},
        {"rank": parse_policy("2")},
        {"rank": parse_policy("energy:0.8")},
        {"conv_rank": 1},
        {"prune": 0.5},
        {"prune_below": 0.9},
        {"method": "ties", "prune": 0.3, "conv_rank": 2},
    ],
    ids=str,
)
def test_a_level_inside_is_the_level_kept(more, folder, tmp_path):
    group = Recipe((_file(folder, "a", 0.6), _file(folder, "b", 0.4)), **more)
    _, _, inside, own = _kept(folder, tmp_path, group, "c")
    assert relative(inside, own) < 1e-5


@pytest.mark.parametrize("method", RANDOM)
def test_masks_of_a_level_do_not_depend_on_what_is_merged_beside_it(method, folder, tmp_path):
    """Also where one of its files is in the merge before it."""
    group = Recipe((_file(folder, "a"), _file(folder, "b"), _file(folder, "a", 0.5)), method=method)
    _, _, inside, own = _kept(folder, tmp_path, group, "a")
    assert relative(inside, own) < 1e-5


def test_two_uses_of_one_file_and_of_one_group_have_masks_of_their_own(folder, tmp_path):
    one = _file(folder, "a", 0.5)
    level = Source(name="level", recipe=Recipe((_file(folder, "a"),)), ratio=0.5)
    for pair in ((one, one), (level, level)):
        recipe = Recipe(pair, method="dare", knobs={"drop_rate": 0.5, "rescale": False}, precision="float")
        run_recipe(
            replace(recipe, rank=parse_policy("64")), tmp_path / "m.safetensors", job=Job(overwrite=True)
        )
        single = dense_of(folder / "a.safetensors")
        merged = dense_of(tmp_path / "m.safetensors")
        share = [round(float(v), 1) for n in merged for v in (merged[n] / single[n]).flatten().tolist()]
        assert 0.5 in share  # kept by one and dropped by the other


def test_the_cut_of_a_dense_level_is_in_the_report(folder, tmp_path):
    group = Recipe((_file(folder, "a", 0.6), _file(folder, "b", 0.4)), method="ties")
    recipe, report, _, own = _kept(folder, tmp_path, group, "c")
    (level,) = report.levels
    assert level.name == "styles"
    assert level.rank == (7, 7)
    assert 0.05 < level.error < 1
    assert level.energy_kept == pytest.approx(1 - level.error**2)
    # the level as its own file says the same of its cut
    alone = run_recipe(replace(group, precision="float"), tmp_path / "n.safetensors", job=Job(side_car=False))
    assert alone.energy_kept == pytest.approx(level.energy_kept, abs=1e-6)
    assert relative(dense_of(tmp_path / "n.safetensors"), own) < 1e-6
    assert any("styles was cut to rank 7" in text for text in report.warnings)
    with open_tree(recipe) as tree:
        size = foresee(tree)
    assert report.bytes <= size.bytes
    assert report.ranks()["max"] <= size.rank[1] == 12
    assert report.to_json()["levels"][0]["energy_kept"] == level.energy_kept


def test_an_exact_level_has_no_cut_to_report(folder, tmp_path):
    group = Recipe((_file(folder, "a", 0.6), _file(folder, "b", 0.4)))
    _, report, inside, own = _kept(folder, tmp_path, group, "c")
    assert report.levels == []
    assert relative(inside, own) < 1e-6
