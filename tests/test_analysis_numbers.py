"""Every figure of an analysis beside its dense float64 definition."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from lib_merge import RankPolicy, Recipe, Source
from lib_merge.adapters import open_lora
from lib_merge.analysis import analyze, analyze_steps, reweigh
from lib_merge.linalg import LowRank, Term
from lib_merge.linalg.stack import stack
from tests.factories import CONV, NAMES, dense_of, lora_tensors, write, write_lora
from tests.reference import analysis as dense

# what Gram matrices alone tell: quick, and enough here
look = functools.partial(analyze, carry_out=False)

CLOSE = {"rel": 1e-6, "abs": 1e-9}
BLOCKS = {"IN04": NAMES[:2], "M00": NAMES[2:3], "OUT07": NAMES[3:4], "BASE": NAMES[4:], "OUT03": (CONV,)}


def _loha(generator, out, columns, rank=2):
    return {
        f"hada_w{half}_{side}": torch.randn(shape, generator=generator) * 0.3
        for half in "12"
        for side, shape in (("a", (out, rank)), ("b", (rank, columns)))
    }


def _lokr(generator):
    return {
        "lokr_w1": torch.randn(4, 5, generator=generator) * 0.3,
        "lokr_w2_a": torch.randn(6, 2, generator=generator) * 0.3,
        "lokr_w2_b": torch.randn(2, 4, generator=generator) * 0.3,
    }


def _mixed(path, seed):
    """A file with LoRA, LoCon, LoHa, LoKr and a whole matrix on the factories' modules."""
    from tests.reference.kinds import loha, lokr

    generator = torch.Generator().manual_seed(seed)
    tensors = lora_tensors(seed, rank=3)
    parts = {
        NAMES[0]: _lokr(generator),
        NAMES[2]: _loha(generator, 18, 18),
        NAMES[3]: {"diff": torch.randn(14, 30, generator=generator)},
    }
    for name, own in parts.items():
        for key in [key for key in tensors if key.startswith(f"{name}.")]:
            del tensors[key]
        tensors.update(
            {f"{name}.{role}" + (".weight" if role == "diff_" else ""): value for role, value in own.items()}
        )
    write(path, tensors)
    found = {name: delta for name, delta in dense_of(path).items() if name not in parts}
    found[NAMES[0]] = lokr({k: v.numpy() for k, v in parts[NAMES[0]].items()})
    found[NAMES[2]] = loha({k: v.numpy() for k, v in parts[NAMES[2]].items()})
    found[NAMES[3]] = parts[NAMES[3]]["diff"].double().numpy()
    return found


@pytest.fixture
def pair(tmp_path):
    """Paths and dense ΔW of two files: LoRA + LoCon in fp16 of another rank, and a mix of kinds."""
    one = write_lora(tmp_path / "one.safetensors", seed=1, rank=5, dtype=torch.float16)
    two = tmp_path / "two.safetensors"
    return (one, two), (dense_of(one), _mixed(two, 2))


def _of(deltas, names):
    return {name: deltas[name] for name in names}


def test_sources_agree_with_dense(pair):
    paths, both = pair
    report = look(paths)
    assert report.family == "SD1"
    for source, deltas in zip(report.sources, both):
        groups = {None: tuple(deltas), **BLOCKS}
        total = sum((d**2).sum() for d in deltas.values())
        assert set(source.blocks) == set(BLOCKS)
        for block, names in groups.items():
            part = source.whole if block is None else source.blocks[block]
            mine = _of(deltas, names)
            everything = dense.flat(mine)
            assert part.modules == len(names)
            assert part.entries == everything.size
            assert part.norm == pytest.approx(np.linalg.norm(everything), **CLOSE)
            assert part.share == pytest.approx((everything**2).sum() / total, **CLOSE)
            assert part.peak == pytest.approx(max(dense.spectrum(d)[0] for d in mine.values()), **CLOSE)
            assert part.effective_rank == pytest.approx(
                dense.weighted_mean(mine, dense.effective_rank), **CLOSE
            )
            assert part.stable_rank == pytest.approx(dense.weighted_mean(mine, dense.stable_rank), **CLOSE)
            assert dict(part.ranks) == {
                share: dense.rank_for(mine, share) for share in (0.9, 0.95, 0.99, 0.999)
            }
            assert part.mean == pytest.approx(everything.mean(), rel=1e-6, abs=1e-8 * everything.std())
            assert part.std == pytest.approx(everything.std(), **CLOSE)
            assert everything.min() - 1e-6 <= part.low <= part.high <= everything.max() + 1e-6


def test_tensors_are_exact(pair):
    from safetensors.torch import load_file

    paths, _ = pair
    report = look(paths)
    for source, path in zip(report.sources, paths):
        values = {k: v.double().numpy() for k, v in load_file(str(path)).items() if not k.endswith(".alpha")}
        assert {tensor.key for tensor in source.tensors} == set(values)
        for tensor in source.tensors:
            value = values[tensor.key]
            assert tensor.count == value.size
            found = (tensor.mean, tensor.std, tensor.low, tensor.high)
            assert found == pytest.approx(
                (value.mean(), value.std(), value.min(), value.max()), rel=1e-6, abs=1e-9
            )
        largest = max(abs(v).max() for v in values.values())
        assert source.largest == pytest.approx(largest)
        assert source.headroom == pytest.approx(65504 / largest)


@pytest.mark.slow
def test_pairs_agree_with_dense(pair):
    paths, (a, b) = pair
    found = look(paths).pairs[0]
    for block, names in {None: tuple(a), **BLOCKS}.items():
        part = found.whole if block is None else found.blocks[block]
        one, two = _of(a, names), _of(b, names)
        assert part.modules == len(names)
        assert part.cosine == pytest.approx(dense.cosine(dense.flat(one), dense.flat(two)), **CLOSE)
        for side, (seen, chance) in enumerate(
            ((part.overlap_out, part.chance_out), (part.overlap_in, part.chance_in))
        ):
            each = {n: dense.overlap(one[n], two[n], side) for n in names}
            least = {
                n: min(q.shape[1] for q in (dense.spaces(one[n])[side], dense.spaces(two[n])[side]))
                for n in names
            }
            slots = sum(least.values())
            assert seen == pytest.approx(sum(each[n][0] * least[n] for n in names) / slots, **CLOSE)
            assert chance == pytest.approx(sum(each[n][1] * least[n] for n in names) / slots, **CLOSE)
        sizes = np.array([one[n].size for n in names], dtype=float)
        expected = np.array([dense.expected_conflict(one[n], two[n]) for n in names])
        assert part.expected == pytest.approx(float(sizes @ expected / sizes.sum()), **CLOSE)
        true = float(sizes @ np.array([dense.conflict(one[n], two[n]) for n in names]) / sizes.sum())
        assert abs(part.conflict - true) <= 5 * part.error
        assert part.excess == pytest.approx(part.conflict - part.expected)
        assert part.samples == 4096 * len(names)


def test_conflict_is_seeded(pair):
    paths, _ = pair
    first, again, other = (look(paths, seed=seed).pairs[0].whole.conflict for seed in (0, 0, 1))
    assert first == again != other


def _weights(name, block_weights):
    block = next(block for block, names in BLOCKS.items() if name in names)
    return block_weights.get(block, 1.0)


def _total(both, ratios, blocks, te=None):
    found, parts = {}, []
    for deltas, ratio, own, encoder in zip(both, ratios, blocks, te or (None, None)):
        part = {
            n: d * (encoder if encoder is not None and n.startswith("lora_te") else ratio) * _weights(n, own)
            for n, d in deltas.items()
        }
        parts.append(part)
    for name in parts[0]:
        found[name] = sum(part[name] for part in parts)
    return found, parts


def _check_outcome(outcome, total, parts, full, names):
    tau = dense.flat(_of(total, names))
    norm = np.linalg.norm(tau)
    flat_parts = [dense.flat(_of(part, names)) for part in parts]
    norms = [np.linalg.norm(part) for part in flat_parts]
    assert outcome.norm == pytest.approx(norm, **CLOSE)
    assert outcome.apart == pytest.approx(math.hypot(*norms), **CLOSE)
    assert outcome.cancel == pytest.approx(norm / math.hypot(*norms), **CLOSE)
    assert outcome.to_source == pytest.approx(
        [norm / np.linalg.norm(dense.flat(_of(d, names))) for d in full], **CLOSE
    )
    assert outcome.shares == pytest.approx([value / sum(norms) for value in norms], **CLOSE)
    assert outcome.retention == pytest.approx([dense.retention(tau, part) for part in flat_parts], **CLOSE)
    for index, part in enumerate(parts):
        square = sum((dense.crosstalk(total[n], part[n]) * np.linalg.norm(part[n])) ** 2 for n in names)
        assert outcome.crosstalk[index] == pytest.approx(math.sqrt(square) / norms[index], **CLOSE)
    assert outcome.growth == pytest.approx(
        max(dense.growth(total[n], [p[n] for p in parts]) for n in names), **CLOSE
    )


@pytest.mark.slow
def test_weighted_sum_agrees_with_dense(pair):
    paths, both = pair
    blocks = ({"IN04": 0.3, "M00": 1.5}, {"OUT07": -0.5})
    sources = tuple(
        Source(path=path, ratio=ratio, blocks=own, te_ratio=te)
        for path, ratio, own, te in zip(paths, (0.7, 0.4), blocks, (None, 0.1))
    )
    report = look(Recipe(sources))
    total, parts = _total(both, (0.7, 0.4), blocks, (None, 0.1))
    for block, names in {None: tuple(total), **BLOCKS}.items():
        outcome = report.recipe.whole if block is None else report.recipe.blocks[block]
        _check_outcome(outcome, total, parts, both, names)
    assert report.recipe.direct
    assert report.recipe.total == pytest.approx(1.1)
    for point in report.recipe.curve:
        assert point.error == pytest.approx(dense.cut_error(total, point.rank), rel=1e-6, abs=1e-7)
        assert point.energy == pytest.approx(1 - point.error**2)
    cut = look(Recipe(sources, rank=RankPolicy("rank", 3)))
    assert cut.recipe.error == pytest.approx(dense.cut_error(total, 3), **CLOSE)
    assert cut.recipe.rank == (3, 3)


@pytest.mark.parametrize(
    "method", ["average", "norm_preserving", "slerp", "karcher", "model_stock", "orthogonal_subtract"]
)
def test_scalar_methods_agree_with_the_merge_itself(pair, tmp_path, method):
    from lib_merge import merge

    paths, both = pair
    sources = tuple(Source(path=path, ratio=ratio) for path, ratio in zip(paths, (0.7, 0.4)))
    report = look(Recipe(sources, method=method))
    out = tmp_path / "merged.safetensors"
    merge(list(sources), save_to=out, method=method, save_precision="float")
    total = {**{name: np.zeros_like(delta) for name, delta in both[0].items()}, **dense_of(out)}
    tau = dense.flat(total)
    assert report.recipe.whole.norm == pytest.approx(np.linalg.norm(tau), rel=1e-5)
    parts = [0.7 * dense.flat(both[0]), 0.4 * dense.flat(both[1])]
    assert report.recipe.whole.retention == pytest.approx(
        [dense.retention(tau, p) for p in parts], rel=1e-4, abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["decorrelated_sum", "tsv", "core_ties", "ties"])
def test_other_methods_agree_with_the_merge_itself(pair, tmp_path, method):
    from lib_merge import merge

    paths, both = pair
    sources = tuple(Source(path=path, ratio=ratio) for path, ratio in zip(paths, (0.7, 0.4)))
    assert look(Recipe(sources, method=method)).recipe is None
    report = analyze(Recipe(sources, method=method), methods=[method])
    out = tmp_path / "merged.safetensors"
    rank = "energy:1" if method == "ties" else "lossless"
    merge(list(sources), save_to=out, method=method, save_precision="float", rank=rank)
    total = dense_of(out)
    tau = dense.flat(total)
    whole = report.recipe.whole
    assert report.recipe.seen == (6, 6)
    assert whole.norm == pytest.approx(np.linalg.norm(tau), rel=1e-4)
    parts = [{n: 0.7 * d for n, d in both[0].items()}, {n: 0.4 * d for n, d in both[1].items()}]
    assert whole.retention == pytest.approx([dense.retention(tau, dense.flat(p)) for p in parts], rel=1e-4)
    for index, part in enumerate(parts):
        square = sum((dense.crosstalk(total[n], part[n]) * np.linalg.norm(part[n])) ** 2 for n in part)
        assert whole.crosstalk[index] == pytest.approx(
            math.sqrt(square) / np.linalg.norm(dense.flat(part)), rel=1e-3
        )
    fits = [
        [dense.best_fit(total[n], [p[n] for p in parts])[i] ** 2 * (p[n] ** 2).sum() for n in p]
        for i, p in enumerate(parts)
    ]
    sizes = [math.sqrt(sum(own)) for own in fits]
    assert whole.shares == pytest.approx([size / sum(sizes) for size in sizes], rel=1e-3)
    row = next(row for row in report.methods if row.name == method)
    plain = dense.flat({n: sum(p[n] for p in parts) for n in total})
    assert row.to_sum == pytest.approx(np.linalg.norm(tau) / np.linalg.norm(plain), rel=1e-4)
    assert row.cosine == pytest.approx(dense.cosine(tau, plain), rel=1e-4)


def test_groups_of_plain_sums_are_exact(pair, tmp_path):
    paths, both = pair
    third = write_lora(tmp_path / "three.safetensors", seed=7)
    inner = Recipe((Source(path=paths[0], ratio=0.5), Source(path=paths[1], ratio=0.25)))
    recipe = Recipe(
        (Source(recipe=inner, ratio=2.0, blocks={"M00": 0.5}), Source(path=third, ratio=0.3)),
        method="average",
    )
    report = look(recipe)
    everything = (*both, dense_of(third))
    total = {}
    for name in both[0]:
        scale = 2.0 * (0.5 if name in BLOCKS["M00"] else 1.0)
        weights = (scale * 0.5, scale * 0.25, 0.3)
        total[name] = sum(w * d[name] for w, d in zip(weights, everything)) / (abs(scale) + 0.3)
    assert report.recipe.whole.norm == pytest.approx(np.linalg.norm(dense.flat(total)), **CLOSE)
    assert report.recipe.direct


def test_reweigh_is_a_fresh_analysis(pair):
    paths, _ = pair
    changed = Recipe(
        (Source(path=paths[0], ratio=0.2), Source(path=paths[1], ratio=0.9, blocks={"IN04": 0.0}))
    )
    again, fresh = reweigh(look(paths), changed, carry_out=False), look(changed)
    assert again.recipe == fresh.recipe
    assert again.methods == fresh.methods
    assert again.advice == fresh.advice


def test_gauge_does_not_matter(tmp_path):
    tensors = lora_tensors(3)
    plain = write(tmp_path / "plain.safetensors", tensors)
    generator = torch.Generator().manual_seed(0)
    turned = dict(tensors)
    for name in NAMES:
        mixed = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[
            0
        ] * torch.tensor([1, 5, 25, 100.0])
        turned[f"{name}.lora_up.weight"] = (tensors[f"{name}.lora_up.weight"].double() @ mixed).float()
        turned[f"{name}.lora_down.weight"] = (
            torch.linalg.inv(mixed) @ tensors[f"{name}.lora_down.weight"].double()
        ).float()
    other = write_lora(tmp_path / "other.safetensors", seed=9)
    a, b = (look([path, other]) for path in (plain, write(tmp_path / "turned.safetensors", turned)))
    assert b.recipe.whole.crosstalk == pytest.approx(a.recipe.whole.crosstalk, rel=1e-4)
    assert b.pairs[0].whole.overlap_in == pytest.approx(a.pairs[0].whole.overlap_in, rel=1e-4)
    assert b.sources[0].whole.effective_rank == pytest.approx(a.sources[0].whole.effective_rank, rel=1e-5)


def test_large_modules_keep_their_digits():
    """float32 Grams, and float64 ones where those would lose digits."""
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(1280, 32, generator=generator), torch.randn(32, 1280, generator=generator)
    other = torch.randn(1280, 32, generator=generator), torch.randn(32, 1280, generator=generator)
    near = up + 1e-4 * other[0]
    exact = [u.double() @ d.double() for u, d in ((up, down), other, (near, down))]
    terms = [LowRank(1280, 1280, (Term(1.0, u, d),)) for u, d in ((up, down), other, (near, down))]
    for picked, dtype in (((0, 1), torch.float32), ((0, 2), torch.float64)):
        found, _ = stack([terms[index] for index in picked], 1280, 1280)
        assert found.up.dtype is dtype
        a, b = (exact[index] for index in picked)
        size = float(torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b))
        assert abs(found.products[0, 1] - float((a * b).sum())) <= 1e-7 * size
        assert found.products[0, 0] == pytest.approx(float((a * a).sum()), rel=1e-6)
    apart = found.products[0, 0] + found.products[1, 1] - 2 * found.products[0, 1]
    assert apart == pytest.approx(float((exact[0] - exact[2]).square().sum()), rel=1e-5)


@pytest.mark.parametrize(
    "names",
    [
        ("diffusers_sd15_r4_pokemon.safetensors", "cloneofsimo_sd15_r4_analog.safetensors"),
        ("lokr_kohya_sd15_r4.safetensors", "peft_sd15_r4_alpha16.safetensors"),
    ],
)
@pytest.mark.slow
def test_real_files_agree_with_dense(loras, names):
    paths = [loras / name for name in names]
    report = look(paths)
    files = [open_lora(path) for path in paths]
    parts = [file.settled("SD1", drop_unsupported=True).parts() for file in files]
    sample = [m for m in report.bench.modules if all(m.counts)][::40]
    assert sample
    for module in sample:
        name = module.task.name
        a, b = (
            part[name].load(file.file).dense(dtype=torch.float64).numpy() for part, file in zip(parts, files)
        )
        for index, delta in enumerate((a, b)):
            assert module.products[index, index] == pytest.approx((delta**2).sum(), rel=1e-6)
            rank = module.ranks[index]
            assert module.spectra[index] == pytest.approx(
                dense.spectrum(delta)[:rank], rel=1e-6, abs=1e-7 * module.spectra[index][0]
            )
            assert module.sums[index] == pytest.approx(delta.sum(), rel=1e-6, abs=1e-8 * np.abs(delta).sum())
        size = np.linalg.norm(a) * np.linalg.norm(b)
        assert module.products[0, 1] == pytest.approx((a * b).sum(), rel=1e-6, abs=1e-6 * size)
        for side, found in enumerate((module.out_overlap, module.in_overlap)):
            least = min(module.counts)
            assert found[0, 1] / least == pytest.approx(dense.overlap(a, b, side)[0], rel=1e-5, abs=1e-6)
        assert math.sqrt(module.talk[0, 1, 1]) / np.linalg.norm(a) == pytest.approx(
            dense.crosstalk(a + b, a), rel=1e-5
        )
    for file in files:
        file.close()


def test_steps_come_in_order_and_leave_threads_alone(pair):
    paths, _ = pair
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = [report.stage for report in analyze_steps(paths, carry_out=False)]
        assert torch.get_num_threads() == 2
        other = []
        import threading

        thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert other == [2]
    finally:
        torch.set_num_threads(before)
    assert seen == ["files", "sources", "pairs", "recipe", "methods", "advice"]


@pytest.mark.parametrize("rank", ["lossless", "3", "energy:0.9", "error:0.2"])
def test_size_and_error_are_foretold(samples, tmp_path, rank):
    from lib_merge import merge, parse_policy

    sources = tuple(Source(path=path) for path in samples[:2])
    report = look(Recipe(sources, rank=parse_policy(rank))).recipe
    merged = merge(samples[:2], save_to=tmp_path / "merged.safetensors", rank=rank)
    assert report.bytes == pytest.approx(merged.bytes, rel=0.01)
    assert report.error == pytest.approx(math.sqrt(max(0.0, 1 - merged.energy_kept)), rel=1e-4, abs=1e-6)
    assert report.rank == (merged.ranks()["min"], merged.ranks()["max"])
