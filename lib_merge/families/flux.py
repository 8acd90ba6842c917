"""Flux.1: 19 double and 38 single blocks of width 3072, with CLIP-L and T5."""

from __future__ import annotations

from lib_merge.families import double_stream
from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import BLACK_FOREST, Family, HostModel, NameRules

BLOCKS = double_stream.DoubleStream(doubles=19, singles=38)
WEIGHTS: dict[str, Shape] = {
    "img_in": (3072, 64),
    "{time_in,guidance_in}.in_layer": (3072, 256),
    "{time_in,vector_in,guidance_in}.out_layer": (3072, 3072),
    "vector_in.in_layer": (3072, 768),
    "txt_in": (3072, 4096),
    "double_blocks.{0-18}.{img_mod,txt_mod}.lin": (18432, 3072),
    "double_blocks.{0-18}.{img_attn,txt_attn}.qkv": (9216, 3072),
    "double_blocks.{0-18}.{img_attn,txt_attn}.norm.{query_norm,key_norm}": (128,),
    "double_blocks.{0-18}.{img_attn,txt_attn}.proj": (3072, 3072),
    "double_blocks.{0-18}.{img_mlp,txt_mlp}.0": (12288, 3072),
    "double_blocks.{0-18}.{img_mlp,txt_mlp}.2": (3072, 12288),
    "single_blocks.{0-37}.linear1": (21504, 3072),
    "single_blocks.{0-37}.linear2": (3072, 15360),
    "single_blocks.{0-37}.norm.{query_norm,key_norm}": (128,),
    "single_blocks.{0-37}.modulation.lin": (9216, 3072),
    "final_layer.linear": (64, 3072),
    "final_layer.adaLN_modulation.1": (6144, 3072),
}
LAYERS = Layers(
    sizes=(
        Size("Flux.1", WEIGHTS),
        Size("Flux.1 Fill", {**WEIGHTS, "img_in": (3072, 384)}),
        Size("Flux.1 Canny or Depth", {**WEIGHTS, "img_in": (3072, 128)}),
    ),
    aliases=double_stream.ALIASES,
    swapped=double_stream.SWAPPED,
)

FAMILY = Family(
    name="Flux",
    order=50,
    layers=LAYERS,
    facts=(
        shared.DOUBLE_AND_SINGLE,
        shared.SINGLE_TRANSFORMER_BLOCKS,
        shared.FEED_FORWARD,
        shared.JOINT_ATTENTION,
        shared.TRANSFORMER_BLOCKS,
        shared.JOINT_3072,
        shared.TE1,
        shared.TE2,
        shared.TE3,
        shared.TEXT_768,
    ),
    config_names=NameRules.of(20, (r"flux(?!.?2)", "Flux")),
    lines=NameRules.of(40, (r"schnell", "Flux schnell"), (r"flux", "Flux dev")),
    blocks=(*BLOCKS.blocks, "OTHER"),
    block=BLOCKS.block,
    lists=(BLOCKS.block_list,),
    counting=BLOCKS.counting("FLUX"),
    parts=double_stream.PARTS,
    presets=double_stream.PRESETS,
    encoders={"te": "te1", "te2": "te3"},
    base_version="flux1",
    architecture="flux-1-dev/lora",
    implementation=BLACK_FOREST,
    card_version="Flux",
    hosts=HostModel("flux"),
)
