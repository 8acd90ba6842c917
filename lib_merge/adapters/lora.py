"""LoRA, LoCon and its Tucker form: ΔW = (alpha/rank) · up · down.

A k×k convolution keeps the kernel in `down [r, in, kh, kw]` with `up [out, r, 1, 1]`. The Tucker (CP) form
adds `mid [r, r, kh, kw]` between 1×1 factors; folding it into `down` gives an ordinary LoCon of the same
rank, exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lib_merge.adapters.layout import Layout, LayoutError, Shapes, at_least_2d, flat, need
from lib_merge.linalg import Delta, LowRank, Term

ROLES = frozenset({"lora_up", "lora_down", "lora_mid"})


def matches(roles: Collection[str]) -> bool:
    """Tell whether a module with these roles is of this kind."""
    return not ROLES.isdisjoint(roles)


def layout(shapes: Shapes) -> Layout:
    """Read kind and size from shapes.

    Raises:
        LayoutError: half of the pair is missing, or the inner dimensions differ.
    """
    need(shapes, "lora_up", "lora_down")
    at_least_2d(shapes, "lora_up", "lora_down")
    up, down = shapes["lora_up"], shapes["lora_down"]
    if up[1] != (shapes["lora_mid"][0] if "lora_mid" in shapes else down[0]) or flat(up)[1] != up[1]:
        message = f"lora_up {list(up)} and lora_down {list(down)} do not multiply"
        raise LayoutError(message)
    if "lora_mid" not in shapes:
        kernel = tuple(down[2:])
        kind = "LoCon" if any(size > 1 for size in kernel) else "LoRA"
        return Layout(kind, up[0], flat(down)[1], kernel, down[0])
    mid = shapes["lora_mid"]
    if len(mid) < 3 or mid[1] != down[0] or flat(down)[1] != down[1]:
        message = f"lora_mid {list(mid)} does not fit between {list(up)} and {list(down)}"
        raise LayoutError(message)
    return Layout("Tucker", up[0], down[1] * flat(mid[1:])[1], tuple(mid[2:]), mid[0])


def load(tensors: Mapping[str, Tensor], scale: float | None) -> Delta:
    """Build ΔW from the module's tensors.

    Args:
        tensors: lora_up [out r …], lora_down [r in …], optional lora_mid [r r kh kw] and alpha.
        scale: overrides alpha/rank (PEFT keeps alpha in its configuration).
    """
    up, down = tensors["lora_up"].flatten(1), tensors["lora_down"]
    if scale is None:
        scale = alpha_scale(tensors, down.shape[0])
    if "lora_mid" in tensors:
        # mid[a b k l] · down[b i] -> [a i k l]: the Tucker core folded into `down`, in float32
        folded = torch.einsum("ab...,bi->ai...", tensors["lora_mid"].float(), down.flatten(1).float())
        down = folded.flatten(1)
    else:
        down = down.flatten(1)
    return LowRank(up.shape[0], down.shape[1], (Term(scale, up, down),))


def alpha_scale(tensors: Mapping[str, Tensor], rank: int) -> float:
    """Return alpha/rank; a file without alpha means alpha = rank (every loader's rule)."""
    return float(tensors["alpha"]) / rank if "alpha" in tensors else 1.0
