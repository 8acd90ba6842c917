"""Stable Diffusion 1: a UNet of four levels with one CLIP text encoder, known by diffusers' names."""

from __future__ import annotations

from lib_merge.families import unet, unet_weights
from lib_merge.families.record import BlockList, Family, HostModel, NameRules, numbered
from lib_merge.families.shared_facts import TE0, TE1, TEXT_768

BLOCKS = unet.unet_blocks(12)
# the blocks that have attention, and so all that a LoRA of attention has
USUAL = BlockList(
    "LoRA Block Weight",
    ("BASE", *numbered("IN", 1, 2, 4, 5, 7, 8), "M00", *numbered("OUT", *range(3, 12))),
)
EVERY = BlockList("every block", BLOCKS, of_checkpoints=True)
PRESETS = unet.unet_presets(
    {
        "NONE": "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "ALL": "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "INS": "1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "IND": "1 0 0 0 1 1 1 0 0 0 0 0 0 0 0 0 0",
        "INALL": "1 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0",
        "MIDD": "1 0 0 0 1 1 1 1 1 1 1 1 0 0 0 0 0",
        "OUTD": "1 0 0 0 0 0 0 0 1 1 1 1 0 0 0 0 0",
        "OUTS": "1 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1",
        "OUTALL": "1 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1",
        "ALL0.5": "0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5",
    }
)

FAMILY = Family(
    name="SD1",
    order=10,
    layers=unet.diffusers_layers("SD1", unet_weights.SD1),
    facts=(unet.UNET, unet.FOUR_LEVELS, unet.cross_width(768), TE0, TE1, TEXT_768),
    improbable=frozenset({"te1"}),  # a numbered text encoder is one of several
    config_names=NameRules.of(
        50, (r"stable-diffusion-v1|sd_v1|stable-diffusion-1|sd-v1|sd15|sd1\.5|v1-5", "SD1")
    ),
    lines=NameRules.of(
        20,
        (
            r"animefull|novelai|(^|[^a-z])nai([^a-z]|$)|anything|aom3|abyssorange|counterfeit|anylora",
            "NovelAI (anime)",
        ),
        (r"v1-5|v1-4|sd[-_ ]?v?1[-_.]?[45]|stable-diffusion-v1|1-5-pruned", "Stable Diffusion 1"),
    ),
    blocks=(*BLOCKS, "OTHER"),
    block=unet.unet_block(12),
    lists=(USUAL, EVERY),
    counting=unet.unet_counting("SD", USUAL, EVERY),
    parts=unet.UNET_PARTS,
    hints=unet.hints_by_width(12),
    sides=("IN", "OUT"),
    presets=PRESETS,
    encoders={"te": "te", "te0": "te", "te1": "te"},
    base_version="sd_v1",
    architecture="stable-diffusion-v1/lora",
    card_version="SD1",
    hosts=HostModel(flag="is_sd1"),
)
