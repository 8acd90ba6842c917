"""What Z-Image and Lumina 2 have in common: names in both spellings."""

from __future__ import annotations

from lib_merge.families.layers import Aliases, cut

PLACES = ("layers.{n}", "noise_refiner.{n}", "context_refiner.{n}")
OUTSIDE: Aliases = {
    **{f"{place}.attention.to_out.0": f"{place}.attention.out" for place in PLACES},
    **{
        f"{place}.attention.norm_{letter}": f"{place}.attention.{letter}_norm"
        for place in PLACES
        for letter in "qk"
    },
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}
# as many heads for k and v as for q
ALIASES: Aliases = {
    **{
        name: piece
        for place in PLACES
        for name, piece in cut(
            f"{place}.attention.qkv", *(f"{place}.attention.to_{letter}" for letter in "qkv")
        ).items()
    },
    **OUTSIDE,
}
