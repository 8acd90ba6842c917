"""What the UNets have in common: names in both spellings, blocks, hints, presets, and how they are told.

Names: diffusers and the original repositories (SGM) number the same layers. Input block 1 + 3i + j is down
block i, layer j; output block 3i + j is up block i, layer j; the convolution between two resolutions is a
block of its own on the way down and the last part of a block on the way up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lib_merge.families.layers import Layers, Shape, Size
from lib_merge.families.record import (
    EVEN,
    NO_TEXT_ENCODER,
    PRACTICE,
    REST,
    BlockList,
    Counting,
    Fact,
    Hint,
    ShippedPreset,
    Together,
    letters,
    numbered,
    text_block,
)

_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "norm1": "in_layers_0",
    "norm2": "out_layers_0",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_RESNET_BACK = {sgm: diffusers for diffusers, sgm in _RESNET.items()}
_SINGLE = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "conv_norm_out": "out_0",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
_SINGLE_BACK = {sgm: diffusers for diffusers, sgm in _SINGLE.items()}
_DOWN = re.compile(r"^down_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)$")
_UP = re.compile(r"^up_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)$")
_MID = re.compile(r"^mid_block_(attentions|resnets)_(\d+)_(.+)$")
_SAMPLER = re.compile(r"^(down|up)_blocks_(\d+)_(?:down|up)samplers_0_conv$")
_SGM = re.compile(r"^(input|output)_blocks_(\d+)_(\d+)_(.+)$")
_SGM_MID = re.compile(r"^middle_block_(\d)_(.+)$")


def to_sgm(path: str) -> str:
    """Return the SGM name of an SDXL UNet module; an SGM name or an unknown one comes back as it is."""
    if path in _SINGLE:
        return _SINGLE[path]
    match = _DOWN.match(path)
    if match:
        block, kind, layer, rest = match.groups()
        return f"input_blocks_{3 * int(block) + int(layer) + 1}_{_part(kind, rest)}"
    match = _UP.match(path)
    if match:
        block, kind, layer, rest = match.groups()
        return f"output_blocks_{3 * int(block) + int(layer)}_{_part(kind, rest)}"
    match = _MID.match(path)
    if match:
        kind, layer, rest = match.groups()
        part = 1 if kind == "attentions" else 2 * int(layer)
        return f"middle_block_{part}_{rest if kind == 'attentions' else _RESNET.get(rest, rest)}"
    match = _SAMPLER.match(path)
    if match:
        side, block = match[1], int(match[2])
        return (
            f"input_blocks_{3 * block + 3}_0_op"
            if side == "down"
            else f"output_blocks_{3 * block + 2}_2_conv"
        )
    return path


def _part(kind: str, rest: str) -> str:
    return f"1_{rest}" if kind == "attentions" else f"0_{_RESNET.get(rest, rest)}"


def to_diffusers(path: str) -> str:
    """Return the diffusers name of an SD1 or SD2 UNet module; a diffusers name or an unknown one comes back
    as it is.
    """
    if path in _SINGLE_BACK:
        return _SINGLE_BACK[path]
    match = _SGM_MID.match(path)
    if match:
        part, rest = int(match[1]), match[2]
        return (
            f"mid_block_attentions_0_{rest}"
            if part == 1
            else f"mid_block_resnets_{part // 2}_{_RESNET_BACK.get(rest, rest)}"
        )
    match = _SGM.match(path)
    if not match:
        return path
    side, number, part, rest = match[1], int(match[2]), int(match[3]), match[4]
    if side == "input":
        block, layer = divmod(number - 1, 3)
        if rest == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
        name = f"down_blocks_{block}"
    else:
        block, layer = divmod(number, 3)
        if rest == "conv":
            return f"up_blocks_{block}_upsamplers_0_conv"
        name = f"up_blocks_{block}"
    if part == 1:
        return f"{name}_attentions_{layer}_{rest}"
    return f"{name}_resnets_{layer}_{_RESNET_BACK.get(rest, rest)}"


def sgm_layers(name: str, weights: Mapping[str, Shape]) -> Layers:
    """Return the modules of a UNet whose loaders know them by their SGM names."""
    return Layers(sizes=(Size(name, weights),), native=_sgm_path)


def diffusers_layers(name: str, weights: Mapping[str, Shape]) -> Layers:
    """Return the modules of a UNet of four levels, whose loaders know them by diffusers' names."""
    return Layers(sizes=(Size(name, weights),), native=_four_level_path, saved=to_diffusers)


def _sgm_path(path: str) -> str:
    """Return the SGM name of a module, also of one under an attention processor."""
    path = path.replace("_processor_to_", "_to_")
    return to_sgm(f"{path}_0" if path.endswith("_to_out") else path)


def _four_level_path(path: str) -> str:
    """Return the same; the third output block has no attention before its convolution here."""
    path = _sgm_path(path)
    return "output_blocks_2_1_conv" if path == "output_blocks_2_2_conv" else path


# ---------------------------------------------------------------- blocks

_SGM_BLOCK = re.compile(r"^(input|output)_blocks_(\d+)_")
_ATTENTION_ONLY = "attention only"
_ALL = "all"


def unet_blocks(count: int) -> tuple[str, ...]:
    """Return the block ids of a UNet of `count` blocks on each side, without OTHER."""
    return ("BASE", *numbered("IN", *range(count)), "M00", *numbered("OUT", *range(count)))


def unet_block(count: int) -> Callable[[str, int], str]:
    """Return the rule that says which of a UNet's blocks a module lies in."""

    def block(name: str, encoder: int) -> str:
        if encoder:
            return text_block(name)
        path = to_sgm(name.removeprefix("lora_unet_"))
        if path.startswith("middle_block_"):
            return "M00"
        match = _SGM_BLOCK.match(f"{path}_")
        if match is None or int(match[2]) >= count:
            return "OTHER"
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02d}"

    return block


def unet_counting(prefix: str, attention: BlockList, every: BlockList) -> Counting:
    """Return how the Inspire Pack counts a UNet: three places for the middle, none for IN00."""

    def side(blocks: Sequence[str], letter: str) -> tuple[str, ...]:
        return tuple(block for block in blocks if letters(block) == letter and block != "IN00")

    return Counting(
        prefix,
        {
            _ATTENTION_ONLY: {
                "base": ("BASE",),
                "in": side(attention.blocks, "IN"),
                "mid": ("M00",),
                "out": side(attention.blocks, "OUT"),
            },
            _ALL: {
                "base": ("BASE",),
                "in": side(every.blocks, "IN"),
                "mid": ("", "M00", ""),
                "out": side(every.blocks, "OUT"),
            },
        },
    )


# ---------------------------------------------------------------- what blocks carry

UNET_PARTS: Mapping[str, Hint] = {
    **REST,
    "IN": Hint("input blocks: structure, pose, low-level features", PRACTICE),
    "M": Hint("middle: overall composition", PRACTICE),
    "OUT": Hint("output blocks: rendering, colour, style", PRACTICE),
}
_CARRIES = {
    8: "fine detail, texture, colour",
    16: "surfaces, middle-sized detail",
    32: "shapes and parts",
    64: "arrangement, rough shapes",
}
_BY_WIDTH = 'Voynov et al. 2023, "P+", arXiv:2303.09522: measured on the cross-attention of SD1'


def hints_by_width(count: int) -> dict[str, Hint]:
    """Return what the width of a block's features says of it, for a UNet of `count` blocks on each side.

    The width is a part of the picture's side: coarse blocks decide shapes and arrangement, fine ones
    surfaces and colour.
    """
    coarsest = 8 * 2 ** ((count - 1) // 3)
    widths = {f"IN{index:02d}": 8 * 2 ** (index // 3) for index in range(count)}
    widths["M00"] = coarsest
    widths.update({f"OUT{index:02d}": coarsest // 2 ** (index // 3) for index in range(count)})
    return {
        block: Hint(
            f"{UNET_PARTS[letters(block)].says}. Its features are 1/{width} as wide as the picture: "
            f"{_CARRIES[width]}",
            _BY_WIDTH,
        )
        for block, width in widths.items()
    }


# ---------------------------------------------------------------- presets


# one sentence for the menu, in the menu's order; the lists are each family's own
_CLASSIC = {
    "NONE": EVEN["NONE"],
    "ALL": EVEN["ALL"],
    "INS": ShippedPreset("Only the shallow input blocks: low-level structure."),
    "IND": ShippedPreset("Only the deep input blocks."),
    "INALL": ShippedPreset("All input blocks: structure."),
    "MIDD": ShippedPreset("The deep blocks around the middle: composition."),
    "OUTD": ShippedPreset("Only the deep output blocks."),
    "OUTS": ShippedPreset("Only the shallow output blocks: colours and rendering."),
    "OUTALL": ShippedPreset("All output blocks: rendering and appearance."),
    "ALL0.5": EVEN["ALL0.5"],
}
_PAIRS = {
    "STYLE": ShippedPreset(
        "High in OUT, low in IN, where a style usually lives; goes with CHARACTER.",
        rules={"IN": 0.25, "M": 0.6, "OUT": 1.0},
    ),
    "CHARACTER": ShippedPreset(
        "High in IN, low in OUT, where a character usually lives; goes with STYLE.",
        rules={"IN": 1.0, "M": 0.8, "OUT": 0.35},
    ),
    "STYLE-OUT": ShippedPreset(
        "Only OUT, half of the middle; with CHARACTER-IN every block adds up to 1.",
        rules={"BASE": 0.5, "IN": 0.0, "M": 0.5, "OUT": 1.0},
    ),
    "CHARACTER-IN": ShippedPreset(
        "Only IN, half of the middle; with STYLE-OUT every block adds up to 1.",
        rules={"BASE": 0.5, "IN": 1.0, "M": 0.5, "OUT": 0.0},
    ),
}


def unet_presets(lists: Mapping[str, str]) -> dict[str, ShippedPreset]:
    """Return the presets of a UNet: the classic ones that every user of LoRA Block Weight knows, and pairs.

    The classic lists switch the same part of the U whatever their length: shallow or deep, going in or coming
    out. Pairs follow the common practice that a style lives in OUT and a character in IN.

    Args:
        lists: name -> weights with blanks between, in the family's usual list; names that are left out are
            even over all blocks.
    """
    classic = {
        name: replace(preset, values=tuple(float(value) for value in lists.get(name, "").split()))
        for name, preset in _CLASSIC.items()
    }
    return {**classic, **_PAIRS, **NO_TEXT_ENCODER}


# ---------------------------------------------------------------- how UNets are told

UNET = Fact(
    "a UNet",
    re.compile(r"^(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_"),
)
FOUR_LEVELS = Fact(
    "a UNet of four levels",
    re.compile(
        r"^(down_blocks_3|up_blocks_3|down_blocks_0_attentions|input_blocks_(9|1[01])_|output_blocks_(9|1[01])_"
        r"|input_blocks_[12]_1_|output_blocks_[678]_1_)"
    ),
)


def cross_width(width: int) -> Fact:
    """Return the fact that cross-attention reads text of this width."""
    return Fact(f"cross-attention width {width}", re.compile(r"_attn2_to_[kv]$"), columns=width)


def attention_together(prefix: str) -> Together:
    """Return the attention of an OpenCLIP text encoder, which A1111 applies only where all of it is there.

    A file with some of its four projections is ignored there without a word.
    """
    return Together(
        re.compile(rf"{prefix}text_model_encoder_layers_\d+_self_attn_"),
        ("q_proj", "k_proj", "v_proj", "out_proj"),
    )
