"""PixArt alpha and sigma: 28 blocks of self- and cross-attention of width 1152, with T5 for text."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Aliases, Layers, Shape, Size, cut
from lib_merge.families.record import Fact, Family, NameRules
from lib_merge.families.stacks import Stack, Stacks

SIGMA: dict[str, Shape] = {
    "t_block.1": (6912, 1152),
    "x_embedder.proj": (1152, 4, 2, 2),
    "t_embedder.mlp.0": (1152, 256),
    "t_embedder.mlp.2": (1152, 1152),
    "y_embedder.y_proj.fc1": (1152, 4096),
    "y_embedder.y_proj.fc2": (1152, 1152),
    "blocks.{0-27}.attn.qkv": (3456, 1152),
    "blocks.{0-27}.attn.proj": (1152, 1152),
    "blocks.{0-27}.cross_attn.{q_linear,proj}": (1152, 1152),
    "blocks.{0-27}.cross_attn.kv_linear": (2304, 1152),
    "blocks.{0-27}.mlp.fc1": (4608, 1152),
    "blocks.{0-27}.mlp.fc2": (1152, 4608),
    "final_layer.linear": (32, 1152),
}
ALPHA: dict[str, Shape] = {
    **SIGMA,
    "{csize_embedder,ar_embedder}.mlp.0": (384, 256),
    "{csize_embedder,ar_embedder}.mlp.2": (384, 384),
}
_T = "transformer_blocks.{n}"
ALIASES: Aliases = {
    **cut("blocks.{n}.attn.qkv", *(f"{_T}.attn1.to_{letter}" for letter in "qkv")),
    **cut("blocks.{n}.cross_attn.kv_linear", f"{_T}.attn2.to_k", f"{_T}.attn2.to_v"),
    f"{_T}.attn1.to_out.0": "blocks.{n}.attn.proj",
    f"{_T}.attn2.to_q": "blocks.{n}.cross_attn.q_linear",
    f"{_T}.attn2.to_out.0": "blocks.{n}.cross_attn.proj",
    f"{_T}.ff.net.0.proj": "blocks.{n}.mlp.fc1",
    f"{_T}.ff.net.2": "blocks.{n}.mlp.fc2",
    "pos_embed.proj": "x_embedder.proj",
    "adaln_single.linear": "t_block.1",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.emb.resolution_embedder.linear_1": "csize_embedder.mlp.0",
    "adaln_single.emb.resolution_embedder.linear_2": "csize_embedder.mlp.2",
    "adaln_single.emb.aspect_ratio_embedder.linear_1": "ar_embedder.mlp.0",
    "adaln_single.emb.aspect_ratio_embedder.linear_2": "ar_embedder.mlp.2",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "proj_out": "final_layer.linear",
}

BLOCKS = Stacks(
    (
        Stack(
            "B",
            28,
            ("blocks", "transformer_blocks"),
            "a block of the transformer: the image, and its attention to the text",
        ),
    ),
    {"T5": "T5"},
)

FAMILY = Family(
    name="PixArt",
    order=150,
    # ComfyUI knows the pieces by their dotted names alone
    layers=Layers(
        sizes=(Size("PixArt sigma", SIGMA), Size("PixArt alpha", ALPHA)),
        aliases=ALIASES,
        front="transformer.",
    ),
    facts=(
        shared.TWO_ATTENTIONS,
        shared.FEED_FORWARD,
        Fact("two attentions of width 1152", shared.TWO_ATTENTIONS.path, columns=1152),
        Fact("blocks with q_linear and kv_linear", re.compile(r"^blocks_\d+_cross_attn_(q|kv)_linear$")),
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("T5",),
    config_names=NameRules.of(105, (r"pixart", "PixArt")),
    encoders={"te": "te1", "te3": "te1"},
    base_version="pixart",
)
