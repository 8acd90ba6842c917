"""What an adapter kind is: which keys it has, and how its ΔW is laid out and built.

One file of this folder holds one kind; `keys.KINDS` lists them. A kind whose ΔW is a function of the base
weight says `needs_base`: without that weight its modules are refused by name, and given it, it is handed to
`load`. Nobody who asks a module for its ΔW has to know.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from torch import Tensor

from lib_merge.linalg import Delta

Shapes = Mapping[str, tuple[int, ...]]
# the unchanged weight of one module, Float[out in …], read when asked for
BaseWeight = Callable[[], Tensor]


class Ending(NamedTuple):
    """What the end of a key means.

    role   of the tensor in its module
    style  the way of writing keys that it gives away; "" = none
    """

    role: str
    style: str = ""


class Layout(NamedTuple):
    """Kind and size of one module's ΔW, from shapes alone.

    kind         LoRA, LoCon, Tucker, LoHa, LoKr, full, vectors
    out          rows of ΔW
    columns      in·kh·kw
    kernel       (kh, kw) where the tensors show it; () for a linear layer or where only the flattened matrix
                 is stored
    rank         of the exact low-rank form; 0 where there is none
    own_factors  up and down are tensors of the file as they are, so that the start of training shows in them
    one_axis     the weight has one axis (a norm's), and ΔW is its column
    """

    kind: str
    out: int
    columns: int
    kernel: tuple[int, ...]
    rank: int
    own_factors: bool = False
    one_axis: bool = False


class LayoutError(ValueError):
    """Shapes that cannot belong together; the caller adds file and key."""


class Kind(Protocol):
    """A kind of adapter, told by its tensors.

    name         for people
    endings      end of a key -> what it means
    marks        roles that tell the kind: one is enough
    needs_base   its ΔW is a function of the base weight
    only_beside  role -> the role without which it is a tensor of some other model
    """

    name: str
    endings: Mapping[str, Ending]
    marks: frozenset[str]
    needs_base: bool = False
    only_beside: Mapping[str, str] = MappingProxyType({})

    def matches(self, roles: Collection[str]) -> bool:
        """Tell whether a module with these roles is of this kind."""
        return not self.marks.isdisjoint(roles)

    def sides(self, shapes: Shapes) -> tuple[int, int]:
        """Return (rows, columns) of a linear ΔW as far as single tensors show them, 0 where they do not.

        Nobody has checked these shapes yet: they may have any number of axes, and a role may be missing.
        """
        del shapes
        return 0, 0


class MergeableKind(Kind):
    """A kind whose ΔW can be built."""

    @abstractmethod
    def layout(self, shapes: Shapes) -> Layout:
        """Read the size of ΔW from shapes, before any tensor is read.

        Args:
            shapes: role -> shape, of everything the module has.
        Raises:
            LayoutError: a tensor is missing, or they do not fit together.
        """

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor], scale: float | None, base: BaseWeight | None) -> Delta:
        """Build ΔW, Float[out in·kh·kw].

        Args:
            tensors: role -> tensor, those that ride along left out.
            scale: replaces alpha/rank (PEFT keeps alpha in its configuration).
            base: the unchanged weight; there for every kind that needs it.
        """

    def norm(self, tensors: Mapping[str, Tensor], scale: float | None) -> float | None:
        """Return ‖ΔW‖ where it follows from the tensors without building ΔW; else None.

        Args:
            tensors: as for `load`.
            scale: as for `load`.
        """
        del tensors, scale
        return None


# ---------------------------------------------------------------- what goes with any kind

VECTORS = frozenset({"diff_b", "lora_bias", "w_norm", "b_norm"})  # biases and norm weights: they ride along
SHARED: Mapping[str, Ending] = {
    "alpha": Ending("alpha"),
    "diff_b": Ending("diff_b", "kohya"),
    "lora_B.bias": Ending("lora_bias", "PEFT"),
    "w_norm": Ending("w_norm", "LyCORIS"),
    "b_norm": Ending("b_norm", "LyCORIS"),
}


def alpha_scale(tensors: Mapping[str, Tensor], rank: int) -> float:
    """Return alpha/rank; a file without alpha means alpha = rank (every loader's rule)."""
    return float(tensors["alpha"]) / rank if "alpha" in tensors else 1.0


# ---------------------------------------------------------------- shapes

# No layer of a known model has a longer side (the largest are vocabularies), or more weights: Flux.2 fuses
# 340 million into one.
MOST_SIDE, MOST_WEIGHTS = 1 << 18, 400_000_000
# A layer may be so many times larger than the one that the family has there: some models were widened. Up to
# 32 MB in half precision any is computed with: a stranger's size does no harm, and a table may be wrong.
WIDENED, HARMLESS = 4, 1 << 24
# Of a layer that no table knows: the largest known, widened, where the file has its sides; where ΔW grows out
# of small factors (Kronecker and elementwise products), what the layers of other models have and memory
# holds.
MOST_UNKNOWN, MOST_GROWN = WIDENED * 340_000_000, 1 << 27
# Ranks beyond the smaller side say nothing more, and their Grams grow with the square.
MOST_RANK = 4096


def bounded(layout: Layout) -> Layout:
    """Return a layout; refuse a ΔW that grows out of its factors to what no model has.

    A few kilobytes could ask for terabytes.

    Raises:
        LayoutError: with both sides.
    """
    out, columns = layout.out, layout.columns
    if max(out, columns) > MOST_SIDE or max(out * columns, layout.rank * (out + columns)) > MOST_WEIGHTS:
        raise _too_large(layout, "no layer of a known model is that large")
    return layout


def check_size(layout: Layout, known: tuple[int, ...]) -> None:
    """Refuse a ΔW that is larger than its layer can be: it would be computed with as if it could.

    Args:
        layout: of a module; what is saved as it acts (`full`) has its size in the file and may be any.
        known: the shape that the family's model has there; () where no table says.
    Raises:
        LayoutError: with both sizes.
    """
    if layout.kind == "full" or not layout.columns:
        return
    size, short = layout.out * layout.columns, min(layout.out, layout.columns)
    if layout.rank > max(MOST_RANK, short):
        message = (
            f"it has rank {layout.rank:,}, and {layout.out:,} × {layout.columns:,} has at most {short:,}"
        )
        raise LayoutError(message)
    if known:
        if size > max(WIDENED * math.prod(known), HARMLESS):
            raise _too_large(layout, f"the layer has {' × '.join(f'{side:,}' for side in known)}")
    elif size > (MOST_UNKNOWN if layout.own_factors else MOST_GROWN):
        raise _too_large(layout, "no layer of a known model is that large")


def _too_large(layout: Layout, why: str) -> LayoutError:
    return LayoutError(f"its factors make {layout.out:,} × {layout.columns:,}, and {why}")


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (first axis, product of the others)."""
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


def side(shapes: Shapes, role: str, axis: int) -> int:
    """Return one axis of a factor; 0 where it is absent or no matrix."""
    shape = shapes.get(role, ())
    return shape[axis] if len(shape) >= 2 else 0


def need(shapes: Shapes, *roles: str) -> None:
    """Raise `LayoutError` when one of the roles is absent."""
    missing = [role for role in roles if role not in shapes]
    if missing:
        message = f"{' and '.join(missing)} is missing beside {', '.join(sorted(shapes))}"
        raise LayoutError(message)


def at_least_2d(shapes: Shapes, *roles: str) -> None:
    """Raise `LayoutError` when a factor is not a matrix or is empty."""
    for role in roles:
        shape = shapes[role]
        if len(shape) not in (2, 3, 4, 5) or 0 in shape:
            message = f"{role} has shape {list(shape)}, not a matrix or a convolution kernel"
            raise LayoutError(message)
