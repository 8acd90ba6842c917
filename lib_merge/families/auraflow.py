"""AuraFlow: 4 double and 32 single layers of width 3072, with Pile-T5 for text."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Aliases, Layers, Shape, Size
from lib_merge.families.record import Fact, Family, NameRules, text_block
from lib_merge.families.stacks import Stack, Stacks

WEIGHTS: dict[str, Shape] = {
    "t_embedder.mlp.0": (3072, 256),
    "t_embedder.mlp.2": (3072, 3072),
    "cond_seq_linear": (3072, 2048),
    "init_x_linear": (3072, 16),
    "double_layers.{0-3}.{mlpC,mlpX}.{c_fc1,c_fc2}": (8192, 3072),
    "double_layers.{0-3}.{mlpC,mlpX}.c_proj": (3072, 8192),
    "double_layers.{0-3}.{modC,modX}.1": (18432, 3072),
    "double_layers.{0-3}.attn.{w1q,w1k,w1v,w1o,w2q,w2k,w2v,w2o}": (3072, 3072),
    "single_layers.{0-31}.modCX.1": (18432, 3072),
    "single_layers.{0-31}.attn.{w1q,w1k,w1v,w1o}": (3072, 3072),
    "single_layers.{0-31}.mlp.{c_fc1,c_fc2}": (8192, 3072),
    "single_layers.{0-31}.mlp.c_proj": (3072, 8192),
    "final_linear": (16, 3072),
    "modF.1": (6144, 3072),
}
_JOINT, _SINGLE = "joint_transformer_blocks.{n}", "single_transformer_blocks.{n}"
ALIASES: Aliases = {
    "time_step_proj.linear_1": "t_embedder.mlp.0",
    "time_step_proj.linear_2": "t_embedder.mlp.2",
    "context_embedder": "cond_seq_linear",
    "pos_embed.proj": "init_x_linear",
    "proj_out": "final_linear",
    "norm_out.linear": "modF.1",
    f"{_JOINT}.norm1.linear": "double_layers.{n}.modX.1",
    f"{_JOINT}.norm1_context.linear": "double_layers.{n}.modC.1",
    f"{_JOINT}.attn.to_add_out": "double_layers.{n}.attn.w1o",
    f"{_JOINT}.attn.to_out.0": "double_layers.{n}.attn.w2o",
    f"{_SINGLE}.norm1.linear": "single_layers.{n}.modCX.1",
    f"{_SINGLE}.attn.to_out.0": "single_layers.{n}.attn.w1o",
    **{f"{_JOINT}.attn.add_{letter}_proj": f"double_layers.{{n}}.attn.w1{letter}" for letter in "qkv"},
    **{f"{_JOINT}.attn.to_{letter}": f"double_layers.{{n}}.attn.w2{letter}" for letter in "qkv"},
    **{f"{_SINGLE}.attn.to_{letter}": f"single_layers.{{n}}.attn.w1{letter}" for letter in "qkv"},
    **{
        f"{block}.{theirs}": f"{layer}.{own}"
        for block, layer in (
            (f"{_JOINT}.ff", "double_layers.{n}.mlpX"),
            (f"{_JOINT}.ff_context", "double_layers.{n}.mlpC"),
            (f"{_SINGLE}.ff", "single_layers.{n}.mlp"),
        )
        for theirs, own in {"linear_1": "c_fc1", "linear_2": "c_fc2", "out_projection": "c_proj"}.items()
    },
}
_BLOCK = re.compile(r"^lora_unet_(double|single)_layers_(\d+)_")


def _block(name: str, encoder: int) -> str:
    if encoder:
        return text_block(name)
    match = _BLOCK.match(name)
    return f"{match[1][0].upper()}{int(match[2]):02d}" if match else "OTHER"


BLOCKS = Stacks(
    (
        Stack("D", 4, ("double_layers",), "double layer: image and text apart, with attention in common"),
        Stack("S", 32, ("single_layers",), "single layer: image and text together"),
    ),
    {"BASE": "Pile-T5"},
)

FAMILY = Family(
    name="AuraFlow",
    order=140,
    layers=Layers(
        sizes=(Size("AuraFlow", WEIGHTS),), aliases=ALIASES, swapped=frozenset({"norm_out.linear"})
    ),
    facts=(
        shared.SINGLE_TRANSFORMER_BLOCKS,
        Fact(
            "joint and single layers",
            re.compile(r"^(joint_transformer_blocks|double_layers|single_layers)_\d+_"),
        ),
        Fact(
            "gated feed-forward of single blocks",
            re.compile(r"^single_transformer_blocks_\d+_(ff_|attn_to_out_0$)"),
        ),
    ),
    gives_way_to="Flux",  # the attention of single blocks alone has Flux' names and width
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("Pile-T5",),
    config_names=NameRules.of(100, (r"aura.?flow", "AuraFlow")),
    base_version="auraflow",
)
