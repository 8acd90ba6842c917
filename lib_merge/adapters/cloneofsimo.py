"""The oldest LoRA files: tensors numbered by position (`unet:12:up`, or a bare list up, down, up, down …).

The number is the place of a linear layer in a walk over the UNet's classes: down blocks, up blocks, then the
mid block; within a transformer block attn1 q, k, v, out, then the GEGLU projection, then attn2 q, k, v, out.
In the text encoder every layer gives k, v, q, out: all 768 × 768 in SD1, so that a wrong order would pass
unseen. Files that trained only the attention leave the GEGLU out. The scale is 1; textual inversions may ride
along (`<s1>` with metadata `<embed>`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lib_merge.errors import ModuleError
from lib_merge.files.header import TensorInfo

_KEY = re.compile(r"^(?P<part>unet|text_encoder):(?P<index>\d{1,5}):(?P<half>up|down)$")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out_0")
_TEXT = ("k_proj", "v_proj", "q_proj", "out_proj")
_WIDTHS = {"down": (320, 640, 1280), "up": (1280, 640, 320)}


@dataclass(frozen=True, slots=True)
class Positional:
    """Modules found by position."""

    modules: tuple[tuple[str, str, Mapping[str, str]], ...]
    embeddings: Mapping[str, tuple[str, ...]]
    unknown: tuple[str, ...]


def unet_walk(*, geglu: bool) -> list[tuple[str, int, int]]:
    """Return (module path, out, in) in the walk's order; `in` is 0 where it is the text width of the
    family.
    """
    blocks = [
        (f"{side}_blocks_{block if side == 'down' else block + 1}_attentions_{layer}", width)
        for side, layers in (("down", 2), ("up", 3))
        for block, width in enumerate(_WIDTHS[side])
        for layer in range(layers)
    ]
    walk: list[tuple[str, int, int]] = []
    for name, width in [*blocks, ("mid_block_attentions_0", 1280)]:
        inner = f"{name}_transformer_blocks_0"
        walk.extend((f"{inner}_attn1_{projection}", width, width) for projection in _ATTENTION)
        if geglu:
            walk.append((f"{inner}_ff_net_0_proj", width * 8, width))
        for projection in _ATTENTION:
            columns = 0 if projection in ("to_k", "to_v") else width
            walk.append((f"{inner}_attn2_{projection}", width, columns))
    return walk


def cloneofsimo_unet_order(*, geglu: bool = True) -> tuple[str, ...]:
    """Return the canonical names of the UNet's modules by index."""
    return tuple(f"lora_unet_{path}" for path, _, _ in unet_walk(geglu=geglu))


def cloneofsimo_text_order(layers: int) -> tuple[str, ...]:
    """Return the canonical names of a text encoder's modules by index."""
    return tuple(f"lora_te_{path}" for path in _text_walk(layers))


def _text_walk(layers: int) -> list[str]:
    return [
        f"text_model_encoder_layers_{n}_self_attn_{projection}" for n in range(layers) for projection in _TEXT
    ]


def parse(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], file: str) -> Positional | None:
    """Read a positional file, or return None when the keys are of another style.

    Raises:
        ModuleError: the number of pairs or a shape does not fit the walk.
    """
    if tensors and all(key.isdigit() for key in tensors):
        return _from_list(tensors, file)
    if not any(_KEY.match(key) for key in tensors):
        return None
    pairs: dict[str, dict[int, dict[str, str]]] = {"unet": {}, "text_encoder": {}}
    embeddings, unknown = {}, []
    for key in tensors:
        match = _KEY.match(key)
        if match:
            pairs[match["part"]].setdefault(int(match["index"]), {})[f"lora_{match['half']}"] = key
        elif metadata.get(key) == "<embed>":
            embeddings[key] = (key,)
        else:
            unknown.append(key)
    modules = []
    for part, component in (("unet", "unet"), ("text_encoder", "te0")):
        by_index = pairs[part]
        if by_index:
            ordered = [by_index.get(index, {}) for index in range(max(by_index) + 1)]
            modules.extend(_named(component, ordered, tensors, file))
    return Positional(tuple(modules), embeddings, tuple(unknown))


def _from_list(tensors: Mapping[str, TensorInfo], file: str) -> Positional:
    count = len(tensors) // 2
    if len(tensors) % 2 or any(str(index) not in tensors for index in range(len(tensors))):
        message = f"{file}: a list of {len(tensors)} tensors is not pairs of up and down."
        raise ModuleError(message)
    ordered = [{"lora_up": str(2 * index), "lora_down": str(2 * index + 1)} for index in range(count)]
    component = "unet" if count in (len(unet_walk(geglu=True)), len(unet_walk(geglu=False))) else "te0"
    return Positional(tuple(_named(component, ordered, tensors, file)), {}, ())


def _named(
    component: str, ordered: Sequence[Mapping[str, str]], tensors: Mapping[str, TensorInfo], file: str
) -> list[tuple[str, str, Mapping[str, str]]]:
    for index, roles in enumerate(ordered):
        if len(roles) != 2:
            message = (
                f"{file}: pair {index} of the "
                f"{'UNet' if component == 'unet' else 'text encoder'} is incomplete."
            )
            raise ModuleError(message)
    shapes = [(tensors[roles["lora_up"]].shape, tensors[roles["lora_down"]].shape) for roles in ordered]
    paths = _unet_paths(shapes, file) if component == "unet" else _text_paths(shapes, file)
    return [(component, path, roles) for path, roles in zip(paths, ordered)]


def _unet_paths(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], file: str) -> list[str]:
    """Names by position; every shape is held against the walk, so that a wrong order cannot pass where
    shapes differ.
    """
    for geglu in (True, False):
        walk = unet_walk(geglu=geglu)
        if len(walk) == len(shapes):
            break
    else:
        message = (
            f"{file}: {len(shapes)} UNet pairs; files of this kind have 144, or 128 without "
            "the feed-forward layers."
        )
        raise ModuleError(message)
    texts = {down[1] for (_, out, columns), (_, down) in zip(walk, shapes) if columns == 0 and out}
    for (path, out, columns), (up, down) in zip(walk, shapes):
        if up[0] != out or (columns and down[1] != columns) or len(texts) != 1:
            message = (
                f"{file}: {path} should be {out} × {columns or 'text width'} and is {up[0]} × {down[1]}."
            )
            raise ModuleError(message)
    return [path for path, _, _ in walk]


def _text_paths(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], file: str) -> list[str]:
    widths = {size for up, down in shapes for size in (up[0], down[1])}
    if len(shapes) % 4 or len(widths) != 1:
        message = (
            f"{file}: {len(shapes)} text-encoder pairs of widths {sorted(widths)} are not k, "
            "v, q, out per layer."
        )
        raise ModuleError(message)
    return _text_walk(len(shapes) // 4)
