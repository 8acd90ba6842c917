"""Random sets of keys as every trainer writes them: names of every family and spelling, kinds and roles of every adapter,
shapes that fit and shapes that do not. Each file is opened, its merge foreseen and surveyed, and now and then carried out.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import torch
from safetensors import safe_open

from lib_merge import Job, Recipe, Source, open_lora
from lib_merge.api import run_recipe
from lib_merge.engine.room import foreseen_names
from lib_merge.engine.survey import foresee, survey
from lib_merge.engine.tree import open_tree
from lib_merge.errors import MergeError
from lib_merge.loaders import verdicts
from tests.campaigns.harness import Campaign, Inputs, Problem, sentence
from tests.campaigns.small_files import pack

# place in a model, out, in, kernel: as diffusers or the model's own code call it
PLACES = {
    "unet": [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 640, 640, 0),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 640, 768, 0),
        ("down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v", 640, 2048, 0),
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0", 320, 320, 0),
        ("mid_block.attentions.0.proj_in", 1280, 1280, 1), ("mid_block.resnets.1.conv2", 32, 32, 3),
        ("up_blocks.1.resnets.0.conv1", 64, 32, 3), ("up_blocks.2.attentions.1.transformer_blocks.0.ff.net.2", 640, 2560, 0),
        ("up_blocks.0.upsamplers.0.conv", 32, 32, 3), ("time_embedding.linear_1", 1280, 320, 0), ("conv_in", 320, 4, 3),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k", 640, 2048, 0), ("middle_block.1.proj_out", 1280, 1280, 1),
        ("output_blocks.3.1.transformer_blocks.0.ff.net.0.proj", 2560, 640, 0), ("label_emb.0.0", 1280, 2816, 0), ("out.2", 4, 320, 3),
        ("down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q", 320, 320, 0),
    ],
    "te": [
        ("text_model.encoder.layers.3.self_attn.q_proj", 768, 768, 0), ("text_model.encoder.layers.11.mlp.fc1", 3072, 768, 0),
        ("text_model.encoder.layers.30.self_attn.out_proj", 1280, 1280, 0), ("text_projection", 1280, 1280, 0),
        ("transformer.resblocks.5.attn.in_proj", 3072, 1024, 0), ("encoder.block.0.layer.0.SelfAttention.q", 4096, 4096, 0),
        ("model.layers.2.self_attn.k_proj", 1024, 2560, 0), ("model.layers.0.mlp.gate_proj", 4864, 1024, 0),
    ],
    "transformer": [
        ("double_blocks.3.img_attn.qkv", 9216, 3072, 0), ("double_blocks.0.txt_mlp.0", 12288, 3072, 0),
        ("single_blocks.7.linear1", 21504, 3072, 0), ("single_blocks.7.linear2", 3072, 15360, 0), ("final_layer.linear", 64, 3072, 0),
        ("transformer_blocks.2.attn.to_q", 3072, 3072, 0), ("transformer_blocks.2.attn.add_k_proj", 3072, 3072, 0),
        ("transformer_blocks.0.ff_context.net.2", 3072, 12288, 0), ("single_transformer_blocks.5.proj_mlp", 12288, 3072, 0),
        ("single_transformer_blocks.5.attn.to_out", 3072, 12288, 0), ("double_stream_modulation_img.linear", 18432, 3072, 0),
        ("single_transformer_blocks.1.attn.to_qkv_mlp_proj", 27648, 3072, 0), ("distilled_guidance_layer.layers.0.in_layer", 5120, 5120, 0),
        ("blocks.4.self_attn.q", 1536, 1536, 0), ("blocks.4.cross_attn.k_img", 1536, 1536, 0), ("blocks.9.ffn.0", 8960, 1536, 0),
        ("layers.3.attention.qkv", 11520, 3840, 0), ("layers.3.attention.to_out.0", 3840, 3840, 0), ("layers.1.feed_forward.w2", 3840, 10240, 0),
        ("joint_blocks.3.x_block.attn.qkv", 4608, 1536, 0), ("transformer_blocks.7.img_mod.1", 18432, 3072, 0),
        ("blocks.1.adaln_modulation_cross_attn.1", 256, 2048, 0), ("context_embedder", 1536, 4096, 0), ("x_embedder", 3072, 64, 0),
        ("caption_projection.linear_1", 1152, 4096, 0), ("adaln_single.linear", 6912, 1152, 0), ("noise_refiner.0.attention.to_k", 3840, 3840, 0),
        ("txtfusion.projector", 512, 512, 0), ("patchify_proj", 2048, 128, 0), ("vector_in.in_layer", 3072, 768, 0),
    ],
}  # fmt: skip
FRONTS = {
    "unet": ["lora_unet_", "unet.", "lycoris_", "lora_unet_", "base_model.model.", "diffusion_model.", "unet.base_model.model.", "", "lora_prior_unet_", "model.diffusion_model."],
    "te": [
        "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "text_encoder.", "text_encoder_2.", "te.", "te1.", "clip_l.", "clip_g.", "lora_qwen3_",
        "text_encoders.clip_l.transformer.", "text_encoders.clip_h.", "text_encoders.qwen3_06b.transformer.", "base_model.model.", "t5xxl.", "lora_prior_te_",
    ],
    "transformer": [
        "lora_unet_", "transformer.", "diffusion_model.", "lora_transformer_", "lycoris_", "base_model.model.", "transformer.base_model.model.", "", "lora_unet__",
        "model.diffusion_model.", "base_model.model.transformer.",
    ],
}  # fmt: skip
UPS = [
    ("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight"), ("lora.up.weight", "lora.down.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"), ("lora_B.default_1.weight", "lora_A.default_1.weight"), ("lora_B", "lora_A"),
    ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"), ("lora_up", "lora_down"),
]  # fmt: skip
MORE = [
    "alpha", "dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "diff", "diff_b", "lora_mid.weight", "bias", "weight", "on_input", "set_weight",
    "scale_weight", "lora_up.scale_weight", "reshape_weight", "rank", "w_norm", "b_norm", "oft_blocks", "oft_diag", "oft_R.weight", "a1.weight", "b2.weight",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1",
    "lokr_t2", "lora_B.bias", "processor.to_q_lora.up.weight", "processor.qkv_lora1.down.weight", "lora_ups.0.weight", "rescale", "scalar", "dyn_up", "vera_lambda_b",
]  # fmt: skip
RANKS = (1, 2, 3, 4)
TYPES = {"F16": 2, "BF16": 2, "F32": 4, "F8_E4M3": 1, "I64": 8, "F64": 8, "U8": 1}
# bytes of tensors of one file
MOST = 400_000
_DEVICE = torch.device("cpu")


class Keys(Campaign):
    """See the module."""

    name = "keys"
    aim = 100_000
    share = 4.0

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._count = 0
        (folder / "out").mkdir()

    def make(self, number: int, rng: random.Random) -> Inputs:
        count = 1 if rng.random() < 0.6 else 2
        parts = [rng.choice(("unet", "transformer", "transformer", "te")) for _ in range(rng.randrange(1, 3))]
        files = {}
        for index in range(count):
            if index and rng.random() < 0.3:
                parts = [rng.choice(tuple(PLACES))]
            files[f"{'ab'[index]}.safetensors"] = file_of(parts, rng)
        return files

    def attempt(self, inputs: Inputs) -> str:
        self._count += 1
        paths, outcome = [], "refused"
        for name, data in inputs.items():
            path = self.folder / name
            path.write_bytes(data)
            try:
                open_lora(path).close()
                paths.append(path)
            except MergeError as error:
                sentence(error, name)
        if not paths:
            return outcome
        recipe = Recipe(
            tuple(Source(path=path, name=path.name, ratio=0.5 + n) for n, path in enumerate(paths))
        )
        try:
            with open_tree(recipe, drop_unsupported=True) as tree:
                foresee(tree)
                verdicts(foreseen_names(tree))
                survey(tree, _DEVICE, Job())
                outcome = f"surveyed as {tree.root.family}"
        except MergeError as error:
            sentence(error)
            return "opened, not planned"
        if self._count % 16 == 0:
            outcome = self._merged(recipe)
        return outcome

    def _merged(self, recipe: Recipe) -> str:
        out = self.folder / "out" / "m.safetensors"
        try:
            run_recipe(recipe, out, job=Job(overwrite=True, drop_unsupported=True, side_car=False))
        except MergeError as error:
            sentence(error)
            left = list(out.parent.iterdir())
            if left:
                raise Problem("partial", f"left by a merge that was refused: {left[0].name}") from error
            return "surveyed, not merged"
        with safe_open(out, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                if not torch.isfinite(file.get_tensor(key).float()).all():
                    raise Problem("other", f"the merge holds numbers that are none, at {key}")
        out.unlink()
        return "merged"


def file_of(parts: list[str], rng: random.Random) -> bytes:
    """Return a file with some modules of some parts of models."""
    shapes: dict[str, list[int]] = {}
    for part in parts:
        front = rng.choice(FRONTS[part])
        pair, kind = rng.choice(UPS), rng.choice(KINDS)
        for _ in range(rng.randrange(1, 6)):
            place, out, columns, kernel = rng.choice(PLACES[part])
            stem = front + (place.replace(".", "_") if front.endswith("_") else place)
            module = kind(out, columns, kernel, pair, rng)
            if rng.random() < 0.15:
                module |= {rng.choice(MORE): [rng.choice((1, 2, 4, 16)) for _ in range(rng.randrange(5))]}
            if rng.random() < 0.1 and module:
                del module[rng.choice(list(module))]
            shapes |= {f"{stem}.{role}": shape for role, shape in module.items()}
            if rng.random() < 0.05:
                kind = rng.choice(KINDS)
    for key in [key for key in shapes if rng.random() < 0.02]:
        _spoil(shapes, key, rng)
    return _written(shapes, rng)


def _spoil(shapes: dict[str, list[int]], key: str, rng: random.Random) -> None:
    """Give one tensor a shape or a name that does not fit."""
    shape = shapes[key]
    kind = rng.randrange(4)
    if kind == 0:
        shapes[key] = shape[::-1]
    elif kind == 1:
        shapes[key] = [*shape, 1, 1] if rng.random() < 0.5 else shape[:-1]
    elif kind == 2 and shape:
        at = rng.randrange(len(shape))
        shapes[key] = [*shape[:at], rng.choice((0, 1, shape[at] + 1, shape[at] * 2)), *shape[at + 1 :]]
    else:
        shapes[
            key.replace(rng.choice(("_", ".", "lora", "0")), rng.choice(("", "__", "..", "é")), 1) or "x"
        ] = shape


def _written(shapes: dict[str, list[int]], rng: random.Random) -> bytes:
    mixed = rng.random() < 0.1
    dtype, size, header = rng.choice(("F16", "F16", "BF16", "F32", "F8_E4M3")), 0, {}
    for key, shape in shapes.items():
        kind = rng.choice(list(TYPES)) if mixed else dtype
        length = TYPES[kind]
        for axis in shape:
            length *= axis
        if size + length <= MOST:
            header[key] = {"dtype": kind, "shape": shape, "data_offsets": [size, size + length]}
            size += length
    if rng.random() < 0.4:
        header["__metadata__"] = {
            "ss_base_model_version": rng.choice(
                ("sd_v1", "sdxl_base_v1-0", "flux1", "z_image", "wan", "x", "sd3", "chroma")
            )
        }
    # bits that are small and finite numbers in each of the types
    data = (
        (struct.pack("<I", rng.randrange(1 << 32)) * (size // 4 + 1))[:size]
        if rng.random() < 0.05
        else bytes([rng.randrange(1, 57)]) * size
    )
    return pack(json.dumps(header).encode(), data)


# ------------------------------------------------------------------------------------------------ kinds


def _lora(
    out: int, columns: int, kernel: int, pair: tuple[str, str], rng: random.Random
) -> dict[str, list[int]]:
    rank, side = rng.choice(RANKS), [kernel, kernel] if kernel else []
    found = {pair[0]: [out, rank, *[1 for _ in side]], pair[1]: [rank, columns, *side]}
    if kernel > 1 and rng.random() < 0.3:
        found = {
            pair[0]: [out, rank, 1, 1],
            pair[1]: [rank, columns, 1, 1],
            "lora_mid.weight": [rank, rank, kernel, kernel],
        }
    if rng.random() < 0.6:
        found["alpha"] = []
    return found


def _dora(
    out: int, columns: int, kernel: int, pair: tuple[str, str], rng: random.Random
) -> dict[str, list[int]]:
    scale = rng.choice(
        ({"dora_scale": [out, 1]}, {"dora_scale": [1, columns]}, {"lora_magnitude_vector": [out]})
    )
    return _lora(out, columns, kernel, pair, rng) | scale


def _loha(
    out: int, columns: int, kernel: int, pair: tuple[str, str], rng: random.Random
) -> dict[str, list[int]]:
    del pair
    rank = rng.choice(RANKS)
    if kernel > 1 and rng.random() < 0.5:
        found = {f"hada_w{n}_a": [rank, out] for n in "12"} | {f"hada_w{n}_b": [rank, columns] for n in "12"}
        found |= {f"hada_t{n}": [rank, rank, kernel, kernel] for n in "12"}
    else:
        found = {f"hada_w{n}_a": [out, rank] for n in "12"} | {
            f"hada_w{n}_b": [rank, columns * max(1, kernel * kernel)] for n in "12"
        }
    return {**found, "alpha": []}


def _lokr(
    out: int, columns: int, kernel: int, pair: tuple[str, str], rng: random.Random
) -> dict[str, list[int]]:
    del pair
    a, b, rank = rng.choice((1, 2, 4)), rng.choice((1, 2, 4)), rng.choice(RANKS)
    side = [kernel, kernel] if kernel > 1 else []
    first = rng.choice(({"lokr_w1": [a, b]}, {"lokr_w1_a": [a, rank], "lokr_w1_b": [rank, b]}))
    whole = {"lokr_w2": [out // a, columns // b, *side]}
    halves = {"lokr_w2_a": [out // a, rank], "lokr_w2_b": [rank, columns // b * max(1, kernel * kernel)]}
    core = {"lokr_t2": [rank, rank, *side], "lokr_w2_a": [rank, out // a], "lokr_w2_b": [rank, columns // b]}
    second = rng.choice(
        (halves, halves, core if side else halves, whole if out * columns < 40_000 else halves)
    )
    return {**first, **second, "alpha": []}


def _others(
    out: int, columns: int, kernel: int, pair: tuple[str, str], rng: random.Random
) -> dict[str, list[int]]:
    del pair, kernel
    blocks = rng.choice((1, 2, 4))
    return rng.choice((
        {"oft_blocks": [blocks, 8, 8], "alpha": []}, {"oft_diag": [blocks, 8, 8]}, {"oft_blocks": [2, blocks, 8, 8]}, {"oft_R.weight": [blocks, 28]},
        {"weight": [columns], "on_input": []}, {"a1.weight": [4, columns], "a2.weight": [columns, 4], "b1.weight": [4, out], "b2.weight": [out, 4]},
        {"diff_b": [out]}, {"diff": [out, 1]}, {"diff": [out]}, {"w_norm": [out], "b_norm": [out]}, {"lora_up.weight": [out, 2], "lora_down.weight": [2, columns], "diff_b": [out]},
    ))  # fmt: skip


KINDS = (_lora, _lora, _lora, _lora, _dora, _loha, _lokr, _others)
