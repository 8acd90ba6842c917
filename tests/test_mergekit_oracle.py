"""mergekit's tensor functions as oracles on small tensors, where its conventions are the papers' as well.

Its TIES trims before it weighs, which is the same: a weight of one source moves no threshold of its own. Its SLERP and
NuSLERP keep the vectors' own lengths on the arc; at equal lengths that is ours.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.reference import merge as basic
from tests.reference import methods as reference

sparsify = pytest.importorskip("mergekit.sparsify")
pytestmark = [pytest.mark.client, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def deltas():
    rng = np.random.default_rng(7)
    return [rng.normal(size=(12, 20)) for _ in range(3)]


def _close(ours, theirs, most=1e-12):
    assert np.abs(ours - theirs.numpy()).max() <= most


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_trimming(fraction, deltas):
    theirs = sparsify.magnitude(torch.from_numpy(deltas[0]), 1.0 - fraction + 1e-9)  # theirs rounds down
    _close(basic.trim(deltas[0], fraction), theirs)


@pytest.mark.parametrize(("elect", "method"), [("mass", "sum"), ("count", "count")])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties(elect, method, normalize, deltas):
    """Trim, weigh, elect, disjoint mean: three sources, so that no count is tied once nothing is trimmed."""
    from mergekit.merge_methods.generalized_task_arithmetic import get_mask

    weights, fraction = [0.7, 0.4, 0.9], 0.25 if elect == "mass" else 0.0
    kept = [sparsify.magnitude(torch.from_numpy(d), 1.0 - fraction) for d in deltas]
    weighted = torch.stack([w * d for w, d in zip(weights, kept)])
    mask = get_mask(weighted, method)
    theirs = (weighted * mask).sum(0)
    if normalize:
        share = (torch.tensor(weights, dtype=torch.float64)[:, None, None] * mask * (weighted != 0)).sum(0)
        theirs = torch.where(share > 0, theirs / share, 0.0)
    _close(basic.ties(deltas, weights, fraction, elect, normalize), theirs)


def test_breadcrumbs(deltas):
    fraction, gamma = 0.3, 0.05
    parts = [
        sparsify.magnitude_outliers(torch.from_numpy(d), 1 - fraction - gamma + 1e-9, gamma=gamma)
        for d in deltas
    ]
    ours = reference.breadcrumbs(deltas, [0.7, -0.4, 0.2], gamma, fraction)
    _close(ours, 0.7 * parts[0] - 0.4 * parts[1] + 0.2 * parts[2])


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_arcs_at_equal_lengths(t, deltas):
    from mergekit.merge_methods.nuslerp import nuslerp

    a, b = (d / np.linalg.norm(d) for d in deltas[:2])
    theirs = nuslerp(t, torch.from_numpy(a), torch.from_numpy(b), flatten=True)
    _close(reference.slerp([a, b], [1.0, 1.0], t), theirs)
    if 0 < t < 1:
        _close(reference.nuslerp([a, b], [1 - t, t]), theirs)


def test_karcher_mean(deltas):
    from mergekit.merge_methods.karcher import karcher_merge_tensors

    theirs = karcher_merge_tensors(
        [torch.from_numpy(d) for d in deltas], [1 / 3] * 3, max_iter=200, tol=1e-12
    )
    _close(reference.karcher(deltas, [1.0] * 3), theirs, 1e-8)


def test_sce(deltas):
    from mergekit.merge_methods import sce
    from mergekit.merge_methods.generalized_task_arithmetic import get_mask

    stack = torch.from_numpy(np.stack(deltas))
    chosen = stack * sce.sce_mask(stack, 0.5, stack.dtype)
    erased = sce.sce_weight(chosen)[:, None, None] * get_mask(chosen, "sum")
    theirs = (chosen * erased).sum(0) / erased.sum(0).clamp(min=1e-6)
    _close(reference.sce(deltas, [1.0] * 3, 0.5), theirs, 1e-9)
