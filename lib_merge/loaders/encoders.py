"""The text encoders that models bring along: which of their modules can carry a LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lib_merge.loaders.record import Encoder

_CLIP = re.compile(
    r"text_model_encoder_layers_(\d+)_(?:mlp_fc[12]|self_attn_(?:[qkv]|out)_proj|layer_norm[12])"
)
_T5 = re.compile(
    r"encoder_block_(\d+)_layer_\d_(?:SelfAttention_[qkvo]|DenseReluDense_w(?:i_[01]|o)|layer_norm"
    r"|SelfAttention_relative_attention_bias)"
)
_LLM = re.compile(r"(?:model_)?layers_(\d+)_(?:self_attn_[qkvo]_proj|mlp_(?:gate|up|down)_proj|\w*norm)")
_PROJECTION = frozenset({"text_projection"})
_T5_OTHERS = frozenset({"shared", "encoder_final_layer_norm"})
_LLM_OTHERS = frozenset({"embed_tokens", "model_embed_tokens", "norm", "model_norm"})

ENCODERS: Mapping[str, Encoder] = {
    "CLIP-L": Encoder(_CLIP, 12, _PROJECTION),
    "CLIP-G": Encoder(_CLIP, 32, _PROJECTION),
    "CLIP-H": Encoder(_CLIP, 24, _PROJECTION),
    "T5": Encoder(_T5, 24, _T5_OTHERS),
    "UMT5": Encoder(_T5, 24, _T5_OTHERS),
    "Qwen3 0.6B": Encoder(_LLM, 28, _LLM_OTHERS),
    "Qwen3 4B": Encoder(_LLM, 36, _LLM_OTHERS),
    "Qwen3 8B": Encoder(_LLM, 36, _LLM_OTHERS),
    "Qwen3-VL 4B": Encoder(_LLM, 36, _LLM_OTHERS),
    "Qwen2.5-VL 7B": Encoder(_LLM, 28, _LLM_OTHERS),
    "Gemma 2 2B": Encoder(_LLM, 26, _LLM_OTHERS),
    "Ministral 3B": Encoder(_LLM, 26, _LLM_OTHERS),
    "Mistral 24B": Encoder(_LLM, 40, _LLM_OTHERS),
    "Llama 8B": Encoder(_LLM, 32, _LLM_OTHERS),
}
