"""A1111, Forge, reForge, Classic, Neo and ComfyUI: what each loads of each family.

Facts, found by running each host's own mapping on a model of the family on torch's meta device and comparing
it with these tables name by name, in November 2026; the commits stand in the records. What was only read in
the source says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from lib_merge.loaders.record import Front, Host, Loads

# ---------------------------------------------------------------- fronts

# every host of ComfyUI's kind takes the model's own names so
OWN = ("lora_unet_", "diffusion_model.")
# the UNets of Stable Diffusion are also known by diffusers' names
_UNET = ("lora_unet_", "lycoris_", "unet.", "")
_NOT_OWN = re.compile(r"(?!single_blocks|double_blocks)")
_FLUX = tuple(Front(front, _NOT_OWN) for front in ("lora_transformer_", "lycoris_", "transformer."))
_BARE_FLUX = Front("", _NOT_OWN)
# rows of linear1, as ComfyUI calls them when it has read a LoRA of USO
_USO = Front("diffusion_model.", re.compile(r"single_blocks_\d+_linear1_qkv"))
_PLAIN = ("lycoris_", "transformer.", "diffusion_model.", "")

_TE = {"lora_te_": ("CLIP-L",), "lora_te1_": ("CLIP-L",), "text_encoder.": ("CLIP-L",)}
_TE_L_G = {**_TE, "lora_te2_": ("CLIP-G",), "text_encoder_2.": ("CLIP-G",)}
_TE_H = dict.fromkeys(_TE, ("CLIP-H",))
_L = {"text_encoders.clip_l.transformer.": ("CLIP-L",)}
_G = {"text_encoders.clip_g.transformer.": ("CLIP-G",)}
_H = {"text_encoders.clip_h.transformer.": ("CLIP-H",)}
_T5 = {"text_encoders.t5xxl.transformer.": ("T5",)}
_T5_ALONE = {**_T5, "text_encoders.transformer.": ("T5",)}
_TE_FLUX = {**_TE, "lora_te2_": ("T5",), "lora_te3_": ("T5",)}

# hosts cut these by widths that are not the model's: they do not fit
_FLUX2_MLP = re.compile(r"single_transformer_blocks_\d+_proj_mlp")
_LUMINA2_KV = re.compile(r"attention_to_[kv]$")
_LUMINA2_NAMES = re.compile(r"(?!(?:layers|noise_refiner)_.*adaLN_modulation_1$)")
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
Encoders = Mapping[str, tuple[str, ...]]
# PEFT's ends are told from kohya's by a role that stands beside the others
PEFT = "lora_A"
ROLES = frozenset(_LORA | _LYCORIS | _REST | {PEFT})


def _encoder(name: str, *encoders: str, kohya: bool = True) -> Encoders:
    """Return ComfyUI's fronts of a model's only language model, or of the one of several that it has."""
    fronts = {f"text_encoders.{name}.transformer.": encoders, "text_encoders.transformer.": encoders}
    return {**fronts, "lora_te_": encoders} if kohya else fronts


# ---------------------------------------------------------------- ComfyUI and what follows it

_SD1 = Loads(own=OWN, other=_UNET, encoders={**_TE, **_L})
_SD2 = Loads(own=OWN, other=_UNET, encoders={**_TE_H, **_H})
_SDXL = Loads(own=OWN, other=_UNET, encoders={**_TE_L_G, **_L, **_G})
_FLUX_LOADS = Loads(own=OWN, other=(*_FLUX, _BARE_FLUX, _USO), encoders={**_TE_FLUX, **_L, **_T5_ALONE})
_SD3_ENCODERS = {**_TE_L_G, "lora_te3_": ("T5",), **_L, **_G, **_T5_ALONE}

_COMFY: Mapping[str, Loads] = {
    "SD1": _SD1,
    "SD2": _SD2,
    "SDXL": _SDXL,
    "SD3": Loads(
        own=OWN,
        other=("lora_transformer_", "lycoris_", "transformer.", "base_model.model."),
        mixed=True,
        encoders=_SD3_ENCODERS,
    ),
    "Flux": _FLUX_LOADS,
    "Chroma": Loads(own=OWN, other=(*_FLUX, _BARE_FLUX, _USO), encoders={"lora_te1_": ("T5",), **_T5_ALONE}),
    "Flux.2": Loads(
        own=OWN,
        other=(*_FLUX, _BARE_FLUX, _USO),
        encoders={
            **_encoder("qwen3_4b", "Qwen3 4B"),
            **_encoder("qwen3_8b", "Qwen3 8B"),
            **_encoder("mistral3_24b", "Mistral 24B", "Qwen3 8B"),
        },
        without=_FLUX2_MLP,
    ),
    "Z-Image": Loads(own=OWN, other=_PLAIN, mixed=True, encoders=_encoder("qwen3_4b", "Qwen3 4B")),
    "Lumina2": Loads(
        own=OWN,
        other=tuple(Front(front, _LUMINA2_NAMES) for front in _PLAIN),
        mixed=True,
        without=_LUMINA2_KV,
        encoders=_encoder("gemma2_2b", "Gemma 2 2B"),
    ),
    "Qwen-Image": Loads(
        own=OWN,
        other=("lycoris_", "transformer.", ""),
        mixed=True,
        encoders=_encoder("qwen25_7b", "Qwen2.5-VL 7B"),
    ),
    "Wan": Loads(own=OWN, encoders=_encoder("umt5xxl", "UMT5", kohya=False)),
    "HunyuanVideo": Loads(
        own=(*OWN, Front("transformer.", re.compile(r"(?!.*_(?:mlp_[02]|mod_lin|modulation_lin)$)"))),
        other=("diffusion_model.", "transformer."),
        encoders={**_TE, **_L, **_encoder("llama", "Llama 8B", kohya=False)},
    ),
    "LTX": Loads(own=(*OWN, ""), encoders={"lora_te1_": ("T5",), **_T5_ALONE}),
    "Anima": Loads(own=OWN, encoders=_encoder("qwen3_06b", "Qwen3 0.6B")),
    "Krea2": Loads(own=OWN, other=_PLAIN, encoders=_encoder("qwen3vl_4b", "Qwen3-VL 4B")),
    "Ernie": Loads(
        own=OWN, other=("transformer.",), mixed=True, encoders=_encoder("ministral3_3b", "Ministral 3B")
    ),
    "AuraFlow": Loads(
        own=OWN, other=("transformer.",), encoders=_encoder("pile_t5xl", "Pile T5", kohya=False)
    ),
    "PixArt": Loads(
        own=OWN,
        other=("transformer.", "base_model.model.", "unet.base_model.model."),
        encoders={"lora_te1_": ("T5",), **_T5_ALONE},
    ),
}

COMFYUI = Host(
    name="comfyui",
    title="ComfyUI",
    source="comfyanonymous/ComfyUI, 0.33.0",
    commit="783545f6",
    families=_COMFY,
    roles=ROLES | {"glora", "oft", "boft", "reshape_weight", "set_weight"},
)

# ---------------------------------------------------------------- Forge Neo


_ADAPTER = re.compile("llm_adapter_")


def _neo(family: str, encoders: Encoders, without: re.Pattern[str] | None = None) -> Loads:
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
        "Chroma": _neo("Chroma", {"lora_te1_": ("T5",), **_T5}, _FEW_NORMS),
        "Flux.2": _neo(
            "Flux.2",
            {"text_encoders.qwen3.": ("Qwen3 8B",)},
            re.compile(rf"{_NORMS}|{_FLUX2_MLP.pattern}"),
        ),
        "Z-Image": _neo("Z-Image", {"text_encoders.qwen3.": ("Qwen3 4B",)}),
        "Lumina2": _neo("Lumina2", {"text_encoders.gemma2.": ("Gemma 2 2B",)}, _LUMINA2_KV),
        "Qwen-Image": _neo("Qwen-Image", {"text_encoders.qwen25_7b.": ("Qwen2.5-VL 7B",)}),
        "Wan": _neo("Wan", {"text_encoders.umt5xxl.transformer.": ("UMT5",)}),
        # the adapter of the language model is found under both names
        "Anima": Loads(
            own=(*OWN, Front("text_encoders.qwen3_06b.", _ADAPTER), Front("lora_te_", _ADAPTER)),
            encoders={"text_encoders.qwen3_06b.": ("Qwen3 0.6B",), "lora_te_": ("Qwen3 0.6B",)},
        ),
        "Krea2": _neo("Krea2", {"text_encoders.qwen3vl_4b.": ("Qwen3-VL 4B",)}),
        "Ernie": _neo("Ernie", {"text_encoders.ministral3.": ("Ministral 3B",)}),
    },
    roles=ROLES,
    most_unknown=0.5,
)

# ---------------------------------------------------------------- Forge

_T5_TOO = {f"lora_te{number}_": ("T5",) for number in (1, 2, 3)}
# it knows these norms as `.scale` only
_NO_NORMS = re.compile(r"_norm_(?:query|key)_norm$")
_FORGE_FLUX = Loads(
    own=OWN,
    other=_FLUX,
    encoders={**_TE, **_T5_TOO, "lora_te1_": ("CLIP-L", "T5")},
    without=re.compile(rf"{_FLUX2_WORDS.pattern}|{_NO_NORMS.pattern}"),
)

FORGE = Host(
    name="forge",
    title="Forge",
    source="lllyasviel/stable-diffusion-webui-forge",
    commit="dfdcbab",
    families={
        "SD1": replace(_SD1, encoders=_TE),
        "SD2": replace(_SD2, encoders=dict.fromkeys(_TE, ("CLIP-H, 23 layers",))),
        "SDXL": replace(_SDXL, encoders=_TE_L_G),
        "SD3": Loads(
            own=OWN,
            encoders={
                **_TE_L_G,
                **_T5_TOO,
                "lora_te1_": ("CLIP-L", "T5"),
                "lora_te2_": ("CLIP-G", "T5"),
            },
        ),
        "Flux": _FORGE_FLUX,
        "Chroma": Loads(own=OWN, encoders=_T5_TOO, without=_NO_NORMS),
    },
    roles=ROLES,
)

# ---------------------------------------------------------------- reForge, Classic

REFORGE = Host(
    name="reforge",
    title="reForge",
    source="Panchovix/stable-diffusion-webui-reForge",
    commit="3b56b268",
    families={
        "SD1": replace(_SD1, without=_PROJECTIONS),
        "SD2": replace(_SD2, without=_PROJECTIONS),
        "SDXL": replace(_SDXL, without=_PROJECTIONS),
    },
    roles=ROLES,
)
_CLASSIC_UNET = ("lora_unet_", "unet.", "")
CLASSIC = Host(
    name="classic",
    title="Classic",
    source="Haoming02/sd-webui-forge-classic, branch classic",
    commit="1f95d717",
    families={
        "SD1": Loads(own=("lora_unet_",), other=_CLASSIC_UNET, encoders=_TE, without=_PROJECTIONS),
        "SD2": Loads(own=("lora_unet_",), other=_CLASSIC_UNET, encoders=_TE_H, without=_PROJECTIONS),
        "SDXL": Loads(own=("lora_unet_",), other=_CLASSIC_UNET, encoders=_TE_L_G, without=_PROJECTIONS),
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
    commit="feee37d7",
    families={
        "SD1": Loads(
            own=("lora_unet_",),
            other=("lora_unet_",),
            encoders={"lora_te_": ("CLIP-L",), "lora_te1_": ("CLIP-L",)},
            without=_NOT_IN_A1111,
        ),
        "SD2": Loads(
            own=("lora_unet_",),
            other=("lora_unet_",),
            encoders={"lora_te_": ("CLIP-H",)},
            without=_NOT_IN_A1111,
        ),
        "SDXL": Loads(
            own=("lora_unet_",),
            other=("lora_unet_",),
            encoders={"lora_te1_": ("CLIP-L",), "lora_te2_": ("CLIP-G",)},
            without=_NOT_IN_A1111,
        ),
    },
    roles=ROLES - {PEFT},
    all_or_none=True,
    strict=True,
)

HOSTS: Mapping[str, Host] = {host.name: host for host in (A1111, FORGE, NEO, REFORGE, CLASSIC, COMFYUI)}
