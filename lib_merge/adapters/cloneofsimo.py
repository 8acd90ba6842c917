"""The oldest LoRA files: tensors numbered by position (`unet:12:up`, or a bare list up, down, up, down …).

The number is the place of a linear layer in a walk over the UNet's classes: down blocks, up blocks, then the
mid block; within a transformer block attn1 q, k, v, out, then the GEGLU projection, then attn2 q, k, v, out.
Since diffusers 0.11 the GEGLU projection comes last: it is the one pair of its shape, and its place tells.
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


def unet_walk(*, geglu: bool, geglu_last: bool = False) -> list[tuple[str, int, int]]:
    """Return (module path, out, in) in the walk's order; `in` is 0 where it is the text width of the
    family.

    Args:
        geglu: the feed-forward layers were trained, too.
        geglu_last: they come after both attentions, as in diffusers 0.11 and newer.
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
        feed_forward = [(f"{inner}_ff_net_0_proj", width * 8, width)] if geglu else []
        walk.extend([] if geglu_last else feed_forward)
        for projection in _ATTENTION:
            columns = 0 if projection in ("to_k", "to_v") else width
            walk.append((f"{inner}_attn2_{projection}", width, columns))
        walk.extend(feed_forward if geglu_last else [])
    return walk


def cloneofsimo_unet_order(*, geglu: bool = True, geglu_last: bool = False) -> tuple[str, ...]:
    """Return the canonical names of the UNet's modules by index; see `unet_walk`."""
    return tuple(f"lora_unet_{path}" for path, _, _ in unet_walk(geglu=geglu, geglu_last=geglu_last))


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
    for index, (up, down) in enumerate(shapes):
        if len(up) < 2 or len(down) < 2:
            message = (
                f"{file}: pair {index} has the shapes {list(up)} and {list(down)}, which are no matrices."
            )
            raise ModuleError(message)
    paths = _unet_paths(shapes, file) if component == "unet" else _text_paths(shapes, file)
    return [(component, path, roles) for path, roles in zip(paths, ordered)]


def _unet_paths(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], file: str) -> list[str]:
    """Names by position; every shape is held against the walk, so that a wrong order cannot pass where
    shapes differ.
    """
    walks = [
        walk
        for walk in (unet_walk(geglu=True), unet_walk(geglu=True, geglu_last=True), unet_walk(geglu=False))
        if len(walk) == len(shapes)
    ]
    if not walks:
        message = (
            f"{file}: {len(shapes)} UNet pairs; files of this kind have 144, or 128 without "
            "the feed-forward layers."
        )
        raise ModuleError(message)
    misfits = [_misfit(walk, shapes) for walk in walks]
    if None not in misfits:
        message = f"{file}: {max(found for found in misfits if found)[1]}."
        raise ModuleError(message)
    return [path for path, _, _ in walks[misfits.index(None)]]


def _misfit(
    walk: Sequence[tuple[str, int, int]], shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> tuple[int, str] | None:
    """Return the first place where shapes do not follow a walk, and what is wrong there; None = they do."""
    text = 0
    for place, ((path, out, columns), (up, down)) in enumerate(zip(walk, shapes)):
        text = text or (0 if columns else down[1])
        if up[0] != out or down[1] != (columns or text):
            return place, f"{path} should be {out} × {columns or text} and is {up[0]} × {down[1]}"
    return None


def _text_paths(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], file: str) -> list[str]:
    widths = {size for up, down in shapes for size in (up[0], down[1])}
    if len(shapes) % 4 or len(widths) != 1:
        message = (
            f"{file}: {len(shapes)} text-encoder pairs of widths {sorted(widths)} are not k, "
            "v, q, out per layer."
        )
        raise ModuleError(message)
    return _text_walk(len(shapes) // 4)
