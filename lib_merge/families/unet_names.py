"""UNet module paths: diffusers' names and the original (SGM) names of SD1, SD2 and SDXL, in both directions.

Both libraries number the same layers: input block 1 + 3i + j is down block i, layer j; output block 3i + j
    is up block i,
layer j; the convolution between two resolutions is a block of its own on the way down and the last part of a
block on the way up.
"""

from __future__ import annotations

import re

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
