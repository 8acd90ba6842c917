"""Chroma: the blocks of Flux.1 without its modulation layers, steered by a distilled guidance layer."""

from __future__ import annotations

import re

from lib_merge.families import double_stream, flux
from lib_merge.families import shared_facts as shared
from lib_merge.families.record import BLACK_FOREST, Fact, Family, HostModel

LAYERS = flux.LAYERS

FAMILY = Family(
    name="Chroma",
    order=60,
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
    blocks=(*LAYERS.blocks, "OTHER"),
    block=LAYERS.block,
    lists=(LAYERS.block_list,),
    counting=LAYERS.counting(),
    parts=double_stream.PARTS,
    presets=double_stream.PRESETS,
    denoiser=LAYERS.place,
    split=LAYERS.split,
    base_version="chroma",
    architecture="chroma/lora",
    implementation=BLACK_FOREST,
    hosts=HostModel("chroma"),
)
