"""What double-stream transformers (Flux, Chroma, Flux.2) have in common: both spellings, blocks, presets.

The original (BFL) names fuse q, k and v; diffusers' have separate layers. Every WebUI that runs Flux loads
both spellings, the split one under `lora_transformer_`. So a module stays as its sources have it: fused where
all are fused; split, with rows of the fused matrix, where any is split. Fusing a split LoRA would triple its
rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lib_merge.families.layers import Aliases, Piece, cut
from lib_merge.families.record import (
    EVEN,
    NO_TEXT_ENCODER,
    PRACTICE,
    REST,
    BlockList,
    Counting,
    Hint,
    ShippedPreset,
    numbered,
)

_IMAGE = "double_blocks.{n}.img_attn.qkv"
_TEXT = "double_blocks.{n}.txt_attn.qkv"
_SINGLE = "single_blocks.{n}.linear1"
ALIASES: Aliases = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    **cut(_IMAGE, *(f"transformer_blocks.{{n}}.attn.to_{letter}" for letter in "qkv")),
    **cut(_TEXT, *(f"transformer_blocks.{{n}}.attn.add_{letter}_proj" for letter in "qkv")),
    **cut(_IMAGE, *(f"{_IMAGE}.{part}" for part in range(3))),
    **cut(_TEXT, *(f"{_TEXT}.{part}" for part in range(3))),
    "transformer_blocks.{n}.attn.to_out.0": "double_blocks.{n}.img_attn.proj",
    "transformer_blocks.{n}.attn.to_add_out": "double_blocks.{n}.txt_attn.proj",
    "transformer_blocks.{n}.attn.norm_q": "double_blocks.{n}.img_attn.norm.query_norm",
    "transformer_blocks.{n}.attn.norm_k": "double_blocks.{n}.img_attn.norm.key_norm",
    "transformer_blocks.{n}.attn.norm_added_q": "double_blocks.{n}.txt_attn.norm.query_norm",
    "transformer_blocks.{n}.attn.norm_added_k": "double_blocks.{n}.txt_attn.norm.key_norm",
    "transformer_blocks.{n}.ff.net.0.proj": "double_blocks.{n}.img_mlp.0",
    "transformer_blocks.{n}.ff.net.2": "double_blocks.{n}.img_mlp.2",
    "transformer_blocks.{n}.ff.linear_in": "double_blocks.{n}.img_mlp.0",
    "transformer_blocks.{n}.ff.linear_out": "double_blocks.{n}.img_mlp.2",
    "transformer_blocks.{n}.ff_context.net.0.proj": "double_blocks.{n}.txt_mlp.0",
    "transformer_blocks.{n}.ff_context.net.2": "double_blocks.{n}.txt_mlp.2",
    "transformer_blocks.{n}.ff_context.linear_in": "double_blocks.{n}.txt_mlp.0",
    "transformer_blocks.{n}.ff_context.linear_out": "double_blocks.{n}.txt_mlp.2",
    "transformer_blocks.{n}.norm1.linear": "double_blocks.{n}.img_mod.lin",
    "transformer_blocks.{n}.norm1_context.linear": "double_blocks.{n}.txt_mod.lin",
    **cut(_SINGLE, *(f"single_transformer_blocks.{{n}}.attn.to_{letter}" for letter in "qkv")),
    "single_transformer_blocks.{n}.proj_mlp": Piece(_SINGLE, 3),
    **cut(_SINGLE, *(f"{_SINGLE}.{part}" for part in range(3))),
    f"{_SINGLE}.3": Piece(_SINGLE, 3),
    f"{_SINGLE}_qkv": Piece(_SINGLE, 0, 3),
    "single_transformer_blocks.{n}.attn.to_qkv_mlp_proj": _SINGLE,
    "single_transformer_blocks.{n}.attn.to_out": "single_blocks.{n}.linear2",
    "single_transformer_blocks.{n}.proj_out": "single_blocks.{n}.linear2",
    "single_transformer_blocks.{n}.attn.norm_q": "single_blocks.{n}.norm.query_norm",
    "single_transformer_blocks.{n}.attn.norm_k": "single_blocks.{n}.norm.key_norm",
    "single_transformer_blocks.{n}.norm.linear": "single_blocks.{n}.modulation.lin",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}
# diffusers orders its halves as scale, shift; BFL as shift, scale
SWAPPED = frozenset({"norm_out.linear"})
_BLOCK = re.compile(r"^lora_(?:unet|transformer)_(single_)?(?:double_|transformer_|)blocks_(\d+)_")
_IN = re.compile(r"(?:^|_)(img|txt|time|vector|guidance)_in(?:_|$)")


@dataclass(frozen=True)
class DoubleStream:
    """The blocks of models of this build.

    doubles  blocks that keep image and text apart
    singles  blocks that do not
    """

    doubles: int
    singles: int

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Block ids in order, without OTHER."""
        return (
            "CLIP",
            "T5",
            "IN",
            *numbered("D", *range(self.doubles)),
            *numbered("S", *range(self.singles)),
            "OUT",
        )

    def block(self, name: str, encoder: int) -> str:
        """Return the block of a module by its canonical name."""
        if encoder:
            return "CLIP" if encoder == 1 else "T5"
        match = _BLOCK.match(name)
        if match:
            block = f"{'D' if match[1] is None else 'S'}{int(match[2]):02d}"
            return block if block in self.blocks else "OTHER"
        if "_final_layer_" in name:
            return "OUT"
        return "IN" if _IN.search(name.removeprefix("lora_unet_")) else "OTHER"

    @property
    def block_list(self) -> BlockList:
        """The list of a weight for every block."""
        return BlockList("every block", self.blocks)

    def counting(self, prefix: str = "", least: int = 12) -> Counting:
        """Return how the Inspire Pack counts: what is outside the blocks, then double and single ones."""
        return Counting(
            prefix,
            {
                "all": {
                    "base": ("CLIP", "T5", "IN", "OUT"),
                    "double": numbered("D", *range(self.doubles)),
                    "single": numbered("S", *range(self.singles)),
                }
            },
            least=least,
        )


PARTS: Mapping[str, Hint] = {
    **REST,
    "CLIP": Hint("CLIP text encoder", PRACTICE),
    "T5": Hint("T5 text encoder", PRACTICE),
    "IN": Hint("input blocks: structure, pose, low-level features", PRACTICE),
    "OUT": Hint("output blocks: rendering, colour, style", PRACTICE),
    "D": Hint("double-stream block: image and text together", PRACTICE),
    "S": Hint("single-stream block: details and rendering", PRACTICE),
}
PRESETS: Mapping[str, ShippedPreset] = {
    **EVEN,
    "FLUXALL": ShippedPreset("Every block at full strength."),
    "DOUBLE": ShippedPreset(
        "Only the double blocks, where text and image are mixed; goes with SINGLE.", rules={"S": 0.0}
    ),
    "SINGLE": ShippedPreset("Only the single blocks; goes with DOUBLE.", rules={"D": 0.0}),
    **NO_TEXT_ENCODER,
}
