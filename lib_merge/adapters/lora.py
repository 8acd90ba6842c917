"""LoRA, LoCon and its Tucker form: ΔW = (alpha/rank) · up · down.

A k×k convolution keeps the kernel in `down [r, in, kh, kw]` with `up [out, r, 1, 1]`. The Tucker (CP) form
adds `mid [r, r, kh, kw]` between 1×1 factors; folding it into `down` gives an ordinary LoCon of the same
rank, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lib_merge.adapters.kind import (
    BaseWeight,
    Ending,
    Layout,
    LayoutError,
    MergeableKind,
    Shapes,
    alpha_scale,
    at_least_2d,
    bounded,
    flat,
    need,
    side,
)
from lib_merge.linalg import Delta, LowRank, Term

ENDINGS = {
    "lora_up.weight": Ending("lora_up", "kohya"),
    "lora_down.weight": Ending("lora_down", "kohya"),
    "lora_mid.weight": Ending("lora_mid", "kohya"),
    "lora_A.weight": Ending("lora_down", "PEFT"),
    "lora_B.weight": Ending("lora_up", "PEFT"),
    "lora_A": Ending("lora_down", "PEFT"),
    "lora_B": Ending("lora_up", "PEFT"),
    "lora.down.weight": Ending("lora_down", "diffusers"),
    "lora.up.weight": Ending("lora_up", "diffusers"),
    "lora_linear_layer.down.weight": Ending("lora_down", "diffusers"),
    "lora_linear_layer.up.weight": Ending("lora_up", "diffusers"),
}


class LoRA(MergeableKind):
    """Two factors, and a core between them in the Tucker form."""

    name = "LoRA"
    marks = frozenset({"lora_up", "lora_down", "lora_mid"})
    endings = ENDINGS

    def sides(self, shapes: Shapes) -> tuple[int, int]:
        """Return (rows of up, columns of down)."""
        return side(shapes, "lora_up", 0), side(shapes, "lora_down", 1)

    def layout(self, shapes: Shapes) -> Layout:
        """Read kind and size from shapes.

        Raises:
            LayoutError: half of the pair is missing, or the inner dimensions differ.
        """
        need(shapes, "lora_up", "lora_down")
        at_least_2d(shapes, "lora_up", "lora_down", *(["lora_mid"] if "lora_mid" in shapes else []))
        up, down = shapes["lora_up"], shapes["lora_down"]
        if up[1] != (shapes["lora_mid"][0] if "lora_mid" in shapes else down[0]) or flat(up)[1] != up[1]:
            message = f"lora_up {list(up)} and lora_down {list(down)} do not multiply"
            raise LayoutError(message)
        if "lora_mid" not in shapes:
            kernel = tuple(down[2:])
            kind = "LoCon" if any(size > 1 for size in kernel) else "LoRA"
            return Layout(kind, up[0], flat(down)[1], kernel, down[0], own_factors=True)
        mid = shapes["lora_mid"]
        if len(mid) < 3 or mid[1] != down[0] or flat(down)[1] != down[1]:
            message = f"lora_mid {list(mid)} does not fit between {list(up)} and {list(down)}"
            raise LayoutError(message)
        return bounded(Layout("Tucker", up[0], down[1] * flat(mid[1:])[1], tuple(mid[2:]), mid[0]))

    def load(self, tensors: Mapping[str, Tensor], scale: float | None, base: BaseWeight | None) -> Delta:
        """Build ΔW from the module's tensors.

        Args:
            tensors: lora_up Float[out r …], lora_down Float[r in …]; lora_mid Float[r r kh kw], alpha if any.
            scale: overrides alpha/rank (PEFT keeps alpha in its configuration).
            base: not needed.
        """
        del base
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
