"""diffusers' own key converters as oracles: what they make of a file, and the file itself, are the same LoRA to us."""

from __future__ import annotations

import json
import re

import pytest
import torch

from lib_merge import open_lora
from tests.factories import write

conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
pytestmark = [pytest.mark.client, pytest.mark.filterwarnings("ignore")]


def _first_blocks(key):
    numbers = re.findall(r"(?:blocks|layers)[._](\d+)[._]", key)
    return not numbers or int(numbers[0]) in (0, 27)


def _filled(keys, name, skip=()):
    """The list's keys of the first blocks (and of Krea 2's last), filled with numbers; alpha 3 wherever there is one."""
    g = torch.Generator().manual_seed(len(name))
    table = json.loads((keys / f"{name}.json").read_text())
    return {
        key: torch.tensor(3.0) if key.endswith(".alpha") else torch.randn(shape, generator=g) * 0.05
        for key, (_, shape) in table.items()
        if _first_blocks(key) and not key.endswith(skip) and not key.startswith("metadata_key")
    }


def _probes(path, family, split=()):
    """{module: ΔW·X} for fixed random X, fused modules cut into the pieces named by `split`."""
    found = {}
    with open_lora(path, family) as file:
        for name, part in file.parts(split).items():
            if part.columns:
                x = torch.randn(
                    part.columns, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
                )
                up, down = part.load(file.file).factors(dtype=torch.float64)
                found[name] = up @ (down @ x)
        return found, file.split_modules


def _same(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        assert float((value - second[name]).norm()) <= 1e-6 * float(value.norm()), name


def _flux(state):
    from diffusers.loaders import FluxLoraLoaderMixin

    return FluxLoraLoaderMixin.lora_state_dict(dict(state))


def _sdxl(state):
    from types import SimpleNamespace

    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    config = SimpleNamespace(layers_per_block=2)
    made, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(state), unet_config=config)
    for key, alpha in alphas.items():  # theirs are kept apart, by module or by `down`; here they go into `up`
        stem = key.removesuffix(".alpha").removesuffix(".down.weight").removesuffix(".lora_linear_layer")
        down, up = (next(k for k in made if k.startswith(f"{stem}.") and half in k) for half in HALVES)
        made[up] = made[up] * (alpha / made[down].shape[0])
    return made


HALVES = (".down.", ".up.")


def _krea2(state):
    """The converter takes dotted names and no alpha (the list's alphas are dropped)."""
    dotted = {}
    for key, value in state.items():
        name, _, role = key.removeprefix("lora_unet_").partition(".")
        name = (
            name.replace("_", ".")
            .replace("layerwise.blocks", "layerwise_blocks")
            .replace("refiner.blocks", "refiner_blocks")
        )
        dotted[
            f"diffusion_model.{name}.{role.replace('lora_up', 'lora_B').replace('lora_down', 'lora_A')}"
        ] = value
    return conversion._convert_non_diffusers_krea2_lora_to_diffusers(dotted)


CASES = {
    "flux_lora_kohya": ("Flux", _flux, ()),
    "flux_lora_kohya_with_te1": ("Flux", _flux, ()),
    "flux_lora_xlabs": ("Flux", _flux, ()),
    "flux_control_lora": ("Flux", _flux, (".scale",)),
    "kohya_sdxl_r32": ("SDXL", _sdxl, ()),
    "krea2_lora_kohya": ("Krea2", _krea2, (".alpha",)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_and_what_diffusers_converts_it_to_are_one_lora(name, keys, tmp_path):
    family, convert, skip = CASES[name]
    state = _filled(keys, name, skip)
    ours = write(tmp_path / "a.safetensors", {key: value.clone() for key, value in state.items()})
    theirs = write(
        tmp_path / "b.safetensors", {key: value.clone() for key, value in convert(dict(state)).items()}
    )
    found, split = _probes(theirs, family)
    wanted, _ = _probes(ours, family, split)
    _same(wanted, found)
