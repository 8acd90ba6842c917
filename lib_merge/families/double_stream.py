"""What double-stream transformers (Flux, Chroma) have in common: names in both spellings, blocks, presets.

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

from lib_merge.families.record import (
    EVEN,
    NO_TEXT_ENCODER,
    PRACTICE,
    REST,
    BlockList,
    Counting,
    Hint,
    Pieces,
    Placement,
    Rows,
    ShippedPreset,
    numbered,
)

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
_SWAPPED = "norm_out_linear"  # diffusers orders its halves as scale, shift; BFL as shift, scale
_PATH = re.compile(r"^(single_)?transformer_blocks_(\d+)_(.+)$")
_FUSED = re.compile(r"^lora_unet_(double_blocks|single_blocks)_(\d+)_(img_attn_qkv|txt_attn_qkv|linear1)$")
_BLOCK = re.compile(r"^lora_(?:unet|transformer)_(single_)?(?:double_|transformer_|)blocks_(\d+)_")
_IN = re.compile(r"(?:^|_)(img|txt|time|vector|guidance)_in(?:_|$)")


@dataclass(frozen=True)
class DoubleStream:
    """The layers of one model of this build.

    hidden   rows of q, of k and of v
    mlp      rows of the feed-forward layer that a single block fuses with them
    doubles  blocks that keep image and text apart
    singles  blocks that do not
    """

    hidden: int
    mlp: int
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

    @cached_property
    def _qkv(self) -> tuple[tuple[str, Rows], ...]:
        starts = zip("qkv", range(0, 3 * self.hidden, self.hidden))
        return tuple((letter, (start, start + self.hidden)) for letter, start in starts)

    @cached_property
    def _split_double(self) -> Mapping[str, tuple[str, Rows]]:
        return {
            **{f"attn_to_{letter}": ("img_attn_qkv", rows) for letter, rows in self._qkv},
            **{f"attn_add_{letter}_proj": ("txt_attn_qkv", rows) for letter, rows in self._qkv},
        }

    @cached_property
    def _split_single(self) -> Mapping[str, tuple[str, Rows]]:
        return {
            **{f"attn_to_{letter}": ("linear1", rows) for letter, rows in self._qkv},
            "proj_mlp": ("linear1", (3 * self.hidden, 3 * self.hidden + self.mlp)),
        }

    def place(self, path: str) -> Placement:
        """Return where a module goes, from either spelling.

        The name is one that loaders know; for a split projection also which rows of which module it covers.
        """
        if path in _OUTER:
            return Placement(f"lora_unet_{_OUTER[path]}", swap_halves=path == _SWAPPED)
        match = _PATH.match(path)
        if match is None:
            return Placement(f"lora_unet_{path}")
        single, number, rest = match.groups()
        side = f"{'single' if single else 'double'}_blocks_{number}"
        piece = (self._split_single if single else self._split_double).get(rest)
        if piece is not None:
            return Placement(f"lora_transformer_{path}", f"lora_unet_{side}_{piece[0]}", piece[1])
        ours = (_SINGLE if single else _DOUBLE).get(rest)
        return Placement(f"lora_unet_{side}_{ours}" if ours else f"lora_transformer_{path}")

    def split(self, fused: str) -> Pieces | None:
        """Return the split modules of a fused one with their rows, or None for a module that is not fused."""
        match = _FUSED.match(fused)
        if match is None:
            return None
        single = match[1] == "single_blocks"
        stem = f"lora_transformer_{'single_' if single else ''}transformer_blocks_{match[2]}_"
        table = self._split_single if single else self._split_double
        return tuple((f"{stem}{rest}", rows) for rest, (whole, rows) in table.items() if whole == match[3])

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
