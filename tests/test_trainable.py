"""A merge that training can go on with: factors as trainers begin them, alpha kept, ΔW the same."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from lib_merge import convert, merge
from lib_merge.errors import RecipeError
from tests.factories import dense_of, relative, write_lora


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("alphas", [(2.0, 2.0), (2.0, 8.0)])
def test_factors_are_as_large_as_trainers_begin_them(tmp_path, alphas, rank):
    sources = [write_lora(tmp_path / f"{n}.safetensors", n, alpha=alpha) for n, alpha in enumerate(alphas)]
    plain, made = tmp_path / "plain.safetensors", tmp_path / "made.safetensors"
    merge(sources, ratios=[0.6, 0.4], save_to=plain, rank=rank)
    merge(sources, ratios=[0.6, 0.4], save_to=made, rank=rank, trainable=True)
    assert relative(dense_of(made), dense_of(plain)) <= 1e-3
    tensors = load_file(str(made))
    for key, down in tensors.items():
        if not key.endswith("lora_down.weight"):
            continue
        columns = down[0].numel()
        assert float(down.float().square().mean()) == pytest.approx(1 / (3 * columns), rel=0.02)
        alpha = float(tensors[key.replace("lora_down.weight", "alpha")])
        assert alpha == (2.0 if alphas[0] == alphas[1] else down.shape[0])


def test_a_spelling_without_alpha_cannot_keep_it(tmp_path):
    source = write_lora(tmp_path / "a.safetensors", 1)
    with pytest.raises(RecipeError, match="have no alpha"):
        convert(source, save_to=tmp_path / "b.safetensors", target="diffusers", trainable=True)
