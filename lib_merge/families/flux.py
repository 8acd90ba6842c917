"""Flux.1: 19 double and 38 single blocks of width 3072, with CLIP-L and T5."""

from __future__ import annotations

from lib_merge.families import double_stream
from lib_merge.families import shared_facts as shared
from lib_merge.families.record import BLACK_FOREST, Family, HostModel, NameRules

LAYERS = double_stream.DoubleStream(hidden=3072, mlp=4 * 3072, doubles=19, singles=38)

FAMILY = Family(
    name="Flux",
    order=50,
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
    config_names=NameRules.of(20, (r"flux", "Flux")),
    lines=NameRules.of(40, (r"schnell", "Flux schnell"), (r"flux", "Flux dev")),
    blocks=(*LAYERS.blocks, "OTHER"),
    block=LAYERS.block,
    lists=(LAYERS.block_list,),
    counting=LAYERS.counting("FLUX"),
    parts=double_stream.PARTS,
    presets=double_stream.PRESETS,
    encoders={"te": "te1", "te2": "te3"},
    denoiser=LAYERS.place,
    split=LAYERS.split,
    base_version="flux1",
    architecture="flux-1-dev/lora",
    implementation=BLACK_FOREST,
    card_version="Flux",
    hosts=HostModel("flux"),
)
