"""Qwen-Image: 60 transformer blocks with an MLP for image and one for text, with Qwen2.5-VL 7B for text."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import LANGUAGE_MODEL, Fact, Family, NameRules
from lib_merge.families.stacks import Stack, Stacks

WEIGHTS: dict[str, Shape] = {
    "time_text_embed.timestep_embedder.linear_1": (3072, 256),
    "time_text_embed.timestep_embedder.linear_2": (3072, 3072),
    "txt_norm": (3584,),
    "img_in": (3072, 64),
    "txt_in": (3072, 3584),
    "transformer_blocks.{0-59}.{img_mod,txt_mod}.1": (18432, 3072),
    "transformer_blocks.{0-59}.{img_mlp,txt_mlp}.net.0.proj": (12288, 3072),
    "transformer_blocks.{0-59}.{img_mlp,txt_mlp}.net.2": (3072, 12288),
    "transformer_blocks.{0-59}.attn.{norm_q,norm_k,norm_added_q,norm_added_k}": (128,),
    "transformer_blocks.{0-59}.attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_add_out}": (
        3072,
        3072,
    ),
    "transformer_blocks.{0-59}.attn.to_out.0": (3072, 3072),
    "norm_out.linear": (6144, 3072),
    "proj_out": (64, 3072),
}

BLOCKS = Stacks(
    (
        Stack(
            "B",
            60,
            ("transformer_blocks",),
            "a block of two streams: image and text with attention in common",
        ),
    ),
    {"BASE": "Qwen2.5-VL 7B"},
)

FAMILY = Family(
    name="Qwen-Image",
    order=70,
    layers=Layers(sizes=(Size("Qwen-Image", WEIGHTS),)),
    facts=(
        Fact("image and text MLPs per block", re.compile(r"^transformer_blocks_\d+_(img|txt)_(mlp|mod)")),
        shared.MORE_THAN_19,
        shared.MORE_THAN_27,
        shared.JOINT_ATTENTION,
        shared.TRANSFORMER_BLOCKS,
        shared.JOINT_3072,
        shared.TE0,
        shared.LM_3584,
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("Qwen2.5-VL 7B",),
    config_names=NameRules.of(55, (r"qwen.?image", "Qwen-Image")),
    encoders={"te0": LANGUAGE_MODEL},
    base_version="qwen_image",
    architecture="qwen-image/lora",
)
