"""Synthetic LoRAs: real module names and shapes, decaying spectra, random directions.

They make no pictures; they let the tool be tried, tested and measured where no LoRA is at hand. A factor pair
is drawn Gaussian and the columns of `up` are scaled by k^(−0.8) times a lognormal, the shape of trained
spectra.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lib_merge.families import family_of
from lib_merge.files.writer import write_safetensors

Row = Sequence[object]  # name, "lin" or "conv", out, in, kernel


class Sample(NamedTuple):
    """One sample file: how it is drawn and what it says of itself."""

    name: str
    rank: int
    seed: int
    strength: Callable[[str], float]
    tags: dict[str, dict[str, int]]
    text_encoder: bool = True
    convolutions: bool = False


def sd15_modules(*, convolutions: bool = False) -> Iterator[tuple[str, str, int, int, int]]:
    """Yield the modules a kohya LoRA of SD1.5 has: 192 of the UNet and 72 of the text encoder.

    Args:
        convolutions: also the 3×3 convolutions of the resnets (a LoCon's).
    """
    places = [
        (f"{side}_blocks_{block}_{{}}_{layer}", width)
        for side, layers, blocks in (
            ("down", 2, ((0, 320), (1, 640), (2, 1280))),
            ("up", 3, ((1, 1280), (2, 640), (3, 320))),
        )
        for block, width in blocks
        for layer in range(layers)
    ]
    for place, width in [*places, ("mid_block_{}_0", 1280)]:
        yield from _transformer(f"lora_unet_{place.format('attentions')}", width)
        if convolutions and place.startswith(("down_blocks_0_{}_1", "mid")):
            yield f"lora_unet_{place.format('resnets')}_conv1", "conv", width, width, 3
    for layer in range(12):
        stem = f"lora_te_text_model_encoder_layers_{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{stem}_self_attn_{projection}", "lin", 768, 768, 0
        yield f"{stem}_mlp_fc1", "lin", 3072, 768, 0
        yield f"{stem}_mlp_fc2", "lin", 768, 3072, 0


def _transformer(stem: str, width: int) -> Iterator[tuple[str, str, int, int, int]]:
    yield f"{stem}_proj_in", "conv", width, width, 1
    inner = f"{stem}_transformer_blocks_0"
    for attention, text in (("attn1", width), ("attn2", 768)):
        for projection, columns in (("to_q", width), ("to_k", text), ("to_v", text), ("to_out_0", width)):
            yield f"{inner}_{attention}_{projection}", "lin", width, columns, 0
    yield f"{inner}_ff_net_0_proj", "lin", 8 * width, width, 0
    yield f"{inner}_ff_net_2", "lin", width, 4 * width, 0
    yield f"{stem}_proj_out", "conv", width, width, 1


def synthetic_lora(
    modules: Sequence[Row] | Iterator[Row],
    rank: int,
    *,
    alpha: float | None = None,
    seed: int = 0,
    conv_rank: int | None = None,
    dtype: torch.dtype = torch.float16,
    strength: Callable[[str], float] | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a synthetic LoRA by key.

    Args:
        modules: rows of (name, "lin" or "conv", out, in, kernel).
        rank: of linear layers and 1×1 convolutions.
        alpha: alpha of every module; rank/2 by default.
        seed: of everything drawn.
        conv_rank: rank of k×k convolutions.
        dtype: of the tensors.
        strength: factor on ΔW by module name.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, kind, out, columns, kernel in modules:
        own = conv_rank or rank if isinstance(kernel, int) and kernel > 1 else rank
        side = (int(kernel), int(kernel)) if kind == "conv" else ()  # type: ignore[call-overload]
        area = math.prod(side)
        down = torch.empty((own, int(columns) * area)).uniform_(-1, 1, generator=generator)  # type: ignore[call-overload]
        down *= 1.0 / math.sqrt(int(columns) * area)  # type: ignore[call-overload]
        spectrum = torch.arange(1, own + 1).pow(-0.8) * torch.empty(own).log_normal_(
            0, 0.3, generator=generator
        )
        up = torch.randn((int(out), own), generator=generator) * spectrum  # type: ignore[call-overload]
        up *= 0.02 * (strength(str(name)) if strength is not None else 1.0)
        tensors[f"{name}.lora_up.weight"] = up.to(dtype).reshape(int(out), own, *(1 for _ in side))  # type: ignore[call-overload]
        tensors[f"{name}.lora_down.weight"] = down.to(dtype).reshape(own, int(columns), *side)  # type: ignore[call-overload]
        tensors[f"{name}.alpha"] = torch.tensor(own / 2 if alpha is None else alpha, dtype=dtype)
    return tensors


def _style(name: str) -> float:
    return 1.4 if "_up_blocks_" in name else 0.5


def _character(name: str) -> float:
    return 1.5 if "_down_blocks_" in name else 0.6


def _even(name: str) -> float:
    return 0.8 if name.startswith("lora_unet_") else 0.3


SAMPLES = (
    Sample(
        "sample-ink-style",
        16,
        11,
        _style,
        {"10_inkwash": {"inkwash": 40, "monochrome": 22}},
        text_encoder=False,
    ),
    Sample(
        "sample-mira-character",
        8,
        12,
        _character,
        {"10_mira": {"mira": 30, "red hair": 28, "green eyes": 25}},
    ),
    Sample(
        "sample-neon-concept", 4, 13, _even, {"5_neon": {"neon lights": 16, "night": 12}}, convolutions=True
    ),
)


def write_samples(folder: Path) -> list[Path]:
    """Write the sample LoRAs into `folder`, atomically; return their paths.

    Args:
        folder: must exist; samples of the same name are replaced.
    Raises:
        OutputError: the folder is not writable.
    """
    written = []
    for sample in SAMPLES:
        modules = [
            row
            for row in sd15_modules(convolutions=sample.convolutions)
            if sample.text_encoder or row[0].startswith("lora_unet_")
        ]
        tensors = synthetic_lora(modules, sample.rank, seed=sample.seed, strength=sample.strength)
        metadata = {
            "ss_output_name": sample.name,
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(sample.rank),
            "ss_network_alpha": str(sample.rank / 2),
            "ss_base_model_version": family_of("SD1").base_version,
            "ss_v2": "False",
            "ss_training_comment": "synthetic sample, not trained",
            "ss_tag_frequency": json.dumps(sample.tags),
            "modelspec.trigger_phrase": next(iter(next(iter(sample.tags.values())))),
        }
        written.append(write_safetensors(folder / f"{sample.name}.safetensors", tensors, metadata))
    return written
