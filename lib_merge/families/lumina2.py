"""Lumina 2: 26 layers of width 2304 with a third as many heads for k and v, with Gemma 2 for text."""

from __future__ import annotations

import re
from fractions import Fraction

from lib_merge.families import shared_facts as shared
from lib_merge.families.layers import Layers, Piece, Shape, Size
from lib_merge.families.record import LANGUAGE_MODEL, Fact, Family, HostModel, NameRules
from lib_merge.families.s3_dit import OUTSIDE, PLACES
from lib_merge.families.stacks import Stack, Stacks

WEIGHTS: dict[str, Shape] = {
    "x_embedder": (2304, 64),
    "{noise_refiner,context_refiner}.{0-1}.attention.qkv": (3840, 2304),
    "{noise_refiner,context_refiner}.{0-1}.attention.out": (2304, 2304),
    "{noise_refiner,context_refiner}.{0-1}.attention.{q_norm,k_norm}": (96,),
    "{noise_refiner,context_refiner}.{0-1}.feed_forward.{w1,w3}": (9216, 2304),
    "{noise_refiner,context_refiner}.{0-1}.feed_forward.w2": (2304, 9216),
    "{noise_refiner,context_refiner}.{0-1}.{attention_norm1,ffn_norm1,attention_norm2,ffn_norm2}": (2304,),
    "noise_refiner.{0-1}.adaLN_modulation.1": (9216, 1024),
    "t_embedder.mlp.0": (1024, 256),
    "t_embedder.mlp.2": (1024, 1024),
    "cap_embedder.0": (2304,),
    "cap_embedder.1": (2304, 2304),
    "layers.{0-25}.attention.qkv": (3840, 2304),
    "layers.{0-25}.attention.out": (2304, 2304),
    "layers.{0-25}.attention.{q_norm,k_norm}": (96,),
    "layers.{0-25}.feed_forward.{w1,w3}": (9216, 2304),
    "layers.{0-25}.feed_forward.w2": (2304, 9216),
    "layers.{0-25}.{attention_norm1,ffn_norm1,attention_norm2,ffn_norm2}": (2304,),
    "layers.{0-25}.adaLN_modulation.1": (9216, 1024),
    "final_layer.linear": (64, 2304),
    "final_layer.adaLN_modulation.1": (2304, 1024),
}
_HEADS = {
    "q": (Fraction(0), Fraction(1)),
    "k": (Fraction(1), Fraction(4, 3)),
    "v": (Fraction(4, 3), Fraction(5, 3)),
}

BLOCKS = Stacks(
    (
        Stack("N", 2, ("noise_refiner",), "noise refiner: before the layers, image alone"),
        Stack("C", 2, ("context_refiner",), "context refiner: before the layers, text alone"),
        Stack("B", 26, ("layers",), "a layer of the transformer: image and text together"),
    ),
    {"BASE": "Gemma 2"},
)

FAMILY = Family(
    name="Lumina2",
    hosts=HostModel("lumina"),
    order=105,
    layers=Layers(
        sizes=(Size("Lumina 2", WEIGHTS),),
        aliases={
            **{
                f"{place}.attention.to_{letter}": Piece(f"{place}.attention.qkv", *rows)
                for place in PLACES
                for letter, rows in _HEADS.items()
            },
            **OUTSIDE,
        },
        front="lycoris_",
    ),
    facts=(
        Fact("layers of width 2304", re.compile(r"^layers_\d+_(attention|feed_forward)_"), columns=2304),
        Fact("adaLN of Lumina 2", re.compile(r"^(layers|noise_refiner)_\d+_adaLN_modulation_1$")),
        shared.REFINERS,
        shared.TE0,
        shared.LM_2304,
    ),
    blocks=BLOCKS.blocks,
    block=BLOCKS.block,
    parts=BLOCKS.parts,
    encoder_ratios=("Gemma 2",),
    config_names=NameRules.of(65, (r"lumina", "Lumina2")),
    encoders={"te0": LANGUAGE_MODEL},
    base_version="lumina2",
    architecture="lumina-2/lora",
)
