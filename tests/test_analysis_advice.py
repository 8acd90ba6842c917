"""Advice on constructed merges whose right answer is known; silence where there is nothing to say."""

from __future__ import annotations

import functools
import itertools
import json
import math

import numpy as np
import pytest
import torch

from lib_merge import Recipe, Source, resize
from lib_merge.analysis import RELATIONS, analyze
from lib_merge.analysis.symptoms import starting_points
from lib_merge.errors import RecipeError
from lib_merge.recipe_edits import with_changes
from lib_merge.samples import sd15_modules, synthetic_lora
from tests.factories import write

# what Gram matrices alone tell: quick, and enough here
look = functools.partial(analyze, carry_out=False)

ROWS = list(sd15_modules())[::4]
UNET = [row for row in ROWS if row[0].startswith("lora_unet_")]


def _lora(seed, rank=4, rows=ROWS, **kw):
    return synthetic_lora(rows, rank, seed=seed, dtype=torch.float32, **kw)


def _scaled(tensors, factor, where=""):
    return {
        key: value * factor if key.endswith(".lora_up.weight") and where in key else value
        for key, value in tensors.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("advice")


@pytest.fixture(scope="module")
def one(folder):
    return write(folder / "one.safetensors", _lora(1))


@pytest.fixture(scope="module")
def two(folder):
    return write(folder / "two.safetensors", _lora(2))


def _recipe(paths, ratios=None, **kw):
    ratios = ratios or [1.0] * len(paths)
    return Recipe(
        tuple(Source(path=path, name=path.name, ratio=ratio) for path, ratio in zip(paths, ratios)), **kw
    )


def _advice(report):
    return {advice.id: advice for advice in report.advice}


def _applied(recipe, advice):
    """The recipe after the click; the change is plain data."""
    return with_changes(recipe, json.loads(json.dumps(dict(advice.apply))))


@pytest.mark.parametrize("ratios", [(1.0, 1.0), (0.5, 0.5), (0.7, 0.3), (0.4, 0.4)])
def test_silent_on_an_unremarkable_pair(one, two, ratios):
    report = look(_recipe([one, two], ratios))
    assert report.advice == ()
    pair = report.pairs[0]
    assert pair.relation == "unrelated"
    assert abs(pair.whole.conflict - 0.5) <= 5 * pair.whole.error
    assert abs(pair.whole.excess) <= 5 * pair.whole.error
    assert pair.whole.overlap_in == pytest.approx(pair.whole.chance_in, rel=0.2)


def test_silent_on_one_file(one):
    report = look([one])
    assert report.advice == report.pairs == report.starts == ()
    assert report.recipe.whole.cancel == pytest.approx(1.0)


def test_a_scaled_copy(folder, one):
    other = write(folder / "louder.safetensors", _scaled(_lora(1), 2.0))
    recipe = _recipe([one, other], [0.5, 0.25])
    report = look(recipe)
    assert report.pairs[0].relation == "scaled copy"
    assert report.pairs[0].scale == pytest.approx(2.0)
    (advice,) = report.advice
    after = _applied(recipe, advice)
    assert [source.path for source in after.sources] == [one]
    assert look(after).recipe.whole.norm == pytest.approx(report.recipe.whole.norm, rel=1e-6)


def test_the_same_file_twice(one):
    report = look([one, one])
    assert report.pairs[0].relation == "copy"
    assert [source.label for source in report.sources] == ["one (1)", "one (2)"]
    assert report.advice[0].apply["ratios"][0] == 2.0


def test_a_negated_copy_cancels(folder, one):
    other = write(folder / "negated.safetensors", _scaled(_lora(1), -1.0))
    report = look(_recipe([one, other]))
    assert report.pairs[0].relation == "negated copy"
    assert report.recipe.whole.norm == pytest.approx(0.0, abs=1e-6)
    assert report.recipe.whole.cancel == pytest.approx(0.0, abs=1e-6)
    assert report.advice[0].title == "They cancel each other"
    assert "cancel, and nothing is left" in report.advice[0].reason
    assert report.advice[0].apply == {}


@pytest.mark.parametrize("times", [10.0, 78.0, 0.004])
def test_a_much_stronger_source_is_balanced_in_one_step(folder, one, times):
    other = write(folder / f"strong{times}.safetensors", _scaled(_lora(2), times))
    recipe = _recipe([one, other])
    report = look(recipe)
    advice = _advice(report)
    assert set(advice) == {"balance"}
    stronger = advice["balance"].numbers["stronger"]
    assert stronger == pytest.approx(max(times, 1 / times), rel=0.15)
    ratios = advice["balance"].apply["ratios"]
    assert sum(ratios) == pytest.approx(2.0, abs=1e-6)
    assert f"{max(report.recipe.whole.shares):.0%} of what they bring" in advice["balance"].reason
    after = look(_applied(recipe, advice["balance"]))
    assert after.recipe.whole.shares == pytest.approx((0.5, 0.5), abs=0.02)
    assert advice["balance"].numbers["after"] == pytest.approx([0.5, 0.5], abs=0.02)
    assert " / ".join(f"{one:.0%}" for one in advice["balance"].numbers["after"]) in advice["balance"].reason
    assert not after.advice


def test_balance_follows_what_was_asked(folder, one):
    """0.7 / 0.3 of like sources is no imbalance, and text-encoder ratios follow."""
    other = write(folder / "three.safetensors", _scaled(_lora(2), 3.0))
    sources = (Source(path=one, ratio=0.6, te_ratio=0.3), Source(path=other, ratio=0.4))
    advice = _advice(look(Recipe(sources)))["balance"]
    stronger = advice.numbers["stronger"]
    first = 0.6 * stronger / (0.6 * stronger + 0.4)
    assert advice.apply["ratios"] == pytest.approx([first, 1 - first], abs=0.01)
    assert advice.apply["te_ratios"] == [pytest.approx(0.3 * first / 0.6, abs=0.01), None]


def test_blocks_are_balanced_where_one_ratio_cannot(folder, one):
    other = write(
        folder / "out.safetensors", _scaled(_scaled(_lora(2), 12.0, "_up_blocks_"), 0.5, "_down_blocks_")
    )
    advice = _advice(look(_recipe([one, other])))
    assert {"balance", "balance-blocks"} <= set(advice)
    weights = advice["balance-blocks"].apply["blocks"]
    assert weights[1]["IN04"] > 1 > weights[1]["OUT05"]
    assert all(0.5 <= weight <= 2.0 for own in weights for weight in own.values())
    numbers = advice["balance-blocks"].numbers
    assert f"{numbers['left']:.1f} × is left" in advice["balance-blocks"].reason
    after = look(_applied(_recipe([one, other]), advice["balance-blocks"]))
    shares = [after.recipe.blocks[block].shares for block in weights[0]]
    assert max(max(pair) / min(pair) for pair in shares) == pytest.approx(numbers["left"], rel=0.05)
    assert numbers["left"] < numbers["spread"] / 3


def test_disjoint_blocks_are_left_alone(folder):
    halves = [
        write(
            folder / f"{side}.safetensors", _lora(seed, rows=[row for row in UNET if f"_{side}_" in row[0]])
        )
        for seed, side in ((1, "down"), (2, "up"))
    ]
    report = look(halves)
    assert report.advice == ()
    assert report.pairs[0].relation == "disjoint"
    assert report.pairs[0].whole.cosine == 0.0
    assert report.pairs[0].whole.modules == 0
    assert report.recipe.whole.retention == pytest.approx((1.0, 1.0))
    assert report.recipe.whole.crosstalk == pytest.approx((0.0, 0.0))


def _epochs(folder, count=3):
    """A run: the same down projections, ups that grow."""
    first, noise = _lora(5), _lora(6)
    paths = []
    for epoch in range(1, count + 1):
        tensors = {
            key: value if "lora_up" not in key else value * (0.5 + 0.2 * epoch) + 0.2 * epoch * noise[key]
            for key, value in first.items()
        }
        paths.append(write(folder / f"run-{epoch:06d}.safetensors", tensors, {"ss_epoch": str(epoch)}))
    return paths


def test_epochs_of_one_run(folder):
    paths = _epochs(folder)
    recipe = _recipe([paths[2], paths[0], paths[1]])
    report = look(recipe)
    assert {pair.relation for pair in report.pairs} == {"epochs"}
    advice = _advice(report)
    assert set(advice) == {"epochs", "epochs-mean"}
    assert advice["epochs"].apply["keep"] == [1, 2, 0]
    after = _applied(recipe, advice["epochs"])
    assert after.method == "ema"
    assert [source.path for source in after.sources] == paths
    assert not look(after).advice
    oldest = look(after).recipe.whole.shares[0]
    assert f"{report.sources[1].label} is {oldest:.0%} of it" in advice["epochs"].reason


def test_epochs_that_are_averaged_already_need_no_average(folder):
    """A sum at a third each is their mean: to offer it again would mend nothing."""
    paths = _epochs(folder)
    assert "epochs-mean" in _advice(look(_recipe(paths)))
    assert "epochs-mean" not in _advice(look(_recipe(paths, [1 / 3] * 3)))
    assert "epochs-mean" not in _advice(look(_recipe(paths, method="average")))


def test_one_file_is_the_other_resized(folder, two):
    large = write(folder / "large.safetensors", _lora(3, rank=16))
    small = folder / "small.safetensors"
    resize(large, rank=6, save_to=small)
    report = look(_recipe([large, small], [0.6, 0.4]))
    assert report.pairs[0].relation == "resized"
    advice = _advice(report)["resized-0-1"]
    assert advice.apply["keep"] == [0]
    assert advice.apply["ratios"] == [1.0, None]
    assert look([large, two]).pairs[0].relation == "unrelated"


def test_a_near_duplicate(folder, one):
    """Fine-tuned a little further in other factors: one file is enough, at the ratio that both have together."""
    noise = _lora(21)
    later = _turned({k: 1.1 * v + 0.2 * noise[k] if "lora_up" in k else v for k, v in _lora(1).items()}, 4)
    other = write(folder / "later.safetensors", later)
    recipe = _recipe([one, other], [0.5, 0.5])
    report = look(recipe)
    pair = report.pairs[0]
    assert pair.relation == "near-duplicate"
    assert 0.95 < pair.whole.cosine < 0.999
    assert pair.scale == pytest.approx(1.1, rel=0.02)
    (advice,) = report.advice
    after = _applied(recipe, advice)
    assert [source.path for source in after.sources] == [one]
    assert after.sources[0].ratio == pytest.approx(0.5 + 0.5 * pair.scale, abs=0.01)
    assert "almost one LoRA" in advice.reason


def test_the_same_start_is_no_relation(folder):
    """Two runs of one seed: the down projections began alike, what was learned is another thing."""
    first, second = _lora(7), _lora(8)
    for key, value in first.items():
        if "lora_down" in key:
            second[key] = value + 0.3 * value.std() * torch.randn(
                value.shape, generator=torch.Generator().manual_seed(1)
            )
    paths = [write(folder / f"{name}.safetensors", t) for name, t in (("cat", first), ("dog", second))]
    report = analyze(paths)
    assert report.pairs[0].relation == "same start"
    assert report.pairs[0].start > 0.8
    assert report.pairs[0].whole.overlap_in > 5 * report.pairs[0].whole.chance_in
    assert "related" not in _advice(report)


def _turned(tensors, seed):
    """The same ΔW in other factors, so that nothing but ΔW itself can tell."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(tensors)
    for key in tensors:
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            rank = tensors[key].shape[0]
            turn = torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0]
            found[key] = (turn.T @ tensors[key].flatten(1)).reshape(tensors[key].shape)
            up = tensors[f"{name}.lora_up.weight"]
            found[f"{name}.lora_up.weight"] = (up.flatten(1) @ turn).reshape(up.shape)
    return found


@pytest.mark.parametrize(("sign", "relation"), [(1, "related"), (-1, "opposed")])
def test_sources_that_want_the_same_or_the_opposite(folder, sign, relation):
    first, noise = _lora(9), _lora(10)
    second = _turned({k: sign * v + 0.7 * noise[k] if "lora_up" in k else v for k, v in first.items()}, 3)
    paths = [write(folder / f"{relation}{n}.safetensors", t) for n, t in enumerate((first, second))]
    report = analyze(paths, methods=[])
    assert report.pairs[0].relation == relation
    assert sign * report.pairs[0].whole.cosine > 0.5
    advice = _advice(report)[relation]
    assert advice.apply == ({"method": "average"} if sign > 0 else {})  # what cancels no method brings back
    assert abs(report.pairs[0].whole.excess) <= max(0.01, 5 * report.pairs[0].whole.error)


def test_text_encoders_that_pull_apart(folder):
    first, second = _lora(11), _lora(12)
    for key, value in first.items():
        if key.startswith("lora_te"):
            second[key] = -0.6 * value + 0.6 * second[key] if "lora_up" in key else value
    paths = [write(folder / f"te{n}.safetensors", t) for n, t in enumerate((first, second))]
    recipe = _recipe(paths)
    report = look(recipe)
    advice = _advice(report)["text-encoder"]
    assert advice.numbers["cosine"] < -0.3
    after = _applied(recipe, advice)
    assert [source.te_ratio for source in after.sources] == [None, 0.0]
    assert look(after).recipe.blocks["BASE"].retention[0] == pytest.approx(1.0)
    assert report.recipe.blocks["BASE"].retention[0] < 0.5
    assert f"100% of it is in instead of {advice.numbers['kept'][0]:.0%}" in advice.reason
    assert "opposed" not in _advice(report)  # the rest of the two does not quarrel
    assert report.pairs[0].blocks["BASE"].cosine < -0.3
    assert abs(report.pairs[0].blocks["IN04"].cosine) < 0.1


def test_too_much_in_all(folder, one, two):
    third, fourth = (write(folder / f"more{seed}.safetensors", _lora(seed)) for seed in (13, 14))
    recipe = _recipe([one, two, third, fourth])
    advice = _advice(look(recipe))
    assert set(advice) == {"strength"}
    assert advice["strength"].numbers["strength"] == pytest.approx(
        2 * advice["strength"].numbers["strongest"], rel=0.1
    )
    after = look(_applied(recipe, advice["strength"]))
    assert after.recipe.whole.norm == pytest.approx(advice["strength"].numbers["strongest"], rel=0.02)
    assert not after.advice


def test_a_smaller_rank_for_the_same_energy(folder):
    rows = UNET[:40]
    wide = _lora(15, rank=24, rows=rows)
    for key, value in wide.items():
        if "lora_up" in key:
            wide[key] = value * torch.logspace(0, -4, value.shape[1]).reshape(1, -1, *(1,) * (value.ndim - 2))
    path = write(folder / "wide.safetensors", wide)
    report = look([path])
    advice = _advice(report)["rank"]
    assert advice.title.startswith(("Save at rank ", "Save within ", "Keep 99% of"))
    after = look(_applied(_recipe([path]), advice))
    assert after.recipe.error <= 0.101
    assert after.recipe.bytes == pytest.approx(advice.numbers["bytes"], rel=0.05)
    assert after.recipe.bytes < 0.7 * report.recipe.bytes
    assert not _advice(after).get("cut")


def test_a_cut_that_throws_away_too_much(one, two):
    from lib_merge import RankPolicy

    advice = _advice(look(_recipe([one, two], rank=RankPolicy("rank", 1))))["cut"]
    assert advice.numbers["kept"] < 0.95
    assert int(advice.apply["rank"]) > 1


@pytest.mark.parametrize("method", ["ties", "dare", "core_ties", "average", "model_stock"])
def test_methods_without_evidence(one, two, method):
    recipe = _recipe([one, two], method=method)
    advice = _advice(analyze(recipe, methods=[]))
    assert advice["unfounded"].apply == {"method": "weighted_sum"}
    assert _applied(recipe, advice["unfounded"]).policy().exact


def test_broken_tensors_are_named(folder, one):
    tensors = _lora(16)
    key = f"{UNET[3][0]}.lora_up.weight"
    tensors[key][0, 0] = math.nan
    path = write(folder / "nan.safetensors", tensors)
    report = look(_recipe([one, path]))
    assert report.sources[1].broken == (key,)
    assert math.isfinite(report.recipe.whole.norm)
    assert _advice(report)["broken"].apply == {"keep": [0]}
    assert key in report.advice[0].reason


def test_zero_tensors_are_counted(folder):
    tensors = _lora(17, rows=UNET[:6])
    key = f"{UNET[0][0]}.lora_up.weight"
    tensors[key].zero_()
    report = look([write(folder / "zero.safetensors", tensors)])
    assert report.sources[0].zero == (key,)
    assert not report.sources[0].broken


def test_numbers_near_the_end_of_fp16(folder):
    tensors = _lora(18, rows=UNET[:4])
    tensors[f"{UNET[0][0]}.lora_up.weight"][0, 0] = 60000.0
    report = look([write(folder / "huge.safetensors", tensors)])
    assert report.sources[0].headroom == pytest.approx(65504 / 60000)
    assert _advice(report)["range"].apply == {"precision": "bf16"}


BASES = {
    "pony": {
        "ss_sd_model_name": "ponyDiffusionV6XL.safetensors",
        "ss_unet_lr": "0.0001",
        "ss_epoch": "10",
        "ss_num_epochs": "12",
    },
    "illustrious": {
        "ss_sd_model_name": "Illustrious-XL-v0.1.safetensors",
        "ss_unet_lr": "0.0005",
        "ss_resolution": "(1024, 1024)",
    },
    "vpred": {"ss_sd_model_name": "noobaiXL_vPred.safetensors", "ss_v_parameterization": "True"},
}


def test_training_is_compared_and_bases_are_warned_of(folder):
    paths = [
        write(folder / f"{name}.safetensors", _lora(n, rows=UNET[:4]), meta)
        for n, (name, meta) in enumerate(BASES.items())
    ]
    report = look(paths[:2])
    rows = {row.field: row for row in report.training.rows}
    assert rows["line"].values == ("Pony", "Illustrious")
    assert rows["line"].differs
    assert rows["unet_lr"].differs
    assert rows["epochs"].values == ("10 of 12", None)
    assert not rows["epochs"].differs
    assert rows["resolution"].values[1] == "1024 × 1024"
    assert "Pony" in _advice(report)["bases"].reason
    assert any("v-prediction" in warning for warning in look(paths[1:]).training.warnings)
    assert not look(paths[:1]).training.warnings


@pytest.mark.slow
def test_starting_points_by_role(one, two):
    def roles(*names):
        return Recipe(tuple(Source(path=path, role=role) for path, role in zip((one, two), names)))

    found = {item.id: item for item in starting_points(roles("style", "character"), "SD1")}
    assert found["start-even"].apply["ratios"] == [0.5, 0.5]
    assert found["start-lead-first"].apply["ratios"] == [0.7, 0.3]
    assert found["start-careful"].apply["ratios"] == [0.4, 0.4]
    assert found["start-roles-style-character"].apply["ratios"] == [0.7, 0.5]
    blocks = found["start-roles-style-character-blocks"].apply["blocks"]
    assert blocks == ["STYLE", "CHARACTER"]
    for index in (0, 1):
        for role, ratio in (("style", 0.7), ("character", 0.5), ("concept", 0.4)):
            wanted = [None, None]
            wanted[index] = ratio
            assert found[f"start-role-{index}-{role}"].apply == {"ratios": wanted}
    for item in found.values():
        look(with_changes(roles("style", "character"), item.apply))
    assert "start-roles-concept-style" in {item.id for item in starting_points(roles("concept", "style"))}
    subject = {
        item.id: item
        for item in starting_points(Recipe(roles("style", "subject").sources, method="np_lora"), "SD1")
    }
    assert "roles" not in subject["start-roles-style-character"].apply


@pytest.mark.slow
def test_every_complaint_has_an_answer(folder, one):
    other = write(folder / "ten.safetensors", _scaled(_lora(2), 10.0))
    recipe = _recipe([one, other])
    report = look(recipe)
    assert [item.id for item in report.symptoms] == [
        "muddy",
        "dominates",
        "artefacts",
        "loading",
        "worse",
        "lost",
        "regions",
    ]
    for symptom in report.symptoms:
        assert symptom.says
        for item in symptom.tries:
            assert look(_applied(recipe, item)).stage == "advice"
    dominates = report.symptoms[1]
    assert f"ten {report.recipe.whole.shares[1]:.0%}" in dominates.says[0]
    assert dominates.tries[0].id == "balance"
    assert "is the stack" in report.symptoms[4].says[0]


def test_changes_that_do_not_fit_are_refused(one, two):
    recipe = _recipe([one, two])
    for change in (
        {"ratios": [1.0]},
        {"keep": [0, 0]},
        {"keep": [5]},
        {"colour": "red"},
        {"method": "slerp", "keep": [0]},
    ):
        with pytest.raises(RecipeError):
            with_changes(recipe, change)
    assert with_changes(recipe, {}) == recipe
    assert with_changes(recipe, {"knobs": {}, "rank": "16"}).rank.value == 16


def test_relations_are_all_explained():
    assert all(RELATIONS.values())


@pytest.mark.slow
def test_every_real_file_and_pair(loras):
    """Every file; every pair of one family, and each file with one other alone: nothing fails, nothing is NaN that has
    a number.
    """
    paths = sorted(path for path in loras.iterdir() if path.suffix != ".json")
    families = {}
    for path in paths:
        report = look([path])
        families.setdefault(report.family, []).append(path)
        assert report.sources[0].whole.norm > 0
        assert report.stage == "advice"
    assert len(families["SD1"]) >= 7
    sd1 = families["SD1"]
    together = look(sd1)
    assert len(together.pairs) == math.comb(len(sd1), 2)
    for report in (together, *(look(pair) for pair in itertools.pairwise((*sd1, sd1[0])))):
        assert np.isfinite(report.recipe.whole.norm)
        for pair in report.pairs:
            assert pair.relation == "unrelated"  # seven authors, seven subjects
            assert abs(pair.whole.excess) <= max(0.01, 5 * pair.whole.error)
