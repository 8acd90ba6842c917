"""A1111, Forge, reForge, Classic, Neo and ComfyUI: what each loads of each family.

Facts, found by running each host's own mapping on a model of the family on torch's meta device and comparing
it with these tables name by name, in November 2026; the commits stand in the records. What was only read in
the source says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from lib_merge.loaders.record import Host, Loads

# ---------------------------------------------------------------- fronts

# every host of ComfyUI's kind takes the model's own names so
OWN = ("lora_unet_", "diffusion_model.")
# the UNets of Stable Diffusion are also known by diffusers' names
_UNET = ("lora_unet_", "lycoris_", "unet.", "")
_FLUX = ("lora_transformer_", "lycoris_", "transformer.")
_PLAIN = ("lycoris_", "transformer.", "diffusion_model.", "")

_TE = {"lora_te_": "CLIP-L", "lora_te1_": "CLIP-L", "text_encoder.": "CLIP-L"}
_TE_L_G = {**_TE, "lora_te2_": "CLIP-G", "text_encoder_2.": "CLIP-G"}
_TE_H = dict.fromkeys(_TE, "CLIP-H")
_L = {"text_encoders.clip_l.transformer.": "CLIP-L"}
_G = {"text_encoders.clip_g.transformer.": "CLIP-G"}
_H = {"text_encoders.clip_h.transformer.": "CLIP-H"}
_T5 = {"text_encoders.t5xxl.transformer.": "T5"}
_TE_FLUX = {**_TE, "lora_te2_": "T5", "lora_te3_": "T5"}

# names of one-dimensional weights, which diffusers' copies call otherwise
_NORMS = r"(?:single_)?transformer_blocks_\d+_attn_norm_(?:added_)?[qk]"
_FEW_NORMS = re.compile(_NORMS)
# what diffusers' Flux.2 brought
_FLUX2_WORDS = re.compile(
    rf"{_NORMS}|transformer_blocks_\d+_ff(?:_context)?_linear_(?:in|out)"
    r"|single_transformer_blocks_\d+_attn_to_(?:out(?:_0)?|qkv_mlp_proj)"
)
_PROJECTIONS = re.compile("text_projection")

# ---------------------------------------------------------------- kinds

_LORA = {"alpha", "lora_up", "lora_down", "lora_mid"}
_LYCORIS = {
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")),
}
_REST = {"diff", "diff_b", "w_norm", "b_norm", "dora_scale"}
ROLES = frozenset(_LORA | _LYCORIS | _REST)


def _encoder(name: str, encoder: str, *, bare: bool = True) -> Mapping[str, str]:
    """Return the fronts of a single language model: with the word `transformer` or without, and kohya's."""
    fronts = {f"text_encoders.{name}.transformer.": encoder}
    return {**fronts, "text_encoders.transformer.": encoder, "lora_te_": encoder} if bare else fronts


# ---------------------------------------------------------------- ComfyUI and what follows it

_SD1 = Loads(own=OWN, other=_UNET, encoders={**_TE, **_L})
_SD2 = Loads(own=OWN, other=_UNET, encoders={**_TE_H, **_H})
_SDXL = Loads(own=OWN, other=_UNET, encoders={**_TE_L_G, **_L, **_G})
_FLUX_LOADS = Loads(own=OWN, other=(*_FLUX, ""), encoders={**_TE_FLUX, **_L, **_T5})
_SD3_ENCODERS = {**_TE_L_G, "lora_te3_": "T5", **_L, **_G, **_T5}

_COMFY: Mapping[str, Loads] = {
    "SD1": _SD1,
    "SD2": _SD2,
    "SDXL": _SDXL,
    "SD3": Loads(
        own=OWN,
        other=("lora_transformer_", "lycoris_", "transformer.", "base_model.model."),
        encoders=_SD3_ENCODERS,
    ),
    "Flux": _FLUX_LOADS,
    "Chroma": Loads(own=OWN, other=(*_FLUX, ""), encoders={"lora_te1_": "T5", **_T5}),
    "Flux.2": Loads(
        own=OWN,
        other=(*_FLUX, ""),
        encoders={
            **_encoder("qwen3_4b", "Qwen3 4B"),
            **_encoder("qwen3_8b", "Qwen3 8B"),
            **_encoder("mistral3_24b", "Mistral 24B"),
        },
    ),
    "Z-Image": Loads(
        own=(*OWN, "lycoris_", "transformer.", ""), other=_PLAIN, encoders=_encoder("qwen3_4b", "Qwen3 4B")
    ),
    "Lumina 2": Loads(
        own=(*OWN, "lycoris_", "transformer.", ""),
        other=_PLAIN,
        encoders=_encoder("gemma2_2b", "Gemma 2 2B"),
    ),
    "Qwen-Image": Loads(
        own=(*OWN, "lycoris_", "transformer.", ""), encoders=_encoder("qwen25_7b", "Qwen2.5-VL 7B")
    ),
    "Wan": Loads(own=OWN, encoders=_encoder("umt5xxl", "UMT5", bare=False)),
    "HunyuanVideo": Loads(
        own=(*OWN, "transformer."),
        other=("diffusion_model.", "transformer."),
        encoders={**_TE, **_L, **_encoder("llama", "Llama 8B", bare=False)},
    ),
    "LTX": Loads(own=(*OWN, ""), encoders={"lora_te1_": "T5", **_T5}),
    "Anima": Loads(own=OWN, encoders=_encoder("qwen3_06b", "Qwen3 0.6B")),
    "Krea 2": Loads(own=OWN, other=_PLAIN, encoders=_encoder("qwen3vl_4b", "Qwen3-VL 4B")),
    "Ernie": Loads(own=(*OWN, "transformer."), encoders=_encoder("ministral3_3b", "Ministral 3B")),
    "AuraFlow": Loads(own=OWN, other=("transformer.",)),
    "PixArt": Loads(
        own=OWN, other=("transformer.", "base_model.model.", "unet."), encoders={"lora_te1_": "T5", **_T5}
    ),
}

COMFYUI = Host(
    name="comfyui",
    title="ComfyUI",
    source="comfyanonymous/ComfyUI",
    commit="783545f6",
    families=_COMFY,
    roles=ROLES | {"glora", "oft", "boft", "reshape_weight", "set_weight"},
)

# ---------------------------------------------------------------- Forge Neo


def _neo(family: str, encoders: Mapping[str, str], without: re.Pattern[str] | None = None) -> Loads:
    """Return what Neo loads of a family: ComfyUI's names of the denoiser, encoders of its own."""
    return replace(_COMFY[family], encoders=encoders, without=without)


NEO = Host(
    name="neo",
    title="Forge Neo",
    source="exo101/sd-webui-forge-neo-v3, webui 2.26",
    commit="5692d2d1",
    families={
        "SD1": _neo("SD1", {**_TE, **_L}, _PROJECTIONS),
        "SDXL": _neo("SDXL", {**_TE_L_G, **_L, **_G}, _PROJECTIONS),
        "Flux": _neo("Flux", {**_TE_FLUX, **_L, **_T5}, _FEW_NORMS),
        "Chroma": _neo("Chroma", {"lora_te1_": "T5", **_T5}, _FEW_NORMS),
        "Flux.2": _neo("Flux.2", {"text_encoders.qwen3.": "Qwen3 8B"}, _FEW_NORMS),
        "Z-Image": _neo("Z-Image", {"text_encoders.qwen3.": "Qwen3 4B"}),
        "Lumina 2": _neo("Lumina 2", {"text_encoders.gemma2.": "Gemma 2 2B"}),
        "Qwen-Image": _neo("Qwen-Image", {"text_encoders.qwen25_7b.": "Qwen2.5-VL 7B"}),
        "Wan": _neo("Wan", {"text_encoders.umt5xxl.transformer.": "UMT5"}),
        "Anima": _neo(
            "Anima",
            {"text_encoders.qwen3_06b.": "Qwen3 0.6B", "lora_te_": "Qwen3 0.6B"},
        ),
        "Krea 2": _neo("Krea 2", {"text_encoders.qwen3vl_4b.": "Qwen3-VL 4B"}),
        "Ernie": _neo("Ernie", {"text_encoders.ministral3.": "Ministral 3B"}),
    },
    roles=ROLES,
    most_unknown=0.5,
)

# ---------------------------------------------------------------- Forge

_FORGE_FLUX = Loads(own=OWN, other=_FLUX, encoders=_TE_FLUX, without=_FLUX2_WORDS)

FORGE = Host(
    name="forge",
    title="Forge",
    source="lllyasviel/stable-diffusion-webui-forge",
    commit="dfdcbab",
    families={
        "SD1": replace(_SD1, encoders=_TE),
        "SD2": replace(_SD2, encoders=_TE_H),
        "SDXL": replace(_SDXL, encoders=_TE_L_G),
        "SD3": Loads(own=OWN, encoders={**_TE_L_G, "lora_te3_": "T5"}),
        "Flux": _FORGE_FLUX,
        "Chroma": Loads(own=OWN, encoders={"lora_te1_": "T5", "lora_te2_": "T5", "lora_te3_": "T5"}),
    },
    roles=ROLES,
)

# ---------------------------------------------------------------- A1111

# its table of diffusers' names lacks these; by their own names they load
_NOT_IN_A1111 = re.compile(
    r"conv_norm_out|(?:add|class)_embedding_linear_[12]|up_blocks_0_upsamplers_0_conv|text_projection"
)

A1111 = Host(
    name="a1111",
    title="A1111",
    source="camenduru/stable-diffusion-webui, 1.9.4",
    commit="",
    families={
        "SD1": Loads(
            own=("lora_unet_",),
            other=("lora_unet_",),
            encoders={"lora_te_": "CLIP-L", "lora_te1_": "CLIP-L"},
            without=_NOT_IN_A1111,
        ),
        "SD2": Loads(
            own=("lora_unet_",), other=("lora_unet_",), encoders={"lora_te_": "CLIP-H"}, without=_NOT_IN_A1111
        ),
        "SDXL": Loads(
            own=("lora_unet_",),
            other=("lora_unet_",),
            encoders={"lora_te1_": "CLIP-L", "lora_te2_": "CLIP-G"},
            without=_NOT_IN_A1111,
        ),
    },
    roles=ROLES,
    all_or_none=True,
)

HOSTS: Mapping[str, Host] = {host.name: host for host in (A1111, FORGE, NEO, COMFYUI)}
