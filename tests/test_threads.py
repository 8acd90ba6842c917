"""The state that the work runs in: no gradients, no autocast, whatever the caller has on; and it is the caller's again after."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from lib_merge.engine.threads import gainful, in_order, no_full_gc
from lib_merge.errors import Cancelled

CPU = torch.device("cpu")


@pytest.mark.parametrize("most", [1, 8])
def test_work_runs_without_gradients_and_autocast_inside_a_caller_that_has_both(most):
    def work(item):
        product = torch.ones(4, 4) @ torch.ones(4, 4)
        return item, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), product.dtype

    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = []
        for result in in_order(work, range(40), CPU, lambda: False, most):
            seen.append(result)
            # between two results this thread is the caller's
            assert torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(item, False, False, torch.float32) for item in range(40)]


def test_copying_stays_in_the_callers_thread_and_other_work_leaves_it():
    own = threading.get_ident()
    assert set(in_order(lambda _: threading.get_ident(), range(20), CPU, lambda: False, 1)) == {own}
    assert own not in set(in_order(lambda _: threading.get_ident(), range(20), CPU, lambda: False))


@pytest.mark.parametrize("most", [1, 8])
def test_a_cancel_stops_between_batches(most):
    done = []

    def collect():
        for item in in_order(lambda item: item, range(1000), CPU, lambda: len(done) > 50, most):
            done.append(item)

    with pytest.raises(Cancelled, match="nothing was written"):
        collect()
    assert done == list(range(len(done)))
    assert 50 < len(done) < 200


@pytest.mark.parametrize("most", [1, 8])
def test_an_error_of_the_work_reaches_the_caller(most):
    def work(item):
        if item == 17:
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="17"):
        list(in_order(work, range(40), CPU, lambda: False, most))


@pytest.mark.parametrize(
    ("rank", "lines", "expected"),
    [(8, 1536, 2), (32, 3000, 2), (64, 3000, 2), (128, 3000, 4), (256, 3000, 8), (512, 30000, 8)],
)
def test_as_many_workers_as_the_modules_keep_busy(rank, lines, expected):
    assert gainful([(rank, lines)] * 3) == expected


def test_a_file_of_mostly_small_modules_gets_few_workers():
    assert gainful([(16, 2560)] * 99 + [(256, 3000)]) == 2
    assert gainful([]) == 2


def test_full_collections_wait_for_the_last_of_several_merges_and_are_the_callers_again():
    """Python looked through all objects of torch twice in a merge, 0.1 s each time."""
    before = gc.get_threshold()
    with no_full_gc():
        during = gc.get_threshold()
        assert during[:2] == before[:2]
        assert during[2] > 1000 * before[2]
        with no_full_gc():
            assert gc.get_threshold() == during
        assert gc.get_threshold() == during
    assert gc.get_threshold() == before
    with pytest.raises(ValueError, match="x"), no_full_gc():
        raise ValueError("x")
    assert gc.get_threshold() == before
