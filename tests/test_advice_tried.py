"""Advice looks at what it would do: on pairs whose right answer is known, what only weakens is never offered."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import torch

from lib_merge import Recipe, Source
from lib_merge.analysis import analyze
from lib_merge.analysis.advice import advise
from lib_merge.analysis.evidence import evidence
from lib_merge.analysis.forecast import Forecaster
from lib_merge.analysis.outcome import look_ahead
from lib_merge.analysis.trial import tried
from lib_merge.engine.threads import Job
from lib_merge.engine.tree import open_tree
from lib_merge.recipe_edits import with_changes
from lib_merge.samples import sd15_modules, synthetic_lora
from tests.factories import write

ROWS = list(sd15_modules())[::9]
TE = [row for row in ROWS if row[0].startswith("lora_te")]
UNET = [row for row in ROWS if row[0].startswith("lora_unet")]


@functools.lru_cache
def made(seed, rows="all"):
    chosen = {"all": ROWS, "te": TE, "unet": UNET}.get(rows) or [row for row in UNET if f"_{rows}_" in row[0]]
    return synthetic_lora(chosen, 4, seed=seed, dtype=torch.float32)


def where(tensors, part, change):
    return {key: change(key, value) if part in key else value for key, value in tensors.items()}


def times(tensors, factor):
    return where(tensors, "lora_up", lambda _, value: factor * value)


def starts(share):
    """A LoRA whose `down` began as the first one's, and went its own way by √(1 − share²)."""
    rest = math.sqrt(1 - share**2)
    return where(made(2), "lora_down", lambda key, value: share * made(1)[key] + rest * value)


def _silent_encoder(tensors):
    return where(tensors, "lora_te", lambda key, value: value * (0 if "lora_up" in key else 1))


def _louder_rows(sign):
    """Few loud rows that agree, and many quiet ones whose signs do not: no cosine tells it."""

    def change(_, up):
        loud = torch.arange(len(up)) < max(1, len(up) // 10)
        return torch.where(loud.view(-1, *[1] * (up.ndim - 1)), 4 * up, sign * up)

    return where(made(1), "lora_up", change)


PAIRS = {
    "unrelated": lambda: (made(1), made(2)),
    "same seed, equal start": lambda: (made(1), starts(1.0)),
    "same seed, started alike": lambda: (made(1), starts(0.6)),
    "negated": lambda: (made(1), times(made(1), -1.0)),
    "nearly negated": lambda: (made(1), times(made(1), -0.8)),
    "frozen encoder": lambda: (made(1), _silent_encoder(made(2))),
    "78 × as strong": lambda: (made(1), times(made(2), 78.0)),
    "text encoder beside whole": lambda: (made(3, "te"), times(made(1), 10.0)),
    "U-Net beside whole": lambda: (made(1, "unet"), times(made(2), 4.0)),
    "identical": lambda: (made(1), made(1)),
    "near-duplicate": lambda: (
        made(1),
        where(made(1), "lora_up", lambda k, v: 1.1 * v + 0.2 * made(21)[k]),
    ),
    "disjoint": lambda: (made(1, "down"), times(made(2, "up"), 10.0)),
    "signs disagree": lambda: (_louder_rows(1.0), _louder_rows(-1.0)),
}
METHODS = ("weighted_sum", "average", "core_ties", "slerp")
RATIOS = ((1.0, 1.0), (0.5, 0.5))
SEEN = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tried")


@pytest.fixture(scope="module")
def recipe_of(folder):
    @functools.lru_cache
    def files(name):
        stem = "".join(letter if letter.isalnum() else "-" for letter in name)
        return [
            write(folder / f"{stem}-{side}.safetensors", {**tensors})
            for side, tensors in zip("ab", PAIRS[name]())
        ]

    def recipe(name, ratios=(1.0, 1.0), **more):
        sources = (Source(path=path, name=path.name, ratio=r) for path, r in zip(files(name), ratios))
        return Recipe(tuple(sources), **more)

    return recipe


def _report(recipe):
    if repr(recipe) not in SEEN:
        SEEN[repr(recipe)] = analyze(recipe, methods=[])
    return SEEN[repr(recipe)]


def _advice(report):
    return {item.id: item for item in report.advice}


def _applied(recipe, item):
    return with_changes(recipe, json.loads(json.dumps(dict(item.apply))))


# ------------------------------------------------------------------------ the promise, over everything


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(PAIRS))
def test_what_is_offered_changes_the_merge(recipe_of, name, method):
    """No button that does nothing: after the click direction, strength or file differ from before."""
    for ratios in RATIOS:
        recipe = recipe_of(name, ratios, method=method)
        report = _report(recipe)
        for item in report.advice:
            if not item.apply:
                continue
            after = _report(_applied(recipe, item))
            same_norm = after.recipe.whole.norm == pytest.approx(report.recipe.whole.norm, rel=0.02)
            if item.id.startswith(("copy", "scaled", "near", "negated")):
                assert after.recipe.whole.norm == pytest.approx(report.recipe.whole.norm, rel=0.1)
                assert after.recipe.bytes <= report.recipe.bytes
            elif set(item.apply) & {"rank", "precision"}:
                assert after.recipe.bytes != report.recipe.bytes
            else:
                moved = np.abs(np.subtract(after.recipe.whole.shares, report.recipe.whole.shares)).max()
                assert moved > 0.03 or not same_norm or after.recipe.method != recipe.method, item


@pytest.mark.parametrize("name", list(PAIRS))
def test_no_method_is_offered_that_only_weakens(recipe_of, name):
    """The direction of the merge is another one, or the advice says that only its strength is."""
    report = analyze(recipe_of(name))
    rows = {row.name: row for row in report.methods}
    offered = [*report.advice, *(item for symptom in report.symptoms for item in symptom.tries)]
    for item in offered:
        method = item.apply.get("method")
        if method is None or set(item.apply) != {"method"} or item.id == "related":
            continue
        assert rows[method].cosine < 0.995, item


# ------------------------------------------------------------------------ pair by pair


def test_the_same_seed_is_not_mended_by_a_weaker_merge(recipe_of):
    """Equal starts: the decorrelated sum is the plain sum at 0.57 of its strength, and nothing else."""
    report = analyze(recipe_of("same seed, equal start"))
    row = next(row for row in report.methods if row.name == "decorrelated_sum")
    assert row.to_sum == pytest.approx(0.5714, abs=1e-3)
    assert row.cosine == pytest.approx(1.0, abs=1e-3)
    assert max(report.recipe.whole.crosstalk) > 0.9  # there is something to mend
    assert "crowded" not in _advice(report)
    tries = {item.id for symptom in report.symptoms for item in symptom.tries}
    assert "try-decorrelated-sum" not in tries


def test_starts_that_went_apart_are_separated(recipe_of):
    recipe = recipe_of("same seed, started alike")
    report = _report(recipe)
    item = _advice(report)["crowded"]
    assert item.apply == {"method": "decorrelated_sum"}
    after = _report(_applied(recipe, item))
    assert max(after.recipe.whole.crosstalk) == pytest.approx(item.numbers["after"], abs=0.05)
    assert item.numbers["after"] < 0.5 * item.numbers["crosstalk"]
    assert f"{item.numbers['after']:.0%}" in item.reason


def test_negated_sources_are_not_mended_by_any_method(recipe_of):
    (item,) = _report(recipe_of("negated")).advice
    assert item.title == "They cancel each other"
    assert not item.apply
    nearly = _report(recipe_of("nearly negated"))
    after = _applied(recipe_of("nearly negated"), _advice(nearly)["negated-copy-0-1"])
    assert [source.ratio for source in after.sources] == [0.2]


def test_a_frozen_encoder_is_no_imbalance(recipe_of):
    """One has its text encoder at zero; they are compared in the U-Net, which both have."""
    assert "balance" not in _advice(_report(recipe_of("frozen encoder")))
    report = _report(recipe_of("U-Net beside whole"))
    item = _advice(report)["balance"]
    blocks = _report(_applied(recipe_of("U-Net beside whole"), item)).recipe
    energies = np.array([heard for block, heard in blocks.heard.items() if block != "BASE"]) ** 2
    first, second = np.sqrt(energies.sum(0))
    assert first == pytest.approx(second, rel=0.05)


@pytest.mark.parametrize("name", ["text encoder beside whole", "disjoint"])
def test_what_cannot_be_compared_is_not_balanced(recipe_of, name):
    """A few modules of the text encoder against all: they do other things, so no ratio evens them out."""
    report = _report(recipe_of(name))
    advice = _advice(report)
    assert "balance" not in advice
    assert not advice["uneven"].apply
    counts = [source.modules for source in report.sources]
    assert all(str(count) in advice["uneven"].reason for count in counts)
    tries = {item.id for symptom in report.symptoms for item in symptom.tries}
    assert "try-balance" not in tries


def test_three_sources_of_which_two_are_alike_in_kind_are_balanced(folder, recipe_of):
    first, second = (source.path for source in recipe_of("78 × as strong").sources)
    te = recipe_of("text encoder beside whole").sources[0].path
    recipe = Recipe(tuple(Source(path=path, name=path.name) for path in (first, te, second)))
    item = _advice(_report(recipe))["balance"]
    ratios = item.apply["ratios"]
    assert ratios[1] == 1.0
    assert ratios[0] / ratios[2] == pytest.approx(item.numbers["stronger"], rel=0.05)
    assert f"{te.stem} changes others and is left as it is" in item.reason


@pytest.mark.parametrize("method", ["weighted_sum", "average", "slerp", "core_ties", "decorrelated_sum"])
@pytest.mark.parametrize("name", ["identical", "near-duplicate", "nearly negated"])
def test_one_file_stands_for_two_at_what_the_method_makes_of_them(recipe_of, name, method):
    recipe = recipe_of(name, (0.6, 0.3), method=method)
    report = _report(recipe)
    kept = [item for item in report.advice if item.title.startswith("Keep only") and item.apply]
    for item in kept:
        after = _report(_applied(recipe, item))
        assert after.recipe.whole.norm == pytest.approx(report.recipe.whole.norm, rel=0.05)
    assert kept or name != "identical"


def test_an_average_is_offered_for_strength_alone_and_says_so(folder, recipe_of):
    noisy = where(made(1), "lora_up", lambda key, value: (value + 0.7 * made(2)[key]).flip(1))
    turned = where(noisy, "lora_down", lambda key, value: value.flip(0))
    paths = [recipe_of("identical").sources[0].path, write(folder / "alike.safetensors", turned)]
    recipe = Recipe(tuple(Source(path=path, name=path.name) for path in paths))
    item = _advice(_report(recipe))["related"]
    assert "the average is the same merge at 50% of that strength" in item.reason
    half = Recipe(tuple(Source(path=path, name=path.name, ratio=0.5) for path in paths))
    assert "related" not in _advice(_report(half))  # there it would change nothing


def test_signs_that_disagree_are_told_without_a_method_that_loses_one(recipe_of):
    """The election of signs in shared directions does not see rows, and takes one side for the other."""
    item = _advice(_report(recipe_of("signs disagree")))["conflict"]
    assert item.numbers["conflict"] - item.numbers["expected"] > 0.3
    assert not item.apply


def test_the_plain_sum_is_advised_only_where_the_method_departs_from_it(recipe_of):
    for method, departs in (("ties", True), ("core_ties", True), ("model_stock", True), ("average", False)):
        report = _report(recipe_of("unrelated", (0.5, 0.5), method=method))
        assert ("unfounded" in _advice(report)) == departs, method
    text = _advice(_report(recipe_of("unrelated", (0.5, 0.5), method="ties")))["unfounded"].reason
    assert "at cosine 0.8" in text


# ------------------------------------------------------------------------ the look ahead itself


CHANGES = {
    "ratios": {"ratios": [0.3, 0.9]},
    "one is left out": {"keep": [1], "ratios": [None, 0.4]},
    "another order": {"method": "ema", "keep": [1, 0], "ratios": [1.0, 0.6]},
    "text encoders": {"te_ratios": [0.0, None]},
    "blocks": {"blocks": [{"IN04": 0.0, "M00": 2.0}, None]},
    "a mean": {"method": "average"},
    "reads the whole": {"method": "norm_preserving", "ratios": [1.0, 0.2]},
    "reads modules": {"method": "model_stock", "ratios": [1.0, 0.4]},
}


@pytest.mark.parametrize("change", list(CHANGES.values()), ids=list(CHANGES))
@pytest.mark.parametrize("method", ["weighted_sum", "average", "norm_preserving"])
def test_a_change_is_foreseen_as_it_comes(recipe_of, change, method):
    """Norm and shares of what is tried are those of the changed recipe, analysed by itself."""
    recipe = recipe_of("same seed, started alike", (0.8, 0.5), method=method)
    report = _report(recipe)
    with open_tree(recipe) as tree:
        prospect = look_ahead(report.bench, tree, Forecaster(Job()), lambda: False)
        trial = tried(prospect, change)
    after = _report(with_changes(recipe, change)).recipe.whole
    assert trial.outcome.norm == pytest.approx(after.norm, rel=1e-6)
    assert trial.size == pytest.approx(after.norm / report.recipe.whole.norm, rel=1e-6)
    order = change.get("keep", [0, 1])
    assert [trial.outcome.shares[place] for place in order] == pytest.approx(after.shares, abs=1e-6)
    assert not trial.nothing_new or trial.size == pytest.approx(1.0, abs=0.02)


def test_without_carrying_methods_out_none_is_advised(recipe_of):
    """What was not looked at is not offered."""
    report = analyze(recipe_of("same seed, started alike"), carry_out=False)
    assert "crowded" not in _advice(report)
    assert all("method" not in item.apply for symptom in report.symptoms for item in symptom.tries)


def test_groups_are_advised_by_the_same_rules(recipe_of):
    inner = recipe_of("same seed, equal start")
    group = Source(recipe=Recipe(inner.sources), ratio=1.0)
    recipe = Recipe((group, recipe_of("unrelated").sources[1]))
    report = _report(recipe)
    with open_tree(recipe) as tree:
        prospect = look_ahead(report.bench, tree, Forecaster(Job()), lambda: False)
        assert tried(prospect, {"ratios": [0.5, 0.5]}) is None
        assert evidence(report, prospect).worthwhile({"ratios": [0.5, 0.5]})
        assert [item.id for item in advise(report, prospect)] == [item.id for item in report.advice]
