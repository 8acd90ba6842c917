"""The text encoders that models bring along: which of their modules can carry a LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lib_merge.loaders.record import Encoder

_CLIP = re.compile(r"text_model_encoder_layers_(\d+)_(?:mlp_fc[12]|self_attn_(?:[qkv]|out)_proj)")
_T5 = re.compile(
    r"encoder_block_(\d+)_layer_\d_(?:SelfAttention_[qkvo]|DenseReluDense_w(?:i_[01]|o)|layer_norm"
    r"|SelfAttention_relative_attention_bias)"
)
_LLM = re.compile(r"layers_(\d+)_(?:self_attn_[qkvo]_proj|mlp_(?:gate|up|down)_proj|\w*norm)")
_PROJECTION = frozenset({"text_projection"})
_T5_OTHERS = frozenset({"shared", "encoder_final_layer_norm"})
_LLM_OTHERS = frozenset({"embed_tokens", "norm"})


def _language_model(layers: int) -> Encoder:
    return Encoder(_LLM, layers, _LLM_OTHERS, "model_")


ENCODERS: Mapping[str, Encoder] = {
    "CLIP-L": Encoder(_CLIP, 12, _PROJECTION),
    "CLIP-G": Encoder(_CLIP, 32, _PROJECTION),
    "CLIP-H": Encoder(_CLIP, 24, _PROJECTION),
    "CLIP-H, 23 layers": Encoder(_CLIP, 23, _PROJECTION),
    "T5": Encoder(_T5, 24, _T5_OTHERS),
    "UMT5": Encoder(_T5, 24, _T5_OTHERS),
    "Pile T5": Encoder(_T5, 24, _T5_OTHERS),
    "Qwen3 0.6B": _language_model(28),
    "Qwen3 4B": _language_model(36),
    "Qwen3 8B": _language_model(36),
    "Qwen3-VL 4B": _language_model(36),
    "Qwen2.5-VL 7B": _language_model(28),
    "Gemma 2 2B": _language_model(26),
    "Ministral 3B": _language_model(26),
    "Mistral 24B": _language_model(40),
    "Llama 8B": _language_model(32),
}
