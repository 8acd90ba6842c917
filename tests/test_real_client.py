"""Clients that nobody here wrote: diffusers and peft load the sources and our merge, and their models agree."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_merge import merge, open_lora
from lib_merge.adapters.cloneofsimo import cloneofsimo_text_order, cloneofsimo_unet_order
from tests.clients import sd15

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]
if os.environ.get("CI") != "true":
    for _package in ("diffusers", "peft", "transformers"):
        pytest.importorskip(_package, reason="diffusers, peft and transformers are not installed")


@pytest.fixture(scope="module")
def models():
    return sd15.build()


@pytest.fixture
def loader(models):
    made = sd15.Holder.make(*models)
    yield made
    made.unload_lora_weights()


def _run(loader, adapters):
    """Load (path, weight) pairs by the official route and return the models' outputs."""
    names = []
    for number, (path, _) in enumerate(adapters):
        names.append(f"a{number}")
        if _header(path).get("lora_adapter_metadata"):  # alpha is in the header: theirs to read
            loader.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=names[-1])
            continue
        # embeddings that ride along are the WebUIs' way; diffusers takes them as files of their own
        state = {
            key: value for key, value in load_file(str(path)).items() if not key.startswith("bundle_emb.")
        }
        if not any(key.startswith(("unet.", "text_encoder.", "lora_")) for key in state):
            state = {
                f"unet.{key}": value for key, value in state.items()
            }  # the oldest files hold the UNet alone, unprefixed
        loader.load_lora_weights(state, adapter_name=names[-1])
    loader.set_adapters(names, [weight for _, weight in adapters])
    found = sd15.outputs(loader.unet, loader.text_encoder)
    loader.unload_lora_weights()
    return found


def _header(path):
    with safe_open(str(path), "pt") as file:
        return file.metadata() or {}


def _distance(found, wanted, base):
    """‖found − wanted‖ relative to what the LoRAs change."""
    return [
        float((f - w).norm() / (w - b).norm())
        for f, w, b in zip(found, wanted, base)
        if float((w - b).norm()) > 0
    ]


# sources by key style: diffusers, the oldest diffusers (attention processors), kohya (the synthetic samples)
PAIRS = {
    "diffusers + diffusers (processors)": (
        "diffusers_sd15_r4_pokemon.safetensors",
        "diffusers_oldest_sd15_r4.safetensors",
    ),
    "diffusers + kohya with text encoder": ("diffusers_sd15_r4_pokemon.safetensors", 1),
    "kohya + kohya": (0, 1),
}


@pytest.mark.parametrize("precision", ["fp16", "float"])
@pytest.mark.parametrize("pair", PAIRS)
def test_diffusers_sees_the_stack_and_our_merge_as_the_same(
    pair, precision, models, loader, loras, samples, tmp_path
):
    paths = [samples[item] if isinstance(item, int) else loras / item for item in PAIRS[pair]]
    weights = [0.8, 0.55]
    out = tmp_path / "merged.safetensors"
    merge(paths, ratios=weights, save_to=out, save_precision=precision)
    base = sd15.outputs(*models)
    stack = _run(loader, list(zip(paths, weights)))
    ours = _run(loader, [(out, 1.0)])
    apart = _distance(ours, stack, base)
    assert apart  # the LoRAs do change something
    # fp16 rounds every factor to 5e-4 at most; random models amplify that a little
    assert max(apart) <= (5e-3 if precision == "fp16" else 1e-3)


def _with_header(loras, folder):
    """The real PEFT file as diffusers saves one today: `unet.` names, its configuration in the header."""
    config = json.loads((loras / "peft_sd15_r4_alpha16.adapter_config.json").read_text())
    state = load_file(str(loras / "peft_sd15_r4_alpha16.safetensors"))
    named = {key.replace("base_model.model.", "unet."): value for key, value in state.items()}
    kept = {f"unet.{key}": config[key] for key in ("r", "lora_alpha", "target_modules")}
    path = folder / "peft.safetensors"
    save_file(named, str(path), {"format": "pt", "lora_adapter_metadata": json.dumps(kept)})
    return path


def test_a_peft_file_and_a_diffusers_file_are_seen_as_their_merge(models, loader, loras, tmp_path):
    paths = [_with_header(loras, tmp_path), loras / "diffusers_sd15_r4_pokemon.safetensors"]
    # the weights bring both to like strength: the first has alpha 16 on rank 4
    weights, out = [0.3, 0.9], tmp_path / "merged.safetensors"
    # diffusers applies alpha of a header, here 16 on rank 4; no WebUI does, and so neither does a merge
    merge(paths, ratios=[4 * weights[0], weights[1]], save_to=out, save_precision="float")
    direct = tmp_path / "direct.safetensors"
    merge(
        [loras / "peft_sd15_r4_alpha16.safetensors", paths[1]],
        ratios=weights,
        save_to=direct,
        save_precision="float",
    )
    base = sd15.outputs(*models)
    stack = _run(loader, list(zip(paths, weights)))
    for merged in (out, direct):  # alpha from the configuration beside the original
        assert max(_distance(_run(loader, [(merged, 1.0)]), stack, base)) <= 1e-3


def _added_in_place(models, adapters):
    """Outputs of the real classes with w·up·down added to their layers in walking order; the weights are put back."""
    unet, text_encoder = models
    text = [m for n, m in text_encoder.named_modules() if isinstance(m, torch.nn.Linear) and "self_attn" in n]
    layers = {"unet": [layer for _, layer in _walk(unet)], "text_encoder": text}
    before = {layer: layer.weight.detach().clone() for part in layers.values() for layer in part}
    try:
        with torch.no_grad():
            for path, weight in adapters:
                state = load_file(str(path))
                for part, walk in layers.items():
                    for number, layer in enumerate(walk):
                        up, down = (state[f"{part}:{number}:{half}"].float() for half in ("up", "down"))
                        layer.weight += weight * (up @ down)
        return sd15.outputs(unet, text_encoder)
    finally:
        with torch.no_grad():
            for layer, weight in before.items():
                layer.weight.copy_(weight)


def test_the_oldest_files_added_layer_by_layer_are_seen_as_their_merge(models, loader, loras, tmp_path):
    names = ("cloneofsimo_sd15_r1_disney.safetensors", "cloneofsimo_sd15_r4_analog.safetensors")
    adapters = list(zip([loras / name for name in names], [0.8, 0.55]))
    out = tmp_path / "merged.safetensors"
    merge(
        [path for path, _ in adapters],
        ratios=[weight for _, weight in adapters],
        save_to=out,
        save_precision="float",
    )
    base = sd15.outputs(*models)
    apart = _distance(_run(loader, [(out, 1.0)]), _added_in_place(models, adapters), base)
    assert len(apart) == 2
    assert max(apart) <= 1e-3


def test_a_wrong_merge_would_be_seen(models, loader, samples, tmp_path):
    out = tmp_path / "merged.safetensors"
    merge(samples[:2], ratios=[0.8, 0.5], save_to=out)
    base = sd15.outputs(*models)
    stack = _run(loader, list(zip(samples[:2], [0.8, 0.55])))
    assert max(_distance(_run(loader, [(out, 1.0)]), stack, base)) > 0.02


def test_peft_files_keep_the_scale_of_their_configuration(models, loras, tmp_path):
    """PEFT's own loader applies alpha 16 / rank 4; our merge of that file alone does the same in diffusers."""
    import shutil

    from peft import PeftModel

    folder = tmp_path / "adapter"
    folder.mkdir()
    source = loras / "peft_sd15_r4_alpha16.safetensors"
    shutil.copy(source, folder / "adapter_model.safetensors")
    shutil.copy(loras / "peft_sd15_r4_alpha16.adapter_config.json", folder / "adapter_config.json")
    out = tmp_path / "merged.safetensors"
    merge([source], ratios=[1.0], save_to=out, save_precision="float")
    unet, text_encoder = models
    base = sd15.outputs(unet, text_encoder)
    wrapped = PeftModel.from_pretrained(unet, str(folder))
    theirs = sd15.outputs(wrapped, text_encoder)
    wrapped.unload()
    made = sd15.Holder.make(unet, text_encoder)
    ours = _run(made, [(out, 1.0)])
    assert max(_distance(ours[:1], theirs[:1], base[:1])) <= 1e-3


def _walk(unet):
    """Linear layers of the real classes in the order the first LoRA code met them.

    Blocks down, up, mid: the UNet class made its mid block last. Within a transformer block that class of 2022 made
    attn1, ff, attn2 in this order (today's makes ff last); which layers there are, and their sizes, is today's class.
    """
    found = []
    for part in ("down_blocks", "up_blocks", "mid_block"):
        for name, block in getattr(unet, part).named_modules(prefix=part):
            if type(block).__name__ == "BasicTransformerBlock":
                for child in ("attn1", "ff", "attn2"):
                    for inner, module in getattr(block, child).named_modules(prefix=f"{name}.{child}"):
                        if type(module).__name__ in ("Attention", "GEGLU"):
                            layers = module.named_modules(prefix=inner)
                            found.extend(
                                (n, layer) for n, layer in layers if isinstance(layer, torch.nn.Linear)
                            )
    return found


def test_the_positions_of_the_oldest_files_are_a_walk_over_the_real_classes(models, loras):
    unet, text_encoder = models
    walk = _walk(unet)
    names = tuple("lora_unet_" + name.replace(".", "_") for name, _ in walk)
    assert names == cloneofsimo_unet_order()
    text = [
        (name, layer)
        for name, layer in text_encoder.named_modules()
        if isinstance(layer, torch.nn.Linear) and "self_attn" in name
    ]
    prefix = "" if text[0][0].startswith("text_model") else "text_model."
    found = tuple("lora_te_" + (prefix + name).replace(".", "_") for name, _ in text)
    assert found == cloneofsimo_text_order(12)
    sizes = dict(zip(names, (tuple(layer.weight.shape) for _, layer in walk)))
    sizes |= {name: tuple(layer.weight.shape) for name, (_, layer) in zip(found, text)}
    for file in ("cloneofsimo_sd15_r1_disney.safetensors", "cloneofsimo_sd15_r4_analog.safetensors"):
        with open_lora(loras / file) as lora:
            assert len(lora.modules) == 192
            for name, module in lora.modules.items():
                assert (module.layout.out, module.layout.columns) == sizes[name]
