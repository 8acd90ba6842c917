"""ΔW of one module of the result: the children's deltas, the method, and for inner groups the rank policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lib_merge.compress import RankPolicy, compress
from lib_merge.deltas import Delta, Dense, LowRank, Term, add, inner, scaled, zero
from lib_merge.engine.plan import Child, Leaf, Node, Target
from lib_merge.engine.threads import Clock
from lib_merge.engine.tiles import combine_tiles
from lib_merge.methods import CoreInput, ScalarInput


@dataclass(slots=True)
class Evaluator:
    """Evaluates modules of a tree.

    device   where large products run
    clock    stages "read" and "combine"
    grams    per node, the Gram matrix over the whole recipe, filled by `survey` for methods that ask for it
    """

    device: torch.device
    clock: Clock
    grams: dict[int, np.ndarray] = field(default_factory=dict)

    def asked(self, node: Node, target: Target) -> Delta:
        """Return what the recipe asks for at `target`, before the node's own rank policy."""
        weights = node.weights(target)
        deltas = [self._child(child, target) for child in node.children]
        with self.clock.time("combine"):
            if node.method.space == "scalar":
                factors = self.coefficients(node, weights, deltas)
                return add([scaled(delta, factor) for delta, factor in zip(deltas, factors)])
            if node.method.space == "core":
                return self._core(node, target, weights, deltas)
            seed = MaskSeed(node.recipe.seed, target.name, [child.identity for child in node.children])
            merged = combine_tiles(node, weights, deltas, seed.generator, self.device)
            return Dense(1.0, merged, _hint(deltas))

    def vectors(self, node: Node, target: Target) -> dict[str, Tensor]:
        """Return biases and norm weights of the module: Σ wᵢ·vᵢ (with the method's signs where it has fixed ones)."""
        weights: Sequence[float] = node.weights(target)
        if node.method.space == "scalar" and node.method.reads == "nothing":
            weights = node.method.function(ScalarInput(tuple(weights), _no_gram), **node.settings)
        total: dict[str, Tensor] = {}
        for child, weight in zip(node.children, weights):
            if isinstance(child, Leaf):
                part = child.parts.get(target.name)
                found = part.load_vectors(child.file.file) if part is not None else {}
            else:
                found = self.vectors(child, child.targets[target.name]) if target.name in child.targets else {}
            for role, value in found.items():
                total[role] = total[role] + weight * value if role in total else weight * value
        return total

    def coefficients(self, node: Node, weights: tuple[float, ...], deltas: Sequence[Delta]) -> list[float]:
        """Return the scalar method's coefficients at one module."""

        def gram() -> np.ndarray:
            return self.grams[id(node)] if node.method.reads == "recipe" else gram_matrix(deltas)

        return node.method.function(ScalarInput(weights, gram), **node.settings)

    def _child(self, child: Child, target: Target) -> Delta:
        if isinstance(child, Leaf):
            part = child.parts.get(target.name)
            if part is None or part.columns == 0:
                return zero(target.out, target.columns)
            with self.clock.time("read"):
                return part.load(child.file.file)
        own = child.targets.get(target.name)
        if own is None or own.columns == 0:
            return zero(target.out, target.columns)
        delta = self.asked(child, own)
        policy = module_policy(child, own)
        if policy.exact:
            return delta
        with self.clock.time("compress"):
            done = compress(delta, policy, self.device)
        return LowRank(target.out, target.columns, (Term(1.0, done.up, done.down),))

    def _core(self, node: Node, target: Target, weights: tuple[float, ...], deltas: Sequence[Delta]) -> Delta:
        left, cores, right = core_space(deltas)
        seed = MaskSeed(node.recipe.seed, target.name, [child.identity for child in node.children])

        def uniform(source: int, stream: int) -> Tensor:
            return torch.rand(cores.shape[1:], generator=seed.generator(source, stream), dtype=torch.float64)

        roles = tuple(source.role for source in node.recipe.sources)
        merged = node.method.function(CoreInput(weights, cores, roles, uniform), **node.settings)
        up = left @ merged
        return LowRank(target.out, target.columns, (Term(1.0, up.float(), right.float()),))


def _hint(deltas: Sequence[Delta]) -> Tensor | None:
    """The sources' rows, where they are few: a dense merge lies mostly in their span."""
    downs = [term.down.float() for delta in deltas if isinstance(delta, LowRank) for term in delta.terms]
    return torch.cat(downs) if downs and sum(map(len, downs)) < downs[0].shape[1] // 4 else None


def core_space(deltas: Sequence[Delta]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (P, M, Qᵀ) with ΔWᵢ = P·Mᵢ·Qᵀ: Float64[out a], Float64[source a b], Float64[b in].

    P and Q are orthonormal bases of the joint column and row spaces: the singular bases of the stacked deltas, so that
    they depend on the deltas and not on how their factors are written.
    """
    ups, downs, cores = [], [], []
    for delta in deltas:
        if isinstance(delta, Dense):
            u, s, v = torch.linalg.svd(delta.dense(dtype=torch.float64), full_matrices=False)
        else:
            up, down = delta.factors(dtype=torch.float64)
            q_up, r_up = torch.linalg.qr(up)
            q_down, r_down = torch.linalg.qr(down.T)
            left, s, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
            u, v = q_up @ left, right @ q_down.T
        keep = int((s > s.max() * 1e-12).sum()) if s.numel() and float(s.max()) > 0 else 0
        ups.append(u[:, :keep] * s[:keep])
        downs.append(v[:keep])
        cores.append(keep)
    left = _basis(torch.cat(ups, 1))
    right = _basis(torch.cat([down * torch.linalg.vector_norm(up, dim=0)[:, None] for up, down in zip(ups, downs)]).T)
    stack = torch.stack([(left.T @ up) @ (down @ right) for up, down in zip(ups, downs)])
    return left, stack, right.T


def _basis(stack: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(stack, full_matrices=False)
    keep = max(1, int((s > s.max() * 1e-10).sum())) if s.numel() else 0
    return u[:, :keep] if keep else torch.zeros(stack.shape[0], 1, dtype=stack.dtype)


def gram_matrix(deltas: Sequence[Delta]) -> np.ndarray:
    """Return Float64[source source], ⟨ΔWᵢ, ΔWⱼ⟩."""
    count = len(deltas)
    gram = np.zeros((count, count))
    for i in range(count):
        for j in range(i, count):
            gram[i, j] = gram[j, i] = inner(deltas[i], deltas[j])
    return gram


def module_policy(node: Node, target: Target) -> RankPolicy:
    """Return the rank policy at one module: `conv_rank` replaces it for k×k kernels."""
    if target.convolution and node.recipe.conv_rank is not None:
        return RankPolicy("rank", node.recipe.conv_rank)
    return node.policy


@dataclass(frozen=True, slots=True)
class MaskSeed:
    """Random numbers keyed by (seed, source, occurrence, module), drawn on the CPU: same on every device."""

    seed: int
    module: str
    identities: Sequence[str]

    def generator(self, source: int, part: int = 0) -> torch.Generator:
        """Return the generator of one part (a band of rows) of one source's mask."""
        key = f"{self.seed}|{self.identities[source]}|{self.module}|{part}".encode()
        number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
        return torch.Generator("cpu").manual_seed(number)


def survey(
    node: Node, evaluator: Evaluator, each: Callable[[Callable[[Target], None], Sequence[Target]], None]
) -> None:
    """Fill the whole-recipe Gram matrices of every node whose method reads one, inner groups first.

    Args:
        node: the tree.
        evaluator: receives the matrices.
        each: runs a function over targets, in any order and on any thread.
    """
    for child in node.children:
        if isinstance(child, Node):
            survey(child, evaluator, each)
    if node.method.reads != "recipe":
        return
    found: Mapping[str, np.ndarray] = {}
    grams: dict[str, np.ndarray] = dict(found)

    def measure(target: Target) -> None:
        if target.columns:
            deltas = [evaluator._child(child, target) for child in node.children]
            grams[target.name] = gram_matrix(deltas)

    each(measure, list(node.targets.values()))
    count = len(node.children)
    # summed in a fixed order: threads must not decide the last digit
    evaluator.grams[id(node)] = sum((grams[name] for name in sorted(grams)), np.zeros((count, count)))


def _no_gram() -> np.ndarray:
    return np.zeros((0, 0))
