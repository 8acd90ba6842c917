"""Flux.2: Klein 4B and 9B, dev: fewer double blocks than Flux.1, one modulation for all blocks, no biases."""

from __future__ import annotations

import re

from lib_merge.families import double_stream
from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import BLACK_FOREST, LANGUAGE_MODEL, Fact, Family, Hint, NameRules
from lib_merge.families.stacks import Stack, Stacks

KLEIN_4B: dict[str, Shape] = {
    "img_in": (3072, 128),
    "time_in.in_layer": (3072, 256),
    "time_in.out_layer": (3072, 3072),
    "txt_in": (3072, 7680),
    "double_blocks.{0-4}.{img_attn,txt_attn}.qkv": (9216, 3072),
    "double_blocks.{0-4}.{img_attn,txt_attn}.norm.{query_norm,key_norm}": (128,),
    "double_blocks.{0-4}.{img_attn,txt_attn}.proj": (3072, 3072),
    "double_blocks.{0-4}.{img_mlp,txt_mlp}.0": (18432, 3072),
    "double_blocks.{0-4}.{img_mlp,txt_mlp}.2": (3072, 9216),
    "single_blocks.{0-19}.linear1": (27648, 3072),
    "single_blocks.{0-19}.linear2": (3072, 12288),
    "single_blocks.{0-19}.norm.{query_norm,key_norm}": (128,),
    "final_layer.linear": (128, 3072),
    "final_layer.adaLN_modulation.1": (6144, 3072),
    "{double_stream_modulation_img,double_stream_modulation_txt}.lin": (18432, 3072),
    "single_stream_modulation.lin": (9216, 3072),
}
KLEIN_9B: dict[str, Shape] = {
    "img_in": (4096, 128),
    "time_in.in_layer": (4096, 256),
    "time_in.out_layer": (4096, 4096),
    "txt_in": (4096, 12288),
    "double_blocks.{0-7}.{img_attn,txt_attn}.qkv": (12288, 4096),
    "double_blocks.{0-7}.{img_attn,txt_attn}.norm.{query_norm,key_norm}": (128,),
    "double_blocks.{0-7}.{img_attn,txt_attn}.proj": (4096, 4096),
    "double_blocks.{0-7}.{img_mlp,txt_mlp}.0": (24576, 4096),
    "double_blocks.{0-7}.{img_mlp,txt_mlp}.2": (4096, 12288),
    "single_blocks.{0-23}.linear1": (36864, 4096),
    "single_blocks.{0-23}.linear2": (4096, 16384),
    "single_blocks.{0-23}.norm.{query_norm,key_norm}": (128,),
    "final_layer.linear": (128, 4096),
    "final_layer.adaLN_modulation.1": (8192, 4096),
    "{double_stream_modulation_img,double_stream_modulation_txt}.lin": (24576, 4096),
    "single_stream_modulation.lin": (12288, 4096),
}
DEV: dict[str, Shape] = {
    "img_in": (6144, 128),
    "{time_in,guidance_in}.in_layer": (6144, 256),
    "{time_in,guidance_in}.out_layer": (6144, 6144),
    "txt_in": (6144, 15360),
    "double_blocks.{0-7}.{img_attn,txt_attn}.qkv": (18432, 6144),
    "double_blocks.{0-7}.{img_attn,txt_attn}.norm.{query_norm,key_norm}": (128,),
    "double_blocks.{0-7}.{img_attn,txt_attn}.proj": (6144, 6144),
    "double_blocks.{0-7}.{img_mlp,txt_mlp}.0": (36864, 6144),
    "double_blocks.{0-7}.{img_mlp,txt_mlp}.2": (6144, 18432),
    "single_blocks.{0-47}.linear1": (55296, 6144),
    "single_blocks.{0-47}.linear2": (6144, 24576),
    "single_blocks.{0-47}.norm.{query_norm,key_norm}": (128,),
    "final_layer.linear": (128, 6144),
    "final_layer.adaLN_modulation.1": (12288, 6144),
    "{double_stream_modulation_img,double_stream_modulation_txt}.lin": (36864, 6144),
    "single_stream_modulation.lin": (18432, 6144),
}
LAYERS = Layers(
    sizes=(Size("Klein 4B", KLEIN_4B), Size("Klein 9B", KLEIN_9B), Size("Flux.2 dev", DEV)),
    aliases=double_stream.ALIASES,
    swapped=double_stream.SWAPPED,
)
_LINEAR1 = re.compile(r"^single_(blocks_\d+_linear1|transformer_blocks_\d+_attn_to_qkv_mlp_proj)$")
_FEED_FORWARD = re.compile(
    r"^(double_blocks_\d+_(img|txt)_mlp_0|transformer_blocks_\d+_ff_(context_)?linear_in)$"
)

BLOCKS = Stacks(
    (
        Stack(
            "D",
            8,
            ("double_blocks", "transformer_blocks"),
            "double block: image and text apart, with attention in common",
        ),
        Stack(
            "S", 48, ("single_blocks", "single_transformer_blocks"), "single block: image and text together"
        ),
    ),
    {"BASE": "Qwen3 or Mistral"},
)

FAMILY = Family(
    name="Flux.2",
    order=55,
    layers=LAYERS,
    facts=(
        Fact(
            "one modulation for all blocks",
            re.compile(r"^(double_stream_modulation_|single_stream_modulation)"),
        ),
        Fact("q, k, v and feed-forward in one projection", re.compile(r"_attn_to_qkv_mlp_proj$")),
        Fact(
            "feed-forward of two halves",
            re.compile(r"^transformer_blocks_\d+_ff_(context_)?linear_(in|out)$"),
        ),
        *(Fact(f"single blocks of {rows} rows", _LINEAR1, rows=rows) for rows in (27648, 36864, 55296)),
        *(Fact(f"feed-forward of {rows} rows", _FEED_FORWARD, rows=rows) for rows in (18432, 24576, 36864)),
    ),
    gives_way_to="Flux",  # a few double blocks of Klein 4B have Flux.1's names and width
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("Qwen3 or Mistral",),
    config_names=NameRules.of(15, (r"flux.?2|klein", "Flux.2")),
    lines=NameRules.of(35, (r"klein", "Flux.2 Klein"), (r"flux.?2", "Flux.2")),
    hints={
        "S07": Hint(
            "said to carry identity in Klein 9B; unsure: who says so counts blocks as in Flux.1",
            "happyin.space, 2026",
        )
    },
    presets={name: preset for name, preset in double_stream.PRESETS.items() if name != "FLUXALL"},
    encoders={"te0": LANGUAGE_MODEL},
    base_version="flux2",
    architecture="flux-2-dev/lora",
    implementation=BLACK_FOREST,
)
