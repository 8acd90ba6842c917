"""ΔW of one module of the result: the children's deltas, the method, and for inner groups the rank policy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lib_merge.engine.core_merge import Memo, merge_core
from lib_merge.engine.plan import Child, Leaf, Node, Target
from lib_merge.engine.threads import Clock
from lib_merge.engine.tiles import DenseModule, combine_tiles
from lib_merge.errors import NumericsError
from lib_merge.linalg import Delta, Dense, LowRank, Spanned, Term, add, inner, scaled, zero
from lib_merge.linalg.truncate import compress
from lib_merge.methods import Reads, ScalarInput, Space
from lib_merge.ranks.policy import PolicyKind, RankPolicy


@dataclass(slots=True)
class Evaluator:
    """Evaluates modules of a tree.

    device   where large products run
    clock    stages "read" and "combine"
    grams    per node, the Gram matrix over the whole recipe, filled by `survey` for methods that ask for it
    bounds   per node, thresholds over the whole LoRA, filled by `survey` for a global trim
    memo     per node and module, what a core method found: the proof need not find it again
    statistics  per node and module, thresholds already found: the proof need not search for them again
    """

    device: torch.device
    clock: Clock
    grams: dict[int, np.ndarray] = field(default_factory=dict)
    bounds: dict[int, list[float]] = field(default_factory=dict)
    memo: Memo | None = None
    statistics: dict[tuple[int, str], dict[tuple[str, int, float], float]] = field(default_factory=dict)

    def asked(self, node: Node, target: Target) -> Delta | Spanned:
        """Return what the recipe asks for at `target`, before the node's own rank policy."""
        weights = node.weights(target)
        deltas = self.children(node, target)
        with self.clock.time("combine"):
            if node.method.space is Space.SCALAR:
                factors = self.coefficients(node, weights, deltas)
                return add([scaled(delta, factor) for delta, factor in zip(deltas, factors)])
            seed = MaskSeed(node.recipe.seed, target.name, [child.identity for child in node.children])
            if node.method.space is Space.CORE:
                weighted = [scaled(delta, weight) for delta, weight in zip(deltas, weights)]
                return merge_core(node, target, weighted, seed.uniform, self.memo)
            known = self.statistics.setdefault((id(node), target.name), {})
            module = DenseModule(weights, deltas, self.device, known)
            bounds = self.bounds.get(id(node))
            merged = combine_tiles(module, node.method, node.settings, seed.generator, bounds)
            return Dense(1.0, merged, _hint([scaled(d, w) for d, w in zip(deltas, weights)]))

    def forget(self) -> None:
        """Drop what was kept of single modules for the proof."""
        self.statistics.clear()
        if self.memo is not None:
            self.memo.forget()

    def children(self, node: Node, target: Target) -> list[Delta]:
        """Return every child's ΔW at `target`, without its weight."""
        return [self._child(child, target) for child in node.children]

    def vectors(self, node: Node, target: Target) -> dict[str, Tensor]:
        """Return biases and norm weights of the module: Σ wᵢ·vᵢ (with the method's signs where it has fixed
        ones).
        """
        weights: Sequence[float] = node.weights(target)
        if node.method.space is Space.SCALAR and node.method.reads is Reads.NOTHING:
            given = ScalarInput(tuple(weights), _ratios(node), _no_gram)
            weights = node.method.coefficients(given, node.settings)
        total: dict[str, Tensor] = {}
        for child, weight in zip(node.children, weights):
            if isinstance(child, Leaf):
                part = child.parts.get(target.name)
                found = part.load_vectors(child.file.file) if part is not None else {}
            else:
                found = (
                    self.vectors(child, child.targets[target.name]) if target.name in child.targets else {}
                )
            for role, value in found.items():
                total[role] = total[role] + weight * value if role in total else weight * value
        return total

    def coefficients(self, node: Node, weights: tuple[float, ...], deltas: Sequence[Delta]) -> list[float]:
        """Return the scalar method's coefficients at one module."""

        def gram() -> np.ndarray:
            return self.grams[id(node)] if node.method.reads is Reads.RECIPE else gram_matrix(deltas, weights)

        return node.method.coefficients(ScalarInput(weights, _ratios(node), gram), node.settings)

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
            return delta.low_rank() if isinstance(delta, Spanned) else delta
        with self.clock.time("compress"):
            done = compress(delta, policy, self.device)
        return LowRank(target.out, target.columns, (Term(1.0, done.up, done.down),))


def _ratios(node: Node) -> tuple[float, ...]:
    return tuple(source.ratio for source in node.recipe.sources)


def _hint(deltas: Sequence[Delta]) -> LowRank | None:
    """The plain sum, where its rank is low: a dense merge of the same deltas lies mostly near it."""
    terms = tuple(term for delta in deltas if isinstance(delta, LowRank) for term in delta.terms)
    near = LowRank(deltas[0].out, deltas[0].columns, terms)
    return near if 0 < near.rank < near.columns // 4 else None


def gram_matrix(
    deltas: Sequence[Delta], weights: Sequence[float], dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """Return Float64[source source], ⟨wᵢΔWᵢ, wⱼΔWⱼ⟩, computed in `dtype`.

    Raises:
        NumericsError: a delta holds NaN or infinity.
    """
    count = len(deltas)
    gram = np.zeros((count, count))
    for i in range(count):
        for j in range(i, count):
            if weights[i] and weights[j]:
                gram[i, j] = gram[j, i] = weights[i] * weights[j] * inner(deltas[i], deltas[j], dtype)
    if not np.isfinite(gram).all():
        message = "a delta holds NaN or infinity"
        raise NumericsError(message)
    return gram


def module_policy(node: Node, target: Target) -> RankPolicy:
    """Return the rank policy at one module: `conv_rank` replaces it for k×k kernels."""
    if target.convolution and node.recipe.conv_rank is not None:
        return RankPolicy(PolicyKind.RANK, node.recipe.conv_rank)
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

    def uniform(self, source: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return Float[count], uniform in [0, 1)."""
        return torch.rand(count, generator=self.generator(source), dtype=dtype)


def _no_gram() -> np.ndarray:
    return np.zeros((0, 0))
