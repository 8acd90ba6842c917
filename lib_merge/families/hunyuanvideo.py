"""HunyuanVideo: 20 double and 40 single blocks of Flux' width (1.5: 54 double ones), CLIP-L and Llama."""

from __future__ import annotations

import re

from lib_merge.families import double_stream
from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Aliases, Layers, Shape, Size
from lib_merge.families.record import Fact, Family, NameRules
from lib_merge.families.stacks import Stack, Stacks

WEIGHTS: dict[str, Shape] = {
    "img_in.proj": (3072, 16, 1, 2, 2),
    "{time_in,guidance_in}.in_layer": (3072, 256),
    "{time_in,vector_in,guidance_in}.out_layer": (3072, 3072),
    "vector_in.in_layer": (3072, 768),
    "txt_in.input_embedder": (3072, 4096),
    "txt_in.t_embedder.in_layer": (3072, 256),
    "txt_in.{t_embedder,c_embedder}.out_layer": (3072, 3072),
    "txt_in.c_embedder.in_layer": (3072, 4096),
    "txt_in.individual_token_refiner.blocks.{0-1}.adaLN_modulation.1": (6144, 3072),
    "txt_in.individual_token_refiner.blocks.{0-1}.{norm1,norm2}": (3072,),
    "txt_in.individual_token_refiner.blocks.{0-1}.self_attn.qkv": (9216, 3072),
    "txt_in.individual_token_refiner.blocks.{0-1}.self_attn.proj": (3072, 3072),
    "txt_in.individual_token_refiner.blocks.{0-1}.mlp.0": (12288, 3072),
    "txt_in.individual_token_refiner.blocks.{0-1}.mlp.2": (3072, 12288),
    "double_blocks.{0-19}.{img_mod,txt_mod}.lin": (18432, 3072),
    "double_blocks.{0-19}.{img_attn,txt_attn}.qkv": (9216, 3072),
    "double_blocks.{0-19}.{img_attn,txt_attn}.norm.{query_norm,key_norm}": (128,),
    "double_blocks.{0-19}.{img_attn,txt_attn}.proj": (3072, 3072),
    "double_blocks.{0-19}.{img_mlp,txt_mlp}.0": (12288, 3072),
    "double_blocks.{0-19}.{img_mlp,txt_mlp}.2": (3072, 12288),
    "single_blocks.{0-39}.linear1": (21504, 3072),
    "single_blocks.{0-39}.linear2": (3072, 15360),
    "single_blocks.{0-39}.norm.{query_norm,key_norm}": (128,),
    "single_blocks.{0-39}.modulation.lin": (9216, 3072),
    "final_layer.linear": (64, 3072),
    "final_layer.adaLN_modulation.1": (6144, 3072),
}
WEIGHTS_1_5: dict[str, Shape] = {
    "img_in.proj": (2048, 65, 1, 1, 1),
    "time_in.in_layer": (2048, 256),
    "time_in.out_layer": (2048, 2048),
    "txt_in.input_embedder": (2048, 3584),
    "txt_in.t_embedder.in_layer": (2048, 256),
    "txt_in.{t_embedder,c_embedder}.out_layer": (2048, 2048),
    "txt_in.c_embedder.in_layer": (2048, 3584),
    "txt_in.individual_token_refiner.blocks.{0-1}.adaLN_modulation.1": (4096, 2048),
    "txt_in.individual_token_refiner.blocks.{0-1}.{norm1,norm2}": (2048,),
    "txt_in.individual_token_refiner.blocks.{0-1}.self_attn.qkv": (6144, 2048),
    "txt_in.individual_token_refiner.blocks.{0-1}.self_attn.proj": (2048, 2048),
    "txt_in.individual_token_refiner.blocks.{0-1}.mlp.0": (8192, 2048),
    "txt_in.individual_token_refiner.blocks.{0-1}.mlp.2": (2048, 8192),
    "double_blocks.{0-53}.{img_mod,txt_mod}.lin": (12288, 2048),
    "double_blocks.{0-53}.{img_attn,txt_attn}.qkv": (6144, 2048),
    "double_blocks.{0-53}.{img_attn,txt_attn}.norm.{query_norm,key_norm}": (128,),
    "double_blocks.{0-53}.{img_attn,txt_attn}.proj": (2048, 2048),
    "double_blocks.{0-53}.{img_mlp,txt_mlp}.0": (8192, 2048),
    "double_blocks.{0-53}.{img_mlp,txt_mlp}.2": (2048, 8192),
    "byt5_in.layernorm": (1472,),
    "byt5_in.fc1": (2048, 1472),
    "byt5_in.{fc2,fc3}": (2048, 2048),
    "final_layer.linear": (32, 2048),
    "final_layer.adaLN_modulation.1": (4096, 2048),
    "vision_in.proj.0": (1152,),
    "vision_in.proj.1": (1152, 1152),
    "vision_in.proj.3": (2048, 1152),
    "vision_in.proj.4": (2048,),
    "cond_type_embedding": (3, 2048),
}
_REFINER = "txt_in.individual_token_refiner.blocks.{n}"
# the names of Tencent's code
ALIASES: Aliases = {
    **{
        f"{block}.{stream}_{theirs}": f"{block}.{stream}_{own}"
        for block in ("double_blocks.{n}",)
        for stream in ("img", "txt")
        for theirs, own in {
            "mlp.fc1": "mlp.0",
            "mlp.fc2": "mlp.2",
            "mod.linear": "mod.lin",
            "attn_q_norm": "attn.norm.query_norm",
            "attn_k_norm": "attn.norm.key_norm",
        }.items()
    },
    "single_blocks.{n}.modulation.linear": "single_blocks.{n}.modulation.lin",
    "single_blocks.{n}.q_norm": "single_blocks.{n}.norm.query_norm",
    "single_blocks.{n}.k_norm": "single_blocks.{n}.norm.key_norm",
    f"{_REFINER}.mlp.fc1": f"{_REFINER}.mlp.0",
    f"{_REFINER}.mlp.fc2": f"{_REFINER}.mlp.2",
    f"{_REFINER}.self_attn_qkv": f"{_REFINER}.self_attn.qkv",
    f"{_REFINER}.self_attn_proj": f"{_REFINER}.self_attn.proj",
    **{
        f"{place}.mlp.{number}": f"{place}.{name}"
        for place in ("time_in", "guidance_in", "txt_in.t_embedder")
        for number, name in ((0, "in_layer"), (2, "out_layer"))
    },
    "txt_in.c_embedder.linear_1": "txt_in.c_embedder.in_layer",
    "txt_in.c_embedder.linear_2": "txt_in.c_embedder.out_layer",
}
BLOCKS = Stacks(
    (
        Stack("R", 2, ("txt_in_individual_token_refiner_blocks",), "refiner of text tokens"),
        Stack("D", 54, ("double_blocks",), "double block: video and text apart, with attention in common"),
        Stack("S", 40, ("single_blocks",), "single block: video and text together"),
    ),
    {"BASE": "CLIP-L and Llama"},
)

FAMILY = Family(
    name="HunyuanVideo",
    order=120,
    layers=Layers(
        sizes=(Size("HunyuanVideo", WEIGHTS), Size("HunyuanVideo 1.5", WEIGHTS_1_5)), aliases=ALIASES
    ),
    facts=(
        shared.DOUBLE_AND_SINGLE,
        Fact(
            "blocks with fc1, fc2 and linear modulation",
            re.compile(
                r"^double_blocks_\d+_(img|txt)_(mlp_fc[12]|mod_linear)$|^single_blocks_\d+_modulation_linear$"
            ),
        ),
        Fact("blocks beyond Flux'", re.compile(r"^double_blocks_(19|[2-5]\d)_|^single_blocks_(38|39)_")),
        Fact("a refiner of text tokens", re.compile(r"^txt_in_individual_token_refiner_")),
        shared.TE1,
        shared.TEXT_768,
    ),
    gives_way_to="Flux",  # attention alone has Flux' names and sizes
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("text encoders",),
    config_names=NameRules.of(90, (r"hunyuan.?video", "HunyuanVideo")),
    presets={name: preset for name, preset in double_stream.PRESETS.items() if name != "FLUXALL"},
    encoders={"te": "te1"},
    base_version="hunyuan_video",
    architecture="hunyuan-video/lora",
)
