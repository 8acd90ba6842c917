"""Chroma: the blocks of Flux.1 without its modulation layers, steered by a distilled guidance layer."""

from __future__ import annotations

import re

from lib_merge.families import double_stream, flux
from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import BLACK_FOREST, Fact, Family, HostModel

BLOCKS = flux.BLOCKS
WEIGHTS: dict[str, Shape] = {
    "img_in": (3072, 64),
    "txt_in": (3072, 4096),
    "distilled_guidance_layer.in_proj": (5120, 64),
    "distilled_guidance_layer.layers.{0-4}.{in_layer,out_layer}": (5120, 5120),
    "distilled_guidance_layer.norms.{0-4}": (5120,),
    "distilled_guidance_layer.out_proj": (3072, 5120),
    "double_blocks.{0-18}.{img_attn,txt_attn}.qkv": (9216, 3072),
    "double_blocks.{0-18}.{img_attn,txt_attn}.norm.{query_norm,key_norm}": (128,),
    "double_blocks.{0-18}.{img_attn,txt_attn}.proj": (3072, 3072),
    "double_blocks.{0-18}.{img_mlp,txt_mlp}.0": (12288, 3072),
    "double_blocks.{0-18}.{img_mlp,txt_mlp}.2": (3072, 12288),
    "single_blocks.{0-37}.linear1": (21504, 3072),
    "single_blocks.{0-37}.linear2": (3072, 15360),
    "single_blocks.{0-37}.norm.{query_norm,key_norm}": (128,),
    "final_layer.linear": (64, 3072),
}
LAYERS = Layers(
    sizes=(Size("Chroma", WEIGHTS),),
    aliases=double_stream.ALIASES,
    swapped=double_stream.SWAPPED,
)

FAMILY = Family(
    name="Chroma",
    order=60,
    layers=LAYERS,
    facts=(
        Fact("a distilled guidance layer", re.compile(r"^distilled_guidance_layer_")),
        shared.DOUBLE_AND_SINGLE,
        shared.SINGLE_TRANSFORMER_BLOCKS,
        shared.FEED_FORWARD,
        shared.JOINT_ATTENTION,
        shared.TRANSFORMER_BLOCKS,
        shared.JOINT_3072,
        shared.TE3,
    ),
    gives_way_to="Flux",  # the same blocks; only the guidance layer tells, and almost every file is Flux
    blocks=(*BLOCKS.blocks, "OTHER"),
    block=BLOCKS.block,
    lists=(BLOCKS.block_list,),
    counting=BLOCKS.counting(),
    parts=double_stream.PARTS,
    presets=double_stream.PRESETS,
    encoders={"te": "te1", "te2": "te1", "te3": "te1"},  # T5 is its only one
    base_version="chroma",
    architecture="chroma/lora",
    implementation=BLACK_FOREST,
    hosts=HostModel("chroma"),
)
