"""Stable Diffusion XL: a UNet of three levels with two text encoders, known by SGM names."""

from __future__ import annotations

import re

from lib_merge.families import unet, unet_weights
from lib_merge.families.record import (
    BlockList,
    Fact,
    Family,
    Hint,
    HostModel,
    NameRules,
    ShippedPreset,
    numbered,
)
from lib_merge.families.shared_facts import TE1, TE2, TEXT_768, TEXT_1280

BLOCKS = unet.unet_blocks(9)
# the blocks that have attention, and so all that a LoRA of attention has
USUAL = BlockList(
    "LoRA Block Weight", ("BASE", *numbered("IN", 4, 5, 7, 8), "M00", *numbered("OUT", *range(6)))
)
EVERY = BlockList("every block", BLOCKS, of_checkpoints=True)
_B_LORA = 'Frenkel et al. 2024, "B-LoRA", arXiv:2403.14572'
_INSTANT_STYLE = 'Wang et al. 2024, "InstantStyle", arXiv:2404.02733'
PRESETS = unet.unet_presets(
    {
        "INS": "1 1 1 0 0 0 0 0 0 0 0 0",
        "IND": "1 0 0 1 1 0 0 0 0 0 0 0",
        "INALL": "1 1 1 1 1 0 0 0 0 0 0 0",
        "MIDD": "1 0 0 1 1 1 1 1 1 0 0 0",
        "OUTD": "1 0 0 0 0 0 1 1 1 0 0 0",
        "OUTS": "1 0 0 0 0 0 0 0 0 1 1 1",
        "OUTALL": "1 0 0 0 0 0 1 1 1 1 1 1",
    }
)
DEEPER = Fact(
    "SDXL's deeper transformers",
    re.compile(
        r"^(add_embedding|label_emb)_|_(?:attentions_\d+|1)_transformer_blocks_[1-9]|^up_blocks_0_attentions_"
        r"|^output_blocks_[012]_1_(?!conv)"
    ),
)

FAMILY = Family(
    name="SDXL",
    order=30,
    layers=unet.sgm_layers("SDXL", unet_weights.SDXL),
    facts=(unet.UNET, DEEPER, unet.cross_width(2048), TE1, TE2, TEXT_768, TEXT_1280),
    config_names=NameRules.of(10, (r"sdxl|stable-diffusion-xl|pony|illustrious", "SDXL")),
    lines=NameRules.of(
        10,
        (r"noob", "NoobAI"),
        (r"illustrious|ilxl|wai[-_ ]?(ns|ani|illu)", "Illustrious"),
        (r"pony|pdxl|autism", "Pony"),
        (r"animagine", "Animagine"),
        (r"sd_?xl[-_ ]?base|stable-diffusion-xl-base|sdxl10|sd_xl_1", "SDXL base"),
    ),
    blocks=(*BLOCKS, "OTHER"),
    block=unet.unet_block(9),
    lists=(USUAL, EVERY),
    counting=unet.unet_counting("SDXL", USUAL, EVERY),
    parts=unet.UNET_PARTS,
    hints={
        **unet.hints_by_width(9),
        "IN08": Hint("the block that holds the arrangement of the picture", _INSTANT_STYLE),
        "OUT00": Hint("the block that holds what is shown", _B_LORA),
        "OUT01": Hint("the block that holds style and colours", f"{_B_LORA}; {_INSTANT_STYLE}"),
    },
    sides=("IN", "OUT"),
    presets={
        **PRESETS,
        "B-LORA-CONTENT": ShippedPreset(
            f"Only OUT00, what is shown; goes with B-LORA-STYLE ({_B_LORA}).", rules={"OUT00": 1.0}, rest=0.0
        ),
        "B-LORA-STYLE": ShippedPreset(
            f"Only OUT01, style and colours; goes with B-LORA-CONTENT ({_B_LORA}).",
            rules={"OUT01": 1.0},
            rest=0.0,
        ),
    },
    encoders={"te": "te1", "te0": "te1"},
    encoder_ratios=("TE1", "TE2"),
    together=(unet.attention_together("lora_te2_"),),
    base_version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base/lora",
    card_version="SDXL",
    hosts=HostModel(flag="is_sdxl"),
)
