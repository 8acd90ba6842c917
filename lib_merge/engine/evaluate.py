"""ΔW of one module of the result: the children's deltas, the method, and for inner groups the rank policy.

What a core method finds is a matter of R × R: 64 KB at R = 64, and is kept for the proof. The proof reads
the sources again and holds the saved file against *their* factors around the same core, so a source that
changed, a cut, a rounding or a wrong byte shows, and nothing is computed twice. On a file saved long ago the
cores are found anew.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Union

import numpy as np
import torch
from torch import Tensor

from lib_merge.engine.cancelling import cancels, none_left
from lib_merge.engine.pruning import RankPlan
from lib_merge.engine.threads import DENSE_WORKERS, Clock, Job, Result, gainful, in_order
from lib_merge.engine.tiles import DenseModule, combine_tiles
from lib_merge.engine.tree import Child, Leaf, Node, Target
from lib_merge.errors import NumericsError
from lib_merge.linalg import Columns, Delta, Dense, LowRank, Spanned, Term, add, inner, norm, scaled, zero
from lib_merge.linalg.core import CoreSpace, Merged, column_products, core_space, pair_of, side_of
from lib_merge.linalg.truncate import compress
from lib_merge.methods import ColumnInput, CoreInput, Gives, Reads, RowInput, Space

Random = Callable[[int, int, torch.dtype], Tensor]  # (source, count, type) -> Float[count], uniform in [0, 1)
Core = Union[Spanned, CoreSpace]
# What one merge keeps of its cores at most; beyond it the proof finds them anew.
MEMO_BYTES = 256 << 20


@dataclass(slots=True)
class Memo:
    """Per node and module, what the merge found in its core, without anything of the sources' size.

    proving  id of the node whose results are now only held against a file, so that nobody will cut them
    """

    cores: dict[tuple[int, str], Core] = field(default_factory=dict)
    bytes: int = 0
    proving: int | None = None

    def keep(self, key: tuple[int, str], core: Core) -> None:
        """Keep a core without the sources' factors, while there is room."""
        nothing = Columns(())
        if isinstance(core, Spanned):
            bare: Core = replace(core, up=nothing, down=nothing)
            numbers = [core.left, core.right]
        else:
            bare = replace(core, sources=(), up=nothing, down=nothing)
            numbers = [core.to_left, *(first for first, _ in core.thin)]
        size = sum(number.numel() * number.element_size() for number in numbers)
        if self.bytes + size <= MEMO_BYTES:
            self.bytes += size
            self.cores[key] = bare

    def forget(self) -> None:
        """Drop everything."""
        self.cores.clear()
        self.bytes = 0


class GroupCut(NamedTuple):
    """One module of a group that is cut: its rank, ‖what was cut‖ and ‖ΔW‖ before."""

    rank: int
    cut: float
    size: float


@dataclass(slots=True)
class Evaluator:
    """Evaluates modules of a tree.

    device   where large products run
    clock    stages "read" and "combine"
    grams    per node, the Gram matrix over the whole recipe, filled by `survey` for methods that ask for it
    bounds   per node, thresholds over the whole LoRA, filled by `survey` for a global trim
    memo     per node and module, what a core method found: the proof need not find it again
    statistics  per node and module, thresholds already found: the proof need not search for them again
    summands  per node and module whose ΔW is a whole matrix, √Σ‖wᵢΔWᵢ‖²
    cancelled  modules that were found to cancel in a group
    kept       per group that prunes, its ranks, filled by `survey`
    cuts       per group and module, what its rank policy or pruning took
    """

    device: torch.device
    clock: Clock = field(default_factory=Clock)
    grams: dict[int, np.ndarray] = field(default_factory=dict)
    bounds: dict[int, list[float]] = field(default_factory=dict)
    memo: Memo | None = None
    statistics: dict[tuple[int, str], dict[tuple[str, int, float], float]] = field(default_factory=dict)
    summands: dict[tuple[int, str], float] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    kept: dict[int, RankPlan] = field(default_factory=dict)
    cuts: dict[tuple[int, str], GroupCut] = field(default_factory=dict)

    def proving(self, node: Node) -> Evaluator:
        """Return one with a clock of its own that holds `node` against a file with what is known of it."""
        return replace(self, clock=Clock(), memo=self.memo and replace(self.memo, proving=id(node)))

    def forget(self) -> None:
        """Drop what was kept of single modules for the proof."""
        self.statistics.clear()
        self.summands.clear()
        self.cuts.clear()
        if self.memo is not None:
            self.memo.forget()

    def asked(self, node: Node, target: Target) -> Delta | Spanned:
        """Return what the recipe asks for at `target`, before the node's own rank policy."""
        weights = node.weights(target)
        deltas = self.children(node, target)
        with self.clock.time("combine"):
            if node.method.space is Space.SCALAR:
                factors = self.coefficients(node, weights, deltas)
                total = add([scaled(delta, factor) for delta, factor in zip(deltas, factors)])
                if isinstance(total, Dense):
                    self._note(node, target, weights, deltas)
                return total
            seed = MaskSeed(node.recipe.seed, target.name, self.identities(node))
            if node.method.space is Space.CORE:
                weighted = [scaled(delta, weight) for delta, weight in zip(deltas, weights)]
                return _merge_core(node, target, weighted, seed.uniform, self.memo)
            known = self.statistics.setdefault((id(node), target.name), {})
            module = DenseModule(weights, deltas, self.device, known)
            bounds = self.bounds.get(id(node))
            merged = combine_tiles(module, node.method, node.settings, seed.generator, bounds)
            self._note(node, target, weights, deltas)
            return Dense(1.0, merged, _hint([scaled(d, w) for d, w in zip(deltas, weights)]))

    def _note(self, node: Node, target: Target, weights: Sequence[float], deltas: Sequence[Delta]) -> float:
        """Keep √Σ‖wᵢΔWᵢ‖² of a module."""
        total = math.sqrt(sum((w * norm(delta)) ** 2 for delta, w in zip(deltas, weights) if w))
        self.summands[id(node), target.name] = total
        return total

    def together(self, node: Node, target: Target) -> float:
        """Return √Σ‖wᵢΔWᵢ‖² of a module; its sources are read again where that is not known."""
        known = self.summands.get((id(node), target.name))
        if known is not None:
            return known
        return self._note(node, target, node.weights(target), self.children(node, target))

    def cancels(self, node: Node, target: Target, asked: Delta | Spanned) -> bool:
        """Tell whether what `asked` returned of a module is rounding beside its summands."""
        return cancels(node, target, asked, functools.partial(self.together, node, target))

    def identities(self, node: Node) -> list[str]:
        """Return what the random masks of a node are keyed by, per child."""
        return node.identities

    def children(self, node: Node, target: Target) -> list[Delta]:
        """Return every child's ΔW at `target`, without its weight."""
        return [self._child(child, target) for child in node.children]

    def vectors(self, node: Node, target: Target) -> dict[str, Tensor]:
        """Return biases and norm weights of the module: Σ wᵢ·vᵢ (with the method's signs where it has fixed
        ones); zeros where they cancel each other.
        """
        weights: Sequence[float] = node.weights(target)
        weights = node.fixed_coefficients(weights) or weights
        parts: dict[str, list[Tensor]] = {}
        for child, weight in zip(node.children, weights):
            for role, value in self._child_vectors(child, target.name).items():
                parts.setdefault(role, []).append(weight * value)
        return {
            role: torch.zeros_like(values[0])
            if len(values) > 1 and none_left(values)
            else sum(values[1:], values[0])
            for role, values in parts.items()
        }

    def remaining_vectors(self, node: Node, target: Target) -> dict[str, Tensor]:
        """Return the vectors of a module that has nothing else: without those that cancel each other."""
        several = sum(map(bool, node.weights(target))) > 1 or any(
            isinstance(child, Node) for child in node.children
        )
        vectors = self.vectors(node, target)
        return {role: value for role, value in vectors.items() if not several or bool(value.any())}

    def _child_vectors(self, child: Child, name: str) -> dict[str, Tensor]:
        if isinstance(child, Leaf):
            part = child.parts.get(name)
            return part.load_vectors(child.file.file) if part is not None else {}
        return self.vectors(child, child.targets[name]) if name in child.targets else {}

    def coefficients(self, node: Node, weights: tuple[float, ...], deltas: Sequence[Delta]) -> list[float]:
        """Return the scalar method's coefficients at one module."""

        def gram() -> np.ndarray:
            return self.grams[id(node)] if node.method.reads is Reads.RECIPE else gram_matrix(deltas, weights)

        return node.coefficients(weights, gram)

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
        if self.cancels(child, own, delta):
            self.cancelled.add(own.name)
            return zero(target.out, target.columns)
        kept = self.kept.get(id(child), RankPlan())
        if own.name in kept.dropped:
            size = kept.norms[own.name]
            self.cuts[id(child), own.name] = GroupCut(0, size, size)
            return zero(target.out, target.columns)
        policy = kept.policy_at(child, own)
        if policy.exact:
            return delta.low_rank() if isinstance(delta, Spanned) else delta
        with self.clock.time("compress"):
            done = compress(delta, policy, self.device)
        self.cuts[id(child), own.name] = GroupCut(done.rank, done.cut, done.size)
        return LowRank(target.out, target.columns, (Term(1.0, done.up, done.down),))


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


# ---------------------------------------------------------------- core methods


def _merge_core(
    node: Node, target: Target, deltas: Sequence[Delta], random: Random, memo: Memo | None
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
    known = memo.cores.get(key) if memo else None
    space = core_space(deltas, node.method.bases) if known is None else _refilled(known, deltas)
    if space is None:
        return zero(target.out, target.columns)
    if isinstance(space, Spanned):
        return space
    result = core_result(node, target, space, random)
    if node.method.gives is Gives.ROWS and isinstance(result, Tensor):
        spanned = space.spanned_rows(result, ordered=not (memo and memo.proving == id(node)))
    else:
        spanned = space.spanned(result)
    if memo and known is None and not space.rewritten:
        memo.keep(key, space if node.method.gives is Gives.ROWS else spanned)
    return spanned


def _refilled(core: Core, deltas: Sequence[Delta]) -> Core:
    """Return a kept core around the factors as they are read now."""
    pairs = [pair_of(delta) for delta in deltas]
    up, down = side_of(pairs, 0), side_of(pairs, 1)
    if isinstance(core, Spanned):
        return replace(core, up=up, down=down)
    return replace(core, sources=tuple(pairs), up=up, down=down)


def core_result(node: Node, target: Target, space: CoreSpace, random: Random) -> Merged:
    """Return what a core method makes of a module's space: a core, its SVD, rows, or factors of columns."""
    method, settings, weights = node.method, node.settings, node.weights(target)
    if method.gives is Gives.COLUMNS:
        return method.columns(ColumnInput(weights, space.columns()), settings)
    if method.gives is Gives.ROWS:
        rows = RowInput(
            weights, space.rows, space.bound, lambda source, count: random(source, count, torch.float32)
        )
        return method.rows(rows, settings)
    roles = tuple(source.role for source in node.recipe.sources)
    given = CoreInput(
        weights, space.cores, space.svd, roles, lambda source, count: random(source, count, torch.float64)
    )
    return method.core(given, settings)


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


# ---------------------------------------------------------------- many modules


def over_modules(
    work: Callable[[Target], Result],
    modules: Sequence[Target],
    node: Node,
    device: torch.device,
    job: Job,
    *,
    stage: str = "",
    copying: bool = False,
) -> Iterator[Result]:
    """Run `work` on modules side by side and yield the results in their order.

    Args:
        work: called once per module, in a worker.
        modules: of the node's result.
        node: its sources are blamed for broken numbers.
        device: workers are set up for it.
        job: cancel, and progress under the name of `stage`, if it has one.
        stage: what is told of progress.
        copying: the work is copying, which a second thread only hinders.
    Raises:
        NumericsError: names the source whose numbers are broken.
        Cancelled: the job was.
    """

    def blaming(item: Target) -> Result:
        try:
            return work(item)
        except NumericsError as error:
            raise blame(node, item) from error

    most = 1 if copying else workers_for(modules, node)
    for done, result in enumerate(in_order(blaming, modules, device, job.cancelled, most), 1):
        yield result
        if stage:
            job.tell(stage, done, len(modules))


def workers_for(modules: Sequence[Target], node: Node) -> int:
    """Return how many workers gain on modules of a node's result."""
    if _whole_matrices(node):
        return DENSE_WORKERS
    return gainful(
        [(min(module.stacked, module.out, module.columns), module.out + module.columns) for module in modules]
    )


def _whole_matrices(node: Node) -> bool:
    inner = (child for child in node.children if isinstance(child, Node))
    return node.method.space is Space.DENSE or any(map(_whole_matrices, inner))


def blame(node: Node, target: Target) -> NumericsError:
    """Return the error that names the source whose tensors are broken, or says that the precision is too
    small.
    """
    for leaf in node.leaves():
        part = leaf.parts.get(target.name)
        if part is None:
            continue
        for key in part.module.roles.values():
            value = leaf.file.file.read(key)
            if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
                message = f"{leaf.file.name} is broken: {key} holds NaN or infinity."
                return NumericsError(message)
    message = (
        f"{target.name} grows beyond what {node.recipe.precision} can hold: lower the "
        "ratios or save as float."
    )
    return NumericsError(message)
