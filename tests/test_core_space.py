"""The small space of core methods: bases, SVDs and distances against plain float64 matrices, on easy and on hard factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lib_merge.engine.evaluate as evaluate
import lib_merge.engine.merge as engine_merge
from lib_merge import Job, Source, merge
from lib_merge.errors import FileFormatError, NumericsError
from lib_merge.linalg import Dense, LowRank, Term, difference_norm, zero
from lib_merge.linalg.core import Bases, column_products, core_space
from lib_merge.linalg.svd import bracket, order_statistic, polar, product_svd, solve, svd
from lib_merge.linalg.truncate import compress
from lib_merge.ranks.policy import RankPolicy
from tests.factories import write_lora


def _delta(seed, rank=5, out=40, columns=30, scale=0.7, spectrum=None):
    g = torch.Generator().manual_seed(seed)
    up, down = torch.randn(out, rank, generator=g), torch.randn(rank, columns, generator=g)
    if spectrum is not None:
        up = up * torch.tensor(spectrum)
    return LowRank(out, columns, (Term(scale, up, down),))


def _regauged(delta, condition, seed=9):
    term = delta.terms[0]
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(term.rank, term.rank, generator=g, dtype=torch.float64))
    gauge = q * torch.logspace(0, math.log10(condition), term.rank, dtype=torch.float64)
    up = term.up.double() @ gauge
    down = torch.linalg.solve(gauge, term.down.double())
    return LowRank(delta.out, delta.columns, (Term(term.scale, up, down),))


A, B = _delta(1), _delta(2, rank=3, scale=-0.4)
CASES = {
    "two strangers": [A, B],
    "the same file twice": [A, A],
    "near-duplicates": [A, LowRank(40, 30, (Term(0.7, A.terms[0].up * (1 + 1e-7), A.terms[0].down),))],
    "bad gauge": [_regauged(A, 1e3), B],
    "worse gauge": [_regauged(A, 1e7), B],
    "a source that is zero here": [A, zero(40, 30)],
    "a source of zeros": [A, LowRank(40, 30, (Term(1.0, torch.zeros(40, 2), torch.zeros(2, 30)),))],
    "rank 1": [_delta(3, rank=1), _delta(4, rank=1)],
    "more ranks than rows": [_delta(5, 6, 8, 30), _delta(6, 7, 8, 30)],
    "steep": [_delta(7, spectrum=[1, 1e-1, 1e-2, 1e-3, 1e-4]), B],
    "three, one of two terms": [A, B, LowRank(40, 30, (*_delta(8).terms, *_delta(9, rank=2).terms))],
    "a whole matrix": [A, Dense(0.5, torch.randn(40, 30, generator=torch.Generator().manual_seed(1)))],
}


def _dense(delta):
    return delta.dense(dtype=torch.float64)


@pytest.mark.parametrize("bases", list(Bases))
@pytest.mark.parametrize("case", list(CASES))
def test_bases_are_orthonormal_and_hold_every_source(case, bases):
    deltas = CASES[case]
    space = core_space(deltas, bases)
    wanted = [_dense(delta) for delta in deltas]
    size = max(float(item.norm()) for item in wanted)
    left = space.up.matrix("cpu", torch.float64) @ space.to_left
    assert torch.allclose(left.T @ left, torch.eye(left.shape[1], dtype=torch.float64), atol=1e-6)
    for place, item in enumerate(wanted):
        assert float((left @ space.rows(place).double() - item).norm()) <= 2e-6 * size
    if bases is Bases.LEFT:
        main = torch.linalg.svdvals(torch.cat(wanted, 1))[: left.shape[1]]
        found = sum(left.T @ item @ item.T @ left for item in wanted)
        assert torch.allclose(found, main.square().diag(), atol=1e-9 * float(main[0]) ** 2)
        return
    right = space.basis_rows().double()
    assert torch.allclose(right @ right.T, torch.eye(len(right), dtype=torch.float64), atol=1e-5)
    for core, item in zip(space.cores, wanted):
        assert float((left @ core @ right - item).norm()) <= 2e-6 * size
    if bases is Bases.SINGULAR:
        tall = sum(core @ core.T for core in space.cores)
        assert torch.allclose(tall, tall.diagonal().diag(), atol=1e-9 * float(tall[0, 0]))


def test_a_space_of_nothing_is_none_and_nan_is_an_error():
    assert core_space([zero(4, 5), zero(4, 5)]) is None
    assert core_space([LowRank(4, 5, (Term(1.0, torch.zeros(4, 2), torch.zeros(2, 5)),))]) is None
    broken = LowRank(4, 5, (Term(1.0, torch.full((4, 2), math.nan), torch.ones(2, 5)),))
    for look in (core_space, column_products):
        with pytest.raises(NumericsError):
            look([broken])


@pytest.mark.parametrize("case", list(CASES))
def test_products_of_columns(case):
    deltas = CASES[case]
    wanted = torch.stack([_dense(delta) for delta in deltas])
    wanted = torch.einsum("soi,toi->sti", wanted, wanted)
    assert float((column_products(deltas) - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize(
    "case", ["two strangers", "bad gauge", "the same file twice", "steep", "more ranks than rows"]
)
def test_a_cut_is_the_best_there_is_and_its_distance_is_measured(case, rank):
    deltas = CASES[case]
    space = core_space(deltas, Bases.ANY)
    asked = space.spanned(space.cores.sum(0))
    whole = sum(_dense(delta) for delta in deltas)
    best = torch.linalg.svdvals(whole)
    done = compress(asked, RankPolicy("rank", rank))
    off = float((done.up.double() @ done.down.double() - whole).norm())
    assert off == pytest.approx(float(best[done.rank :].norm()), rel=1e-4, abs=1e-6 * float(best[0]))
    assert done.cut == pytest.approx(off, rel=1e-4, abs=2e-6 * float(best[0]))
    saved = LowRank(whole.shape[0], whole.shape[1], (Term(1.0, done.up.half(), done.down.half()),))
    distance, size = difference_norm(saved, asked)
    assert size == pytest.approx(float(whole.norm()), rel=1e-6)
    wanted = float((_dense(saved) - whole).norm())
    assert distance == pytest.approx(wanted, rel=1e-3, abs=1e-7 * size)


def test_rows_in_their_own_order_are_the_same_delta():
    space = core_space(CASES["two strangers"], Bases.LEFT)
    rows = space.rows(0).abs()
    ordered, plain = space.spanned_rows(rows), space.spanned_rows(rows, ordered=False)
    wanted = _dense(ordered.low_rank())
    assert torch.allclose(_dense(plain.low_rank()), wanted, atol=1e-5)
    saved = LowRank(40, 30, (Term(1.0, *ordered.cut(4)),))
    away = float((_dense(saved) - wanted).norm())
    assert plain.distance(saved) == pytest.approx(away, rel=1e-4)
    assert ordered.distance(saved) == pytest.approx(away, rel=1e-4)
    assert torch.allclose(ordered.values, torch.linalg.svdvals(wanted)[: ordered.rank], rtol=1e-5)


@pytest.mark.parametrize("lowest", [1e-1, 1e-5, 0.0])
def test_small_decompositions_are_what_lapack_says(lowest):
    g = torch.Generator().manual_seed(4)
    u, v = (torch.linalg.qr(torch.randn(9, 6, generator=g, dtype=torch.float64))[0] for _ in range(2))
    values = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, lowest], dtype=torch.float64)
    matrix = (u * values) @ v.T
    for left, found, right in (svd(matrix), svd(matrix[:, :7]), product_svd(u * values, v.T), svd(matrix, 2)):
        kept = len(found)
        assert kept in (2, 5, 6)
        assert torch.allclose(left.T @ left, torch.eye(kept, dtype=torch.float64), atol=1e-7)
        assert torch.allclose(right @ right.T, torch.eye(kept, dtype=torch.float64), atol=1e-7)
    left, found, right = svd(matrix)
    assert torch.allclose((left * found) @ right, matrix, atol=1e-12)
    near = polar(matrix[:, :6])
    first, _, second = torch.linalg.svd(matrix[:, :6], full_matrices=False)
    if lowest:
        assert torch.allclose(near, first @ second, atol=1e-7)
    assert torch.allclose(near.T @ near, torch.eye(6, dtype=torch.float64), atol=1e-7)
    gram = matrix @ matrix.T
    assert torch.allclose(gram @ solve(gram, gram), gram, atol=1e-8)
    assert not len(svd(torch.zeros(3, 4, dtype=torch.float64))[1])


@pytest.mark.parametrize("share", [0.0005, 0.2, 0.5, 0.9995, 1.0])
@pytest.mark.parametrize("kind", ["spread", "ties", "one number", "a sample of the wrong part"])
def test_an_order_statistic_is_exact_whatever_the_sample(kind, share):
    numbers = torch.randn(60_000, generator=torch.Generator().manual_seed(2)).abs()
    if kind == "ties":
        numbers = (numbers * 3).round()
    elif kind == "one number":
        numbers = torch.full_like(numbers, 0.25)
    sample = numbers[::13] if kind != "a sample of the wrong part" else numbers.sort().values[:3000]
    count = max(1, int(share * len(numbers)))
    found = order_statistic(lambda: iter(numbers.split(7000)), count, bracket(sample, share))
    assert found == float(np.sort(numbers.numpy())[count - 1])


@pytest.mark.parametrize("method", ["tsv", "knots_ties", "column_balanced"])
def test_what_is_kept_for_the_proof_changes_nothing(method, tmp_path, monkeypatch):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=4 + n) for n in range(2)]
    sources = [Source(path=path, name=path.name, ratio=0.6) for path in paths]
    out = tmp_path / "m.safetensors"
    job = Job(overwrite=True, side_car=False)
    reports, bytes_ = [], []
    for most in (evaluate.MEMO_BYTES, 0):
        monkeypatch.setattr(evaluate, "MEMO_BYTES", most)
        reports.append(merge(sources, save_to=out, method=method, rank=3, job=job))
        bytes_.append(out.read_bytes())
    assert bytes_[0] == bytes_[1]
    assert reports[0].relative_error == pytest.approx(reports[1].relative_error, rel=1e-6)


@pytest.mark.parametrize("method", ["tsv", "knots_ties", "column_balanced", "ties"])
def test_a_source_that_is_written_to_before_the_proof_stops_the_merge(method, tmp_path, monkeypatch):
    """The proof reads the sources again, and what was hashed is what was read: neither file would be right."""
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    sources = [Source(path=path, name=path.name, ratio=0.6) for path in paths]
    options = {"method": method, "rank": 8 if method == "ties" else None}
    prove = engine_merge.prove

    def meddle(*given):
        content = bytearray(paths[0].read_bytes())
        start = len(content) // 2
        content[start : start + 400] = bytes([0, 60]) * 200
        with paths[0].open("r+b") as file:
            file.write(content)
        return prove(*given)

    monkeypatch.setattr(engine_merge, "prove", meddle)
    out, job = tmp_path / "m.safetensors", Job(side_car=False, overwrite=True)
    with pytest.raises(FileFormatError, match="was changed while it was read"):
        merge(sources, save_to=out, job=job, **options)
    assert not out.exists()
    monkeypatch.setattr(engine_merge, "prove", prove)
    assert merge(sources, save_to=out, job=job, **options).tensor_hash
