"""A recipe whose fields are of the wrong type is refused in one sentence, as JSON and as a value."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lib_merge import METHODS, Recipe, Source
from lib_merge.engine.tree import open_tree
from lib_merge.errors import RecipeError
from lib_merge.methods.words import understood
from lib_merge.recipe import loads, with_paths
from tests.factories import write_lora

WRONG = ([], ["SD1"], {"a": 1}, [[1]], 10**400, -(10**400), 1e999, True, "ä" * 5000, {"a": [10**400]})


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("types") / "a.safetensors", seed=1)


def _tried(text, lora):
    """Open what a recipe names; what is refused is refused in one sentence."""
    try:
        open_tree(with_paths(loads(text), lambda _: lora)).close()
    except Exception as error:
        assert type(error).__module__ == "lib_merge.errors", repr(error)
        assert len(str(error)) < 1000
        assert "\n" not in str(error)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
def test_any_field_of_the_wrong_type_is_one_sentence(value, lora):
    plain = Recipe((Source(name="a.safetensors"),) * 2, method="ties").to_json()
    for name in {*plain, "family", "names", "prune_below", "conv_rank", "trainable"} - {"sources"}:
        _tried(json.dumps({**plain, name: value}), lora)
    for knob in plain["knobs"]:
        _tried(json.dumps({**plain, "knobs": {**plain["knobs"], knob: value}}), lora)
    for name in ("name", "ratio", "te_ratio", "blocks", "elements", "role", "recipe", "size", "sha256"):
        first = {**plain["sources"][0], name: value}
        _tried(json.dumps({**plain, "sources": [first, plain["sources"][1]]}), lora)


@pytest.mark.parametrize("family", [["SD1"], {"SD1": 1}, 3])
def test_a_family_that_is_no_word_is_refused(family, lora):
    with pytest.raises(RecipeError, match=r"the family is .* it takes a word"):
        Recipe((Source(path=lora),), family=family).check()


def test_numbers_beyond_any_are_refused(lora):
    recipe = Recipe((Source(path=lora), Source(path=lora)), method="ties")
    with pytest.raises(RecipeError, match="trim_fraction"):
        replace(recipe, knobs={"trim_fraction": 10**400}).check()
    with pytest.raises(RecipeError, match="the ratio of a"):
        replace(recipe, sources=(Source(path=lora, ratio=10**400),) * 2).check()


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_block_weights_and_other_tools_words_beyond_any_number_are_refused(value, lora):
    plain = Recipe((Source(path=lora), Source(path=lora)), method="ties")
    for blocks in ({"IN01": value}, [value] * 26):
        sources = (Source(path=lora, blocks=blocks), Source(path=lora))
        with pytest.raises(RecipeError, match="is not a number"):
            open_tree(replace(plain, sources=sources, family="SD1")).close()
    with pytest.raises(RecipeError, match="density is"):
        understood(METHODS[plain.method], {"density": value})
