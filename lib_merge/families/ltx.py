"""LTX-Video: 28 or 48 blocks of self- and cross-attention, with T5 for text."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import Fact, Family, NameRules
from lib_merge.families.stacks import Stack, Stacks

SMALL: dict[str, Shape] = {
    "patchify_proj": (2048, 128),
    "adaln_single.emb.timestep_embedder.linear_1": (2048, 256),
    "adaln_single.emb.timestep_embedder.linear_2": (2048, 2048),
    "adaln_single.linear": (12288, 2048),
    "caption_projection.linear_1": (2048, 4096),
    "caption_projection.linear_2": (2048, 2048),
    "transformer_blocks.{0-27}.{attn1,attn2}.{q_norm,k_norm}": (2048,),
    "transformer_blocks.{0-27}.{attn1,attn2}.{to_q,to_k,to_v}": (2048, 2048),
    "transformer_blocks.{0-27}.{attn1,attn2}.to_out.0": (2048, 2048),
    "transformer_blocks.{0-27}.ff.net.0.proj": (8192, 2048),
    "transformer_blocks.{0-27}.ff.net.2": (2048, 8192),
    "proj_out": (128, 2048),
}
LARGE: dict[str, Shape] = {
    "patchify_proj": (4096, 128),
    "adaln_single.emb.timestep_embedder.linear_1": (4096, 256),
    "adaln_single.emb.timestep_embedder.linear_2": (4096, 4096),
    "adaln_single.linear": (24576, 4096),
    "caption_projection.{linear_1,linear_2}": (4096, 4096),
    "transformer_blocks.{0-47}.{attn1,attn2}.{q_norm,k_norm}": (4096,),
    "transformer_blocks.{0-47}.{attn1,attn2}.{to_q,to_k,to_v}": (4096, 4096),
    "transformer_blocks.{0-47}.{attn1,attn2}.to_out.0": (4096, 4096),
    "transformer_blocks.{0-47}.ff.net.0.proj": (16384, 4096),
    "transformer_blocks.{0-47}.ff.net.2": (4096, 16384),
    "proj_out": (128, 4096),
}

BLOCKS = Stacks(
    (
        Stack(
            "B",
            48,
            ("transformer_blocks",),
            "a block of the transformer: the video, and its attention to the text",
        ),
    ),
    {"T5": "T5"},
)

FAMILY = Family(
    name="LTX",
    order=130,
    layers=Layers(
        sizes=(Size("LTX-Video 2B", SMALL), Size("LTX-Video 13B", LARGE)),
        aliases={
            "proj_in": "patchify_proj",
            "time_embed.emb.timestep_embedder.linear_1": "adaln_single.emb.timestep_embedder.linear_1",
            "time_embed.emb.timestep_embedder.linear_2": "adaln_single.emb.timestep_embedder.linear_2",
            "time_embed.linear": "adaln_single.linear",
            "transformer_blocks.{n}.attn1.norm_q": "transformer_blocks.{n}.attn1.q_norm",
            "transformer_blocks.{n}.attn1.norm_k": "transformer_blocks.{n}.attn1.k_norm",
            "transformer_blocks.{n}.attn2.norm_q": "transformer_blocks.{n}.attn2.q_norm",
            "transformer_blocks.{n}.attn2.norm_k": "transformer_blocks.{n}.attn2.k_norm",
        },
    ),
    facts=(
        shared.TWO_ATTENTIONS,
        shared.FEED_FORWARD,
        *(
            Fact(f"two attentions of width {width}", shared.TWO_ATTENTIONS.path, columns=width)
            for width in (2048, 4096)
        ),
        Fact("patches of a video", re.compile(r"^patchify_proj$")),
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("T5",),
    config_names=NameRules.of(95, (r"ltx", "LTX")),
    encoders={"te": "te1", "te3": "te1"},
    base_version="ltxv",
    architecture="ltx-video/lora",
)
