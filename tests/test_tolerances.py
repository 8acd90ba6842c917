"""Every tolerance of the table: what it is for holds at its value, and breaks when it moves by a factor that matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lib_merge import Job, RankPolicy, Recipe, Source, merge, verify
from lib_merge.analysis import analyze
from lib_merge.engine.cancelling import none_left
from lib_merge.errors import VerifyError
from lib_merge.linalg import Dense, LowRank, Term, difference_norm, tolerances
from lib_merge.linalg.core import Bases, core_space
from lib_merge.linalg.stack import basis, stack
from lib_merge.linalg.svd import numerical_rank, place_of, row_values, solve, svd
from lib_merge.linalg.truncate import AtMost, compress
from lib_merge.methods import METHODS, ColumnInput, ScalarInput
from tests.factories import NAMES, lora_tensors, write
from tests.test_advice_tried import made, starts, times, where

CASES = {}


def case(name, *moved):
    """Register a property of one tolerance and the values at which it must break."""

    def register(function):
        CASES[name] = (function, moved)
        return function

    return register


def _random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _orthonormal(rows, columns, seed=1):
    return torch.linalg.qr(_random(rows, columns, seed=seed))[0]


def _with_spectrum(values, out=40, columns=30, seed=1, dtype=torch.float64):
    """A low-rank delta with these singular values and its own singular vectors as factors."""
    values = torch.tensor(values, dtype=torch.float64)
    up = _orthonormal(out, len(values), seed) * values.sqrt()
    down = values.sqrt()[:, None] * _orthonormal(columns, len(values), seed + 1).T
    return LowRank(out, columns, (Term(1.0, up.to(dtype), down.to(dtype)),))


def _one_sided(values, out=40, columns=30, seed=1, up=False):
    """A delta in float32 whose spectrum is all in one of its factors, turned, as Grams like it least."""
    values = torch.tensor(values, dtype=torch.float64)
    turn = _orthonormal(len(values), len(values), 9)
    first, second = _orthonormal(out, len(values), seed), _orthonormal(columns, len(values), seed + 1).T
    first = (first * values if up else first) @ turn
    second = turn.T @ (second if up else values[:, None] * second)
    return LowRank(out, columns, (Term(1.0, first.float(), second.float()),))


def _regauged(delta, condition, seed=5, dtype=torch.float64):
    """The same ΔW in factors that are larger than it by about `condition`."""
    term = delta.terms[0]
    rank = term.rank
    turned = _orthonormal(rank, rank, seed) * torch.logspace(
        0, math.log10(condition), rank, dtype=torch.float64
    )
    turned = turned @ _orthonormal(rank, rank, seed + 1)
    up, down = term.up.double() @ turned, torch.linalg.solve(turned, term.down.double())
    return LowRank(delta.out, delta.columns, (Term(term.scale, up.to(dtype), down.to(dtype)),))


def _dense(delta):
    return delta.dense(dtype=torch.float64)


def _away(found, target):
    return float((found - target).norm() / target.norm())


def _lora(values=(1.0, 0.8, 0.6, 0.5, 0.3), **more):
    return _with_spectrum(values, **more)


# ---------------------------------------------------------------- rounding of products


def _distance_is_right(saved, asked, rel):
    distance, size = difference_norm(saved, asked)
    assert size == pytest.approx(float(_dense(asked).norm()), rel=1e-4)
    assert distance == pytest.approx(float((_dense(saved) - _dense(asked)).norm()), rel=rel)


@case("FLOAT32_NOISE", 1e-11)
@case("DROWNED", 0.2)
def a_small_distance_of_recomputed_factors_has_digits():
    asked = _lora()
    near = _dense(asked) + 1e-5 * _random(40, 30, seed=9) / 30
    saved = LowRank(40, 30, (Term(1.0, near.float(), torch.eye(30)),))
    _distance_is_right(saved, asked, 0.02)


@case("FLOAT64_NOISE", 1e-30)
def a_tiny_distance_of_large_factors_has_digits():
    asked = _lora()
    bad = _regauged(asked, 1e6)
    saved = LowRank(40, 30, (*bad.terms, Term(1e-8, _random(40, 1), _random(1, 30))))
    distance, _ = difference_norm(saved, asked)
    truth = _dense(bad) - _dense(asked) + 1e-8 * _random(40, 1) @ _random(1, 30)
    assert distance == pytest.approx(float(truth.norm()), rel=0.1)


@case("FACTOR_NOISE", 1e-3)
def a_delta_of_large_factors_is_measured_against_its_own_size():
    up, down = _random(40, 4), _random(4, 30)
    change = 1e-5 * _random(40, 4, seed=3)
    asked = LowRank(40, 30, (Term(1.0, up + change, down), Term(-1.0, up, down)))
    saved = LowRank(40, 30, tuple(Term(t.scale, t.up * (1 + 1e-6), t.down) for t in asked.terms))
    _, size = difference_norm(saved, asked)
    assert size == pytest.approx(float(_dense(asked).norm()), rel=0.01)


@case("SAME_FACTORS", 1.0)
def a_turned_gauge_is_no_difference():
    asked = _lora()
    turn = torch.linalg.matrix_exp(0.1 * (_random(5, 5) - _random(5, 5).T))
    term = asked.terms[0]
    saved = LowRank(40, 30, (Term(1.0, term.up @ turn, torch.linalg.inv(turn) @ term.down),))
    distance, size = difference_norm(saved, asked)
    assert distance <= 1e-7 * size


@case("NEAR_DENSE", 1e-9)
def the_rounding_of_float32_is_no_error_of_a_whole_matrix():
    asked = _lora()
    distance, size = difference_norm(Dense(1.0, _dense(asked)), asked)
    assert distance <= 1e-9 * size


# ---------------------------------------------------------------- singular values


@case("SVD_TINY", 1e-11, 1e-3)
def a_direction_of_1e_5_counts_and_one_of_1e_9_does_not():
    assert len(svd(_dense(_with_spectrum([1.0, 0.5, 1e-5, 1e-9])))[1]) == 3


@case("SVD_NARROW", 1e-8)
def faint_singular_vectors_are_orthonormal():
    left, _, right = svd(_dense(_with_spectrum([1.0, 0.5, 3e-6, 1.5e-6])))
    for vectors in (left, right.T):
        _is_orthonormal(vectors, 1e-8)


@case("PSEUDO", 1e-18, 1e-3)
def a_dependent_system_is_solved_and_does_not_explode():
    rows = _orthonormal(8, 3).T * torch.tensor([1.0, 0.3, 3e-3], dtype=torch.float64)[:, None]
    rows = torch.cat([rows, rows])  # a file and its copy
    gram = rows @ rows.T
    solution = solve(gram, rows)
    assert _away(gram @ solution, rows) < 1e-8
    assert float(solution.norm()) < 1e4


@case("GRAM_FLOOR", 3e-6)
def a_truncation_is_the_best_there_is():
    delta = _one_sided([1.0, 0.1, 1e-2, 1e-3, 3e-4, 2e-4, 1e-4, 5e-5])
    best = float(torch.linalg.svdvals(_dense(delta))[6:].norm())
    done = compress(delta, AtMost(6))
    off = float((done.up.double() @ done.down.double() - _dense(delta)).norm())
    assert off <= 1.01 * best + 2e-7


@case("NUMERICAL_RANK", 1e-15, 1e-9)
def a_lossless_rule_keeps_what_is_no_rounding():
    singular = np.array([1.0, 0.5, 1e-10, 1e-14])
    assert numerical_rank(singular) == RankPolicy().choose(singular, 4) == AtMost().choose(singular, 4) == 3


@case("QR_NOISE", 1e-18, 1e-7)
def what_cancels_is_nothing_and_a_faint_difference_is_something():
    term = Term(0.3, _random(40, 4).float(), _random(4, 30).float())
    nothing = compress(
        LowRank(40, 30, (term, Term(-0.1, term.up, term.down), Term(-0.2, term.up, term.down))), AtMost()
    )
    assert nothing.size == 0
    up = term.up.double()
    faint = LowRank(
        40, 30, (Term(1.0, up * (1 + 1e-9), term.down.double()), Term(-1.0, up, term.down.double()))
    )
    assert compress(faint, AtMost()).size == pytest.approx(float(_dense(faint).norm()), rel=1e-3)


@case("DENSE_NOISE", 1e-12, 1e-4)
def a_whole_matrix_keeps_the_ranks_it_has():
    assert compress(Dense(1.0, _dense(_with_spectrum([1.0, 0.5, 1e-2, 1e-5]))), AtMost()).rank == 4


@case("SKETCH_NOISE", 1e-12)
def a_sketch_keeps_the_ranks_there_are():
    low = _with_spectrum([1.0, 0.5, 0.2, 0.1], out=420, columns=380)
    assert compress(Dense(1.0, _dense(low).float()), AtMost(40)).rank <= 6


@case("CLEAR_REMAINDER", 1e-12)
def what_a_sketch_cuts_is_measured():
    for seed in range(1, 9, 2):
        low = _with_spectrum([1.0, 0.5, 0.2, 0.1, 2.5e-3], out=420, columns=380, seed=seed)
        done = compress(Dense(1.0, _dense(low).float()), AtMost(4))
        assert done.cut == pytest.approx(2.5e-3, rel=0.005)


# ---------------------------------------------------------------- the common space


def _space_of(*deltas, bases=Bases.ANY):
    return core_space(list(deltas), bases)


def _left_of(space):
    return space.up.matrix("cpu", torch.float64) @ space.to_left


def _is_orthonormal(left, atol):
    assert torch.allclose(left.T @ left, torch.eye(left.shape[1], dtype=torch.float64), atol=atol)


@case("BASIS_NOISE", 1e-10, 1e-2)
def a_file_beside_its_copy_spans_no_more_than_itself_and_a_faint_one_has_room():
    one = _lora()
    space = _space_of(one, one)
    assert space.to_left.shape[1] == 5
    faint = _with_spectrum([1e-3], seed=20)
    space = _space_of(one, one, faint)
    assert _away(_left_of(space) @ space.rows(2).double(), _dense(faint)) < 1e-4


@case("SKEW", 1e10)
def bases_of_near_copies_are_orthonormal():
    one = _lora()
    term = one.terms[0]
    near = LowRank(
        40,
        30,
        (Term(1.0, term.up + 1e-7 * _random(40, 5, seed=8), term.down + 1e-7 * _random(5, 30, seed=9)),),
    )
    _is_orthonormal(_left_of(_space_of(one, near)), 1e-6)


@case("CORE_ILL", 1e16)
def a_source_of_a_bad_gauge_is_itself_in_the_core():
    one = _lora()
    space = _space_of(_regauged(one, 1e7), _lora(seed=30))
    assert _away(_left_of(space) @ space.cores[0] @ space.basis_rows().double(), _dense(one)) < 1e-5


@case("CORE_STEEP", 1e8)
def rows_of_a_bad_gauge_have_their_digits():
    one = _lora()
    space = _space_of(_regauged(one, 1e4), _lora(seed=30))
    assert _away(_left_of(space) @ space.rows(0).double(), _dense(one)) < 3e-6


@case("CORE_FAINT", 1e-10, 1e-3)
def a_merged_core_has_the_directions_that_are_no_rounding():
    space = _space_of(_lora(), _lora(seed=30))
    a, b = space.cores.shape[1:]
    merged = (_orthonormal(a, 3) * torch.tensor([1.0, 1e-4, 1e-9], dtype=torch.float64)) @ _orthonormal(
        b, 3
    ).T
    assert space.spanned(merged).rank == 2


@case("ROWS_PLAIN", 1e-12)
def faint_directions_of_merged_rows_are_not_mixed_up():
    space = _space_of(_lora(), bases=Bases.LEFT)
    rows = (_orthonormal(5, 4) * torch.tensor([1.0, 0.1, 1e-3, 2e-4], dtype=torch.float64)) @ _orthonormal(
        30, 4
    ).T
    rows = rows.float()
    found = space.spanned_rows(rows)
    true = torch.linalg.svdvals(rows.double())[:4]
    assert torch.allclose(found.values[:4], true, rtol=1e-3)


@case("SPANNED_STEEP", 1e5)
def saved_factors_of_a_bad_gauge_have_their_digits():
    one = _lora()
    space = _space_of(_regauged(one, 1e3))
    up, down = space.spanned(space.cores[0]).cut(5)
    assert _away(up.double() @ down.double(), _dense(one)) < 3e-6


# ---------------------------------------------------------------- figures of the analysis

WIDE = {"out": 640, "columns": 640}  # large enough for float32


def _panel(*deltas):
    return stack([LowRank(d.out, d.columns, d.terms) for d in deltas], 640, 640)


def _many(seed=1, least=0.1, rank=64, **more):
    return _with_spectrum(np.geomspace(1.0, least, rank).tolist(), seed=seed, **WIDE, **more)


@case("STACK_ILL", 1e12)
def the_norm_of_a_bad_gauge_is_right():
    one = _many()
    found, _ = _panel(_regauged(one, 1e3))
    assert math.sqrt(found.products[0, 0]) == pytest.approx(float(_dense(one).norm()), rel=1e-5)


@case("CLOSE", 1.01)
def how_far_near_copies_are_apart_is_right():
    one = _many(dtype=torch.float32)
    term = one.terms[0]
    near = LowRank(640, 640, (Term(1.0, term.up * (1 + 3e-4 * _random(64, seed=4).float()), term.down),))
    found, _ = _panel(one, near)
    p = found.products
    apart = math.sqrt(max(p[0, 0] + p[1, 1] - 2 * p[0, 1], 0.0))
    assert apart == pytest.approx(float((_dense(one) - _dense(near)).norm()), rel=1e-3)


@case("WEAK", 2e-3)
def the_weak_end_of_a_spectrum_is_right():
    one = _one_sided(np.geomspace(1.0, 3e-3, 64).tolist(), **WIDE, up=True)
    _, (base,) = _panel(one)
    true = torch.linalg.svdvals(_dense(one))[:64].numpy()
    assert base.singular == pytest.approx(true, rel=1e-4)


@case("DIRECTION", 1e-5, 0.05)
def a_direction_counts_down_to_a_thousandth():
    term = _with_spectrum([1.0, 1e-2, 1e-4]).terms[0]
    assert basis((term.up.T @ term.up).numpy(), (term.down @ term.down.T).numpy()).left.shape[1] == 2


@case("ROUNDING", 1e-18, 1e-6)
def wide_rows_have_the_rank_they_have():
    rows = _dense(_with_spectrum([1.0, 0.5, 1e-4], out=10, columns=60))
    assert np.count_nonzero(row_values(rows)) == 3


@case("SHARE_SLACK", 0.0)
def a_share_that_a_rank_meets_exactly_asks_for_no_more():
    rng = np.random.default_rng(0)
    for _ in range(200):
        singular = np.sort(rng.exponential(size=8))[::-1]
        energy = np.square(singular)
        for rank in range(1, 8):
            share = float(energy[:rank].sum() / energy.sum())
            if share > 0.999:  # 1 − share has no twelve digits
                continue
            assert RankPolicy("energy", share).choose(singular, 8) == rank


@case("COUNT_SLACK", 0.0, 1.0)
def a_whole_number_of_entries_stays_one():
    assert [place_of(percent / 100, 100) for percent in range(100)] == list(range(100))


# ---------------------------------------------------------------- methods


def _scalar(name, gram, weights, **knobs):
    gram = np.array(gram)
    return METHODS[name].function(ScalarInput(tuple(weights), tuple(weights), lambda: gram), **knobs)


@case("PARALLEL", 0.9)
def slerp_and_karcher_walk_the_arc_while_there_is_one():
    cosine = 0.95
    angle = math.acos(cosine)
    first, second = _scalar("slerp", [[1.0, cosine], [cosine, 1.0]], (1.0, 1.0), t=0.2)
    assert first == pytest.approx(math.sin(0.8 * angle) / math.sin(angle), rel=1e-9)
    assert second == pytest.approx(math.sin(0.2 * angle) / math.sin(angle), rel=1e-9)


@case("KARCHER_STEP", 1e-2)
def the_mean_on_the_sphere_is_where_nothing_pulls():
    points = torch.linalg.qr(_random(6, 3))[0].T + 0.3 * _random(3, 6, seed=4)
    points = (points / points.norm(dim=1, keepdim=True)).numpy()
    shares = np.array([0.6, 0.3, 0.1])
    found = np.array(_scalar("karcher", points @ points.T * np.outer(shares, shares), shares)) @ points
    mean = found / np.linalg.norm(found)
    angles = np.arccos(np.clip(points @ mean, -1, 1))
    pull = shares @ ((points - np.outer(points @ mean, mean)) * (angles / np.sin(angles))[:, None])
    assert np.linalg.norm(pull) < 1e-8


@case("ZERO_ANGLE", 0.0, 0.01)
def opposites_have_no_mean_and_near_opposites_have_one():
    assert _scalar("karcher", [[0.25, -0.25], [-0.25, 0.25]], (0.5, 0.5)) == [0.0, 0.0]
    cosine = -1 + 1e-5
    near = _scalar("karcher", [[0.25, 0.25 * cosine], [0.25 * cosine, 0.25]], (0.5, 0.5))
    assert math.hypot(*near) > 0.1


@case("CANCELS", 1e-10, 1e-3)
def a_sum_that_cancels_is_nothing_and_a_faint_one_is_scaled():
    assert _scalar("norm_preserving", [[1.0, -1.0], [-1.0, 1.0 + 3e-16]], (1.0, 1.0)) == [0.0, 0.0]
    assert _scalar("norm_preserving", [[1.0, -1.0], [-1.0, 1.0 + 1e-8]], (1.0, 1.0))[0] > 1.0


@case("CANCELS_WHOLE", 1e-9, 1e-2)
def whole_matrices_cancel_down_to_the_rounding_of_float32_and_differ_above_it():
    one = _random(50).float()
    shares = [0.37, 0.41, 0.11, -0.89]
    assert none_left([share * one for share in shares])
    assert not none_left([one, -(one * (1 + 1e-4))])


@case("COLUMN_FLOOR", 1e-16, 1e-2)
def an_empty_input_is_left_as_it_is():
    sizes = torch.tensor([1.0, 1e-4, 1e-14], dtype=torch.float64)
    products = torch.stack([torch.stack([sizes, sizes])] * 2)
    assert METHODS["column_balanced"].function(ColumnInput((1.0, 1.0), products)).tolist() == [0.5, 0.5, 1.0]


# ---------------------------------------------------------------- the proof, on merges


QUIET = Job(overwrite=True, side_car=False)


def _merged(folder, *files, **options):
    paths = [write(folder / f"{place}.safetensors", tensors) for place, tensors in enumerate(files)]
    out = folder / "merged.safetensors"
    return out, merge(paths, save_to=out, job=QUIET, **options)


def _tampered(path, factor, name=NAMES[0]):
    """Scale one module of a saved file."""
    with safe_open(str(path), "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = f"{name}.lora_up.weight"
    tensors[key] = (tensors[key].double() * factor).to(tensors[key].dtype)
    write(path, tensors, metadata)


def _passes(path):
    try:
        verify(path, [path.parent], job=QUIET)
    except VerifyError:
        return False
    return True


def _proves(folder, precision, wrong):
    """A sound file is saved and verified, a module that is off by `wrong` is found."""
    out, _ = _merged(folder, lora_tensors(1), lora_tensors(2), save_precision=precision, rank=8, method="tsv")
    assert _passes(out)
    _tampered(out, 1 + wrong)
    assert not _passes(out)


@case("PROOF_FP16", 1e-4, 0.1)
def a_sound_fp16_file_passes_and_a_wrong_one_does_not(folder):
    _proves(folder, "fp16", 0.01)


@case("PROOF_BF16", 8e-4, 0.5)
def a_sound_bf16_file_passes_and_a_wrong_one_does_not(folder):
    _proves(folder, "bf16", 0.1)


@case("PROOF_FLOAT", 1e-3)
def a_sound_float_file_passes_and_a_wrong_one_does_not(folder):
    _proves(folder, "float", 1e-4)


@case("CUT_SLACK", 0.9, 1.1)
def an_error_does_not_hide_behind_a_cut(folder):
    out, _ = _merged(folder, lora_tensors(1), lora_tensors(2), rank=4)
    assert _passes(out)
    _tampered(out, 1.2)
    assert not _passes(out)


@case("PROOF_FLOOR", 0.0, 0.1)
def a_module_of_next_to_nothing_may_round_away_and_a_faint_one_may_not(folder):
    faint, empty = lora_tensors(1), lora_tensors(2)
    for key in faint:
        if key.startswith(NAMES[0]) and "alpha" not in key:
            faint[key] *= 0.1
        if key.startswith(NAMES[2]) and "lora_up" in key:
            empty[key] *= 0
            faint[key] *= 1e-12
    out, _ = _merged(folder, faint, empty, method="tsv")
    assert _passes(out)
    _tampered(out, 2.0)
    assert not _passes(out)


# ---------------------------------------------------------------- what is worth a word


def _says(report, words):
    return any(words in text for text in report.warnings)


@case("CUT_LIMIT", 0.5, 1e-4)
def a_tenth_is_much_to_cut_and_a_hundredth_is_not(folder):
    first = lora_tensors(1, rank=4)
    for key in first:
        if "lora_up" in key:
            first[key][:, 0] *= 0.1
            first[key][:, 1] *= 3
    assert _says(_merged(folder, first, rank=2)[1], "threw away")
    assert not _says(_merged(folder, first, rank=3)[1], "threw away")


@case("EMPTY_RESULT", 1e-4, 0.8)
def next_to_nothing_is_said_and_an_average_is_not(folder):
    strangers = lora_tensors(1), lora_tensors(2)
    assert _says(_merged(folder, *strangers, method="model_stock")[1], "next to nothing is left")
    assert not _says(_merged(folder, *strangers, method="average")[1], "next to nothing is left")


@case("INFLATED", 50.0, 0.5)
def a_blown_up_result_is_said_and_a_sum_is_not(folder):
    strangers = lora_tensors(1), lora_tensors(2)
    blown = _merged(folder, *strangers, method="dare", knobs={"drop_rate": 0.95}, rank=64)[1]
    assert _says(blown, "inflated")
    assert not _says(_merged(folder, *strangers, ratios=[0.6, 0.6], method="tsv")[1], "inflated")


@case("OPPOSITE", -1.01, 0.5)
def opposites_are_said_and_strangers_are_not(folder):
    first = lora_tensors(1)
    assert _says(
        _merged(folder, first, first, ratios=[1.0, -1.0], method="slerp", knobs={"t": 0.3})[1],
        "opposite directions",
    )
    assert not _says(_merged(folder, first, lora_tensors(2), method="slerp")[1], "opposite directions")


# ---------------------------------------------------------------- advice that looks at what it would do


def _turned(tensors):
    """The same ΔW with its ranks in another order, so that no start can be told."""
    up = where(tensors, "lora_up", lambda _, value: value.flip(1))
    return where(up, "lora_down", lambda _, value: value.flip(0))


def _encoder(tensors, factor):
    return where(tensors, "lora_te", lambda key, value: value * (factor if "lora_up" in key else 1))


def _quarrel(cosine, loud=1.0):
    """Two LoRAs whose text encoders are at a cosine, and hold more of them the louder they are."""
    first, second = made(1), {**made(2)}
    for key, value in first.items():
        if key.startswith("lora_te"):
            own = cosine * value + math.sqrt(1 - cosine**2) * made(2)[key]
            second[key] = own if "lora_up" in key else value
    return _encoder(first, loud), _encoder(second, loud)


def _advised(folder, *loras, ratios=None, **more):
    """What is advised, by id; what may be tried is there, too."""
    paths = [write(folder / f"{index}.safetensors", dict(one)) for index, one in enumerate(loras)]
    ratios = ratios or [1.0] * len(loras)
    sources = tuple(Source(path=path, name=path.name, ratio=ratio) for path, ratio in zip(paths, ratios))
    report = analyze(Recipe(sources, **more), methods=[])
    tries = [item for symptom in report.symptoms for item in symptom.tries]
    return {item.id: item for item in (*tries, *report.advice)}


@case("SAME_SIZE", 1e-5, 50.0)
def a_mean_that_is_there_but_for_a_rounded_ratio_is_not_offered(folder):
    runs = [times(made(1), factor) for factor in (0.9, 1.0)]
    runs[1] = where(runs[1], "lora_up", lambda key, value: value + 0.4 * made(2)[key])
    assert "epochs-mean" not in _advised(folder, *runs, ratios=[0.497, 0.497])
    assert "epochs-mean" in _advised(folder, *runs)


@case("SAME_DIRECTION", 0.5, 1.5)
def what_only_weakens_is_not_tried(folder):
    assert "try-decorrelated-sum" not in _advised(folder, made(1), starts(1.0))
    assert "try-decorrelated-sum" in _advised(folder, made(1), starts(0.6))


@case("AS_STRONG", 0.01, 0.6)
def an_average_is_called_faint_where_it_is(folder):
    strangers = made(1), made(2)
    assert "unfounded" not in _advised(folder, *strangers, ratios=[0.55, 0.55], method="average")
    assert "unfounded" in _advised(folder, *strangers, method="average")


@case("EASED", 0.2, 1.1)
def a_method_is_advised_where_it_separates(folder):
    assert "crowded" in _advised(folder, made(1), starts(0.6))
    assert "crowded" not in _advised(folder, made(1), starts(0.99))


@case("MORE_OF_BOTH", -1.0)
def what_cancels_is_not_brought_back_by_name(folder):
    other = where(made(1), "lora_up", lambda key, value: -value + 0.7 * made(2)[key])
    assert not _advised(folder, made(1), _turned(other))["opposed"].apply


@case("MORE_OF_IT", 0.01, 0.9)
def a_text_encoder_is_given_up_for_a_quarrel_and_not_for_chance(folder):
    assert _advised(folder, *_quarrel(-0.6, 0.8))["text-encoder"].apply
    assert not _advised(folder, *_quarrel(-0.12, 0.8))["text-encoder"].apply


@case("GIVEN_UP", 0.02, 1.0)
def a_lora_of_the_text_encoder_keeps_it(folder):
    assert _advised(folder, *_quarrel(-0.6, 0.8))["text-encoder"].apply
    assert not _advised(folder, *_quarrel(-0.6, 4.0))["text-encoder"].apply


@case("COMPARABLE", 0.01, 0.8)
def sources_are_balanced_where_they_do_the_same_work(folder):
    """Attention alone beside everything is comparable; a few of its modules are not, nor is the text encoder."""
    loud = times(made(2), 10.0)

    def only(part):
        return {
            key: value for key, value in made(1, "unet").items() if part in key.replace("proj_in", "attn")
        }

    assert "balance" in _advised(folder, only("attn"), loud)
    assert "balance" not in _advised(folder, only("attn2_to_k"), loud)
    assert "balance" not in _advised(folder, made(1, "te"), loud)
    assert "balance" in _advised(folder, made(1, "unet"), loud)


@case("EVENED", 0.0, 0.9)
def balancing_is_advised_where_it_is_seen(folder):
    assert "balance" in _advised(folder, made(1), times(made(2), 10.0))
    assert "balance" not in _advised(folder, made(1), times(made(2), 1.7), ratios=[0.05, 0.95])


@case("STANDS_FOR", 1e-6, 5.0)
def one_file_stands_for_two_where_it_does(folder):
    near = where(made(1), "lora_up", lambda key, value: 1.1 * value + 0.2 * made(2)[key])
    assert _advised(folder, made(1), _turned(near))["near-duplicate-0-1"].apply
    assert not _advised(folder, made(1), made(1), made(2), method="ema")["copy-0-1"].apply


def _holds(name, folder):
    function = CASES[name][0]
    function(folder) if function.__code__.co_argcount else function()


def test_every_tolerance_has_a_test_and_a_reason():
    assert set(CASES) == set(tolerances.TABLE)
    for name, row in tolerances.TABLE.items():
        assert getattr(tolerances, name) == row.value
        assert row.unit
        assert row.why
        assert row.breaks


@pytest.mark.parametrize("name", list(CASES))
def test_a_tolerance_holds_what_it_is_for(name, tmp_path):
    _holds(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, moved) in CASES.items() for value in moved]
)
def test_a_tolerance_that_moves_breaks_it(name, value, monkeypatch, tmp_path):
    monkeypatch.setattr(tolerances, name, value)
    with pytest.raises((AssertionError, VerifyError, RuntimeWarning)):
        _holds(name, tmp_path)
