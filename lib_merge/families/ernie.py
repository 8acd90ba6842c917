"""Ernie-Image: 36 layers of self-attention with gated feed-forward, with Ministral 3 for text."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import LANGUAGE_MODEL, Fact, Family, NameRules
from lib_merge.families.stacks import Stack, Stacks

WEIGHTS: dict[str, Shape] = {
    "x_embedder.proj": (4096, 128, 1, 1),
    "text_proj": (4096, 3072),
    "time_embedding.{linear_1,linear_2}": (4096, 4096),
    "adaLN_modulation.1": (24576, 4096),
    "layers.{0-35}.{adaLN_sa_ln,adaLN_mlp_ln}": (4096,),
    "layers.{0-35}.self_attention.{to_q,to_k,to_v}": (4096, 4096),
    "layers.{0-35}.self_attention.{norm_q,norm_k}": (128,),
    "layers.{0-35}.self_attention.to_out.0": (4096, 4096),
    "layers.{0-35}.mlp.{gate_proj,up_proj}": (12288, 4096),
    "layers.{0-35}.mlp.linear_fc2": (4096, 12288),
    "final_norm.linear": (8192, 4096),
    "final_linear": (128, 4096),
}

BLOCKS = Stacks(
    (Stack("B", 36, ("layers",), "a layer of the transformer: image and text together"),),
    {"BASE": "Ministral 3"},
)

FAMILY = Family(
    name="Ernie",
    order=107,
    layers=Layers(sizes=(Size("Ernie-Image", WEIGHTS),)),
    facts=(
        Fact(
            "layers with self_attention and a gated mlp",
            re.compile(r"^layers_\d+_(self_attention_(to_|norm)|mlp_(gate_proj|up_proj|linear_fc2))"),
        ),
        shared.TE0,
        shared.LM_3072,
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("Ministral 3",),
    config_names=NameRules.of(80, (r"ernie", "Ernie")),
    encoders={"te0": LANGUAGE_MODEL},
    base_version="ernie_image",
    architecture="ernie-image/lora",
)
