"""An SD1.5-shaped UNet and text encoder with random weights, as diffusers and transformers build them."""

from __future__ import annotations

import torch


def build():
    """Return (unet, text encoder), seeded, float32."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=(
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    config = CLIPTextConfig(
        vocab_size=1000, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    return unet, CLIPTextModel(config).eval()


class Holder:
    """The least a diffusers pipeline needs to load LoRAs: the loader mixin and the two models."""

    @staticmethod
    def make(unet, text_encoder):
        """Return a loader over the models."""
        from diffusers.loaders import StableDiffusionLoraLoaderMixin

        class Loader(StableDiffusionLoraLoaderMixin):
            _lora_loadable_modules = ["unet", "text_encoder"]
            hf_device_map = None

            def __init__(self):
                self.unet, self.text_encoder = unet, text_encoder
                self.components = {"unet": unet, "text_encoder": text_encoder}

        return Loader()


def outputs(unet, text_encoder):
    """Return (UNet output, text encoder output) on fixed inputs."""
    g = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 4, 8, 8, generator=g)
    context = torch.randn(1, 7, 768, generator=g)
    tokens = torch.randint(0, 900, (1, 7), generator=g)
    with torch.no_grad():
        return unet(latent, 500, context).sample, text_encoder(tokens).last_hidden_state
