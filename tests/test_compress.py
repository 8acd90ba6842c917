"""The kernel against full SVD in float64, on ordinary and degenerate stacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_merge.errors import RecipeError
from lib_merge.linalg import Dense, LowRank, Term, difference_norm
from lib_merge.linalg import truncate as kernel
from lib_merge.linalg.truncate import compress
from lib_merge.ranks.policy import RankPolicy, parse_policy
from tests.reference.merge import ranks_for, truncate


def _term(out, columns, rank, seed, scale=1.0, decay=0.8):
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, rank + 1) ** -decay
    return Term(
        scale, torch.randn(out, rank, generator=g) * spectrum, torch.randn(rank, columns, generator=g)
    )


def _error(delta, done):
    dense = delta.dense(dtype=torch.float64).numpy()
    return np.linalg.norm(dense - (done.up.double() @ done.down.double()).numpy()), dense


@given(
    out=st.integers(3, 40),
    columns=st.integers(3, 40),
    ranks=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    keep=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    decay=st.floats(0, 3),
)
def test_a_truncation_is_within_one_per_cent_of_the_best_there_is(out, columns, ranks, keep, seed, decay):
    delta = LowRank(
        out, columns, tuple(_term(out, columns, r, seed + i, 0.5, decay) for i, r in enumerate(ranks))
    )
    done = compress(delta, RankPolicy("rank", keep))
    error, dense = _error(delta, done)
    best = truncate(dense, min(keep, out, columns))[1]
    assert error <= 1.01 * best + 1e-6 * np.linalg.norm(dense)
    assert done.rank <= min(keep, out, columns)
    assert done.cut == pytest.approx(best, rel=1e-2, abs=1e-6 * np.linalg.norm(dense))
    assert done.size == pytest.approx(np.linalg.norm(dense), rel=1e-5)


_T = _term(30, 24, 5, 1)
_NEAR = Term(1.0, _T.up + 1e-5 * torch.randn(30, 5, generator=torch.Generator().manual_seed(9)), _T.down)
DEGENERATE = {
    "the same file twice": LowRank(30, 24, (_T, _T)),
    "near duplicates": LowRank(30, 24, (_T, _NEAR)),
    "a file minus its near copy": LowRank(30, 24, (_T, Term(-1.0, _NEAR.up, _NEAR.down))),
    "all-zero ups": LowRank(30, 24, (_T, Term(1.0, torch.zeros(30, 3), torch.ones(3, 24)))),
    "fewer rows than ranks": LowRank(4, 24, (_term(4, 24, 5, 2), _term(4, 24, 6, 3))),
    "fewer columns than ranks": LowRank(30, 3, (_term(30, 3, 5, 4),)),
    "a tiny source beside a large one": LowRank(30, 24, (_T, _term(30, 24, 5, 5, 1e-6))),
    "repeated columns": LowRank(30, 24, (Term(1.0, _T.up[:, :1].repeat(1, 4), _T.down[:4]),)),
    "a zero row direction": LowRank(
        30, 24, (Term(1.0, _T.up, torch.cat([_T.down[:4], torch.zeros(1, 24)])),)
    ),
    "one rank": LowRank(30, 24, (_term(30, 24, 1, 6),)),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("policy", ["1", "5", "64", "energy:0.99", "error:0.01", "lossless"])
def test_degenerate_stacks_keep_the_bound(name, policy):
    delta = DEGENERATE[name]
    done = compress(delta, parse_policy(policy))
    error, dense = _error(delta, done)
    norm = np.linalg.norm(dense)
    if policy == "energy:0.99":
        wanted = ranks_for(dense, energy=0.99)
    elif policy == "error:0.01":
        wanted = ranks_for(dense, error=0.01)
    else:
        wanted = min(64 if policy == "lossless" else int(policy), *dense.shape)
    best = truncate(dense, wanted)[1]
    assert error <= 1.01 * best + 1e-6 * norm
    assert torch.isfinite(done.up).all()
    assert torch.isfinite(done.down).all()
    assert done.rank <= min(dense.shape)
    if ":" in policy:
        assert done.rank <= wanted + (1 if norm else 0)


def test_a_file_minus_itself_is_zero_and_saved_as_rank_one_of_zeros():
    done = compress(LowRank(30, 24, (_T, Term(-1.0, _T.up, _T.down))), RankPolicy("rank", 5))
    assert done.rank == 1
    assert float(done.up.abs().max()) < 1e-6


def test_both_routes_agree_where_both_apply():
    delta = LowRank(50, 40, (_term(50, 40, 8, 1), _term(50, 40, 8, 2)))
    up, down = delta.factors()
    fast = kernel._from_grams(up, down, RankPolicy("rank", 6))
    slow = kernel._from_qr(delta, RankPolicy("rank", 6), "cpu")
    assert fast is not None
    a, b = fast.up.double() @ fast.down.double(), slow.up.double() @ slow.down.double()
    assert float((a - b).norm() / b.norm()) < 1e-5
    np.testing.assert_allclose(fast.singular[:6], slow.singular[:6], rtol=1e-5)


def test_a_small_last_singular_value_leaves_the_float32_route():
    delta = LowRank(50, 40, (_term(50, 40, 8, 1, decay=6.0),))
    up, down = delta.factors()
    assert kernel._from_grams(up, down, RankPolicy("rank", 7)) is None


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_sketch_of_a_dense_matrix_is_nearly_optimal(noise):
    g = torch.Generator().manual_seed(3)
    low = _term(420, 380, 12, 7)
    dense = low.up @ low.down + noise * 0.05 * torch.randn(420, 380, generator=g)
    done = compress(Dense(1.0, dense, LowRank(420, 380, (low,))), RankPolicy("rank", 12))
    error = float((dense - done.up @ done.down).double().norm())
    best = truncate(dense.double().numpy(), 12)[1]
    assert error <= 1.01 * best + 1e-5 * float(dense.norm())
    assert done.cut == pytest.approx(error, rel=1e-3, abs=1e-5 * float(dense.norm()))


@pytest.mark.parametrize("kind", ["copied", "rounded", "regauged", "dense"])
def test_distances_are_measured_without_cancellation(kind):
    asked = LowRank(60, 50, (_term(60, 50, 6, 1, 0.3), _term(60, 50, 4, 2, -0.7)))
    up, down = asked.factors(dtype=torch.float64)
    if kind == "regauged":
        g = torch.randn(
            10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
        ) + 5 * torch.eye(10)
        saved_up, saved_down = (up @ g).float(), (torch.linalg.inv(g) @ down).float()
    else:
        saved_up = up.half().float()
        saved_down = down.half().float() if kind == "rounded" else down.float()
    saved = LowRank(60, 50, (Term(1.0, saved_up, saved_down),))
    true = float((saved_up.double() @ saved_down.double() - up @ down).norm())
    if kind == "dense":
        saved = Dense(1.0, saved.dense())
        true = float((saved.matrix.double() - up @ down).norm())
    distance, size = difference_norm(saved, asked)
    assert size == pytest.approx(float((up @ down).norm()), rel=1e-5)
    assert distance == pytest.approx(true, rel=1e-2, abs=1e-7 * size)


@pytest.mark.parametrize(
    "text", ["0", "-3", "2.5", "energy:1.5", "energy:0", "error:1", "much", "", "nan", "energy:nan"]
)
def test_a_rank_policy_that_makes_no_sense_is_one_sentence(text):
    with pytest.raises(RecipeError, match="is not understood"):
        parse_policy(text)


@pytest.mark.parametrize("text", ["lossless", "32", "energy:0.99", "error:0.01", "sum"])
def test_a_rank_policy_reads_what_it_writes(text):
    assert parse_policy(parse_policy(text).text) == parse_policy(text)
