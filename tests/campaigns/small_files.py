"""Small files of tensors to begin from: generated ones of every kind, and pieces of real ones where they are at hand."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from tests.campaigns.harness import SHARED
from tests.factories import NAMES, UNET, lora_tensors

# bytes of tensors that a piece of a real file holds at most
MOST = 24_000
TAGS = {"10_ink": {"ink": 12, "1girl": 40}}
METADATA = {
    "ss_output_name": "x", "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2.0",
    "ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_tag_frequency": json.dumps(TAGS), "ss_steps": "1200",
    "ss_learning_rate": "0.0001", "ss_unet_lr": "None", "ss_network_args": '{"conv_dim": "4", "algo": "lora"}',
    "ss_datasets": '[{"num_batches": 40, "resolution": [512, 512]}]', "ss_epoch": "3", "modelspec.trigger_phrase": "ink, wash",
    "modelspec.architecture": "stable-diffusion-v1/lora", "ss_training_started_at": "1690000000.5",
}  # fmt: skip
PEFT = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k"], "use_rslora": False,
    "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 3.0}, "use_dora": False, "bias": "none", "lora_dropout": 0.0,
}  # fmt: skip


def pack(header: bytes, data: bytes) -> bytes:
    """Return a safetensors file of a header's text and the bytes behind it."""
    return struct.pack("<Q", len(header)) + header + data


def unpack(raw: bytes) -> tuple[bytes, bytes]:
    """Return (header's text, data)."""
    length = struct.unpack("<Q", raw[:8])[0]
    return raw[8 : 8 + length], raw[8 + length :]


def good() -> dict[str, torch.Tensor]:
    """Return the tensors of a sound little LoRA for SD1."""
    return {key: value.half() for key, value in lora_tensors(0, rank=2, names=NAMES[:4]).items()}


def generated() -> dict[str, dict[str, torch.Tensor]]:
    """Return name -> tensors of a file of every kind of adapter, all on modules of SD1."""
    g = torch.Generator().manual_seed(3)

    def r(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=g) * 0.1).half()

    stem, base = f"{UNET}attn1_to_q", lora_tensors(5, rank=2, names=NAMES[1:2], conv=False)
    text = {key: value.half() for key, value in base.items()}
    alpha = {f"{stem}.alpha": torch.tensor(2.0).half()}
    up, down = f"{stem}.lora_up.weight", f"{stem}.lora_down.weight"
    kinds = {
        "lora": {up: r(24, 3), down: r(3, 20), **alpha},
        "tucker": {up: r(12, 3, 1, 1), down: r(2, 10, 1, 1), f"{stem}.lora_mid.weight": r(3, 2, 3, 3)},
        "dora": {up: r(24, 3), down: r(3, 20), f"{stem}.dora_scale": r(24, 1), **alpha},
        "loha": {f"{stem}.hada_{w}_{s}": r(*((24, 2) if s == "a" else (2, 20))) for w in ("w1", "w2") for s in "ab"} | alpha,
        "lokr": {f"{stem}.lokr_w1": r(4, 4), f"{stem}.lokr_w2_a": r(6, 2), f"{stem}.lokr_w2_b": r(2, 5), **alpha},
        "lokr conv": {f"{stem}.lokr_w1": r(4, 5), f"{stem}.lokr_w2": r(3, 2, 3, 3)},
        "lokr tucker": {
            f"{stem}.lokr_w1": r(4, 5), f"{stem}.lokr_t2": r(2, 2, 3, 3), f"{stem}.lokr_w2_a": r(2, 3), f"{stem}.lokr_w2_b": r(2, 2),
        },
        "full": {f"{stem}.diff": r(24, 20), f"{stem}.diff_b": r(24)},
        "ia3": {f"{stem}.weight": r(20), f"{stem}.on_input": torch.tensor(True)},
        "oft": {f"{stem}.oft_blocks": r(4, 6, 6), **alpha},
        "boft": {f"{stem}.oft_blocks": r(2, 4, 6, 6)},
        "glora": {f"{stem}.{one}.weight": r(4, 4) for one in ("a1", "a2", "b1", "b2")},
        "norm": {f"{stem}.w_norm": r(24), f"{stem}.b_norm": r(24)},
        "fp8": {up: r(24, 3).to(torch.float8_e4m3fn), down: r(3, 20).to(torch.float8_e4m3fn), f"{stem}.lora_up.scale_weight": torch.tensor(2.0)},
        "embedding": {"bundle_emb.mira.string_to_param.*": r(2, 768), up: r(24, 3), down: r(3, 20)},
    }  # fmt: skip
    spelt = {
        "peft": {f"base_model.model.{_dotted()}.lora_{s}.weight": r(*((24, 3) if s == "B" else (3, 20))) for s in "AB"},
        "diffusers": {f"unet.{_dotted()}.lora.{s}.weight": r(*((24, 3) if s == "up" else (3, 20))) for s in ("up", "down")},
        "processor": {
            f"unet.{_dotted().rpartition('.')[0]}.processor.to_q_lora.{s}.weight": r(*((24, 3) if s == "up" else (3, 20)))
            for s in ("up", "down")
        },
    }  # fmt: skip
    return {name: {**text, **tensors} for name, tensors in (kinds | spelt).items()}


def _dotted() -> str:
    return "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Return files to be changed; the first ones are sound."""
    made = [save(good(), METADATA)]
    made += [
        save(tensors, METADATA if number % 2 else None) for number, tensors in enumerate(generated().values())
    ]
    made += [
        piece for path in sorted((SHARED / "data" / "loras").glob("*.safetensors")) if (piece := _piece(path))
    ]
    made += [made_of(path) for path in sorted((SHARED / "data" / "keys").glob("*_lo*.json"))]
    hostile = sorted((SHARED / "cases").rglob("*.safetensors"))
    made += [path.read_bytes() for path in hostile if path.stat().st_size < 5 * MOST]
    return tuple(made)


def _piece(path: Path) -> bytes:
    """Return a small file of a real one's last modules: its own names, shapes, numbers and metadata."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        size, kept, data = 0, {}, b""
        metadata = header.pop("__metadata__", None)
        for key, entry in sorted(header.items(), reverse=True):
            first, last = entry["data_offsets"]
            if size + last - first > MOST:
                continue
            file.seek(8 + length + first)
            data += file.read(last - first)
            kept[key] = {**entry, "data_offsets": [size, size + last - first]}
            size += last - first
    if metadata is not None:
        kept["__metadata__"] = {name: text[:2000] for name, text in metadata.items()}
    return pack(json.dumps(kept).encode(), data)


def made_of(path: Path) -> bytes:
    """Return a small file of zeros with some of the names and shapes of a list of real keys."""
    size, header = 0, {}
    widths = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8}
    for key, (dtype, shape) in json.loads(path.read_text(encoding="utf-8")).items():
        length = widths.get(dtype, 2)
        for axis in shape:
            length *= axis
        if length + size <= MOST:
            header[key] = {
                "dtype": dtype if dtype in widths else "F16",
                "shape": shape,
                "data_offsets": [size, size + length],
            }
            size += length
    return pack(json.dumps(header).encode(), bytes(size))


def save_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as a safetensors file."""
    whole = {key: value.contiguous().clone() for key, value in tensors.items()}
    return save(whole, dict(metadata) if metadata else None)
