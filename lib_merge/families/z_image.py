"""Z-Image: 30 layers of attention with fused q, k, v, and four refiners, with Qwen3 4B for text."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import (
    EVEN,
    LANGUAGE_MODEL,
    NO_TEXT_ENCODER,
    Fact,
    Family,
    Hint,
    NameRules,
    ShippedPreset,
    numbered,
)
from lib_merge.families.s3_dit import ALIASES
from lib_merge.families.stacks import Stack, Stacks

WEIGHTS: dict[str, Shape] = {
    "x_embedder": (3840, 64),
    "{noise_refiner,context_refiner}.{0-1}.attention.qkv": (11520, 3840),
    "{noise_refiner,context_refiner}.{0-1}.attention.out": (3840, 3840),
    "{noise_refiner,context_refiner}.{0-1}.attention.{q_norm,k_norm}": (128,),
    "{noise_refiner,context_refiner}.{0-1}.feed_forward.{w1,w3}": (10240, 3840),
    "{noise_refiner,context_refiner}.{0-1}.feed_forward.w2": (3840, 10240),
    "{noise_refiner,context_refiner}.{0-1}.{attention_norm1,ffn_norm1,attention_norm2,ffn_norm2}": (3840,),
    "noise_refiner.{0-1}.adaLN_modulation.0": (15360, 256),
    "t_embedder.mlp.0": (1024, 256),
    "t_embedder.mlp.2": (256, 1024),
    "cap_embedder.0": (2560,),
    "cap_embedder.1": (3840, 2560),
    "layers.{0-29}.attention.qkv": (11520, 3840),
    "layers.{0-29}.attention.out": (3840, 3840),
    "layers.{0-29}.attention.{q_norm,k_norm}": (128,),
    "layers.{0-29}.feed_forward.{w1,w3}": (10240, 3840),
    "layers.{0-29}.feed_forward.w2": (3840, 10240),
    "layers.{0-29}.{attention_norm1,ffn_norm1,attention_norm2,ffn_norm2}": (3840,),
    "layers.{0-29}.adaLN_modulation.0": (15360, 256),
    "final_layer.linear": (64, 3840),
    "final_layer.adaLN_modulation.1": (3840, 256),
}
_Z_FUSE = "claim of the author of Z-Fuse, 2026: nobody has measured it"
_RANGES = {
    "COMPOSITION": (range(9), "composition"),
    "ANATOMY": (range(9, 21), "anatomy and space"),
    "TEXTURE": (range(21, 30), "texture, skin, light"),
}

BLOCKS = Stacks(
    (
        Stack("N", 2, ("noise_refiner",), "noise refiner: before the layers, image alone"),
        Stack("C", 2, ("context_refiner",), "context refiner: before the layers, text alone"),
        Stack("B", 30, ("layers",), "a layer of the transformer: image and text together"),
    ),
    {"BASE": "Qwen3 4B"},
)

FAMILY = Family(
    name="Z-Image",
    order=100,
    layers=Layers(sizes=(Size("Z-Image", WEIGHTS),), aliases=ALIASES, front="lycoris_"),
    facts=(
        Fact(
            "layers with attention and feed_forward",
            re.compile(r"^layers_\d+_(attention|feed_forward|adaLN)"),
        ),
        Fact(
            "width 3840",
            re.compile(r"^layers_\d+_(attention|feed_forward)_(to_[qkv]|qkv|w1|w3)$"),
            columns=3840,
        ),
        Fact("layers beyond 26", re.compile(r"^layers_2[6-9]_")),
        shared.REFINERS,
        shared.TE0,
        shared.LM_2560,
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("Qwen3 4B",),
    config_names=NameRules.of(60, (r"z.?image", "Z-Image")),
    hints={
        name: Hint(says, _Z_FUSE) for numbers, says in _RANGES.values() for name in numbered("B", *numbers)
    },
    presets={
        **EVEN,
        **NO_TEXT_ENCODER,
        **{
            f"Z-{name}": ShippedPreset(
                f"Only layers {numbers[0]}-{numbers[-1]}, said to carry {says}; unmeasured.",
                rules={**dict.fromkeys(numbered("B", *numbers), 1.0), "BASE": 1.0, "OTHER": 1.0},
                rest=0.0,
            )
            for name, (numbers, says) in _RANGES.items()
        },
    },
    encoders={"te0": LANGUAGE_MODEL},
    base_version="zimage",
    architecture="z-image/lora",
)
