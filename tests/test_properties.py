"""The rules every merge keeps, through whole files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lib_merge import METHODS, Job, Source, merge
from lib_merge.engine.tree import Node
from lib_merge.recipe import Recipe
from tests.factories import NAMES, dense_of, lora_tensors, relative, write, write_lora
from tests.reference import merge as reference

FLOAT = {"save_precision": "float", "job": Job(overwrite=True, side_car=False)}
EXACT = [name for name, method in METHODS.items() if method.space in ("scalar", "core")]


def _count(name):
    return max(2, METHODS[name].sources[0])


@pytest.fixture
def files(tmp_path):
    kinds = ((0, 4, 2.0), (1, 3, None), (2, 6, 1.5))
    return [write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=r, alpha=a) for n, r, a in kinds]


@pytest.mark.slow
@given(
    ratios=st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=3, max_size=3),
    rank=st.sampled_from(["lossless", "5", "12"]),
)
def test_a_weighted_sum_is_the_weighted_sum(ratios, rank, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sum")
    paths = [write_lora(folder / f"{n}.safetensors", seed=n, rank=2 + n) for n in range(3)]
    if not any(ratios):
        return
    out = folder / "m.safetensors"
    report = merge(paths, ratios=ratios, save_to=out, rank=rank, **FLOAT)
    dense = [dense_of(path) for path in paths]
    wanted = {name: reference.weighted_sum([d[name] for d in dense], ratios) for name in dense[0]}
    error = relative(dense_of(out), wanted)
    if rank == "lossless" or rank == "12":
        assert error <= 1e-6
    else:
        cut = sum(reference.truncate(value, 5)[1] ** 2 for value in wanted.values()) ** 0.5
        size = sum(np.square(value).sum() for value in wanted.values()) ** 0.5
        assert error <= 1.01 * cut / size + 1e-6
    assert report.relative_error == pytest.approx(error, rel=0.02, abs=2e-7)


@pytest.mark.parametrize("ratio", [1.0, 0.5, -1.0, 2.0])
def test_one_source_comes_back_scaled_by_its_ratio_and_by_nothing_else(ratio, files, tmp_path):
    out = tmp_path / "m.safetensors"
    merge(files[:1], ratios=[ratio], save_to=out, **FLOAT)
    wanted = {name: ratio * value for name, value in dense_of(files[0]).items()}
    assert relative(dense_of(out), wanted) <= 1e-7


def test_fp16_is_one_rounding_away(files, tmp_path):
    out = tmp_path / "m.safetensors"
    report = merge(files, ratios=[0.6, 0.4, -0.3], save_to=out)
    dense = [dense_of(path) for path in files]
    wanted = {n: reference.weighted_sum([d[n] for d in dense], [0.6, 0.4, -0.3]) for n in dense[0]}
    assert relative(dense_of(out), wanted) <= 5e-4
    assert report.relative_error <= 5e-4


@pytest.mark.parametrize("size", [1e-4, 1e-2, 30.0])
def test_tiny_and_huge_factors_stay_exact_in_fp16(size, tmp_path):
    tensors = lora_tensors(0, size=1.0)
    for key in tensors:
        if "lora_up" in key:
            tensors[key] = tensors[key] * size / 20
        if "lora_down" in key:
            tensors[key] = tensors[key] / size
    path = write(tmp_path / "a.safetensors", tensors)
    report = merge([path], ratios=[0.7], save_to=tmp_path / "m.safetensors")
    assert report.relative_error <= 5e-4


def _gauged(tensors, seed):
    g = torch.Generator().manual_seed(seed)
    done = dict(tensors)
    for key in [k for k in tensors if "lora_up" in k]:
        down_key = key.replace("lora_up", "lora_down")
        up, down = tensors[key].double(), tensors[down_key].double()
        r = down.shape[0]
        u, _, v = torch.linalg.svd(torch.randn(r, r, generator=g, dtype=torch.float64))
        gauge = u @ torch.diag(torch.logspace(0, -3, r, dtype=torch.float64)) @ v
        done[key] = (up.flatten(1) @ gauge).reshape(up.shape).float()
        done[down_key] = (torch.linalg.inv(gauge) @ down.flatten(1)).reshape(down.shape).float()
    return done


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("rank", ["lossless", "4"])
def test_how_a_lora_is_factored_does_not_matter(name, rank, tmp_path, monkeypatch):
    # masks are keyed by the file's hash, which the gauge changes: here by the source's number, so that they stay equal
    monkeypatch.setattr(Node, "identities", property(lambda node: [one.label[-1] for one in node.children]))
    count = _count(name)
    roles = list(METHODS[name].roles) or [None] * count
    plain = [lora_tensors(n, rank=3 + n) for n in range(count)]
    outputs = []
    for label, change in (("a", lambda t, _: t), ("b", _gauged)):
        paths = [write(tmp_path / f"{label}{n}.safetensors", change(t, n)) for n, t in enumerate(plain)]
        sources = [
            Source(path=p, name=p.name, ratio=0.8 - 0.3 * n, role=roles[n]) for n, p in enumerate(paths)
        ]
        out = tmp_path / f"m{label}.safetensors"
        merge(sources, save_to=out, method=name, rank=rank, **FLOAT)
        outputs.append(dense_of(out))
    assert relative(outputs[1], outputs[0]) <= 2e-4


def test_a_badly_conditioned_lora_is_factored_anew_instead_of_magnifying_one_rounding(tmp_path):
    path = write(tmp_path / "a.safetensors", _gauged(lora_tensors(0, rank=6), 1))
    report = merge([path], ratios=[0.7], save_to=tmp_path / "m.safetensors")
    assert report.relative_error <= 5e-4
    assert (
        relative(dense_of(tmp_path / "m.safetensors"), {n: 0.7 * v for n, v in dense_of(path).items()})
        <= 5e-4
    )


@pytest.mark.parametrize("name", list(METHODS))
def test_the_order_of_sources_matters_only_where_the_method_says_so(name, tmp_path):
    method = METHODS[name]
    count = _count(name)
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n) for n in range(count)]
    ratios = [0.8, 0.3, 0.5][:count]
    roles = list(method.roles) or [None] * count  # a role stays with its source
    given = [Source(path=p, name=p.name, ratio=r, role=role) for p, r, role in zip(paths, ratios, roles)]
    outputs = []
    # A + 1·B is symmetric, A + f·B is not; the arc's middle is symmetric, other places on it are not
    knobs = {"add_difference": {"factor": 0.5}, "slerp": {"t": 0.3}}.get(name, {})
    for order in (slice(None), slice(None, None, -1)):
        out = tmp_path / "m.safetensors"
        merge(given[order], save_to=out, method=name, knobs=knobs, seed=3, **FLOAT)
        outputs.append(dense_of(out))
    same = relative(outputs[1], outputs[0]) <= 1e-4
    assert same == method.symmetric


@pytest.mark.parametrize("name", list(METHODS))
def test_a_module_that_a_source_lacks_is_a_zero_delta(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Node, "identities", property(lambda node: [one.label for one in node.children]))
    method = METHODS[name]
    count = _count(name)
    full = lora_tensors(1)
    part = {key: value for key, value in full.items() if not key.startswith((NAMES[0], NAMES[3]))}
    zeros = {
        key: value if key in part or "up" not in key else torch.zeros_like(value)
        for key, value in full.items()
    }
    others = [write_lora(tmp_path / f"o{n}.safetensors", seed=5 + n) for n in range(count - 1)]
    roles = list(method.roles) or [None] * count
    outputs = []
    for tensors in (part, zeros):
        path = write(tmp_path / "x.safetensors", tensors)
        sources = [
            Source(path=p, name=p.name, ratio=0.7, role=roles[n]) for n, p in enumerate([*others, path])
        ]
        out = tmp_path / "m.safetensors"
        merge(sources, save_to=out, method=name, rank="20", **FLOAT)
        outputs.append(dense_of(out))
    assert relative(outputs[0], outputs[1]) <= 1e-5


@pytest.mark.parametrize("name", list(METHODS))
def test_the_same_seed_gives_the_same_bytes_for_any_thread_count(name, files, tmp_path, monkeypatch):
    from lib_merge.engine import threads

    count = _count(name)
    roles = list(METHODS[name].roles) or [None] * count
    sources = [Source(path=p, name=p.name, ratio=0.5, role=roles[n]) for n, p in enumerate(files[:count])]
    seen = set()
    before = torch.get_num_threads()
    for workers, blas in ((1, 1), (2, 2), (4, 1)):
        monkeypatch.setattr(threads, "worker_count", lambda _, workers=workers: workers)
        torch.set_num_threads(blas)
        merge(
            sources,
            save_to=tmp_path / "m.safetensors",
            method=name,
            rank="3",
            seed=7,
            job=Job(overwrite=True),
        )
        seen.add((tmp_path / "m.safetensors").read_bytes())
        assert torch.get_num_threads() == blas
    torch.set_num_threads(before)
    assert len(seen) == 1


def test_another_seed_gives_another_mask(files, tmp_path):
    merge(files[:2], save_to=tmp_path / "a.safetensors", method="dare", seed=1, **FLOAT)
    merge(files[:2], save_to=tmp_path / "b.safetensors", method="dare", seed=2, **FLOAT)
    assert relative(dense_of(tmp_path / "a.safetensors"), dense_of(tmp_path / "b.safetensors")) > 0.1


def test_the_same_file_twice_adds_up_with_a_warning(files, tmp_path):
    out = tmp_path / "m.safetensors"
    report = merge([files[0], files[0]], ratios=[0.5, 0.25], save_to=out, **FLOAT)
    wanted = {name: 0.75 * value for name, value in dense_of(files[0]).items()}
    assert relative(dense_of(out), wanted) <= 1e-6
    assert any("more than once" in warning for warning in report.warnings)


@pytest.mark.parametrize("elect", ["mass", "count"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("trim", [0.0, 0.2, 0.7])
def test_ties_is_ties(elect, normalize, trim, files, tmp_path):
    out = tmp_path / "m.safetensors"
    knobs = {"trim_fraction": trim, "elect": elect, "normalize": normalize}
    ratios = [0.6, 0.4, -0.5]
    merge(files, ratios=ratios, save_to=out, method="ties", knobs=knobs, rank="768", **FLOAT)
    dense = [dense_of(path) for path in files]
    wanted = {
        n: reference.ties([d[n] for d in dense], ratios, trim, elect, normalize)
        for n in dense[0]
        if "_te_" not in n
    }
    found = {name: value for name, value in dense_of(out).items() if name in wanted}
    assert relative(found, wanted) <= 1e-5


def test_dare_drops_the_asked_share_and_keeps_the_mean(tmp_path):
    path = write_lora(tmp_path / "a.safetensors", seed=1, names=NAMES[4:5] + NAMES[1:2], conv=False)
    out = tmp_path / "m.safetensors"
    merge([path], save_to=out, method="dare", knobs={"drop_rate": 0.4}, rank="768", **FLOAT)
    before, after = dense_of(path)[NAMES[4]], dense_of(out)[NAMES[4]]
    kept = np.abs(after) > 0.5 * np.abs(before)
    assert kept.mean() == pytest.approx(0.6, abs=0.01)
    np.testing.assert_allclose(after[kept], before[kept] / 0.6, rtol=1e-2, atol=1e-4)


def test_groups_merge_inside_first_and_each_level_can_be_kept(files, tmp_path):
    inner = Recipe(tuple(Source(path=p, name=p.name, ratio=r) for p, r in zip(files[:2], (0.5, 0.7))))
    sources = [
        Source(recipe=inner, ratio=0.6, name="styles"),
        Source(path=files[2], name=files[2].name, ratio=0.4),
    ]
    out = tmp_path / "m.safetensors"
    report = merge(sources, save_to=out, keep_levels=tmp_path / "levels", **FLOAT)
    dense = [dense_of(path) for path in files]
    wanted = {n: reference.weighted_sum([d[n] for d in dense], [0.3, 0.42, 0.4]) for n in dense[0]}
    assert relative(dense_of(out), wanted) <= 1e-6
    (level,) = (tmp_path / "levels").glob("*.safetensors")
    half = {n: reference.weighted_sum([d[n] for d in dense[:2]], [0.5, 0.7]) for n in dense[0]}
    assert relative(dense_of(level), half) <= 5e-4
    assert any("level" in warning for warning in report.warnings)


def test_a_group_with_a_rank_is_cut_before_it_is_merged(files, tmp_path):
    from lib_merge import parse_policy

    inner = Recipe(tuple(Source(path=p, name=p.name) for p in files[:2]), rank=parse_policy("2"))
    out = tmp_path / "m.safetensors"
    merge([Source(recipe=inner), Source(path=files[2], name="c")], save_to=out, **FLOAT)
    dense = [dense_of(path) for path in files]
    wanted = {n: reference.truncate(dense[0][n] + dense[1][n], 2)[0] + dense[2][n] for n in dense[0]}
    assert relative(dense_of(out), wanted) <= 1e-4


@pytest.mark.parametrize("count", [2, 3])
def test_add_difference_keeps_the_first_whole(count, files, tmp_path):
    out = tmp_path / "m.safetensors"
    merge(files[:count], save_to=out, method="add_difference", knobs={"factor": 0.7}, **FLOAT)
    dense = [dense_of(path) for path in files[:count]]
    wanted = {n: reference.add_difference([d[n] for d in dense], [1.0] * count, 0.7) for n in dense[0]}
    assert relative(dense_of(out), wanted) <= 1e-6


def test_pruning_drops_weak_ranks_and_modules_and_says_what_it_cost(tmp_path):
    tensors = lora_tensors(0, rank=6)
    for key in tensors:
        if "lora_up" in key:
            tensors[key] = tensors[key] * torch.tensor([1, 1, 1, 1e-4, 1e-4, 1e-4]).reshape(
                1, 6, *[1] * (tensors[key].ndim - 2)
            )
        if key.startswith(NAMES[2]) and "lora_up" in key:
            tensors[key] = tensors[key] * 1e-6
    path = write(tmp_path / "a.safetensors", tensors)
    out = tmp_path / "m.safetensors"
    report = merge([path], save_to=out, prune=0.01, **FLOAT)
    saved = dense_of(out)
    assert NAMES[2] not in saved
    assert report.ranks()["max"] == 3
    assert report.left_out[NAMES[2]] == "pruned"
    assert 0 < report.pruned["relative_error"] < 1e-3
    plain = merge([path], save_to=tmp_path / "p.safetensors", **FLOAT)
    written = sum(value.numel() for value in load_file(str(tmp_path / "p.safetensors")).values())
    kept = sum(value.numel() for value in load_file(str(out)).values())
    assert report.pruned["bytes_saved"] == pytest.approx(4 * (written - kept), abs=16)
    assert plain.bytes > report.bytes
    error = relative(saved, dense_of(path))
    assert error == pytest.approx(report.pruned["relative_error"], rel=0.2)
