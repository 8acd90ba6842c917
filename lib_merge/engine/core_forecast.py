"""Foreseeing core methods in the small space that the sources span: nothing of ΔW's size is made.

With τᵢ = wᵢΔWᵢ = P·Mᵢ·Qᵀ and orthonormal P, Q, every figure of the merge τ = P·M·Qᵀ is one of M: ‖τ‖ = ‖M‖,
⟨τ, τᵢ⟩ = ⟨M, Mᵢ⟩, ‖(τ − τᵢ)Vᵢ‖ = ‖(M − Mᵢ)vᵢ‖ with vᵢ the right singular vectors of Mᵢ. The space is the same for all methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib_merge.analysis.stack import DIRECTION
from lib_merge.deltas import Delta, scaled
from lib_merge.engine.corespace import CoreSpace, core_space
from lib_merge.engine.evaluate import MaskSeed, module_policy
from lib_merge.engine.plan import Leaf, Node, Target
from lib_merge.engine.run import replace_sum
from lib_merge.methods import CoreInput

# Eigenvalues of a Gram matrix below this share of the largest are rounding.
ROUNDING = 1e-14
# ‖τ‖², ⟨τ, ΔWᵢ⟩ per source, ‖(τ − wᵢΔWᵢ)Vᵢ‖² per source, S₀(τ), share that the policy keeps, singular values
Seen = tuple[float, np.ndarray, np.ndarray, float, float, np.ndarray]


@dataclass(frozen=True, slots=True)
class Common:
    """What all core methods share at one module.

    space  cores Mᵢ and the bases around them
    right  per source Float64[b k], the right singular vectors of Mᵢ that count
    """

    space: CoreSpace
    right: tuple[Tensor, ...]


def fits(node: Node, asked: Sequence[float]) -> bool:
    """Tell whether a module can be foreseen in the core: a core method over files, all of them heard, no shared budget."""
    flat = all(isinstance(child, Leaf) for child in node.children)
    return node.method.space == "core" and flat and all(asked) and node.policy.kind != "budget"


def common(deltas: Sequence[Delta], weights: Sequence[float]) -> Common:
    """Return the space of weighted deltas of one module.

    Args:
        deltas: ΔWᵢ per source, each out × in.
        weights: wᵢ.
    """
    space = core_space([scaled(delta, weight) for delta, weight in zip(deltas, weights)])
    return Common(space, tuple(_right(core) for core in space.cores))


def _right(core: Tensor) -> Tensor:
    _, values, right = torch.linalg.svd(core, full_matrices=False)
    count = int((values > DIRECTION * values[0]).sum()) if values.numel() and float(values[0]) > 0 else 0
    return right[:count].T


def look_in_core(node: Node, target: Target, shared: Common, asked: np.ndarray, names: Callable[[], list[str]]) -> Seen:
    """Return the figures of a core method at one module.

    Args:
        node: of a core method; see `fits`.
        target: the module.
        shared: the space of its weighted sources.
        asked: Float64[source], wᵢ, none of them 0.
        names: () -> what random masks are keyed by, per source; see `hashed` and `named`.
    """
    space = shared.space
    merged = _merged(node, target, space, names).double()
    inside = merged @ space.rows().double().T if node.method.rows else merged  # Float64[a b]
    pull = np.array([float((inside * core).sum()) for core in space.cores]) / asked
    talk = np.array([float(((inside - core) @ v).square().sum()) for core, v in zip(space.cores, shared.right)])
    singular = _singular(merged, wide=node.method.rows)
    side = min(target.out, target.columns, len(singular))
    return float(merged.square().sum()), pull, talk, float(singular[0]), _kept(node, target, singular), singular[:side]


def _singular(merged: Tensor, *, wide: bool) -> np.ndarray:
    """Return Float64[a], descending; of wide rows from their Gram matrix, where what is below its rounding counts as none."""
    if not wide:
        return torch.linalg.svdvals(merged).numpy()
    values = torch.linalg.eigvalsh(merged @ merged.T).flip(0).clamp_min(0)
    return torch.where(values > ROUNDING * values[0], values, 0.0).sqrt().numpy()


def hashed(node: Node) -> list[str]:
    """Return the identities by which the merge itself will draw: hashes of whole files."""
    return [child.identity for child in node.children]


def named(node: Node) -> list[str]:
    """Return other identities that need no reading, for a line of a table: any draw is as likely as the merge's own."""
    return [f"{leaf.label}#{place}" for place, leaf in enumerate(node.leaves())]


def _merged(node: Node, target: Target, space: CoreSpace, names: Callable[[], list[str]]) -> Tensor:
    def uniform(source: int, count: int) -> Tensor:
        seed = MaskSeed(node.recipe.seed, target.name, names())
        return torch.rand(count, generator=seed.generator(source), dtype=torch.float64)

    roles = tuple(source.role for source in node.recipe.sources)
    given = CoreInput(node.weights(target), space.cores, space.rows, roles, uniform)
    return node.method.function(given, **node.settings)


def _kept(node: Node, target: Target, singular: np.ndarray) -> float:
    policy = replace_sum(module_policy(node, target), target)
    total = float(np.square(singular).sum())
    if policy.exact or not total > 0:
        return 1.0
    rank = policy.choose(singular, len(singular))
    return max(0.0, 1.0 - float(np.square(singular[rank:][::-1]).sum()) / total)
