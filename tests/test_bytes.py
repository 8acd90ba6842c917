"""A merge gives the same tensors as the release that wrote `reference/bytes.json`, recipe by recipe.

Two things are kept of every recipe. The hash is of the saved bytes and holds on the machine that it was made
on: the rounding of a product is the processor's and the library's affair. The sketch is of the saved numbers
and holds everywhere.

    python -m tests.test_bytes --add            keep this machine's hashes too, if all sketches hold
    python -m tests.test_bytes --write [NAME…]  say that what comes out now is right, of these or of all

The sources are bytes that no random generator draws and no logarithm shapes: they, and with them the random
masks, which go by a file's sha256, are the same on every machine and with every version of torch.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

# all that is asked of the library, so that it is easily pointed elsewhere
from lib_merge import METHODS, Job, load_recipe, run_recipe
from lib_merge.samples import write_samples
from tests.factories import CONV, NAMES, SHAPES

KEPT = Path(__file__).parent / "reference" / "bytes.json"
SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "loras"
SAMPLED = 6
# What the saved numbers may differ by, against the norm of the module. float keeps 1e-7 of every number, and
# what a merge adds up, solves and decomposes on the way stays a hundred times below 1e-4, while a wrong
# weight, sign, threshold or mask lies above. A half-precision file may round a number to the other side where
# the sum before it differs by 1e-7, and one last digit of one number of a small factor can be this much of
# the module.
TOLERANCE = {"float": 1e-4, "fp16": 5e-4, "bf16": 4e-3}

# ---------------------------------------------------------------- recipes, in the JSON that people share


def source(name, ratio=1.0, **more):
    return {"name": f"{name}.safetensors" if "." not in name else name, "ratio": ratio, **more}


def recipe(*sources, method="weighted_sum", precision="float", **more):
    given = [
        source(one) if isinstance(one, str) else source(*one) if isinstance(one, tuple) else one
        for one in sources
    ]
    return {"method": method, "sources": given, "precision": precision, **more}


def group(inner, ratio=1.0, **more):
    return {"recipe": inner, "ratio": ratio, **more}


PAIR = (("a", 0.8), ("b", -0.5))
TRIO = (*PAIR, ("c", 0.6))
DENSE = {"rank": "8"}
LIST17 = "0.5,1,0,0.25,1,1,0.75,2,1,0,1,0.5,1,1,1,0.3,1"
TOKENS = "1,R,U,X,X+0.25,1,1,1,1,R,1,1,1,1,1,1,U x=0.5"
RULES = [["OUT03-OUT08", "ff", 0.25], ["", "conv1", 0.0], ["NOT IN00-IN05", "attn1", 1.5]]

# method -> (sources, its knobs away from their defaults)
ASKED = {
    "weighted_sum": (TRIO, None),
    "average": (TRIO, None),
    "norm_preserving": (TRIO, None),
    "add_difference": (TRIO, {"factor": 0.7}),
    "subtract": (PAIR, None),
    "ema": (("a", "epoch", "b"), {"beta": 0.6}),
    "slerp": (PAIR, {"t": 0.3}),
    "nuslerp": (PAIR, None),
    "karcher": (TRIO, None),
    "model_stock": (("a", "epoch", "c"), None),
    "orthogonal_subtract": ((("a", 0.8), ("epoch", 0.5)), None),
    "tsv": (TRIO, None),
    "iso_c": (TRIO, {"lam": 0.4}),
    "iso_cts": (TRIO, {"lam": 0.7, "common": 0.5}),
    "svc": (TRIO, {"floor": 0.5}),
    "pico": (TRIO, {"compensate": False}),
    "np_lora": ((source("a", 0.8, role="subject"), source("b", 0.7, role="style")), {"mu": 2.0}),
    "decorrelated_sum": (TRIO, {"mu": 0.6, "guard": False}),
    "column_balanced": (PAIR, None),
    "knots_ties": (TRIO, {"trim_fraction": [0.5, 0.1, 0.3], "elect": "count", "normalize": False}),
    "knots_dare": (TRIO, {"drop_rate": [0.5, 0.0, 0.7], "rescale": False}),
    "core_ties": (TRIO, {"trim_fraction": [0.5, 0.1, 0.3], "elect": "count", "normalize": False}),
    "core_dare": (TRIO, {"drop_rate": [0.5, 0.0, 0.7], "rescale": False}),
    "ties": (
        TRIO,
        {"trim_fraction": [0.5, 0.1, 0.3], "trim_scope": "global", "elect": "count", "normalize": False},
    ),
    "dare": (TRIO, {"drop_rate": [0.5, 0.0, 0.7], "rescale": False}),
    "dare_ties": (TRIO, {"drop_rate": 0.6, "rescale": False, "elect": "count"}),
    "magnitude_prune": (TRIO, {"trim_fraction": [0.6, 0.0, 0.4]}),
    "breadcrumbs": (TRIO, {"gamma": 0.05, "trim_fraction": [0.3, 0.1, 0.5]}),
    "della": (TRIO, {"drop_rate": [0.5, 0.2, 0.4], "epsilon": 0.4, "rescale": False, "elect": "count"}),
    "sce": (TRIO, {"select": 0.3}),
    "tall_mask": (TRIO, {"lam": 0.8, "agree": 1}),
}
KINDS = (
    "locon", "tucker", "loha", "loha_wide", "loha_conv", "loha_tucker", "lokr_full", "lokr_half",
    "lokr_pairs", "lokr_conv", "lokr_conv_pair", "lokr_tucker", "lokr_2023", "diff",
)  # fmt: skip


def _methods():
    for name, (sources, knobs) in ASKED.items():
        rank = DENSE if METHODS[name].space == "dense" else {}
        yield f"method {name}", recipe(*sources, method=name, **rank)
        if knobs:
            yield f"method {name}, knobs", recipe(*sources, method=name, knobs=knobs, seed=7, **rank)
    yield "method ties, rank of the method", recipe(*PAIR, method="ties")
    for name in ("weighted_sum", "karcher", "core_ties", "knots_dare", "np_lora", "column_balanced"):
        yield f"method {name}, cut", recipe(*ASKED[name][0], method=name, rank="3", precision="fp16")


def _policies():
    for rank in ("lossless", "1", "3", "300", "energy:0.9", "error:0.05", "budget:140KB", "budget:1MB"):
        yield f"rank {rank}", recipe(*PAIR, rank=rank)
    for rank in ("energy:0.8", "error:0.3", "budget:140KB"):
        yield f"rank {rank} of a dense method", recipe(*TRIO, method="ties", rank=rank)
        yield f"rank {rank} of a core method", recipe(*TRIO, method="core_ties", rank=rank)
    yield "rank sum", recipe(*TRIO, method="dare", rank="sum", seed=3)
    yield "conv_rank", recipe(*PAIR, rank="4", conv_rank=2)
    yield "conv_rank above the rank", recipe(*PAIR, rank="2", conv_rank=5)
    yield "prune", recipe(("a", 1.0), ("b", 0.01), prune=0.05)
    yield "prune of a cut", recipe(*PAIR, prune=0.4, rank="5", precision="fp16")
    yield "prune of a core method", recipe(*PAIR, method="column_balanced", prune=0.1)
    yield "resize", recipe("b", rank="2", precision="fp16")


def _settings():
    for precision in ("fp16", "bf16", "float"):
        yield f"precision {precision}", recipe(*TRIO, precision=precision)
        yield f"precision {precision}, cut", recipe(*TRIO, precision=precision, rank="3")
    yield "precision fp16, faint", recipe(("a", 1e-5), ("b", 1e-6), precision="fp16")
    yield "precision fp16, faint and cut", recipe(("a", 1e-5), ("b", 1e-6), precision="fp16", rank="3")
    for seed in (0, 1, 2**31):
        yield f"seed {seed}", recipe(*PAIR, method="dare", seed=seed, **DENSE)
    yield "seed of tokens", recipe(source("a", blocks=TOKENS), source("b", 0.5, blocks=TOKENS), seed=5)
    yield "blocks preset", recipe(source("a", 0.8, blocks="STYLE"), source("b", 0.7, blocks="CHARACTER"))
    yield "blocks list", recipe(source("a", 0.8, blocks=LIST17), ("b", 0.7))
    yield (
        "blocks pairs",
        recipe(source("a", 0.8, blocks="IN04=0.5,M00=2,BASE=3"), source("c", blocks="OUT00-OUT11=-1")),
    )
    yield (
        "blocks object",
        recipe(source("a", blocks={"IN04": 0.5, "OUT06": 0.0}), "c", method="norm_preserving"),
    )
    yield (
        "blocks under a dense method",
        recipe(source("a", blocks=LIST17), "b", method="magnitude_prune", **DENSE),
    )
    yield "elements", recipe(source("a", 0.5, blocks="IN04=0.5", elements=RULES), ("b", 0.25))
    yield "elements of a core method", recipe(source("a", elements=RULES), "b", method="iso_c")
    yield "te_ratio", recipe(source("a", 0.5, te_ratio=0.2), source("b", te_ratio=0.0))
    yield (
        "te_ratio of both encoders",
        recipe(source("xl", 0.5, te_ratio=[0.2, 0.9]), source("xl_peft", te_ratio=0.3)),
    )
    yield "the same file twice", recipe("a", ("a", 0.5), "c", method="dare", **DENSE)
    yield "zero ratio", recipe("a", ("b", 0.0), "c")


def _groups():
    yield "group of a sum", recipe(group(recipe(*PAIR), 0.7, name="styles"), ("c", 0.4))
    ties = recipe(("a", 0.6), ("b", 0.4), method="ties", rank="4")
    yield "group of ties", recipe(group(ties, 0.7), ("c", 0.4))
    yield "group of ties in ties", recipe(group(ties, 0.7), ("c", 0.4), method="ties", rank="6")
    yield (
        "group with settings",
        recipe(
            group(recipe(*PAIR, method="slerp"), 0.9, te_ratio=0.1, blocks={"IN04": 0.5}, elements=RULES),
            source("d"),
        ),
    )
    core = recipe(*TRIO, method="core_ties", rank="energy:0.9", prune=0.05)
    yield "group of a core method", recipe(group(core, -0.5), "epoch", method="karcher")
    deep = recipe(
        group(recipe(group(recipe(*PAIR, method="dare", rank="5", seed=9), 0.5), "c"), 1.5), "epoch"
    )
    yield "groups three deep", recipe(group(deep, 0.3), "d", method="tsv")
    yield (
        "group used twice",
        recipe(group(recipe(*PAIR, method="dare", **DENSE)), group(recipe(*PAIR, rank="2"))),
    )


def _kinds():
    for kind in KINDS:
        yield f"kind {kind}", recipe((f"kind_{kind}", 0.7), ("b", -0.4))
    for kind in ("loha_wide", "lokr_full", "lokr_2023", "diff"):
        yield f"kind {kind}, cut", recipe((f"kind_{kind}", 0.7), ("b", -0.4), rank="3")
        yield f"kind {kind} under ties", recipe((f"kind_{kind}", 0.7), ("b", -0.4), method="ties", rank="6")
        yield f"kind {kind} in core space", recipe((f"kind_{kind}", 0.7), ("b", -0.4), method="core_ties")
    yield "kinds, all", recipe(*(f"kind_{kind}" for kind in KINDS), rank="4", precision="fp16")
    yield "vectors", recipe(("vectors", 0.5), ("biases", 0.25))
    yield "vectors, fp16", recipe(("vectors", 0.5), ("a", 0.25), precision="fp16")
    yield "vectors under ties", recipe(("vectors", 0.5), ("biases", 0.25), method="ties", **DENSE)
    yield "vectors, pruned", recipe(("vectors", 0.5), ("biases", 0.25), prune=0.1)


def _families():
    yield "family SD1, spellings", recipe(("a", 0.5), ("d", 0.75))
    yield "family SD1 under sgm names", recipe("d", "sgm", rank="5")
    yield "family SD2", recipe(("sd2", 0.5), ("sd2_peft", 0.75))
    yield "family SD2, cut", recipe(("sd2", 0.5), ("sd2_peft", 0.75), rank="3", method="knots_ties")
    yield "family SDXL", recipe(("xl", 0.5), ("xl_peft", 0.75))
    yield (
        "family SDXL, blocks",
        recipe(source("xl", blocks="STYLE"), source("xl_peft", blocks="1,0,.5,1,1,1,2,1,0,1,1,1")),
    )
    yield "family SDXL, ties", recipe("xl", "xl_peft", method="ties", **DENSE)
    yield "family SDXL, budget", recipe("xl", "xl_peft", rank="budget:150KB", precision="fp16")
    yield "family Flux, fused", recipe("flux", "flux_kohya", rank="3")
    yield "family Flux, fused and split", recipe(("flux", 0.5), ("flux_split", 0.25))
    yield (
        "family Flux, blocks",
        recipe(source("flux", blocks="DOUBLE"), source("flux_split", blocks="D00=0.5,OUT=2")),
    )
    yield "family Flux, core", recipe("flux", "flux_split", method="core_ties")
    yield "family Krea2", recipe(("krea", 0.5), ("krea_diffusers", 0.75))
    yield "family Anima", recipe(("anima", 0.5), ("anima_peft", 0.75))
    yield "family Qwen-Image", recipe(("qwen", 0.5), ("qwen_lokr", 0.75), rank="4")
    yield "family given", recipe("clip", family="SDXL")
    yield "family of its companions", recipe("clip", "a", "d")


RECIPES = {
    name: found
    for part in (_methods, _policies, _settings, _groups, _kinds, _families)
    for name, found in part()
}
SAMPLES = ("sample-ink-style", "sample-mira-character", "sample-neon-concept")
OF_SAMPLES = {
    "samples": recipe((SAMPLES[0], 0.6), (SAMPLES[1], 0.4), precision="fp16"),
    "samples, cut": recipe((SAMPLES[1], 0.6), (SAMPLES[2], 0.4), rank="4", method="core_ties"),
    "samples, pruned": recipe(
        (SAMPLES[2], 0.8), source(SAMPLES[1], 0.5, blocks="OUTD"), prune=0.1, precision="bf16"
    ),
}
OF_FILES = {
    "files of four spellings": recipe(
        ("cloneofsimo_sd15_r4_analog", 0.4), ("diffusers_oldest_sd15_r4", 0.3),
        ("diffusers_sd15_r4_pokemon", 0.2), ("peft_sd15_r4_alpha16", 0.1), precision="fp16",
    ),
    "files pickled": recipe(("diffusers_oldest_sd15_r4_dog.bin", 0.5), ("cloneofsimo_sd15_r1_disney", 0.5)),
    "files, LoKr": recipe(("lokr_kohya_sd15_r4", 0.7), ("peft_sd15_r4_alpha16", 0.5), rank="4"),
    "files, LoKr alone": recipe("lokr_kohya_sd15_r4", precision="fp16"),
    "files in core space": recipe(
        ("peft_sd15_r4_alpha16", 0.5), ("diffusers_sd15_r4_pokemon", 0.7),
        method="knots_ties", rank="energy:0.95",
    ),
    "files under dare": recipe(
        "cloneofsimo_sd15_r4_analog", "diffusers_sd15_r4_pokemon", method="core_dare", seed=4
    ),
    "files of SD2": recipe("cloneofsimo_sd2_r4_kiriko.pt", rank="2", precision="fp16"),
    "files of SDXL": recipe(source("peft_sdxl_te1_r8", te_ratio=0.5), rank="budget:500KB"),
}  # fmt: skip

# ---------------------------------------------------------------- sources


def _numbers(seed, *shape):
    """Numbers from −1 to 1 that are exact in float32 and the same everywhere."""
    count = math.prod(shape)
    raw = hashlib.shake_256(f"{seed} {shape}".encode()).digest(2 * count)
    return torch.from_numpy(np.frombuffer(raw, "<i2").astype(np.float32).reshape(shape)) / 32768


def _pair(seed, name, out, columns, rank, size, kernel=()):
    """up and down: a decaying spectrum, two directions half shared by all files: they are no strangers."""
    down, up = _numbers(f"{seed} {name} down", rank, columns), _numbers(f"{seed} {name} up", out, rank)
    for k in range(min(2, rank)):
        down[k] = (down[k] + _numbers(f"{name} down {k}", columns)) / 2
        up[:, k] = (up[:, k] + _numbers(f"{name} up {k}", out)) / 2
    # large modules no louder than small ones, by a power of two, which rounds nothing
    up = up * (size / 2 ** ((out * columns).bit_length() // 4)) / torch.arange(1, rank + 1)
    return up.reshape(out, rank, *(1 for _ in kernel)), down.reshape(rank, -1, *kernel)


def _lora(
    seed,
    modules,
    rank,
    *,
    alpha=None,
    roles=("lora_up.weight", "lora_down.weight"),
    size=2.0,
    dtype=torch.float32,
):
    """Tensors of a LoRA on {name: (out, in) or (out, in, kh, kw)}."""
    found = {}
    for name, (out, columns, *kernel) in modules.items():
        up, down = _pair(seed, name, out, columns * math.prod(kernel), rank, size, kernel)
        found |= {f"{name}.{roles[0]}": up.to(dtype), f"{name}.{roles[1]}": down.to(dtype)}
        if alpha is not None:
            found[f"{name}.alpha"] = torch.tensor(float(alpha), dtype=dtype)
    return found


PEFT = ("lora_B.weight", "lora_A.weight")
SD1 = {**SHAPES, CONV: (12, 10, 3, 3)}
DOTTED = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (24, 20),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (16, 768),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v": (18, 18),
}
SGM = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (24, 20),
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (16, 768),
    "lora_unet_output_blocks_6_1_transformer_blocks_0_ff_net_2": (14, 30),
}
SD2 = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (16, 1024),
    "lora_unet_up_blocks_2_attentions_1_transformer_blocks_0_attn1_to_q": (20, 24),
    "lora_te_text_model_encoder_layers_3_self_attn_q_proj": (1024, 1024),
}
SD2_DOTTED = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (16, 1024),
    "unet.up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q": (20, 24),
}
TE2 = "lora_te2_text_model_encoder_layers_0_self_attn_"
SDXL = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (16, 2048),
    "lora_unet_middle_block_1_transformer_blocks_3_ff_net_2": (14, 30),
    "lora_unet_output_blocks_2_1_transformer_blocks_1_attn1_to_q": (18, 18),
    "lora_unet_output_blocks_5_0_in_layers_2": (12, 10, 3, 3),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
    f"{TE2}k_proj": (1280, 1280),
    f"{TE2}v_proj": (1280, 1280),
}
SDXL_DOTTED = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (16, 2048),
    "unet.mid_block.attentions.0.transformer_blocks.3.ff.net.2": (14, 30),
    "unet.up_blocks.0.attentions.2.transformer_blocks.1.attn1.to_q": (18, 18),
    "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj": (1280, 1280),
}
FLUX = {
    "lora_unet_double_blocks_0_img_attn_qkv": (9216, 8),
    "lora_unet_double_blocks_0_img_mlp_2": (3072, 8),
    "lora_unet_final_layer_adaLN_modulation_1": (64, 8),
}
FLUX_SPLIT = {
    **{f"transformer.transformer_blocks.0.attn.to_{letter}": (3072, 8) for letter in "qkv"},
    "transformer.transformer_blocks.0.ff.net.2": (3072, 8),
    "transformer.norm_out.linear": (64, 8),
}
KREA = {
    "lora_unet_blocks_3_attn_wq": (24, 20),
    "lora_unet_blocks_3_attn_gate": (24, 20),
    "lora_unet_blocks_3_mlp_up": (32, 20),
    "lora_unet_txtfusion_layerwise_blocks_0_attn_wk": (18, 18),
}
KREA_DOTTED = {
    "transformer.transformer_blocks.3.attn.to_q": (24, 20),
    "transformer.transformer_blocks.3.attn.to_gate": (24, 20),
    "transformer.transformer_blocks.3.ff.up": (32, 20),
}
ANIMA = {
    "lora_unet_blocks_0_cross_attn_k_proj": (24, 20),
    "lora_unet_blocks_0_adaln_modulation_cross_attn_1": (16, 12),
}
ANIMA_DOTTED = {f"diffusion_model.blocks.0.cross_attn.{letter}_proj": (24, 20) for letter in "kqv"}
QWEN = {
    "lora_unet_transformer_blocks_0_attn_to_k": (24, 20),
    "lora_unet_transformer_blocks_0_attn_add_k_proj": (24, 20),
    "lora_unet_transformer_blocks_0_img_mlp_net_2": (18, 18),
}
LIN = NAMES[2]  # 18 × 18


def _kind(kind):
    """One module of a kind, on a name and with the shape of SD1, beside a plain one that tells the family."""

    def n(*shape, seed=0):
        return _numbers(f"{kind} {seed}", *shape)

    def hada(out, columns, rank):
        return {
            f"hada_w{half}_{side}": n(*((out, rank) if side == "a" else (rank, columns)), seed=half)
            for half in "12"
            for side in "ab"
        }

    def cores(out, columns, rank):
        sides = {f"hada_w{half}_a": n(rank, out, seed=half) for half in "12"}
        sides |= {f"hada_w{half}_b": n(rank, columns, seed=half) for half in "12"}
        return sides | {f"hada_t{half}": n(rank, rank, 3, 3, seed=half) for half in "12"}

    def lokr(**parts):
        return {f"lokr_{part}": n(*shape) for part, shape in parts.items()}

    line = {
        "loha": lambda: hada(18, 18, 3),
        "loha_wide": lambda: hada(18, 18, 6),  # 36 > 18: past the exact low-rank form
        "lokr_full": lambda: lokr(w1=(3, 3), w2=(6, 6)),
        "lokr_half": lambda: lokr(w1=(3, 3), w2_a=(6, 2), w2_b=(2, 6)),
        "lokr_pairs": lambda: lokr(w1_a=(3, 1), w1_b=(1, 6), w2_a=(6, 2), w2_b=(2, 3)),
    }
    conv = {
        "locon": lambda: {"lora_up.weight": n(12, 4, 1, 1), "lora_down.weight": n(4, 10, 3, 3)},
        "tucker": lambda: {
            "lora_up.weight": n(12, 4, 1, 1),
            "lora_mid.weight": n(4, 5, 3, 3),
            "lora_down.weight": n(5, 10, 1, 1),
        },
        "loha_conv": lambda: hada(12, 90, 2),  # a flattened 3×3
        "loha_tucker": lambda: cores(12, 10, 3),
        "lokr_conv": lambda: lokr(w1=(3, 2), w2=(4, 5, 3, 3)),  # today's layout: the kernel in w2
        "lokr_conv_pair": lambda: lokr(w1=(3, 2), w2_a=(4, 2), w2_b=(2, 45)),
        "lokr_tucker": lambda: lokr(w1=(3, 2), t2=(2, 2, 3, 3), w2_a=(2, 4), w2_b=(2, 5)),
        "lokr_2023": lambda: lokr(w1_a=(3, 1), w1_b=(1, 6), w2_a=(4, 2), w2_b=(2, 15)),  # splits the kernel
        "diff": lambda: {"diff": n(12, 10, 3, 3) / 4},
    }
    name, roles = (LIN, line[kind]()) if kind in line else (CONV, conv[kind]())
    if kind != "diff":
        roles["alpha"] = torch.tensor(3.0)
    anchor = _lora(f"anchor {kind}", {NAMES[1]: SHAPES[NAMES[1]]}, 2)
    return anchor | {f"{name}.{role}": value for role, value in roles.items()}


def _flux_kohya():
    return _lora(
        "flux_kohya",
        {name: size for name, size in FLUX.items() if "final" not in name},
        3,
        dtype=torch.bfloat16,
    )


def _epoch():
    """A later epoch of `a`: the same file, moved a little."""
    base = _lora("a", SD1, 4, alpha=2)
    return {
        key: value if key.endswith("alpha") else value + _numbers(f"epoch {key}", *value.shape) / 16
        for key, value in base.items()
    }


def _vectors():
    return _lora("vectors", {name: SHAPES[name] for name in NAMES[:2]}, 3, alpha=1) | {
        f"{NAMES[0]}.diff_b": _numbers("bias", 24),
        "lora_unet_conv_norm_out.w_norm": _numbers("weight of a norm", 320),
        "lora_unet_conv_norm_out.b_norm": _numbers("bias of a norm", 320),
        "bundle_emb.sks.string_to_param.*": _numbers("embedding", 2, 768),
    }


def _biases():
    modules = {NAMES[0]: SHAPES[NAMES[0]], NAMES[1]: SHAPES[NAMES[1]], CONV: SD1[CONV]}
    return _lora("biases", modules, 2) | {
        f"{name}.diff_b": _numbers(f"bias {name}", size[0]) for name, size in modules.items()
    }


def _qwen_lokr():
    name = "lora_unet_transformer_blocks_0_attn_to_k"
    kron = {
        f"{name}.lokr_w1": _numbers("q1", 6, 5),
        f"{name}.lokr_w2": _numbers("q2", 4, 4),
        f"{name}.alpha": torch.tensor(1.0),
    }
    return kron | _lora("qwen_lokr", {key: size for key, size in QWEN.items() if key != name}, 3)


FILES = {
    "a": lambda: _lora("a", SD1, 4, alpha=2, dtype=torch.float16),
    "b": lambda: _lora("b", SD1, 6),
    "c": lambda: _lora(
        "c",
        {name: size for name, size in SD1.items() if "_te_" not in name},
        3,
        alpha=3,
        dtype=torch.bfloat16,
    ),
    "d": lambda: _lora("d", DOTTED, 5, roles=PEFT),
    "sgm": lambda: _lora("sgm", SGM, 4, alpha=4),
    "epoch": _epoch,
    "vectors": _vectors,
    "biases": _biases,
    "clip": lambda: _lora(
        "clip", {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (768, 768)}, 4, roles=PEFT
    ),
    "sd2": lambda: _lora("sd2", SD2, 4, alpha=2),
    "sd2_peft": lambda: _lora("sd2_peft", SD2_DOTTED, 3, roles=PEFT),
    "xl": lambda: _lora("xl", SDXL, 4, alpha=2, dtype=torch.float16),
    "xl_peft": lambda: _lora("xl_peft", SDXL_DOTTED, 3, roles=PEFT),
    "flux": lambda: _lora("flux", FLUX, 2, alpha=1),
    "flux_kohya": _flux_kohya,
    "flux_split": lambda: _lora("flux_split", FLUX_SPLIT, 2, roles=PEFT),
    "krea": lambda: _lora("krea", KREA, 4, alpha=2),
    "krea_diffusers": lambda: _lora("krea_diffusers", KREA_DOTTED, 3, roles=PEFT),
    "anima": lambda: _lora("anima", ANIMA, 4, alpha=2),
    "anima_peft": lambda: _lora("anima_peft", ANIMA_DOTTED, 3, roles=PEFT),
    "qwen": lambda: _lora("qwen", QWEN, 4, alpha=2),
    "qwen_lokr": _qwen_lokr,
    **{f"kind_{kind}": lambda kind=kind: _kind(kind) for kind in KINDS},
}
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _raw(value):
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _write(path, tensors):
    """Write a file whose every byte is ours: its sha256 decides the random masks."""
    table, data = {}, []
    at = 0
    for key in sorted(tensors):
        value, raw = tensors[key], _raw(tensors[key])
        table[key] = {
            "dtype": TYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, at + len(raw)],
        }
        data.append(raw)
        at += len(raw)
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"".join(data))


def _named(given):
    """The files that a recipe is made of."""
    for one in given["sources"]:
        yield from _named(one["recipe"]) if "recipe" in one else [one["name"]]


# ---------------------------------------------------------------- what is kept of a result


def _machine():
    """What the last bits of a result depend on, in words."""
    facts = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    model = " ".join(facts.get(name, "?") for name in ("model name", "cpu family", "model"))
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {model}"


def _hash(tensors):
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_raw(value))
    return digest.hexdigest()


def _factors(tensors):
    """Every module as (left, right) in float64, ΔW = left·right; whole matrices and vectors as one row."""
    found = {}
    for key, value in tensors.items():
        name, _, role = key.rpartition(".lora_up.weight")
        if name and not role:
            down = tensors[f"{name}.lora_down.weight"].double()
            alpha = tensors.get(f"{name}.alpha")
            scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
            found[name] = (scale * value.double().flatten(1), down.flatten(1))
        elif not key.endswith((".lora_down.weight", ".alpha")):
            found[key] = (torch.ones(1, 1, dtype=torch.float64), value.double().reshape(1, -1))
    return dict(sorted(found.items()))


@contextlib.contextmanager
def _one_thread():
    """Products this small are a hundred times slower when threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _norm(left, right):
    return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())


@_one_thread()
def _sketch(tensors):
    """Modules, ranks, ‖ΔW‖, and of a few modules their norm and their inner product with a random matrix.

    The matrix is a·bᵀ, so that no ΔW is ever multiplied out; its numbers have variance 1, so that a change of
    ΔW by a share of its norm changes the product by about that share of the norm, whatever the module's size.
    """
    modules = _factors(tensors)
    norms = {name: _norm(left, right) for name, (left, right) in modules.items()}
    names = list(modules)
    sampled = sorted({names[round(k * (len(names) - 1) / (SAMPLED - 1))] for k in range(SAMPLED)})
    dots = {}
    for name in sampled:
        left, right = modules[name]
        a, b = (
            3**0.5 * _numbers(f"{side} {name}", size).double()
            for side, size in (("a", len(left)), ("b", right.shape[1]))
        )
        dots[name] = [float((a @ left) @ (right @ b)), norms[name]]
    ranks = sum(right.shape[0] for key, (_, right) in modules.items() if f"{key}.lora_up.weight" in tensors)
    return {"modules": len(modules), "ranks": ranks, "norm": math.hypot(*norms.values()), "dots": dots}


@functools.cache
def _kept():
    """What is kept of all results: {"machines": {machine: {recipe: hash}}, "sketches": {recipe: sketch}}."""
    return (
        json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {"machines": {}, "sketches": {}}
    )


def _made(given, folder, out):
    """Run a recipe; return the tensors saved."""
    path = out / "recipe.json"
    path.write_text(json.dumps({"format": "lora-merge-recipe", "version": 1, **given}), encoding="utf-8")
    saved = out / "m.safetensors"
    run_recipe(load_recipe(path, [folder]), saved, job=Job(side_car=False))
    return load_file(str(saved))


def _check(name, sketch, precision):
    """Hold a result's numbers against what is kept of them."""
    wanted = _kept()["sketches"].get(name)
    assert wanted is not None, f"if it is right, run: python -m tests.test_bytes --write {json.dumps(name)}"
    assert (sketch["modules"], sketch["ranks"]) == (wanted["modules"], wanted["ranks"])
    assert sketch["norm"] == pytest.approx(wanted["norm"], rel=1e-4)
    assert set(sketch["dots"]) == set(wanted["dots"])
    for module, (dot, norm) in wanted["dots"].items():
        assert abs(sketch["dots"][module][1] - norm) <= TOLERANCE[precision] * norm, module
        assert abs(sketch["dots"][module][0] - dot) <= TOLERANCE[precision] * norm, module


def _run(name, given, folder, out):
    tensors = _made(given, folder, out)
    _check(name, _sketch(tensors), given["precision"])
    hashes = _kept()["machines"].get(_machine(), {})
    if name in hashes:
        assert _hash(tensors) == hashes[name], "the numbers are the same, the last bits are not"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sources")
    for name, tensors in FILES.items():
        _write(made / f"{name}.safetensors", tensors())
    return made


def test_every_method_is_held():
    missing = sorted(set(METHODS) - set(ASKED))
    commands = "; ".join(f'python -m tests.test_bytes --write "method {name}"' for name in missing)
    assert set(ASKED) == set(METHODS), f"a line in ASKED for {missing}, then: {commands}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_what_it_gave(name, folder, tmp_path):
    _run(name, RECIPES[name], folder, tmp_path)


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_a_recipe_of_samples_gives_what_it_gave(name, samples, tmp_path):
    _run(name, OF_SAMPLES[name], samples[0].parent, tmp_path)


@pytest.mark.parametrize("name", OF_FILES)
def test_a_recipe_of_real_files_gives_what_it_gave(name, loras, tmp_path):
    _run(name, OF_FILES[name], loras, tmp_path)


# ---------------------------------------------------------------- writing it


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", nargs="*", metavar="NAME", help="keep what comes out now, of all recipes or of these"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep this machine's hashes beside those of others"
    )
    given = parser.parse_args(arguments)
    if given.write is None and not given.add:
        parser.print_help()
        return 2
    wanted = {name: found for part in (RECIPES, OF_SAMPLES, OF_FILES) for name, found in part.items()}
    unknown = [name for name in given.write or () if name not in wanted]
    if unknown:
        near = sorted(name for name in wanted if unknown[0] in name)
        parser.error(f"there is no recipe {unknown[0]!r}; with that in their name: {near or 'none'}")
    if given.write:
        wanted = {name: wanted[name] for name in given.write}
    kept = _kept()
    machines, sketches = (kept["machines"], kept["sketches"]) if given.add or given.write else ({}, {})
    own = machines.setdefault(_machine(), {})
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        for name, tensors in FILES.items():
            _write(folder / f"{name}.safetensors", tensors())
        write_samples(folder)
        for number, (name, one) in enumerate(wanted.items()):
            out = folder / f"out {number}"
            out.mkdir()
            tensors = _made(one, SHARED if name in OF_FILES else folder, out)
            if given.add:
                _check(name, _sketch(tensors), one["precision"])
            else:
                sketches[name] = _sketch(tensors)
                for hashes in machines.values():  # of what it was before
                    hashes.pop(name, None)
            own[name] = _hash(tensors)
    kept = {"machines": machines, "sketches": sketches}
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(wanted)} recipes kept for {_machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
