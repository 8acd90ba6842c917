"""Facts that families without common code share: names that several transformers have, text encoders."""

from __future__ import annotations

import re

from lib_merge.families.record import Fact

DOUBLE_AND_SINGLE = Fact(
    "double and single blocks",
    re.compile(r"^(double_blocks_\d+_(img|txt)_|single_blocks_\d+_(linear|modulation))"),
)
SINGLE_TRANSFORMER_BLOCKS = Fact(
    "single transformer blocks", re.compile(r"^single_transformer_blocks_\d+_(attn|proj|norm)")
)
FEED_FORWARD = Fact(
    "transformer blocks with ff", re.compile(r"^transformer_blocks_\d+_(ff_net|ff_context|norm1_)")
)
MORE_THAN_19 = Fact("more than 19 transformer blocks", re.compile(r"^transformer_blocks_(?:19|2[0-7])_attn_"))
MORE_THAN_27 = Fact("60 transformer blocks", re.compile(r"^transformer_blocks_(?:2[89]|[3-5]\d)_attn_"))
JOINT_ATTENTION = Fact("joint transformer blocks", re.compile(r"^transformer_blocks_\d+_attn_(add_|to_add_)"))
TRANSFORMER_BLOCKS = Fact("transformer blocks", re.compile(r"^transformer_blocks_\d+_attn_to_(?!add_)"))
_JOINT = re.compile(r"^transformer_blocks_\d+_attn_(?:to_[qkv]|add_[qkv]_proj)$")
JOINT_1536, JOINT_2432, JOINT_3072, JOINT_6144 = (
    Fact(f"joint attention width {width}", _JOINT, columns=width) for width in (1536, 2432, 3072, 6144)
)

TWO_ATTENTIONS = Fact("blocks with two attentions", re.compile(r"^transformer_blocks_\d+_attn[12]_to_"))
REFINERS = Fact("refiners of noise and context", re.compile(r"^(noise|context)_refiner_\d+_"))

TE0, TE1, TE2, TE3 = (
    Fact(f"text encoder keys of the {component} kind", component=component)
    for component in ("te0", "te1", "te2", "te3")
)
_TEXT = re.compile(r"^text_model_encoder_layers(?=_).*_self_attn_", re.DOTALL)
TEXT_768, TEXT_1024, TEXT_1280 = (
    Fact(f"text encoder width {width}", _TEXT, "text", columns=width) for width in (768, 1024, 1280)
)
_LANGUAGE = re.compile(r"^layers_\d+_(self_attn_[qkv]_proj|mlp_(gate|up)_proj)$")
# Qwen3 0.6B; Gemma 2; Qwen3 4B; Ministral 3; Qwen2.5-VL 7B
LM_1024, LM_2304, LM_2560, LM_3072, LM_3584 = (
    Fact(f"language model of width {width}", _LANGUAGE, "text", columns=width)
    for width in (1024, 2304, 2560, 3072, 3584)
)
