"""Blocks: the handles people use for parts of a model, and which module belongs to which.

SD1/SD2 have BASE (text encoder), IN00-IN11, M00, OUT00-OUT11; SDXL stops at 08; Flux has CLIP, T5, IN,
D00-D18, S00-S37, OUT. What fits no block (conv_out, time embeddings) is OTHER, which lists do not touch.
Families without a table get their blocks from the first number in a module's path.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from lib_merge.errors import RecipeError
from lib_merge.families.unet_names import to_sgm


def _range(prefix: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number:02d}" for number in numbers)


_SD = ("BASE", *_range("IN", *range(12)), "M00", *_range("OUT", *range(12)))
_XL = ("BASE", *_range("IN", *range(9)), "M00", *_range("OUT", *range(9)))
_FLUX = ("CLIP", "T5", "IN", *_range("D", *range(19)), *_range("S", *range(38)), "OUT")
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "SD1": (*_SD, "OTHER"),
    "SD2": (*_SD, "OTHER"),
    "SDXL": (*_XL, "OTHER"),
    "Flux": (*_FLUX, "OTHER"),
    "Chroma": (*_FLUX, "OTHER"),
}
# list length -> block of each position
BLOCK_ORDERS: Mapping[int, tuple[str, ...]] = {
    12: ("BASE", *_range("IN", 4, 5, 7, 8), "M00", *_range("OUT", *range(6))),
    17: ("BASE", *_range("IN", 1, 2, 4, 5, 7, 8), "M00", *_range("OUT", *range(3, 12))),
    20: _XL,
    26: _SD,
    61: _FLUX,
}
LENGTHS = {"SD1": (17, 26), "SD2": (17, 26), "SDXL": (12, 20), "Flux": (61,), "Chroma": (61,)}
_FLUX_BLOCK = re.compile(r"^lora_(?:unet|transformer)_(single_)?(?:double_|transformer_|)blocks_(\d+)_")
_SGM_BLOCK = re.compile(r"^(input|output)_blocks_(\d+)_")
_FIRST_NUMBER = re.compile(r"^([a-z_]*?)_?(\d+)(?:_|$)")
_FLUX_IN = re.compile(r"(?:^|_)(img|txt|time|vector|guidance)_in(?:_|$)")


@functools.lru_cache(maxsize=1 << 14)
def block_of(name: str, family: str) -> str:
    """Return the block of a module.

    Args:
        name: canonical module name (`lora_unet_…`, `lora_te1_…`).
        family: the base family.
    """
    encoder = encoder_of(name, family)
    if family in ("Flux", "Chroma"):
        return _flux_block(name, encoder)
    if encoder:
        return "OTHER" if name.endswith("_text_projection") else "BASE"
    path = name.removeprefix("lora_unet_")
    if family in ("SD1", "SD2", "SDXL"):
        return _unet_block(to_sgm(path), len(_range("IN", *range(9 if family == "SDXL" else 12))))
    match = _FIRST_NUMBER.match(path)
    return f"B{int(match[2]):02d}" if match and match[1] in _BLOCK_WORDS else "OTHER"


_BLOCK_WORDS = frozenset({"blocks", "transformer_blocks", "layers", "joint_blocks", "double_blocks"})


def _unet_block(path: str, count: int) -> str:
    if path.startswith("middle_block_"):
        return "M00"
    match = _SGM_BLOCK.match(f"{path}_")
    if match is None or int(match[2]) >= count:
        return "OTHER"
    return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02d}"


def _flux_block(name: str, encoder: int) -> str:
    if encoder:
        return "CLIP" if encoder == 1 else "T5"
    match = _FLUX_BLOCK.match(name)
    if match:
        single = match[1] is not None
        block = f"{'S' if single else 'D'}{int(match[2]):02d}"
        return block if block in _FLUX else "OTHER"
    if "_final_layer_" in name:
        return "OUT"
    return "IN" if _FLUX_IN.search(name.removeprefix("lora_unet_")) else "OTHER"


def encoder_of(name: str, family: str) -> int:
    """Return 0 for the UNet or transformer, else the number of the text encoder."""
    if not name.startswith("lora_te"):
        return 0
    digit = name[len("lora_te") : len("lora_te") + 1]
    return int(digit) if digit.isdigit() and digit != "0" else 1


def blocks_present(names: Iterable[str], family: str) -> tuple[str, ...]:
    """Return the blocks that the modules lie in, in the table's order (or sorted, OTHER last)."""
    found = {block_of(name, family) for name in names}
    if family in BLOCKS:
        return tuple(block for block in BLOCKS[family] if block in found)
    return tuple(sorted(found, key=lambda block: (block == "OTHER", block != "BASE", block)))


def in_order(blocks: Iterable[str], family: str) -> list[str]:
    """Return blocks, each once, as the family orders them; those it does not know come last, by name."""
    order = {block: place for place, block in enumerate(BLOCKS.get(family, ()))}
    return sorted(dict.fromkeys(blocks), key=lambda block: (order.get(block, len(order)), block))


def expand_block_list(values: Sequence[float], family: str) -> tuple[dict[str, float], list[str]]:
    """Turn a 12/17/20/26/61 list into {block: weight}.

    Blocks of the family that the list has no place for get 0, as every tool that reads such lists does;
    OTHER gets 1.

    Returns:
        ({block: weight}, the blocks without a place).
    Raises:
        RecipeError: a length the family has no list for.
    """
    lengths = LENGTHS.get(family, ())
    if len(values) not in lengths:
        takes = " or ".join(str(length) for length in lengths) or "no lists; name the blocks instead"
        message = f"a list of {len(values)} block weights does not fit {family}, which takes {takes}."
        raise RecipeError(message)
    given = dict(zip(BLOCK_ORDERS[len(values)], values))
    unnamed = [block for block in BLOCKS[family] if block not in given and block != "OTHER"]
    return {**{block: float(given.get(block, 0.0)) for block in BLOCKS[family]}, "OTHER": 1.0}, unnamed
