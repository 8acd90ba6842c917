"""Doubling every ratio doubles the result of every method, or leaves it where the method is a mean of its sources."""

from __future__ import annotations

import pytest
import torch

from lib_merge import METHODS, Job, Source, merge
from tests.factories import dense_of, lora_tensors, relative, write

FLOAT = {"save_precision": "float", "job": Job(overwrite=True, side_car=False)}


def _count(name):
    return max(2, METHODS[name].sources[0])


# a share of squares and a projection weigh by the ratios themselves
OTHER_DEGREE = {"orthogonal_subtract": "w₂ counts twice: it scales B and says how much of it goes"}


@pytest.mark.parametrize("name", list(METHODS))
def test_ratios_times_two_are_twice_the_result_or_the_same_mean(name, tmp_path):
    """On linear layers, convolution and text encoder alike; the shared part gives every method something to keep."""
    method, count = METHODS[name], _count(name)
    shared = lora_tensors(40)
    paths = []
    for number in range(count):
        own = lora_tensors(50 + number)
        joined = {
            k: torch.cat([v, shared[k]], 0 if "lora_down" in k else 1) if v.ndim else v
            for k, v in own.items()
        }
        paths.append(write(tmp_path / f"{number}.safetensors", joined))
    roles = list(method.roles) or [None] * count
    rank = "768" if method.space == "dense" else None
    knobs = {"drop_rate": 0.0} if any(knob.name == "drop_rate" for knob in method.knobs) else {}
    knobs |= {"epsilon": 0.0} if name == "della" else {}
    outputs = []
    for factor in (1.0, 2.0):
        ratios = [0.6 * factor, (0.3 if name not in OTHER_DEGREE else 0.3 / factor) * factor]
        sources = [
            Source(path=p, name=p.name, ratio=r, role=role) for p, r, role in zip(paths, ratios, roles)
        ]
        out = tmp_path / "m.safetensors"
        merge(sources, save_to=out, method=name, knobs=knobs, rank=rank, **FLOAT)
        outputs.append(dense_of(out))
    # twice as much, or nothing where the method is a mean of its sources
    degree = 1.0 if method.normalised(method.settings(knobs, count)) else 2.0
    assert {n.split("_")[1] for n in outputs[0]} == {"unet", "te"}
    assert any("resnets" in n for n in outputs[0])
    assert relative(outputs[1], {n: degree * v for n, v in outputs[0].items()}) <= 2e-5
