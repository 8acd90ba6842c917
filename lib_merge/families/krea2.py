"""Krea 2: 28 gated transformer blocks, known by the original's names; diffusers' are translated."""

from __future__ import annotations

import re

from lib_merge.families import shared_facts as shared
from lib_merge.families.record import Fact, Family, Placement

# diffusers' words -> the original's, in this order: longer ones first
_WORDS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), word)
    for pattern, word in (
        (r"^transformer_blocks_", "blocks_"),
        (r"^text_fusion_", "txtfusion_"),
        (r"attn_to_q$", "attn_wq"),
        (r"attn_to_k$", "attn_wk"),
        (r"attn_to_v$", "attn_wv"),
        (r"attn_to_out_0$", "attn_wo"),
        (r"attn_to_gate$", "attn_gate"),
        (r"_ff_(up|down|gate)$", r"_mlp_\1"),
        (r"^img_in$", "first"),
        (r"^final_layer_linear$", "last_linear"),
        (r"^time_embed_linear_1$", "tmlp_0"),
        (r"^time_embed_linear_2$", "tmlp_2"),
        (r"^txt_in_linear_1$", "txtmlp_1"),
        (r"^txt_in_linear_2$", "txtmlp_3"),
        (r"^time_mod_proj$", "tproj_1"),
    )
)


def original(path: str) -> Placement:
    """Return where a module goes, from either spelling."""
    for pattern, word in _WORDS:
        path = pattern.sub(word, path)
    return Placement(f"lora_unet_{path}")


FAMILY = Family(
    name="Krea2",
    order=80,
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
    ),
    denoiser=original,
)
