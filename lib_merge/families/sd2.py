"""Stable Diffusion 2: the UNet of SD1 with an OpenCLIP text encoder of width 1024."""

from __future__ import annotations

from dataclasses import replace

from lib_merge.families import sd1, unet, unet_weights
from lib_merge.families.record import HostModel, NameRules
from lib_merge.families.shared_facts import TE0, TEXT_1024

FAMILY = replace(
    sd1.FAMILY,
    name="SD2",
    order=20,
    layers=unet.diffusers_layers("SD2", unet_weights.SD2),
    facts=(unet.UNET, unet.FOUR_LEVELS, unet.cross_width(1024), TE0, TEXT_1024),
    improbable=frozenset(),
    config_names=NameRules.of(40, (r"stable-diffusion-v?2|sd_v2|sd2|sd-2", "SD2")),
    lines=NameRules.of(30, (r"768-v|v2-1_768|v2-1|512-base|stable-diffusion-2", "Stable Diffusion 2")),
    counting=unet.unet_counting("", sd1.USUAL, sd1.EVERY),
    together=(unet.attention_together("lora_te_"),),
    base_version="sd_v2",
    architecture="stable-diffusion-v2-768-v/lora",
    v2=True,
    card_version="SD2",
    hosts=HostModel(flag="is_sd2"),
)
