"""The base family of a file, from key names and shapes alone: metadata is free text and often wrong.

Each fact seen narrows the set of families that could have it; what is left is the answer. A text encoder of
CLIP-L's width alone fits several and is left open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lib_merge.adapters.peft_config import PeftConfig
from lib_merge.adapters.styles import Parsed, RawModule
from lib_merge.files.header import TensorInfo

FAMILIES = (
    "SD1",
    "SD2",
    "SDXL",
    "SD3",
    "Flux",
    "Chroma",
    "Qwen-Image",
    "Krea2",
    "Anima",
    "Z-Image",
    "Wan",
    "other",
)
_UNETS = frozenset({"SD1", "SD2", "SDXL"})


@dataclass(frozen=True, slots=True)
class FamilyGuess:
    """The families that fit, and the fact that decided."""

    candidates: tuple[str, ...]
    reason: str


# (pattern of the path, families it allows, reason); for UNet or transformer modules
_PATHS: tuple[tuple[re.Pattern[str], frozenset[str], str], ...] = tuple(
    (re.compile(pattern), frozenset(families.split()), reason)
    for pattern, families, reason in (
        (r"^distilled_guidance_layer_", "Chroma", "a distilled guidance layer"),
        (
            r"^(double_blocks_\d+_(img|txt)_|single_blocks_\d+_(linear|modulation))",
            "Flux Chroma",
            "double and single blocks",
        ),
        (r"^single_transformer_blocks_\d+_(attn|proj|norm)", "Flux Chroma", "single transformer blocks"),
        (
            r"^transformer_blocks_\d+_(ff_net|ff_context|norm1_)",
            "Flux Chroma SD3",
            "transformer blocks with ff",
        ),
        (r"^transformer_blocks_\d+_(img|txt)_(mlp|mod)", "Qwen-Image", "image and text MLPs per block"),
        (
            r"^transformer_blocks_(?:19|2[0-7])_attn_",
            "Qwen-Image SD3 Krea2",
            "more than 19 transformer blocks",
        ),
        (r"^transformer_blocks_(?:2[89]|[3-5]\d)_attn_", "Qwen-Image SD3", "60 transformer blocks"),
        (
            r"^transformer_blocks_\d+_attn_(add_|to_add_)",
            "Flux Chroma SD3 Qwen-Image",
            "joint transformer blocks",
        ),
        (
            r"^transformer_blocks_\d+_attn_to_(?!add_)",
            "Flux Chroma SD3 Qwen-Image Krea2",
            "transformer blocks",
        ),
        (r"^transformer_blocks_\d+_(attn_to_gate|ff_(up|down|gate))$", "Krea2", "gated transformer blocks"),
        (r"^joint_blocks_\d+_", "SD3", "joint blocks"),
        (
            r"^(txtfusion|text_fusion)_|^blocks_\d+_attn_(w[qkvo]|gate)$|^tproj_1$",
            "Krea2",
            "text fusion, wq/wk/wv",
        ),
        (
            r"^blocks_\d+_(self_attn|cross_attn)_(q|k|v|output)_proj$|^blocks_\d+_adaln_modulation",
            "Anima",
            "self and cross attention blocks with q_proj",
        ),
        (
            r"^blocks_\d+_(self_attn|cross_attn)_(q|k|v|o|k_img|v_img)$",
            "Wan",
            "self and cross attention blocks",
        ),
        (r"^layers_\d+_(attention|feed_forward|adaLN)", "Z-Image", "layers with attention and feed_forward"),
        (
            r"^(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_",
            "SD1 SD2 SDXL",
            "a UNet",
        ),
        (
            r"^(down_blocks_3|up_blocks_3|down_blocks_0_attentions|input_blocks_(9|1[01])_|output_blocks_(9|1[01])_"
            r"|input_blocks_[12]_1_|output_blocks_[678]_1_)",
            "SD1 SD2",
            "a UNet of four levels",
        ),
        (
            r"^(add_embedding|label_emb)_|_(?:attentions_\d+|1)_transformer_blocks_[1-9]|^up_blocks_0_attentions_"
            r"|^output_blocks_[012]_1_(?!conv)",
            "SDXL",
            "SDXL's deeper transformers",
        ),
    )
)
_TEXT_WIDTHS = {
    768: frozenset({"SD1", "SDXL", "Flux", "SD3"}),
    1024: frozenset({"SD2"}),
    1280: frozenset({"SDXL", "SD3"}),
}
_TEXT_COMPONENTS = {
    "te0": frozenset({"SD1", "SD2", "Anima", "Qwen-Image", "Z-Image", "Wan", "other"}),
    "te1": frozenset({"SDXL", "SD3", "Flux", "SD1"}),
    "te2": frozenset({"SDXL", "SD3", "Flux"}),
    "te3": frozenset({"SD3", "Flux", "Chroma"}),
}
_CROSS_WIDTHS = {768: frozenset({"SD1"}), 1024: frozenset({"SD2"}), 2048: frozenset({"SDXL"})}
_CROSS = re.compile(r"_attn2_to_[kv]$")
_JOINT = re.compile(r"^transformer_blocks_\d+_attn_(?:to_[qkv]|add_[qkv]_proj)$")
_JOINT_WIDTHS = {
    1536: frozenset({"SD3"}),
    2432: frozenset({"SD3"}),
    3072: frozenset({"Flux", "Chroma", "Qwen-Image"}),
    6144: frozenset({"Krea2"}),
}


def detect_family(parsed: Parsed, tensors: Mapping[str, TensorInfo]) -> FamilyGuess:
    """Return the families a file fits.

    Args:
        parsed: its modules.
        tensors: its header table.
    """
    allowed: set[str] | None = None
    reason = "its module names are of no family known here"
    seen: set[str] = set()
    fewest = len(FAMILIES) + 1
    for families, why in _facts(parsed, tensors):
        if why in seen:
            continue
        seen.add(why)
        allowed = set(families) if allowed is None else allowed & families
        if len(families) < fewest:  # the most telling fact is the one people are told
            fewest, reason = len(families), why
    if allowed is None or not allowed:
        return FamilyGuess(
            ("other",), reason if allowed is None else "its modules belong to different families"
        )
    if {
        "Flux",
        "Chroma",
    } <= allowed:  # same blocks; only the guidance layer tells, and almost every file is Flux
        allowed -= {"Chroma"}
    if parsed.modules and "te1" in {module.component for module in parsed.modules} and len(allowed) > 1:
        allowed -= {"SD1"}  # a numbered text encoder is one of several
    return FamilyGuess(tuple(family for family in FAMILIES if family in allowed), reason)


def _facts(parsed: Parsed, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[frozenset[str], str]]:
    for module in parsed.modules:
        if module.component == "unet":
            for pattern, families, reason in _PATHS:
                if pattern.search(module.path):
                    yield families, reason
            if _CROSS.search(module.path):
                width = _columns(module, tensors)
                if width in _CROSS_WIDTHS:
                    yield _CROSS_WIDTHS[width], f"cross-attention width {width}"
            elif _JOINT.match(module.path) and _columns(module, tensors) in _JOINT_WIDTHS:
                width = _columns(module, tensors)
                yield _JOINT_WIDTHS[width], f"joint attention width {width}"
        else:
            yield from _text_facts(module, tensors)


def _text_facts(module: RawModule, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[frozenset[str], str]]:
    if module.component in _TEXT_COMPONENTS:
        yield _TEXT_COMPONENTS[module.component], f"text encoder keys of the {module.component} kind"
    if module.path.startswith("text_model_encoder_layers_") and "_self_attn_" in module.path:
        width = _columns(module, tensors)
        if width in _TEXT_WIDTHS:
            yield _TEXT_WIDTHS[width], f"text encoder width {width}"


def _columns(module: RawModule, tensors: Mapping[str, TensorInfo]) -> int:
    """Input width of a linear module from whichever factor shows it; 0 where none does."""
    for role in ("lora_down", "hada_w1_b", "diff"):
        if role in module.roles and len(tensors[module.roles[role]].shape) >= 2:
            return tensors[module.roles[role]].shape[1]
    width = 1
    for half in ("1", "2"):
        for role in (f"lokr_w{half}_b", f"lokr_w{half}"):
            if role in module.roles and len(tensors[module.roles[role]].shape) >= 2:
                width *= tensors[module.roles[role]].shape[1]
                break
        else:
            return 0
    return width


def family_hint_from_config(config: PeftConfig | None) -> str | None:
    """Return the family that a PEFT configuration's base model names, where its name is plain."""
    name = config.base.lower() if config is not None else ""
    for words, family in (
        (("sdxl", "stable-diffusion-xl", "pony", "illustrious"), "SDXL"),
        (("flux",), "Flux"),
        (("stable-diffusion-3", "sd3"), "SD3"),
        (("stable-diffusion-2", "sd2", "sd-2"), "SD2"),
        (("stable-diffusion-v1", "stable-diffusion-1", "sd-v1", "sd15", "sd1.5", "v1-5"), "SD1"),
    ):
        if any(word in name for word in words):
            return family
    return None
