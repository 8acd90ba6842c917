"""A ratio that moves is answered from what is known: no tensor is read twice, and what is said stays right."""

from __future__ import annotations

import pytest

from lib_merge import Recipe, Source
from lib_merge.analysis.normalised import normalised, strength
from lib_merge.engine.headers import ClosedFile, HeaderCache
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import open_tree
from tests.factories import lora_tensors, write, write_lora


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were opened for a tensor."""
    names, opened = [], ClosedFile._opened
    monkeypatch.setattr(ClosedFile, "_opened", lambda self: names.append(self.path.name) or opened(self))
    return names


@pytest.fixture
def files(tmp_path):
    a, b = (write_lora(tmp_path / f"{name}.safetensors", seed=n) for n, name in enumerate("ab"))
    negated = {key: -value if "lora_up" in key else value for key, value in lora_tensors(0).items()}
    return {"a": a, "b": b, "n": write(tmp_path / "n.safetensors", negated)}


def _recipe(files, names, ratios, **more):
    sources = (Source(path=files[n], name=files[n].name, ratio=r) for n, r in zip(names, ratios))
    return Recipe(tuple(sources), **more)


def _told(recipe, *cache):
    with open_tree(recipe, *cache) as tree:
        return foresee(tree), [(one.reason, one.numbers["strength"]) for one in normalised(tree)]


METHODS = ("weighted_sum", "average", "slerp", "ties", "core_ties", "model_stock")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("names", ["ab", "aa", "an"])
def test_nothing_is_read_again_and_all_is_told_as_anew(names, method, files, reads):
    cache = HeaderCache()
    _told(_recipe(files, names, (0.5, 0.4), method=method), cache)
    reads.clear()
    for first in (0.6, 0.2, 1.3):
        recipe = _recipe(files, names, (first, 0.4), method=method)
        told = _told(recipe, cache)
        assert reads == []
        size, strong = _told(recipe)
        assert told[0] == size
        assert [text for text, _ in told[1]] == [text for text, _ in strong]
        assert [number for _, number in told[1]] == pytest.approx(
            [number for _, number in strong], nan_ok=True
        )


def test_a_slider_passes_the_place_where_sources_cancel(files):
    cache = HeaderCache()
    gone = [_told(_recipe(files, "an", (ratio, 0.4)), cache)[0].cancelled for ratio in (0.3, 0.4, 0.5, 0.4)]
    assert [bool(names) for names in gone] == [False, True, False, True]
    assert gone[1] == gone[3]


def test_a_file_that_was_written_anew_is_looked_at_again(files):
    cache = HeaderCache()
    recipe = _recipe(files, "an", (0.4, 0.4))
    assert _told(recipe, cache)[0].cancelled
    write_lora(files["n"], seed=7)
    assert not _told(recipe, cache)[0].cancelled


def test_strength_from_gram_matrices_is_that_of_the_merge(files):
    """A scalar mean inside a group is carried out, over files it is told: both say the same."""
    mean = _recipe(files, "ab", (0.3, 0.2), method="average")
    inner = tuple(Source(name=n, recipe=_recipe(files, n, (1.0,)), ratio=r) for n, r in zip("ab", (0.3, 0.2)))
    with open_tree(mean) as tree, open_tree(Recipe(inner, method="average")) as other:
        assert strength(tree.root) == pytest.approx(strength(other.root), rel=1e-6)
