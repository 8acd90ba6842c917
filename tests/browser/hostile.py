"""A LoRA whose every text tries to become markup."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file

from lib_merge.samples import sd15_modules, synthetic_lora

EVIL = '<img src=x onerror="window.hacked=1">"]}\u202egnp.exe'


NAME = "hostile" if os.name == "nt" else '<img src=x onerror=window.hacked=1>"]}\u202egnp'


def write_hostile(folder: Path, name: str = NAME) -> Path:
    """Write the file; on Windows, where such names cannot be, only its metadata is hostile."""
    tensors = synthetic_lora([row for row in sd15_modules() if row[0].startswith("lora_unet")], 2, seed=5)
    metadata = {
        "ss_output_name": EVIL,
        "ss_tag_frequency": json.dumps({EVIL: {EVIL: 3, "</script><script>window.hacked=1</script>": 2}}),
        "modelspec.trigger_phrase": EVIL,
        "ss_training_comment": EVIL * 20_000,
    }
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(path), metadata)
    return path
