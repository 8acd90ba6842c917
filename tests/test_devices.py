"""An accelerator merges what the CPU merges; where there is none, what it does otherwise is done on the CPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from lib_merge import Job, Source, merge
from lib_merge.adapters import open_lora
from lib_merge.engine.tiles import BAND, DenseModule, combine_tiles
from lib_merge.files.writer import write_safetensors
from lib_merge.linalg import LowRank, Term
from lib_merge.linalg.svd import order_statistic
from lib_merge.methods import METHODS, Space
from lib_merge.samples import sd15_modules, synthetic_lora

CPU = torch.device("cpu")
DENSE = [name for name, method in METHODS.items() if method.space is Space.DENSE]
SAMPLES = ("weighted_sum", "slerp", "tsv", "iso_c", "knots_ties", "column_balanced", *DENSE)


def accelerators():
    """Return the devices of this machine that are no CPU."""
    there = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        there.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        there.append("xpu")
    return there or [pytest.param("", marks=pytest.mark.skip(reason="this machine has no accelerator"))]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    rows = list(sd15_modules(convolutions=True))[:30]
    for seed in range(2):
        write_safetensors(folder / f"{seed}.safetensors", synthetic_lora(rows, 16, seed=seed), {})
    return [folder / f"{seed}.safetensors" for seed in range(2)]


@pytest.mark.parametrize("device", accelerators())
@pytest.mark.parametrize("name", SAMPLES)
def test_an_accelerator_merges_what_the_cpu_merges(name, device, sources):
    deltas = []
    for place in ("cpu", device):
        merged = sources[0].with_name(f"{name}-{place}.safetensors")
        given = [
            Source(path=path, ratio=ratio, role=role)
            for path, ratio, role in zip(sources, (0.8, 0.6), METHODS[name].roles or (None, None))
        ]
        merge(given, save_to=merged, rank=12, method=name, save_precision="float", job=Job(device=place))
        with open_lora(merged) as file:
            deltas.append(
                {
                    module: part.load(file.file).dense(dtype=torch.float64)
                    for module, part in file.parts().items()
                }
            )
    first, second = deltas
    assert first.keys() == second.keys()
    worst = max(float((first[module] - second[module]).norm() / first[module].norm()) for module in first)
    # SCE chooses entries by a variance: one on the edge may fall to the other side
    assert worst < (2e-3 if name == "sce" else 1e-5)


def _module(at_once=1):
    generator = torch.Generator().manual_seed(5)
    out, columns = 700, BAND // 128
    factors = [
        (torch.randn(out, 4, generator=generator), torch.randn(4, columns, generator=generator))
        for _ in range(2)
    ]
    deltas = [LowRank(out, columns, (Term(1.0, up, down),)) for up, down in factors]
    module = DenseModule((0.8, 0.6), deltas, CPU)
    module.bands_at_once = at_once
    return module


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("at_once", [2, 4, 99])
def test_several_bands_at_once_give_what_one_at_a_time_gives(name, at_once):
    def masks(source, band):
        return torch.Generator().manual_seed(1000 * source + band)

    settings = METHODS[name].settings({}, 2)
    one = combine_tiles(_module(), METHODS[name], settings, masks)
    several = combine_tiles(_module(at_once), METHODS[name], settings, masks)
    # products of other heights round otherwise, and an entry on the edge may fall to the other side
    assert float((one - several).norm() / one.norm()) < (2e-3 if name == "sce" else 1e-5)
    assert bool(one.any())


def test_masks_belong_to_bands_not_to_what_is_worked_on_at_once():
    def masks(band):
        return torch.Generator().manual_seed(band)

    module = _module()
    whole = module.uniform(masks, range(0, 6))
    assert whole.shape == (700, module.columns)
    assert torch.equal(whole[256:384], module.uniform(masks, range(2, 3)))


def test_what_an_accelerator_sends_of_an_order_statistic_is_what_numpy_keeps(monkeypatch):
    """The branch for accelerators, on the CPU: it asks the tensor where it is."""
    numbers = torch.rand(50_000, generator=torch.Generator().manual_seed(3))

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    pieces = [piece.as_subclass(Elsewhere) for piece in numbers.split(7000)]
    expected = float(np.partition(numbers.numpy(), 12_344)[12_344])
    assert order_statistic(partial(iter, pieces), 12_345, (0.2, 0.3)) == expected
