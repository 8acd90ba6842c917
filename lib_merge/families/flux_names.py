"""Flux module paths: the original (BFL) names and diffusers', where q, k and v are separate layers.

Every WebUI that runs Flux loads both spellings, the split one under `lora_transformer_`. So a module stays
as its sources
have it: fused where all are fused; split, with rows of the fused matrix, where any is split. Fusing a split
    LoRA would
triple its rank.
"""

from __future__ import annotations

import re

HIDDEN = 3072  # Flux.1's width; its rows of q, k, v
MLP = 4 * HIDDEN
_QKV = (("q", 0), ("k", HIDDEN), ("v", 2 * HIDDEN))
_DOUBLE = {
    "attn_to_out_0": "img_attn_proj",
    "attn_to_add_out": "txt_attn_proj",
    "ff_net_0_proj": "img_mlp_0",
    "ff_net_2": "img_mlp_2",
    "ff_context_net_0_proj": "txt_mlp_0",
    "ff_context_net_2": "txt_mlp_2",
    "norm1_linear": "img_mod_lin",
    "norm1_context_linear": "txt_mod_lin",
}
_SINGLE = {"proj_out": "linear2", "norm_linear": "modulation_lin"}
_OUTER = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed_timestep_embedder_linear_1": "time_in_in_layer",
    "time_text_embed_timestep_embedder_linear_2": "time_in_out_layer",
    "time_text_embed_text_embedder_linear_1": "vector_in_in_layer",
    "time_text_embed_text_embedder_linear_2": "vector_in_out_layer",
    "time_text_embed_guidance_embedder_linear_1": "guidance_in_in_layer",
    "time_text_embed_guidance_embedder_linear_2": "guidance_in_out_layer",
    "norm_out_linear": "final_layer_adaLN_modulation_1",
    "proj_out": "final_layer_linear",
}
_SPLIT: dict[str, tuple[str, int, int]] = {
    **{f"attn_to_{letter}": ("img_attn_qkv", row, row + HIDDEN) for letter, row in _QKV},
    **{f"attn_add_{letter}_proj": ("txt_attn_qkv", row, row + HIDDEN) for letter, row in _QKV},
}
_SPLIT_SINGLE: dict[str, tuple[str, int, int]] = {
    **{f"attn_to_{letter}": ("linear1", row, row + HIDDEN) for letter, row in _QKV},
    "proj_mlp": ("linear1", 3 * HIDDEN, 3 * HIDDEN + MLP),
}
_BLOCK = re.compile(r"^(single_)?transformer_blocks_(\d+)_(.+)$")
_FUSED = re.compile(r"^lora_unet_(double_blocks|single_blocks)_(\d+)_(img_attn_qkv|txt_attn_qkv|linear1)$")
SWAPPED = "norm_out_linear"


def place_flux(path: str) -> tuple[str, str | None, tuple[int, int] | None]:
    """Return (name, fused name, rows) of a transformer module, in either spelling.

    `name` is what a loader knows; for a split projection, `fused` and `rows` say which rows of which module
    it covers.
    """
    if path in _OUTER:
        return f"lora_unet_{_OUTER[path]}", None, None
    match = _BLOCK.match(path)
    if match is None:
        return f"lora_unet_{path}", None, None
    single, number, rest = match.groups()
    split = (_SPLIT_SINGLE if single else _SPLIT).get(rest)
    side = f"{'single' if single else 'double'}_blocks_{number}"
    if split is not None:
        fused, start, stop = split
        return f"lora_transformer_{path}", f"lora_unet_{side}_{fused}", (start, stop)
    known = (_SINGLE if single else _DOUBLE).get(rest)
    return (f"lora_unet_{side}_{known}" if known else f"lora_transformer_{path}"), None, None


def split_flux(fused: str) -> tuple[tuple[str, tuple[int, int]], ...] | None:
    """Return the split modules of a fused one with their rows, or None for a module that is not fused."""
    match = _FUSED.match(fused)
    if match is None:
        return None
    single = match[1] == "single_blocks"
    stem = f"lora_transformer_{'single_' if single else ''}transformer_blocks_{match[2]}_"
    table = _SPLIT_SINGLE if single else _SPLIT
    return tuple(
        (f"{stem}{rest}", (start, stop)) for rest, (whole, start, stop) in table.items() if whole == match[3]
    )
