"""What is foreseen of core methods in their small space, beside carrying them out; and real files beside dense float64."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch

from lib_merge import RankPolicy, Recipe, Source
from lib_merge.adapters import open_lora
from lib_merge.analysis import analyze, forecast, steps
from lib_merge.engine.tree import open_tree
from lib_merge.methods import METHODS
from tests.factories import write_lora
from tests.reference import analysis as dense

CORE = [name for name, method in METHODS.items() if method.space == "core"]
CLOSE = {"rel": 1e-6, "abs": 1e-9}


@pytest.fixture
def pair(tmp_path):
    return [
        write_lora(tmp_path / "one.safetensors", seed=1, rank=5),
        write_lora(tmp_path / "two.safetensors", seed=2, rank=3),
    ]


def _recipe(paths, method, **fields):
    roles = METHODS[method].roles or (None, None)
    sources = zip(paths, (0.7, -0.4), roles)
    return Recipe(
        tuple(Source(path=path, ratio=ratio, role=role) for path, ratio, role in sources),
        method=method,
        **fields,
    )


@pytest.mark.parametrize("method", CORE)
@pytest.mark.parametrize("rank", [None, RankPolicy("rank", 3), RankPolicy("energy", 0.9)])
def test_the_core_tells_what_the_merge_will_be(pair, monkeypatch, method, rank):
    recipe = _recipe(pair, method, rank=rank)
    seen = []
    look = forecast.look_in_core
    monkeypatch.setattr(forecast, "look_in_core", lambda *given: seen.append(given) or look(*given))
    quick = analyze(recipe, methods=[]).recipe
    assert len(seen) >= 6
    monkeypatch.setattr(forecast, "fits", lambda *_: False)
    slow = analyze(recipe, methods=[]).recipe
    for block, outcome in {"": quick.whole, **quick.blocks}.items():
        other = slow.blocks[block] if block else slow.whole
        for one, two in zip(astuple(outcome), astuple(other)):
            assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    assert quick.error == pytest.approx(slow.error, rel=1e-3, abs=1e-6)
    assert quick.rank == slow.rank
    assert quick.bytes == slow.bytes


def test_a_source_that_is_silent_somewhere_is_carried_out(pair):
    """Weight 0 at a block: nothing can be divided by it, so the merge itself is asked."""
    sources = (Source(path=pair[0], ratio=0.7), Source(path=pair[1], ratio=0.4, blocks={"IN04": 0.0}))
    found = analyze(Recipe(sources, method="tsv"), methods=[]).recipe
    assert found.blocks["IN04"].shares == pytest.approx((1.0, 0.0), abs=1e-3)
    assert all(math.isfinite(part.norm) for part in found.blocks.values())


def test_one_tree_serves_every_method(pair, monkeypatch):
    built = []
    monkeypatch.setattr(
        steps, "open_tree", lambda *given, **more: built.append(given) or open_tree(*given, **more)
    )
    rows = analyze(_recipe(pair, "weighted_sum")).methods
    assert {"tsv", "iso_c", "core_ties", "weighted_sum"} <= {row.name for row in rows}
    assert len(built) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("diffusers_sd15_r4_pokemon.safetensors", "cloneofsimo_sd15_r4_analog.safetensors"),
        ("lokr_kohya_sd15_r4.safetensors", "diffusers_oldest_sd15_r4.safetensors"),
    ],
)
@pytest.mark.slow
def test_figures_of_real_files_are_dense_ones(loras, names):
    """Every figure that a module's Gram matrices give, on a sample of modules of two real files."""
    ratios = (0.6, 0.4)
    paths = [loras / name for name in names]
    recipe = Recipe(tuple(Source(path=path, ratio=ratio) for path, ratio in zip(paths, ratios)))
    bench = analyze(recipe, carry_out=False).bench
    files = [open_lora(path) for path in paths]
    parts = [file.settled("SD1", drop_unsupported=True).parts() for file in files]
    from lib_merge.analysis.outcome import Weighing, direct, summed
    from lib_merge.analysis.sources import pair_parts
    from lib_merge.linalg.svd import effective_rank, stable_rank

    sample = [place for place, module in enumerate(bench.modules) if all(module.counts)][::25]
    assert len(sample) >= 3
    asked = np.tile(ratios, (len(bench.modules), 1))
    weighing = Weighing(asked, np.ones_like(asked), np.arange(2), ratios)
    everything = direct(bench, weighing, asked)
    for place in sample:
        module = bench.modules[place]
        name = module.task.name
        deltas = [
            part[name].load(file.file).dense(dtype=torch.float64).numpy() for part, file in zip(parts, files)
        ]
        for index, delta in enumerate(deltas):
            assert math.sqrt(module.products[index, index]) == pytest.approx(np.linalg.norm(delta), **CLOSE)
            assert effective_rank(module.spectra[index]) == pytest.approx(
                dense.effective_rank(delta), **CLOSE
            )
            assert stable_rank(module.spectra[index]) == pytest.approx(dense.stable_rank(delta), **CLOSE)
        own = bench.__class__(bench.family, bench.files, [module])
        part, _ = pair_parts(own, 0, 1)
        assert part.cosine == pytest.approx(dense.cosine(*deltas), rel=1e-6, abs=1e-6)
        assert part.expected == pytest.approx(dense.expected_conflict(*deltas), rel=1e-6)
        assert abs(part.conflict - dense.conflict(*deltas)) <= 5 * part.error
        for side, (seen, chance) in enumerate(
            ((part.overlap_out, part.chance_out), (part.overlap_in, part.chance_in))
        ):
            assert (seen, chance) == pytest.approx(dense.overlap(*deltas, side), rel=1e-6, abs=1e-7)
        wanted = [ratio * delta for ratio, delta in zip(ratios, deltas)]
        total = sum(wanted)
        outcome = summed(bench, everything.at([place]))
        norms = [np.linalg.norm(delta) for delta in wanted]
        assert outcome.norm == pytest.approx(np.linalg.norm(total), **CLOSE)
        assert outcome.cancel == pytest.approx(np.linalg.norm(total) / math.hypot(*norms), **CLOSE)
        assert outcome.shares == pytest.approx([norm / sum(norms) for norm in norms], **CLOSE)
        assert outcome.retention == pytest.approx(
            [dense.retention(total, delta) for delta in wanted], **CLOSE
        )
        assert outcome.crosstalk == pytest.approx(
            [dense.crosstalk(total, d) for d in wanted], rel=1e-6, abs=1e-7
        )
    for file in files:
        file.close()
