"""Krea 2: 28 gated transformer blocks, known by the original's names, with Qwen3-VL 4B for text."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Aliases, Layers, Shape, Size
from lib_merge.families.record import (
    EVEN,
    LANGUAGE_MODEL,
    NO_TEXT_ENCODER,
    Fact,
    Family,
    Hint,
    NameRules,
    ShippedPreset,
    numbered,
)
from lib_merge.families.stacks import Stack, Stacks

WEIGHTS: dict[str, Shape] = {
    "first": (6144, 64),
    "blocks.{0-27}.attn.{wq,gate,wo}": (6144, 6144),
    "blocks.{0-27}.attn.{wk,wv}": (1536, 6144),
    "blocks.{0-27}.mlp.{gate,up}": (16384, 6144),
    "blocks.{0-27}.mlp.down": (6144, 16384),
    "tmlp.0": (6144, 256),
    "tmlp.2": (6144, 6144),
    "txtfusion.{layerwise_blocks,refiner_blocks}.{0-1}.attn.{wq,wk,wv,gate,wo}": (2560, 2560),
    "txtfusion.{layerwise_blocks,refiner_blocks}.{0-1}.mlp.{gate,up}": (6912, 2560),
    "txtfusion.{layerwise_blocks,refiner_blocks}.{0-1}.mlp.down": (2560, 6912),
    "txtfusion.projector": (1, 12),
    "txtmlp.1": (6144, 2560),
    "txtmlp.3": (6144, 6144),
    "last.linear": (64, 6144),
    "tproj.1": (36864, 6144),
}
_LIKE = {
    "transformer_blocks.{n}": "blocks.{n}",
    "text_fusion.layerwise_blocks.{n}": "txtfusion.layerwise_blocks.{n}",
    "text_fusion.refiner_blocks.{n}": "txtfusion.refiner_blocks.{n}",
}
_WORDS = {
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_out.0": "attn.wo",
    "attn.to_gate": "attn.gate",
    "ff.up": "mlp.up",
    "ff.down": "mlp.down",
    "ff.gate": "mlp.gate",
}
ALIASES: Aliases = {
    **{f"{block}.{word}": f"{own}.{name}" for block, own in _LIKE.items() for word, name in _WORDS.items()},
    "img_in": "first",
    "final_layer.linear": "last.linear",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "time_mod_proj": "tproj.1",
    "text_fusion.projector": "txtfusion.projector",
}
_KNOBS = "aledelpho, krea2-weight-knobs-results, 2026: measured on the base model's blocks, not on LoRAs"

BLOCKS = Stacks(
    (Stack("B", 28, ("blocks",), "a layer of the transformer: image and text together"),),
    {"BASE": "Qwen3-VL 4B"},
)

FAMILY = Family(
    name="Krea2",
    order=80,
    layers=Layers(sizes=(Size("Krea 2", WEIGHTS),), aliases=ALIASES),
    facts=(
        shared.MORE_THAN_19,
        shared.TRANSFORMER_BLOCKS,
        Fact(
            "gated transformer blocks",
            re.compile(r"^transformer_blocks_\d+_(attn_to_gate|ff_(up|down|gate))$"),
        ),
        Fact(
            "text fusion, wq/wk/wv",
            re.compile(r"^(txtfusion|text_fusion)_|^blocks_\d+_attn_(w[qkvo]|gate)$|^tproj_1$"),
        ),
        shared.JOINT_6144,
        shared.TE0,
        shared.LM_2560,
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("Qwen3-VL 4B",),
    config_names=NameRules.of(70, (r"krea.?2", "Krea2")),
    hints={
        "B05": Hint("fragile in close-ups", _KNOBS),
        **{
            name: Hint("changes the content most, and can change identity", _KNOBS)
            for name in numbered("B", *range(9, 19))
        },
        **{
            name: Hint("late block: the look of a family of styles", _KNOBS)
            for name in numbered("B", *range(19, 28))
        },
        "B23": Hint("saturation: 15 of 16 pictures changed monotonously", _KNOBS),
    },
    presets={
        **EVEN,
        **NO_TEXT_ENCODER,
        "K2-SATURATION": ShippedPreset("Block 23 at half strength: colours calm down.", rules={"B23": 0.5}),
        "K2-LATE": ShippedPreset(
            "Only the late blocks 19-27, where the look of a style lies in the base model.",
            rules={**dict.fromkeys(numbered("B", *range(19, 28)), 1.0), "BASE": 1.0, "OTHER": 1.0},
            rest=0.0,
        ),
        "K2-KEEP-IDENTITY": ShippedPreset(
            "The middle blocks 9-18 at half strength: they change content and identity most.",
            rules=dict.fromkeys(numbered("B", *range(9, 19)), 0.5),
        ),
    },
    encoders={"te0": LANGUAGE_MODEL},
    base_version="krea2",
)
