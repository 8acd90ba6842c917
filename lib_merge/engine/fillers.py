"""Modules a loader demands although the merge has nothing in them.

A1111 applies a LoRA to the attention of an OpenCLIP text encoder (SDXL's second, SD2's) only when q, k, v and
out are all there; a file with some of them is ignored there without a word. The missing ones are added as
rank 1 of zeros.
"""

from __future__ import annotations

import re

from lib_merge.engine.plan import Node, Target

_ATTENTION = re.compile(
    r"^(?P<stem>lora_te2?_text_model_encoder_layers_\d+_self_attn_)(?P<which>[qkv]|out)_proj$"
)
_ENCODERS = {"SDXL": "lora_te2_", "SD2": "lora_te_"}


def fillers(node: Node) -> list[Target]:
    """Return the zero modules to add, shaped like their present neighbours."""
    prefix = _ENCODERS.get(node.family)
    if prefix is None:
        return []
    found: dict[str, dict[str, Target]] = {}
    for name, target in node.targets.items():
        match = _ATTENTION.match(name)
        if match and name.startswith(prefix) and target.columns and any(node.weights(target)):
            found.setdefault(match["stem"], {})[match["which"]] = target
    extra = []
    for stem, present in found.items():
        shape = next(iter(present.values()))
        for which in ("q", "k", "v", "out"):
            if which not in present:
                name = f"{stem}{which}_proj"
                extra.append(Target(name, shape.block, shape.out, shape.columns, (), 1))
    return [target for target in extra if target.name not in node.targets]


def wanted_together(node: Node) -> set[str]:
    """Return the modules that a loader looks for as soon as their neighbour is there: none of them may be
    left out.
    """
    prefix = _ENCODERS.get(node.family)
    if prefix is None:
        return set()
    return {name for name in node.targets if name.startswith(prefix) and _ATTENTION.match(name)}
