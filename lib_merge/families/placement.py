"""Where a module of a known family goes: the name under which A1111, Forge and ComfyUI load it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lib_merge.adapters.styles import RawModule
from lib_merge.families.flux_names import SWAPPED, place_flux, split_flux
from lib_merge.families.unet_names import to_diffusers, to_sgm

_TE_NUMBER = {
    "SD1": {"te": "te", "te0": "te", "te1": "te"},
    "SD2": {"te": "te", "te0": "te", "te1": "te"},
    "SDXL": {"te": "te1", "te0": "te1"},
    "SD3": {"te": "te1"},
    "Flux": {"te": "te1", "te2": "te3"},
}
# Krea 2: diffusers' words -> the original's (order matters: longer first)
_KREA: tuple[tuple[str, str], ...] = (
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


@dataclass(frozen=True, slots=True)
class Placement:
    """The output name of a module; for a piece of a fused module also which rows of which one it covers."""

    name: str
    fused: str | None = None
    rows: tuple[int, int] | None = None
    swap_halves: bool = False


def place(raw: RawModule, family: str) -> Placement:
    """Return where a module goes.

    Args:
        raw: the module as its file names it.
        family: the settled base family.
    """
    if raw.component != "unet":
        number = _TE_NUMBER.get(family, {}).get(raw.component, raw.component)
        return Placement(f"lora_{'te' if number == 'te0' else number}_{raw.path}")
    if family == "SDXL":
        return Placement(f"lora_unet_{to_sgm(raw.path)}")
    if family in ("SD1", "SD2"):
        return Placement(f"lora_unet_{to_diffusers(raw.path)}")
    if family in ("Flux", "Chroma"):
        name, fused, rows = place_flux(raw.path)
        return Placement(name, fused, rows, swap_halves=raw.path == SWAPPED)
    if family == "Krea2":
        path = raw.path
        for pattern, replacement in _KREA:
            path = re.sub(pattern, replacement, path)
        return Placement(f"lora_unet_{path}")
    return Placement(f"lora_unet_{raw.path}")


def split_of(fused: str, family: str) -> tuple[tuple[str, tuple[int, int]], ...] | None:
    """Return the pieces of a fused module with their rows, or None where nothing is fused."""
    return split_flux(fused) if family in ("Flux", "Chroma") else None
