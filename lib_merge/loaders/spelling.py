"""How other programs spell what a LoRA holds: the name of a module, and the ends of its keys.

The program itself writes names that every host of a family loads (`Family.place`). Whoever needs another
spelling, for a trainer or a tool, names it: kohya's, diffusers' (PEFT), ComfyUI's own or OneTrainer's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from enum import Enum

from lib_merge.families import Family, encoder_of
from lib_merge.families.layers import Piece, Size, Spot
from lib_merge.families.unet import to_diffusers


class Spelling(str, Enum):
    """A way to write the keys of a LoRA.

    KOHYA      lora_unet_… with underscores, lora_up, lora_down and alpha; q, k and v as the model has them
    COMFYUI    diffusion_model.… with the model's own dotted names; the same ends
    DIFFUSERS  unet.… or transformer.… with diffusers' names, lora_A and lora_B; alpha is in the factors, and
               q, k and v stand alone
    ONETRAINER lora_unet_… or lora_transformer_… with diffusers' names and underscores, kohya's ends
    """

    KOHYA = "kohya"
    COMFYUI = "comfyui"
    DIFFUSERS = "diffusers"
    ONETRAINER = "onetrainer"

    @property
    def fused(self) -> bool:
        """True where fused projections (q, k, v in one) are written in one piece."""
        return self in (Spelling.KOHYA, Spelling.COMFYUI)

    @property
    def ends(self) -> Mapping[str, str]:
        """End of a key as kohya has it -> as it is written; "" = not at all, it is in the factors."""
        return _PEFT_ENDS if self is Spelling.DIFFUSERS else {}


class Layout(Enum):
    """How fused projections (q, k, v in one weight) are written.

    KEPT   split where a source has them split, else in one
    FUSED  in one piece, of as many ranks as its pieces have together
    SPLIT  in pieces
    """

    KEPT = "kept"
    FUSED = "fused"
    SPLIT = "split"


# the files that are written have alpha = rank, or a power of two beside it that `up` is multiplied with
_PEFT_ENDS = {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight", "alpha": ""}
# words of module names that have an underscore of their own, longest first
_WORDS = """
    time_emb_proj conv_shortcut time_embedding add_embedding class_embedding
    transformer_blocks down_blocks up_blocks mid_block text_projection final_layer_norm
    layer_norm1 layer_norm2 token_embedding position_embedding text_model self_attn q_proj
    k_proj v_proj out_proj o_proj gate_proj up_proj down_proj embed_tokens input_layernorm
    post_attention_layernorm q_norm k_norm wi_0 wi_1 layer_norm relative_attention_bias
    proj_in proj_out conv_in conv_out conv_norm_out to_q to_k to_v to_out linear_1 linear_2
"""
_WORD = re.compile(rf"(?:{'|'.join(sorted(_WORDS.split(), key=len, reverse=True))}|[^_]+)(?=_|$)")
_CHOICE = re.compile(r"\{(\w)\}")
_ENCODER_FRONTS: Mapping[Spelling, tuple[str, str, str]] = {
    Spelling.KOHYA: ("lora_te1_", "lora_te2_", "lora_te3_"),
    Spelling.ONETRAINER: ("lora_te1_", "lora_te2_", "lora_te3_"),
    Spelling.DIFFUSERS: ("text_encoder.", "text_encoder_2.", "text_encoder_3."),
    Spelling.COMFYUI: (
        "text_encoders.clip_l.transformer.",
        "text_encoders.clip_g.transformer.",
        "text_encoders.t5xxl.transformer.",
    ),
}


def with_dots(path: str) -> str:
    """Return a path with dots between its words; words that have an underscore of their own keep it."""
    return ".".join(_WORD.findall(path))


def stem_in(spelling: Spelling, family: Family, size: Size | None, name: str) -> str | None:
    """Return a module's name in a spelling, or None where the spelling has no word for it.

    Args:
        spelling: wanted.
        family: of the LoRA.
        size: the model of the family whose sizes count.
        name: canonical.
    """
    encoder = encoder_of(name)
    if encoder:
        return _encoder_stem(spelling, family, encoder, name)
    spot = family.layers.find(path_of(name), size) if family.layers is not None else None
    if spot is None or family.layers is None:
        return None
    if spelling.fused:
        if spot.rows is not None:
            return None
        own = family.layers.saved(spot.module.replace(".", "_"))
        return f"lora_unet_{own}" if spelling is Spelling.KOHYA else f"diffusion_model.{spot.module}"
    other = _other_name(family, spot)
    if other is None:
        return None
    if _is_unet(family):
        return f"unet.{other}" if spelling is Spelling.DIFFUSERS else f"lora_unet_{other.replace('.', '_')}"
    if spelling is Spelling.DIFFUSERS:
        return f"transformer.{other}"
    return f"lora_transformer_{other.replace('.', '_')}"


def _is_unet(family: Family) -> bool:
    """Tell whether the models are UNets, whose names by diffusers follow rules instead of a table."""
    return family.layers is not None and "input_blocks.0.0" in family.layers.sizes[0].modules


def path_of(name: str) -> str:
    """Return the path of a denoiser's module with underscores, whatever stands before it."""
    for front in ("lora_unet_", "lora_transformer_", "lycoris_", "diffusion_model.", "transformer.", "unet."):
        if name.startswith(front):
            return name[len(front) :].replace(".", "_")
    return name.replace(".", "_")


def _other_name(family: Family, spot: Spot) -> str | None:
    """Return diffusers' dotted name of a module or of some rows of it; the model's own where they agree."""
    layers = family.layers
    if layers is None:
        return None
    if _is_unet(family):
        return with_dots(to_diffusers(spot.module.replace(".", "_")))
    for alias, means in layers.aliases.items():
        piece = means if isinstance(means, Piece) else Piece(means)
        match = _numbers(piece.whole).fullmatch(spot.module)
        if match is not None and (piece.rows(spot.shape) if piece.cuts else None) == spot.rows:
            return alias.format(**match.groupdict())
    return spot.module if spot.rows is None else None


@functools.lru_cache(maxsize=1024)
def _numbers(pattern: str) -> re.Pattern[str]:
    """Return what finds the numbers {n} and {m} of a module's pattern."""
    parts = _CHOICE.split(pattern)
    return re.compile(
        "".join(rf"(?P<{part}>\d+)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
    )


def _encoder_stem(spelling: Spelling, family: Family, encoder: int, name: str) -> str | None:
    path = name.partition("_text_model")[2] or name.partition("_encoder_block")[2]
    head = "text_model" if "_text_model" in name else "encoder_block"
    fronts = _ENCODER_FRONTS[spelling]
    if not path or encoder > len(fronts):
        return None
    front = fronts[encoder - 1]
    if spelling is Spelling.COMFYUI and encoder == 1 and family.name == "SD2":
        front = "text_encoders.clip_h.transformer."
    if front.endswith("_"):
        if len(family.encoder_ratios) == 1 and encoder == 1:
            front = "lora_te_"
        return f"{front}{head}{path}"
    return front + with_dots(head + path)
