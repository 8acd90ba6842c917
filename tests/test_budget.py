"""A budget: one size for the whole file, shared so that no other sharing of it loses less."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lib_merge import merge, resize
from lib_merge.adapters import open_lora
from lib_merge.errors import RecipeError
from lib_merge.ranks.budget import allot, fewest
from tests.factories import dense_of, relative, write_lora


class Shape:
    def __init__(self, out, columns):
        self.out, self.columns = out, columns


def _lost(spectra, ranks):
    return sum((values[ranks[name] :] ** 2).sum() for name, values in spectra.items())


@pytest.mark.parametrize("seed", range(20))
def test_no_other_sharing_of_the_bytes_is_much_better(seed):
    """Against every possible sharing of small modules: the greedy one is within one rank of the best."""
    rng = np.random.default_rng(seed)
    targets = {name: Shape(*map(int, rng.integers(3, 20, 2))) for name in "abc"}
    spectra = {name: np.sort(rng.exponential(size=4))[::-1] for name in targets}
    price = {name: 2 * (t.out + t.columns) for name, t in targets.items()}
    budget = int(rng.integers(max(price.values()), 4 * sum(price.values())))
    ranks = allot(spectra, price, budget, {})
    spent = sum(ranks[name] * price[name] for name in ranks)
    assert spent <= budget
    choices = [
        dict(zip(targets, found))
        for found in itertools.product(range(5), repeat=3)
        if sum(count * price[name] for name, count in zip(targets, found)) <= budget
    ]
    best = min(_lost(spectra, found) for found in choices)
    dearest = max((values[0] ** 2 for values in spectra.values()), default=0)
    assert _lost(spectra, ranks) <= best + dearest
    uniform = [found for found in choices if len(set(found.values())) == 1]
    assert _lost(spectra, ranks) <= min(_lost(spectra, found) for found in uniform) + 1e-12


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_budget_is_never_worse_than_a_fixed_rank_of_the_same_size(rank, tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=6, size=0.1 * (n + 1)) for n in range(2)]
    fixed = merge(paths, save_to=tmp_path / "fixed.safetensors", rank=rank, save_precision="float")
    shared = merge(
        paths,
        save_to=tmp_path / "shared.safetensors",
        rank=f"budget:{fixed.bytes + 256}B",
        save_precision="float",
    )
    assert shared.bytes <= fixed.bytes + 256  # two headers are not equally long
    assert shared.relative_error <= fixed.relative_error + 1e-6
    asked = merge(paths, save_to=tmp_path / "asked.safetensors", save_precision="float")
    found = relative(dense_of(tmp_path / "shared.safetensors"), dense_of(tmp_path / "asked.safetensors"))
    assert found == pytest.approx(shared.relative_error, abs=1e-5)
    assert asked.relative_error <= 1e-6


def test_a_real_lora_fits_its_budget_and_beats_the_fixed_rank(loras, tmp_path):
    source = loras / "peft_sd15_r4_alpha16.safetensors"
    fixed = resize(source, rank=2, save_to=tmp_path / "fixed.safetensors")
    shared = resize(source, rank=f"budget:{fixed.bytes}", save_to=tmp_path / "shared.safetensors")
    assert shared.bytes <= fixed.bytes + 256  # two headers are not equally long
    assert shared.energy_kept > fixed.energy_kept


def test_a_budget_that_holds_everything_cuts_nothing(tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    report = merge(paths, save_to=tmp_path / "m.safetensors", rank="budget:1GB", save_precision="float")
    assert report.relative_error <= 1e-6
    assert not report.left_out


def test_dense_methods_and_pruning_share_a_budget_too(tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    plain = merge(paths, save_to=tmp_path / "p.safetensors", method="ties", rank=2)
    report = merge(
        paths, save_to=tmp_path / "m.safetensors", method="ties", rank=f"budget:{plain.bytes}B", prune=0.01
    )
    assert report.bytes <= plain.bytes
    assert report.energy_kept >= plain.energy_kept - 1e-9


def test_a_budget_that_is_too_small_is_one_sentence(tmp_path):
    path = write_lora(tmp_path / "a.safetensors")
    with pytest.raises(RecipeError, match="too small: this merge needs"):
        merge([path], save_to=tmp_path / "m.safetensors", rank="budget:2kB")
    assert not (tmp_path / "m.safetensors").exists()
    for text in (
        "budget:",
        "budget:0MB",
        "budget:-1MB",
        "budget:nanMB",
        "budget:1TB",
        "budget:50 apples",
        "50MB",
    ):
        with pytest.raises(RecipeError, match="is not understood"):
            merge([path], save_to=tmp_path / "m.safetensors", rank=text)


def test_text_encoder_attention_of_sdxl_is_never_torn_apart(tmp_path):
    from lib_merge.samples import synthetic_lora
    from tests.factories import write

    names = [f"lora_te2_text_model_encoder_layers_0_self_attn_{x}_proj" for x in ("q", "k", "v", "out")]
    rows = [(n, "lin", 1280, 1280, 0) for n in names]
    rows += [("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", "lin", 640, 2048, 0)]
    tensors = synthetic_lora(rows, 4, strength=lambda n: 1e-4 if n.endswith(("q_proj", "out_proj")) else 1.0)
    path = write(tmp_path / "a.safetensors", tensors)
    full = merge([path], save_to=tmp_path / "f.safetensors")
    report = merge(
        [path], save_to=tmp_path / "m.safetensors", rank=f"budget:{full.bytes // 1000 * 1000 - 30000}B"
    )
    pruned = merge([path], save_to=tmp_path / "p.safetensors", prune=0.01)
    for name in ("m", "p"):
        with open_lora(tmp_path / f"{name}.safetensors") as file:
            assert set(names) <= set(file.modules)
    assert report.bytes < full.bytes
    assert pruned.bytes == full.bytes  # nothing but what the loader needs was weak enough to go


def test_much_cut_is_said_with_a_way_out(tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=6) for n in range(2)]
    plain = merge(paths, save_to=tmp_path / "a.safetensors", rank=2)
    [said] = [text for text in plain.warnings if "threw away" in text]
    rank = int(said.split("rank ")[-1].split()[0])
    again = merge(paths, save_to=tmp_path / "b.safetensors", rank=rank)
    assert again.energy_kept >= 0.95
    less = merge(paths, save_to=tmp_path / "c.safetensors", rank=rank - 1)
    assert less.energy_kept < 0.95
    dense = merge(paths, save_to=tmp_path / "d.safetensors", method="ties", rank=2)
    assert any(
        "Core-space TIES needs no cut: it works in the LoRAs' shared directions" in text
        for text in dense.warnings
    )


def test_a_result_that_is_nearly_empty_or_inflated_is_said(tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    stock = merge(paths, save_to=tmp_path / "a.safetensors", method="model_stock")
    assert any("next to nothing is left" in text for text in stock.warnings)
    gone = merge(
        [paths[0]] * 2, ratios=[1.0, -0.999], save_to=tmp_path / "b.safetensors", save_precision="float"
    )
    assert any("next to nothing is left" in text for text in gone.warnings)
    blown = merge(
        paths, save_to=tmp_path / "c.safetensors", method="dare", knobs={"drop_rate": 0.95}, rank=64
    )
    assert any("inflated" in text for text in blown.warnings)
    opposite = merge(
        [paths[0]] * 2,
        ratios=[1.0, -1.0],
        save_to=tmp_path / "d.safetensors",
        method="slerp",
        knobs={"t": 0.3},
    )
    assert any("opposite directions" in text for text in opposite.warnings)
    plain = merge(paths, ratios=[0.6, 0.4], save_to=tmp_path / "e.safetensors")
    assert not plain.warnings


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6])
def test_a_very_faint_result_survives_half_precision(size, tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n, size=0.1) for n in range(2)]
    for rank in ("lossless", "3"):
        report = merge(paths, ratios=[size, size], save_to=tmp_path / f"m{rank}.safetensors", rank=rank)
        exact = merge(
            paths,
            ratios=[size] * 2,
            save_to=tmp_path / f"f{rank}.safetensors",
            rank=rank,
            save_precision="float",
        )
        assert (
            relative(dense_of(tmp_path / f"m{rank}.safetensors"), dense_of(tmp_path / f"f{rank}.safetensors"))
            <= 1e-3
        )
        assert report.energy_kept == pytest.approx(exact.energy_kept, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_the_fewest_bytes_that_keep_a_share_are_a_budget_of_that_size(share):
    g = np.random.default_rng(5)
    spectra = {f"m{n}": np.sort(g.exponential(size=6))[::-1] for n in range(4)}
    price = {name: 10 * (n + 1) for n, name in enumerate(spectra)}
    ranks = fewest(spectra, price, share)
    total = _lost(spectra, dict.fromkeys(spectra, 0))
    assert 1 - _lost(spectra, ranks) / total >= share - 1e-9
    spent = sum(ranks[name] * price[name] for name in spectra)
    assert _lost(spectra, allot(spectra, price, spent, {})) <= _lost(spectra, ranks) + 1e-12
    if share < 1:  # one rank less, of whatever buys least, is not enough
        last = min(
            (name for name in spectra if ranks[name]),
            key=lambda name: spectra[name][ranks[name] - 1] ** 2 / price[name],
        )
        assert 1 - _lost(spectra, {**ranks, last: ranks[last] - 1}) / total < share
