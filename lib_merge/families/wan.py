"""Wan 2.1 and 2.2: 30 or 40 blocks of self- and cross-attention, with UMT5 for text."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Aliases, Layers, Shape, Size
from lib_merge.families.record import LANGUAGE_MODEL, Fact, Family, NameRules
from lib_merge.families.stacks import Stack, Stacks

T2V_14B: dict[str, Shape] = {
    "patch_embedding": (5120, 16, 1, 2, 2),
    "text_embedding.0": (5120, 4096),
    "{text_embedding,time_embedding}.2": (5120, 5120),
    "time_embedding.0": (5120, 256),
    "time_projection.1": (30720, 5120),
    "blocks.{0-39}.{self_attn,cross_attn}.{q,k,v,o}": (5120, 5120),
    "blocks.{0-39}.{self_attn,cross_attn}.{norm_q,norm_k}": (5120,),
    "blocks.{0-39}.norm3": (5120,),
    "blocks.{0-39}.ffn.0": (13824, 5120),
    "blocks.{0-39}.ffn.2": (5120, 13824),
    "head.head": (64, 5120),
}
# image to video: 2.1 reads the picture by attention of its own, 2.2 by more channels alone
I2V_14B: dict[str, Shape] = {
    **T2V_14B,
    "patch_embedding": (5120, 36, 1, 2, 2),
    "blocks.{0-39}.cross_attn.{k_img,v_img}": (5120, 5120),
    "blocks.{0-39}.cross_attn.norm_k_img": (5120,),
    "img_emb.proj.0": (1280,),
    "img_emb.proj.1": (1280, 1280),
    "img_emb.proj.3": (5120, 1280),
    "img_emb.proj.4": (5120,),
}
T2V_1_3B: dict[str, Shape] = {
    "patch_embedding": (1536, 16, 1, 2, 2),
    "text_embedding.0": (1536, 4096),
    "{text_embedding,time_embedding}.2": (1536, 1536),
    "time_embedding.0": (1536, 256),
    "time_projection.1": (9216, 1536),
    "blocks.{0-29}.{self_attn,cross_attn}.{q,k,v,o}": (1536, 1536),
    "blocks.{0-29}.{self_attn,cross_attn}.{norm_q,norm_k}": (1536,),
    "blocks.{0-29}.norm3": (1536,),
    "blocks.{0-29}.ffn.0": (8960, 1536),
    "blocks.{0-29}.ffn.2": (1536, 8960),
    "head.head": (64, 1536),
}
TI2V_5B: dict[str, Shape] = {
    "patch_embedding": (3072, 48, 1, 2, 2),
    "text_embedding.0": (3072, 4096),
    "{text_embedding,time_embedding}.2": (3072, 3072),
    "time_embedding.0": (3072, 256),
    "time_projection.1": (18432, 3072),
    "blocks.{0-29}.{self_attn,cross_attn}.{q,k,v,o}": (3072, 3072),
    "blocks.{0-29}.{self_attn,cross_attn}.{norm_q,norm_k}": (3072,),
    "blocks.{0-29}.norm3": (3072,),
    "blocks.{0-29}.ffn.0": (14336, 3072),
    "blocks.{0-29}.ffn.2": (3072, 14336),
    "head.head": (192, 3072),
}
_ATTENTION = {"attn1": "self_attn", "attn2": "cross_attn"}
_PROJECTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}
# how diffusers calls them; no host knows these
ALIASES: Aliases = {
    **{
        f"blocks.{{n}}.{theirs}.{part}": f"blocks.{{n}}.{own}.{name}"
        for theirs, own in _ATTENTION.items()
        for part, name in _PROJECTION.items()
    },
    "blocks.{n}.ffn.net.0.proj": "blocks.{n}.ffn.0",
    "blocks.{n}.ffn.net.2": "blocks.{n}.ffn.2",
    "blocks.{n}.norm2": "blocks.{n}.norm3",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
}

BLOCKS = Stacks(
    (Stack("B", 40, ("blocks",), "a block of the transformer: the video, and its attention to the text"),),
    {"BASE": "UMT5"},
)

FAMILY = Family(
    name="Wan",
    pairs=True,
    order=110,
    layers=Layers(
        sizes=(
            Size("Wan 14B", T2V_14B),
            Size("Wan 2.2 14B image to video", {**T2V_14B, "patch_embedding": (5120, 36, 1, 2, 2)}),
            Size("Wan 2.1 14B image to video", I2V_14B),
            Size("Wan 1.3B", T2V_1_3B),
            Size("Wan 2.2 5B", TI2V_5B),
        ),
        aliases=ALIASES,
    ),
    facts=(
        Fact(
            "self and cross attention blocks",
            re.compile(
                r"^blocks_\d+_(self_attn|cross_attn)_(q|k|v|o|k_img|v_img)$"
                r"|^blocks_\d+_(attn[12]_(to_|add_)|ffn_net_)"
            ),
        ),
        shared.TE0,
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("UMT5",),
    config_names=NameRules.of(85, (r"(^|[^a-z])wan.?[-_ ]?(2|v2|fun|t2v|i2v|$)", "Wan")),
    encoders={"te0": LANGUAGE_MODEL},
    base_version="wan2.1",
    architecture="wan2.1/lora",
)
