"""Anima: 28 blocks of self- and cross-attention with adaLN, after Cosmos; Qwen3 0.6B and an adapter."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import Fact, Family, NameRules
from lib_merge.families.stacks import Stack, Stacks

WEIGHTS: dict[str, Shape] = {
    "t_embedder.1.linear_1": (2048, 2048),
    "t_embedder.1.linear_2": (6144, 2048),
    "x_embedder.proj.1": (2048, 68),
    "blocks.{0-27}.self_attn.{q_proj,k_proj,v_proj,output_proj}": (2048, 2048),
    "blocks.{0-27}.{self_attn,cross_attn}.{q_norm,k_norm}": (128,),
    "blocks.{0-27}.cross_attn.{q_proj,output_proj}": (2048, 2048),
    "blocks.{0-27}.cross_attn.{k_proj,v_proj}": (2048, 1024),
    "blocks.{0-27}.mlp.layer1": (8192, 2048),
    "blocks.{0-27}.mlp.layer2": (2048, 8192),
    "blocks.{0-27}.{adaln_modulation_self_attn,adaln_modulation_cross_attn,adaln_modulation_mlp}.1": (
        256,
        2048,
    ),
    "blocks.{0-27}.{adaln_modulation_self_attn,adaln_modulation_cross_attn,adaln_modulation_mlp}.2": (
        6144,
        256,
    ),
    "final_layer.linear": (64, 2048),
    "final_layer.adaln_modulation.1": (256, 2048),
    "final_layer.adaln_modulation.2": (4096, 256),
    "t_embedding_norm": (2048,),
    "llm_adapter.embed": (32128, 1024),
    "llm_adapter.blocks.{0-5}.{norm_self_attn,norm_cross_attn,norm_mlp}": (1024,),
    "llm_adapter.blocks.{0-5}.{self_attn,cross_attn}.{q_proj,k_proj,v_proj,o_proj}": (1024, 1024),
    "llm_adapter.blocks.{0-5}.{self_attn,cross_attn}.{q_norm,k_norm}": (64,),
    "llm_adapter.blocks.{0-5}.mlp.0": (4096, 1024),
    "llm_adapter.blocks.{0-5}.mlp.2": (1024, 4096),
    "llm_adapter.out_proj": (1024, 1024),
    "llm_adapter.norm": (1024,),
}

BLOCKS = Stacks(
    (
        Stack(
            "L", 6, ("llm_adapter_blocks",), "adapter of the language model: what the text hands to the image"
        ),
        Stack("B", 28, ("blocks",), "a block of the transformer: the image, and its attention to the text"),
    ),
    {"BASE": "Qwen3 0.6B"},
)

FAMILY = Family(
    name="Anima",
    order=90,
    # ComfyUI has the adapter in the denoiser, Forge Neo in the text encoder: both load it by its dotted name
    layers=Layers(sizes=(Size("Anima", WEIGHTS),), dotted="llm_adapter."),
    facts=(
        Fact(
            "self and cross attention blocks with q_proj",
            re.compile(
                r"^blocks_\d+_(self_attn|cross_attn)_(q|k|v|output)_proj$|^blocks_\d+_adaln_modulation"
            ),
        ),
        Fact("an adapter of a language model", re.compile(r"^llm_adapter_")),
        shared.TE0,
        shared.LM_1024,
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("Qwen3 0.6B",),
    config_names=NameRules.of(75, (r"anima(?!gine|tediff)", "Anima")),
    encoders={"lm": "te"},
    adapters=("llm_adapter_",),
    base_version="anima",
)
