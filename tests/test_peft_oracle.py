"""Public implementations that are right, as oracles: PEFT's merge functions on dense deltas with equal weights.

A tied count goes to plus there, to the mass here, so the count is tested where nothing ties. With unequal weights PEFT elects signs before weighing and divides by a count, the paper's formula without weights; ours
weighs first. At equal weights both are the paper's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.reference import merge as basic
from tests.reference import methods as reference

peft = pytest.importorskip("peft.utils.merge_utils")
pytestmark = pytest.mark.client


@pytest.fixture
def deltas():
    rng = np.random.default_rng(3)
    return [rng.normal(size=(12, 17)) for _ in range(3)]


def _tensors(deltas):
    return [torch.from_numpy(delta) for delta in deltas]


@pytest.mark.filterwarnings("ignore::UserWarning")  # theirs, of a density of 1
@pytest.mark.parametrize(("trim", "elect", "method"), [(0.25, "mass", "total"), (0.0, "count", "frequency")])
def test_ties(deltas, trim, elect, method):
    ones = torch.ones(3, dtype=torch.float64)
    theirs = peft.ties(_tensors(deltas), ones, 1.0 - trim, method).numpy()
    assert np.abs(basic.ties(deltas, [1.0] * 3, trim, elect, True) - theirs).max() <= 1e-12


def test_magnitude_prune(deltas):
    weights = [0.7, -0.4, 0.2]
    theirs = peft.magnitude_prune(_tensors(deltas), torch.tensor(weights, dtype=torch.float64), 0.75).numpy()
    ours = reference.magnitude_prune(deltas, weights, 0.25)
    assert np.abs(ours - theirs).max() <= 1e-12


def test_weighted_sum(deltas):
    weights = [0.7, -0.4, 0.2]
    theirs = peft.task_arithmetic(_tensors(deltas), torch.tensor(weights, dtype=torch.float64)).numpy()
    assert np.abs(basic.weighted_sum(deltas, weights) - theirs).max() <= 1e-12
