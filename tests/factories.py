"""Small LoRA files for tests: real SD1.5 module names with tiny shapes where the name allows any."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_"
NAMES = (
    f"{UNET}attn1_to_q",
    f"{UNET}attn2_to_k",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v",
    "lora_unet_up_blocks_2_attentions_1_transformer_blocks_0_ff_net_2",
    "lora_te_text_model_encoder_layers_3_self_attn_q_proj",
)
CONV = "lora_unet_up_blocks_1_resnets_0_conv1"
# attn2_to_k carries the text width, which tells SD1
SHAPES = {
    NAMES[0]: (24, 20),
    NAMES[1]: (16, 768),
    NAMES[2]: (18, 18),
    NAMES[3]: (14, 30),
    NAMES[4]: (768, 768),
}


def lora_tensors(seed=0, rank=4, *, alpha=2.0, names=NAMES, conv=True, dtype=torch.float32, size=0.1):
    """Tensors of a LoRA on the five named modules and a 3×3 convolution."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        out, columns = SHAPES[name]
        tensors[f"{name}.lora_up.weight"] = (torch.randn(out, rank, generator=g) * size).to(dtype)
        tensors[f"{name}.lora_down.weight"] = (torch.randn(rank, columns, generator=g) * size).to(dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    if conv:
        tensors[f"{CONV}.lora_up.weight"] = (torch.randn(12, rank, 1, 1, generator=g) * size).to(dtype)
        tensors[f"{CONV}.lora_down.weight"] = (torch.randn(rank, 10, 3, 3, generator=g) * size).to(dtype)
        if alpha is not None:
            tensors[f"{CONV}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


def write(path: Path, tensors, metadata=None) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), metadata)
    return path


def write_lora(path: Path, seed=0, metadata=None, **kw) -> Path:
    return write(path, lora_tensors(seed, **kw), metadata)


def exif_comment(text: str, encoding: str = "utf-16-be") -> bytes:
    """EXIF with a prompt as the user comment, as the WebUIs write it into JPEG and WebP: "UNICODE", then UTF-16."""
    comment = b"UNICODE\0" + text.encode(encoding)
    start = struct.pack(">2sHI", b"MM", 42, 8)
    first = struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, 0x9286, 7, len(comment), 44, 0)
    return b"Exif\0\0" + start + first + second + comment + b"rest of the file's own"


def dense_of(path, every: int = 1, only=None) -> dict[str, np.ndarray]:
    """Every module of a kohya file, or one in `every`, or those named alone, multiplied out in float64, read by
    safetensors' own library.
    """
    from safetensors.torch import load_file

    from tests.reference.kinds import lora

    tensors = load_file(str(path))
    found = {}
    for key in tensors:
        name, _, role = key.partition(".")
        if zlib.crc32(name.encode()) % every:  # the same modules whatever else a file holds
            continue
        if only is not None and name not in only:
            continue
        if role == "lora_up.weight":
            found[name] = lora(
                tensors[key].double(),
                tensors[f"{name}.lora_down.weight"].double(),
                tensors.get(f"{name}.alpha"),
                tensors.get(f"{name}.lora_mid.weight"),
            )
        elif role == "diff":
            found[name] = tensors[key].double().flatten(1).numpy()
    return found


def relative(found, wanted) -> float:
    """‖found − wanted‖ / ‖wanted‖ over all modules; a missing module is zero."""
    names = set(found) | set(wanted)
    error = sum(np.square(_at(found, wanted, n) - _at(wanted, found, n)).sum() for n in names)
    size = sum(np.square(value).sum() for value in wanted.values())
    return float(np.sqrt(error / size)) if size else float(np.sqrt(error))


def _at(table, other, name):
    return table[name] if name in table else np.zeros_like(other[name])
