"""A recipe with one thing changed, and what its sources are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lib_merge import Recipe, Source, recipe_edits
from lib_merge.errors import RecipeError


def file(name, **fields):
    return Source(path=Path(f"{name}.safetensors"), **fields)


def group(*sources, **fields):
    return Source(recipe=Recipe(sources), **fields)


def test_letters_go_on_after_z():
    places = [0, 1, 25, 26, 27, 51, 52, 701, 702]
    assert [recipe_edits.letter(place) for place in places] == [
        "A",
        "B",
        "Z",
        "AA",
        "AB",
        "AZ",
        "BA",
        "ZZ",
        "AAA",
    ]


def test_files_are_lettered_and_groups_numbered_from_left_to_right():
    recipe = Recipe((group(file("x"), group(file("y"))), file("z"), group(file("w"))))
    assert recipe_edits.handles(recipe) == {
        "1": (0,), "A": (0, 0), "2": (0, 1), "B": (0, 1, 0), "C": (1,), "3": (2,), "D": (2, 0),
    }  # fmt: skip


def test_a_row_that_is_off_moves_nobodys_letter():
    """The tab has switched A off: what it calls B stays B, wherever that is said."""
    recipe = Recipe((file("b", handle="B"), file("c", handle="C")))
    assert recipe_edits.handles(recipe) == {"B": (0,), "C": (1,)}
    changed = recipe_edits.with_ratio(recipe, " c ", 0.25)
    assert [source.ratio for source in changed.sources] == [1.0, 0.25]
    with pytest.raises(RecipeError, match="no source A: this merge has B, C"):
        recipe_edits.with_ratio(recipe, "A", 0.5)


def test_handles_are_no_part_of_what_is_merged():
    recipe = Recipe((file("b", handle="B"),))
    assert "handle" not in recipe.dumps()
    assert recipe == Recipe((file("b"),))


def test_a_source_inside_a_group_is_reached_by_its_letter():
    recipe = Recipe((group(file("x"), file("y", ratio=0.5, te_ratio=(0.2, 0.4))), file("z")))
    changed = recipe_edits.with_ratio(recipe, "B", 1.0)
    assert changed.sources[0].recipe.sources[1].ratio == 1.0
    assert changed.sources[0].recipe.sources[1].te_ratio == (0.4, 0.8)
    assert changed.sources[1] == recipe.sources[1]
    assert recipe_edits.with_ratio(recipe, "1", 0.3).sources[0].ratio == 0.3
    balanced = recipe_edits.with_balance(recipe, "1", "C", 0.75)
    assert [source.ratio for source in balanced.sources] == [1.5, 0.5]
    with pytest.raises(RecipeError, match="different sources"):
        recipe_edits.with_balance(recipe, "C", 1, 0.5)


@pytest.mark.parametrize(
    ("method", "rank", "after"),
    [("ties", "lossless", None), ("ties", "16", "16"), ("slerp", "sum", None), ("slerp", "lossless", "lossless"), ("dare", "sum", "sum")],
)  # fmt: skip
def test_another_method_keeps_the_rank_that_it_can_have(method, rank, after):
    recipe = Recipe((file("a"), file("b")))
    recipe = replace(recipe, rank=recipe_edits.parse_policy(rank))
    by_axis = recipe_edits.with_method(recipe, method)
    by_advice = recipe_edits.with_changes(recipe, {"method": method})
    assert by_axis == by_advice
    assert (by_axis.rank and by_axis.rank.text) == after


def test_roles_are_given_where_the_method_wants_some():
    recipe = Recipe((file("a"), file("b")))
    roles = [source.role for source in recipe_edits.with_method(recipe, "np_lora").sources]
    assert sorted(roles) == sorted(recipe_edits.get_method("np_lora").roles)
    swapped = replace(recipe, sources=tuple(replace(s, role=r) for s, r in zip(recipe.sources, roles[::-1])))
    assert [s.role for s in recipe_edits.with_method(swapped, "np_lora").sources] == roles[::-1]
    assert [s.role for s in recipe_edits.with_method(swapped, "weighted_sum").sources] == [None, None]
