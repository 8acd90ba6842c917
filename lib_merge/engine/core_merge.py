"""Core methods carried out at one module, and what they found, kept for the proof.

What a method finds is a matter of R × R: 64 KB at R = 64. The proof reads the sources again and holds the
saved file against
*their* factors around the same core, so a source that changed, a cut, a rounding or a wrong byte shows, and
nothing is computed twice. `verify`, on a file saved long ago, finds the cores anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Union

import torch
from torch import Tensor

from lib_merge.engine.plan import Node, Target
from lib_merge.linalg import Columns, Delta, Dense, LowRank, Spanned, Term, add, zero
from lib_merge.linalg.core import CoreSpace, Merged, column_products, core_space, pair_of, side_of
from lib_merge.methods import ColumnInput, CoreInput, Gives, RowInput

Random = Callable[[int, int, torch.dtype], Tensor]  # (source, count, type) -> Float[count], uniform in [0, 1)
Kept = Union[Spanned, CoreSpace]
# What one merge keeps at most; beyond it the proof finds the cores anew.
MOST = 256 << 20


@dataclass(slots=True)
class Memo:
    """Per node and module, what the merge found in its core, without anything of the sources' size.

    proving  id of the node whose results are now only held against a file, so that nobody will cut them
    """

    kept: dict[tuple[int, str], Kept] = field(default_factory=dict)
    bytes: int = 0
    proving: int | None = None

    def keep(self, key: tuple[int, str], found: Kept, *numbers: Tensor) -> None:
        """Keep `found`, which holds `numbers`, while there is room."""
        size = sum(number.numel() * number.element_size() for number in numbers)
        if self.bytes + size <= MOST:
            self.bytes += size
            self.kept[key] = found

    def forget(self) -> None:
        """Drop everything."""
        self.kept.clear()
        self.bytes = 0


def merge_core(
    node: Node, target: Target, deltas: Sequence[Delta], random: Random, memo: Memo | None = None
) -> Delta | Spanned:
    """Apply a core method to deltas that already carry their weights.

    Args:
        node: of a core method.
        target: the module.
        deltas: τᵢ, each out × in.
        random: the masks' numbers.
        memo: where the result was or will be kept.
    """
    if not any(isinstance(delta, (Dense, Spanned)) or delta.terms for delta in deltas):
        return zero(target.out, target.columns)
    if node.method.gives is Gives.COLUMNS:
        return _weigh_columns(node, target, deltas)
    key = (id(node), target.name)
    known = memo.kept.get(key) if memo else None
    if known is not None:
        pairs = [pair_of(delta) for delta in deltas]
        sides = {"up": side_of(pairs, 0), "down": side_of(pairs, 1)}
        if isinstance(known, Spanned):
            return replace(known, **sides)
        space: CoreSpace | None = replace(known, sources=tuple(pairs), **sides)
    else:
        space = core_space(deltas, node.method.bases)
    if space is None:
        return zero(target.out, target.columns)
    result = core_result(node, target, space, random)
    if node.method.gives is Gives.ROWS:
        found, kept = space.spanned_rows(result, ordered=not (memo and memo.proving == id(node))), space
    else:
        found = kept = space.spanned(result)
    if memo and known is None and not space.rewritten:
        _keep(memo, key, kept)
    return found


def _keep(memo: Memo, key: tuple[int, str], found: Kept) -> None:
    nothing = Columns(())
    if isinstance(found, Spanned):
        memo.keep(key, replace(found, up=nothing, down=nothing), found.left, found.right)
        return
    bare = replace(found, sources=(), up=nothing, down=nothing)
    memo.keep(key, bare, bare.to_left, *(first for first, _ in bare.thin))


def core_result(node: Node, target: Target, space: CoreSpace, random: Random) -> Merged:
    """Return what a core method makes of a module's space: a core, its SVD, rows, or factors of columns."""
    weights = node.weights(target)
    if node.method.gives is Gives.COLUMNS:
        return node.method.columns(ColumnInput(weights, space.columns()), node.settings)
    if node.method.gives is Gives.ROWS:
        rows = RowInput(
            weights, space.rows, space.bound, lambda source, count: random(source, count, torch.float32)
        )
        return node.method.rows(rows, node.settings)
    roles = tuple(source.role for source in node.recipe.sources)
    given = CoreInput(
        weights, space.cores, space.svd, roles, lambda source, count: random(source, count, torch.float64)
    )
    return node.method.core(given, node.settings)


def _weigh_columns(node: Node, target: Target, deltas: Sequence[Delta]) -> Delta:
    """Σ τᵢ·diag(m): a factor for each input, so every source keeps its own rank."""
    given = ColumnInput(node.weights(target), column_products(deltas))
    factors = node.method.columns(given, node.settings).float()
    return add([_columns(delta, factors) for delta in deltas])


def _columns(delta: Delta, factors: Tensor) -> Delta:
    if isinstance(delta, Dense):
        return Dense(delta.scale, delta.matrix.float() * factors)
    terms = tuple(Term(term.scale, term.up, term.down * factors) for term in delta.terms)
    return LowRank(delta.out, delta.columns, terms)
