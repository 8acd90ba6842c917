"""Stable Diffusion 3 and 3.5: a transformer of joint blocks with fused q, k, v; CLIP-L, CLIP-G and T5."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Aliases, Layers, Shape, Size, cut
from lib_merge.families.record import Fact, Family, HostModel, NameRules
from lib_merge.families.stacks import Stack, Stacks

MEDIUM: dict[str, Shape] = {
    "x_embedder.proj": (1536, 16, 2, 2),
    "t_embedder.mlp.0": (1536, 256),
    "{t_embedder,y_embedder}.mlp.2": (1536, 1536),
    "y_embedder.mlp.0": (1536, 2048),
    "context_embedder": (1536, 4096),
    "joint_blocks.{0-23}.{context_block,x_block}.attn.qkv": (4608, 1536),
    "joint_blocks.{0-22}.context_block.attn.proj": (1536, 1536),
    "joint_blocks.{0-22}.context_block.mlp.fc1": (6144, 1536),
    "joint_blocks.{0-22}.context_block.mlp.fc2": (1536, 6144),
    "joint_blocks.{0-22}.context_block.adaLN_modulation.1": (9216, 1536),
    "joint_blocks.{0-23}.x_block.attn.proj": (1536, 1536),
    "joint_blocks.{0-23}.x_block.mlp.fc1": (6144, 1536),
    "joint_blocks.{0-23}.x_block.mlp.fc2": (1536, 6144),
    "joint_blocks.{0-23}.x_block.adaLN_modulation.1": (9216, 1536),
    "joint_blocks.23.context_block.adaLN_modulation.1": (3072, 1536),
    "final_layer.linear": (64, 1536),
    "final_layer.adaLN_modulation.1": (3072, 1536),
}
MEDIUM_3_5: dict[str, Shape] = {
    "x_embedder.proj": (1536, 16, 2, 2),
    "t_embedder.mlp.0": (1536, 256),
    "{t_embedder,y_embedder}.mlp.2": (1536, 1536),
    "y_embedder.mlp.0": (1536, 2048),
    "context_embedder": (1536, 4096),
    "joint_blocks.{0-23}.{context_block,x_block}.attn.qkv": (4608, 1536),
    "joint_blocks.{0-22}.context_block.attn.proj": (1536, 1536),
    "joint_blocks.{0-23}.{context_block,x_block}.attn.{ln_q,ln_k}": (64,),
    "joint_blocks.{0-22}.context_block.mlp.fc1": (6144, 1536),
    "joint_blocks.{0-22}.context_block.mlp.fc2": (1536, 6144),
    "joint_blocks.{0-22}.context_block.adaLN_modulation.1": (9216, 1536),
    "joint_blocks.{0-23}.x_block.attn.proj": (1536, 1536),
    "joint_blocks.{0-12}.x_block.attn2.qkv": (4608, 1536),
    "joint_blocks.{0-12}.x_block.attn2.proj": (1536, 1536),
    "joint_blocks.{0-12}.x_block.attn2.{ln_q,ln_k}": (64,),
    "joint_blocks.{0-23}.x_block.mlp.fc1": (6144, 1536),
    "joint_blocks.{0-23}.x_block.mlp.fc2": (1536, 6144),
    "joint_blocks.{0-12}.x_block.adaLN_modulation.1": (13824, 1536),
    "joint_blocks.{13-23}.x_block.adaLN_modulation.1": (9216, 1536),
    "joint_blocks.23.context_block.adaLN_modulation.1": (3072, 1536),
    "final_layer.linear": (64, 1536),
    "final_layer.adaLN_modulation.1": (3072, 1536),
}
LARGE_3_5: dict[str, Shape] = {
    "x_embedder.proj": (2432, 16, 2, 2),
    "t_embedder.mlp.0": (2432, 256),
    "{t_embedder,y_embedder}.mlp.2": (2432, 2432),
    "y_embedder.mlp.0": (2432, 2048),
    "context_embedder": (2432, 4096),
    "joint_blocks.{0-37}.{context_block,x_block}.attn.qkv": (7296, 2432),
    "joint_blocks.{0-36}.context_block.attn.proj": (2432, 2432),
    "joint_blocks.{0-37}.{context_block,x_block}.attn.{ln_q,ln_k}": (64,),
    "joint_blocks.{0-36}.context_block.mlp.fc1": (9728, 2432),
    "joint_blocks.{0-36}.context_block.mlp.fc2": (2432, 9728),
    "joint_blocks.{0-36}.context_block.adaLN_modulation.1": (14592, 2432),
    "joint_blocks.{0-37}.x_block.attn.proj": (2432, 2432),
    "joint_blocks.{0-37}.x_block.mlp.fc1": (9728, 2432),
    "joint_blocks.{0-37}.x_block.mlp.fc2": (2432, 9728),
    "joint_blocks.{0-37}.x_block.adaLN_modulation.1": (14592, 2432),
    "joint_blocks.37.context_block.adaLN_modulation.1": (4864, 2432),
    "final_layer.linear": (64, 2432),
    "final_layer.adaLN_modulation.1": (4864, 2432),
}
_X, _CONTEXT = "joint_blocks.{n}.x_block", "joint_blocks.{n}.context_block"
_T = "transformer_blocks.{n}"
ALIASES: Aliases = {
    **cut(f"{_X}.attn.qkv", *(f"{_T}.attn.to_{letter}" for letter in "qkv")),
    **cut(f"{_CONTEXT}.attn.qkv", *(f"{_T}.attn.add_{letter}_proj" for letter in "qkv")),
    **cut(f"{_X}.attn2.qkv", *(f"{_T}.attn2.to_{letter}" for letter in "qkv")),
    f"{_T}.attn.to_out.0": f"{_X}.attn.proj",
    f"{_T}.attn.to_add_out": f"{_CONTEXT}.attn.proj",
    f"{_T}.attn2.to_out.0": f"{_X}.attn2.proj",
    f"{_T}.attn.norm_q": f"{_X}.attn.ln_q",
    f"{_T}.attn.norm_k": f"{_X}.attn.ln_k",
    f"{_T}.attn.norm_added_q": f"{_CONTEXT}.attn.ln_q",
    f"{_T}.attn.norm_added_k": f"{_CONTEXT}.attn.ln_k",
    f"{_T}.attn2.norm_q": f"{_X}.attn2.ln_q",
    f"{_T}.attn2.norm_k": f"{_X}.attn2.ln_k",
    f"{_T}.ff.net.0.proj": f"{_X}.mlp.fc1",
    f"{_T}.ff.net.2": f"{_X}.mlp.fc2",
    f"{_T}.ff_context.net.0.proj": f"{_CONTEXT}.mlp.fc1",
    f"{_T}.ff_context.net.2": f"{_CONTEXT}.mlp.fc2",
    f"{_T}.norm1.linear": f"{_X}.adaLN_modulation.1",
    f"{_T}.norm1_context.linear": f"{_CONTEXT}.adaLN_modulation.1",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "pos_embed.proj": "x_embedder.proj",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}

BLOCKS = Stacks(
    (
        Stack(
            "B",
            38,
            ("joint_blocks", "transformer_blocks"),
            "a joint block: image and text with attention in common",
        ),
    ),
    {"CLIP": "CLIP-L", "CLIPG": "CLIP-G", "T5": "T5"},
)

FAMILY = Family(
    name="SD3",
    order=40,
    layers=Layers(
        sizes=(
            Size("SD3.5 medium", MEDIUM_3_5),
            Size("SD3.5 large", LARGE_3_5),
            Size("SD3 medium", MEDIUM),
        ),
        aliases=ALIASES,
        # the last block's text has no more than scale and shift, as the last layer
        swapped=frozenset({"norm_out.linear", f"{_T}.norm1_context.linear"}),
    ),
    facts=(
        shared.FEED_FORWARD,
        shared.MORE_THAN_19,
        shared.MORE_THAN_27,
        shared.JOINT_ATTENTION,
        shared.TRANSFORMER_BLOCKS,
        Fact("joint blocks", re.compile(r"^joint_blocks_\d+_")),
        Fact(
            "a second attention of the image",
            re.compile(r"^transformer_blocks_\d+_attn2_(to|norm)_[qk]$"),
            columns=1536,
        ),
        shared.JOINT_1536,
        shared.JOINT_2432,
        shared.TE1,
        shared.TE2,
        shared.TE3,
        shared.TEXT_768,
        shared.TEXT_1280,
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("CLIP-L", "CLIP-G", "T5"),
    config_names=NameRules.of(30, (r"stable-diffusion-3|sd3", "SD3")),
    encoders={"te": "te1"},
    base_version="sd3m",
    architecture="stable-diffusion-3-m/lora",
    hosts=HostModel(flag="is_sd3"),
)
