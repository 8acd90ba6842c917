"""Asked = saved = loaded: what a host makes of a merge is what it makes of the source, in every spelling and kind."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from lib_merge import convert, merge
from tests.factories import write
from tests.loading import apart, load, modules_of
from tests.test_loading import NAMED, SPELLINGS, WRONG_THERE, _spelling, maps

__all__ = ["maps"]
pytestmark = pytest.mark.slow
KINDS = ("LoRA", "LoHa", "LoKr", "diff")


def _names(table, model, spelling, kind):
    """One name of each form, of one block, none of them for the same rows as another.

    For kinds that are multiplied out the smallest in a block, and once for each model rows of a fused weight.
    """
    chosen, taken = {}, {}
    for name, (weight, rows) in table.names.items():
        shape = table.shapes.get(weight)
        # a loader exchanges the halves of diffusers' last adaLN, which no table of names shows
        wrong = (model in WRONG_THERE and WRONG_THERE[model].search(name)) or "norm_out" in name
        form = re.sub(r"\d+", "#", name)
        if (
            _spelling(name) != spelling
            or not shape
            or len(shape) != 2
            or wrong
            or form in chosen
            or not weight.endswith(".weight")
        ):
            continue
        first, last = rows or (0, shape[0])
        if all(last <= low or high <= first for low, high in taken.setdefault(weight, [])):
            taken[weight].append((first, last))
            chosen[form] = (name, last - first, shape[1], rows is not None)
    picked = sorted(chosen.values(), key=lambda item: item[1] * item[2])
    if kind == "LoRA":
        return picked
    inside = [item for item in picked if re.search(r"(?:blocks|layers)[._]\d", item[0])]
    pieces = [item for item in inside if item[3]][: spelling in ("transformer.", "lycoris_")]
    return [*inside[:1], *(piece for piece in pieces if piece not in inside[:1])]


def _tensors(kind, rows, columns, draw):
    def normal(*shape):
        return torch.randn(*shape, generator=draw) * 0.05

    if kind == "LoRA":
        ends = {"lora_up.weight": normal(rows, 2), "lora_down.weight": normal(2, columns)}
    elif kind == "LoHa":
        ends = {
            f"hada_w{n}_{side}": normal(*(rows, 2) if side == "a" else (2, columns))
            for n in "12"
            for side in "ab"
        }
    elif kind == "LoKr":
        a, b = next(d for d in (4, 2, 1) if rows % d == 0), next(d for d in (4, 2, 1) if columns % d == 0)
        ends = {
            "lokr_w1": normal(a, b),
            "lokr_w2_a": normal(rows // a, 2),
            "lokr_w2_b": normal(2, columns // b),
        }
    else:
        # millions of numbers take longer to draw than all else: a prime count of them, so that no row is as another
        some = normal(65_537)
        return {"diff": some.repeat(rows * columns // len(some) + 1)[: rows * columns].view(rows, columns)}
    return {**ends, "alpha": torch.tensor(1.0)}


@pytest.fixture(scope="module")
def one_of_each(maps, tmp_path_factory):
    """A LoRA of a model in its last spelling, and what it loads as; written and read once for all targets."""

    @functools.lru_cache(maxsize=1)
    def made(model):
        table = maps[model]
        spellings = [front for front in SPELLINGS if any(_spelling(name) == front for name in table.names)]
        path = tmp_path_factory.mktemp(model) / "a.safetensors"
        _source(path, table, model, spellings[-1], "LoRA")
        return path, load(path, table)

    return made


def _source(path, table, model, spelling, kind):
    draw = torch.Generator().manual_seed(len(model) + len(spelling))
    tensors = {
        f"{name}.{end}": value
        for name, rows, columns, _ in _names(table, model, spelling, kind)
        for end, value in _tensors(kind, rows, columns, draw).items()
    }
    if not tensors:
        pytest.skip(f"{model} has no names that begin with {spelling!r}")
    return write(path, tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("model", NAMED)
def test_what_loads_wholly_gives_a_merge_that_loads_wholly(model, spelling, kind, maps, tmp_path):
    table, family = maps[model], NAMED[model][0]
    path = _source(tmp_path / "a.safetensors", table, model, spelling, kind)
    before = load(path, table)
    assert (before.unknown, before.misfits) == ([], [])
    report = merge([path], save_to=tmp_path / "m.safetensors", family=family)
    after = load(tmp_path / "m.safetensors", table)
    assert (after.unknown, after.misfits) == ([], [])
    assert apart(before, after) <= 5e-4
    neo = next(one for one in report.loads_in if one.host == "neo")
    assert neo.whole, neo.lost


@pytest.mark.parametrize("target", ["kohya", "comfyui", "diffusers", "onetrainer", "neo", "forge"])
@pytest.mark.parametrize("model", NAMED)
def test_a_converted_file_is_the_same_to_a_loader(model, target, maps, one_of_each, tmp_path):
    """There and back: each spelling is read as what it was written from, and Neo loads those that it knows."""
    table, family = maps[model], NAMED[model][0]
    path, before = one_of_each(model)
    convert(path, save_to=tmp_path / "b.safetensors", target=target, family=family)
    convert(tmp_path / "b.safetensors", save_to=tmp_path / "c.safetensors", target="kohya", family=family)
    assert apart(before, load(tmp_path / "c.safetensors", table)) <= 5e-4
    names = modules_of(tmp_path / "b.safetensors")
    if target in ("kohya", "comfyui", "neo"):
        there = load(tmp_path / "b.safetensors", table)
        assert (there.unknown, there.misfits) == ([], [])
        assert apart(before, there) <= 5e-4
    if target == "comfyui":
        assert all(name.startswith("diffusion_model.") for name in names)
    if target == "diffusers":
        assert all(name.startswith("transformer.") for name in names)
        assert not any("alpha" in roles for roles in names.values())
