"""Foreseeing core methods in the small space that the sources span: nothing of ΔW's size is made.

With τᵢ = wᵢΔWᵢ = P·Mᵢ·Qᵀ and orthonormal P, Q, every figure of the merge τ = P·M·Qᵀ is one of M: ‖τ‖ = ‖M‖,
⟨τ, τᵢ⟩ = ⟨M, Mᵢ⟩, ‖(τ − τᵢ)Vᵢ‖ = ‖(M − Mᵢ)vᵢ‖ with vᵢ the right singular vectors of Mᵢ. The space is the
same for all methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib_merge.engine.evaluate import MaskSeed, core_result
from lib_merge.engine.tree import Leaf, Node, Target
from lib_merge.linalg import Delta, scaled, tolerances
from lib_merge.linalg.core import Bases, CoreSpace, Merged, core_space
from lib_merge.linalg.svd import row_values
from lib_merge.methods import Gives, Space
from lib_merge.ranks.policy import PolicyKind

# ‖τ‖², ⟨τ, ΔWᵢ⟩ per source, ‖(τ − wᵢΔWᵢ)Vᵢ‖² per source, S₀(τ), share that the policy keeps, singular values
Seen = tuple[float, np.ndarray, np.ndarray, float, float, np.ndarray]


@dataclass(frozen=True, slots=True)
class Common:
    """What all core methods share at one module.

    space  the bases
    cores  Float64[source a b], Mᵢ
    right  per source Float64[b k], the right singular vectors of Mᵢ that count
    """

    space: CoreSpace
    cores: Tensor
    right: tuple[Tensor, ...]


def fits(node: Node, asked: Sequence[float]) -> bool:
    """Tell whether a module can be foreseen in the core: a core method over files, all of them heard, no
    shared budget.
    """
    flat = all(isinstance(child, Leaf) for child in node.children)
    return (
        node.method.space is Space.CORE and flat and all(asked) and node.policy.kind is not PolicyKind.BUDGET
    )


def common(deltas: Sequence[Delta], weights: Sequence[float], bases: Bases) -> Common | None:
    """Return the space of weighted deltas of one module; None where all of them are zero.

    Args:
        deltas: ΔWᵢ per source, each out × in.
        weights: wᵢ.
        bases: as `core_space` takes them; singular ones serve every method.
    """
    space = core_space([scaled(delta, weight) for delta, weight in zip(deltas, weights)], bases)
    if space is None:
        return None
    return Common(space, space.cores, tuple(_right(space, source) for source in range(len(deltas))))


def _right(space: CoreSpace, source: int) -> Tensor:
    _, values, right = space.svd(source)
    return right[values > tolerances.DIRECTION * values.max()].T if len(values) else right.T


def look_in_core(
    node: Node, target: Target, shared: Common, asked: np.ndarray, names: Callable[[], list[str]]
) -> Seen:
    """Return the figures of a core method at one module.

    Args:
        node: of a core method; see `fits`.
        target: the module.
        shared: the space of its weighted sources.
        asked: Float64[source], wᵢ, none of them 0.
        names: () -> what random masks are keyed by, per source; see `hashed` and `named`.
    """
    space = shared.space
    merged, wide = _merged(node, target, space, names), node.method.gives is not Gives.CORE
    if isinstance(merged, tuple):
        singular = merged[1].sort(descending=True).values.numpy()
        merged = (merged[0] * merged[1]) @ merged[2]
    else:
        singular = _singular(merged, wide=wide)
    inside = (merged @ space.basis_rows().T).double() if wide else merged  # Float64[a b]
    pull = np.array([float((inside * core).sum()) for core in shared.cores]) / asked
    talk = np.array(
        [float(((inside - core) @ v).square().sum()) for core, v in zip(shared.cores, shared.right)]
    )
    side = min(target.out, target.columns, len(singular))
    return (
        float(merged.square().sum()),
        pull,
        talk,
        float(singular[0]),
        _kept(node, target, singular),
        singular[:side],
    )


def _singular(merged: Tensor, *, wide: bool) -> np.ndarray:
    """Return Float64[a], descending; of wide rows from their Gram matrix, where what is below its rounding
    counts as none.
    """
    if not wide:
        return torch.linalg.svdvals(merged).numpy()
    return row_values(merged)


def hashed(node: Node) -> list[str]:
    """Return the identities by which the merge itself will draw: hashes of whole files."""
    return [child.identity for child in node.children]


def named(node: Node) -> list[str]:
    """Return other identities that need no reading, for a line of a table: any draw is as likely as the
    merge's own.
    """
    return [f"{leaf.label}#{place}" for place, leaf in enumerate(node.leaves())]


def _merged(node: Node, target: Target, space: CoreSpace, names: Callable[[], list[str]]) -> Merged:
    """Return the merged core, Float64[a b], its SVD, or rows, Float32[a in]."""

    def uniform(source: int, count: int, dtype: torch.dtype) -> Tensor:
        return MaskSeed(node.recipe.seed, target.name, names()).uniform(source, count, dtype)

    merged = core_result(node, target, space, uniform)
    if node.method.gives is Gives.COLUMNS:
        return sum(space.rows(source) for source in range(len(space.thin))) * merged.float()
    return merged


def _kept(node: Node, target: Target, singular: np.ndarray) -> float:
    policy = node.policy_at(target)
    total = float(np.square(singular).sum())
    if policy.exact or not total > 0:
        return 1.0
    rank = policy.choose(singular, len(singular))
    return max(0.0, 1.0 - float(np.square(singular[rank:][::-1]).sum()) / total)
