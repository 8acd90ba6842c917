"""Foreseeing core methods in the small space that the sources span: nothing of ΔW's size is made.

With τᵢ = wᵢΔWᵢ = P·Mᵢ·Qᵀ and orthonormal P, Q, every figure of the merge τ = P·M·Qᵀ is one of M: ‖τ‖ = ‖M‖,
⟨τ, τᵢ⟩ = ⟨M, Mᵢ⟩, ‖(τ − τᵢ)Vᵢ‖ = ‖(M − Mᵢ)vᵢ‖ with vᵢ the right singular vectors of Mᵢ. The space is the
same for all methods.

Carrying a recipe out at some of its modules, to foresee what Gram matrices alone cannot tell.

Core and dense methods, and groups with methods of their own, are evaluated as the merge itself would
evaluate them; what comes out is measured against the sources in float64 and handed to the analysis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib_merge.adapters import LoraFile
from lib_merge.analysis.measure import Bench
from lib_merge.analysis.outcome import Foreseen, Outcomes, Weighing, growth
from lib_merge.engine.evaluate import Evaluator, MaskSeed, blame, core_result, workers_for
from lib_merge.engine.survey import measure_whole
from lib_merge.engine.threads import Job, exact_numerics, in_order, pick_device
from lib_merge.engine.tree import Leaf, Node, Target
from lib_merge.errors import NumericsError
from lib_merge.linalg import Delta, LowRank, Spanned, inner, scaled, tolerances
from lib_merge.linalg.core import Bases, CoreSpace, Merged, core_space
from lib_merge.linalg.stack import low_rank, stack
from lib_merge.linalg.svd import row_values
from lib_merge.linalg.truncate import compress
from lib_merge.methods import Gives, Space
from lib_merge.ranks.policy import PolicyKind

# ------------------------------------------------------------------------ core_forecast

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
        float(singular[0]) if side else 0.0,  # nothing is left where sources cancel
        _kept(node, target, singular),
        singular[:side],
    )


def _singular(merged: Tensor, *, wide: bool) -> np.ndarray:
    """Return Float64[a], descending; of wide rows from their Gram matrix, where what is below its rounding
    counts as none.
    """
    if not wide:
        values: np.ndarray = torch.linalg.svdvals(merged).numpy()
        return values
    return row_values(merged)


def hashed(node: Node) -> list[str]:
    """Return the identities by which the merge itself will draw: hashes of whole files."""
    return node.identities


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
    if isinstance(merged, Tensor) and node.method.gives is Gives.COLUMNS:
        return sum(space.rows(source) for source in range(len(space.thin))) * merged.float()
    return merged


def _kept(node: Node, target: Target, singular: np.ndarray) -> float:
    policy = node.policy_at(target)
    total = float(np.square(singular).sum())
    if policy.exact or not total > 0:
        return 1.0
    rank = policy.choose(singular, len(singular))
    return max(0.0, 1.0 - float(np.square(singular[rank:][::-1]).sum()) / total)


# ------------------------------------------------------------------------ forecast

# Modules whose common space is kept for the next method: the lines of a table, not a whole report.
SHARED = 16


class Forecaster:
    """Carries recipes over one set of sources out; what core methods share is kept between two of them."""

    def __init__(self, job: Job) -> None:
        """Take device and cancel from a job."""
        self._device = pick_device(job.device)
        self._job = replace(job, progress=None)
        self._common: dict[int, tuple[bytes, Common]] = {}  # place -> (weights, what is shared at them)

    def __call__(self, node: Node, bench: Bench, weighing: Weighing, modules: Sequence[int]) -> Foreseen:
        """Evaluate a recipe at some modules of the bench.

        Args:
            node: the recipe, over the files of the bench in their order.
            bench: measured sources.
            weighing: what the recipe asks for there.
            modules: places on the bench.
        Returns:
            Outcomes of these modules, and their singular values where none is missing.
        Raises:
            MergeError: the recipe cannot be carried out.
        """
        evaluator = Evaluator(self._device)
        line = len(modules) <= SHARED and len(modules) < len(bench.modules)

        def look(place: int) -> Seen:
            asked = weighing.asked[place]
            target = node.targets[bench.modules[place].task.name]
            shared = None
            try:
                if fits(node, asked.tolist()):
                    deltas = functools.partial(evaluator.children, node, target)
                    shared = self._shared(place, node, deltas, asked, keep=len(modules) <= SHARED)
                if shared is None:
                    return _look(node, evaluator, target, asked)
                names = functools.partial(named if line else hashed, node)
                return look_in_core(node, target, shared, asked, names)
            except NumericsError as error:
                raise blame(node, target) from error

        with exact_numerics(self._device):
            measure_whole(node, evaluator, self._job)
            most = workers_for([node.targets[bench.modules[place].task.name] for place in modules], node)
            seen = list(in_order(look, list(modules), self._device, self._job.cancelled, most))
        return _foreseen(bench, weighing, list(modules), seen)

    def _shared(
        self, place: int, node: Node, deltas: Callable[[], list[Delta]], asked: np.ndarray, *, keep: bool
    ) -> Common | None:
        """Return what core methods share at one module, from the method before where that was kept."""
        weights, shared = self._common.get(place, (b"", None))
        if shared is None or weights != asked.tobytes():
            shared = common(deltas(), asked.tolist(), Bases.SINGULAR if keep else node.method.bases)
            if keep and shared is not None:
                self._common[place] = asked.tobytes(), shared
        return shared


def _look(node: Node, evaluator: Evaluator, target: Target, asked: np.ndarray) -> Seen:
    """Measure one module of the merge against its sources."""
    asked_delta = evaluator.asked(node, target)
    merged = asked_delta.low_rank() if isinstance(asked_delta, Spanned) else asked_delta
    sources = [_source(leaf.parts.get(target.name), leaf.file, target) for leaf in node.leaves()]
    pull = np.array([inner(merged, source) for source in sources])
    talk = np.zeros(len(sources))
    for index, source in enumerate(sources):
        if source.terms:
            talk[index] = _talk(merged, source, float(asked[index]))
    policy = node.policy_at(target)
    exact = policy.exact and isinstance(merged, LowRank)
    done = compress(merged, policy, evaluator.device)
    kept = 1.0 if exact or not done.size > 0 else max(0.0, 1.0 - (done.cut / done.size) ** 2)
    top = float(done.singular[0]) if len(done.singular) else 0.0
    known = done.singular if isinstance(merged, LowRank) else np.zeros(0)
    return inner(merged, merged), pull, talk, top, kept, known


def _source(part: Any, file: LoraFile, target: Target) -> LowRank:  # noqa: ANN401 - ModulePart or None
    if part is None or not part.columns:
        return LowRank(target.out, target.columns)
    return low_rank(part.load(file.file))[0]


def _talk(merged: Delta, source: LowRank, weight: float) -> float:
    """Return ‖(τ − w·ΔW)V‖² with V an orthonormal basis of what ΔW reads."""
    stacked, bases = stack([source], source.out, source.columns)
    right = torch.from_numpy(np.ascontiguousarray(bases[0].right))
    up, down = source.factors(dtype=torch.float64)
    rows = down.T @ right  # Float64[in k]
    there = _times(merged, rows) - weight * (up @ (down @ rows))
    return float(there.square().sum()) if stacked.parts[0].stop else 0.0


def _times(delta: Delta, columns: Tensor) -> Tensor:
    if isinstance(delta, LowRank):
        up, down = delta.factors(dtype=torch.float64)
        return up @ (down @ columns)
    return delta.dense(dtype=torch.float64) @ columns


def _foreseen(bench: Bench, weighing: Weighing, places: list[int], seen: Sequence[Seen]) -> Foreseen:
    asked = weighing.asked[places]
    gram = bench.products[places]
    energy = gram.diagonal(axis1=1, axis2=2)
    square = np.array([item[0] for item in seen])
    pull = np.stack([item[1] for item in seen]) if seen else np.zeros((0, bench.count))
    fit = np.stack([_fit(g, p) for g, p in zip(gram, pull)]) if seen else pull
    peaks = np.array([item[3] for item in seen])
    outcomes = Outcomes(
        places=np.array(places, dtype=int),
        asked=np.square(asked) * energy,
        own=np.square(fit) * energy,
        square=square.clip(0),
        pull=pull * asked,
        talk=np.stack([item[2] for item in seen]) if seen else pull,
        plain=np.einsum("mi,mij,mj->m", asked, gram, asked).clip(0),
        toward=(pull * asked).sum(1),
        growth=growth(bench, asked, peaks, places) if seen else np.full(0, math.nan),
        kept=np.array([item[4] for item in seen]),
    )
    spectra = tuple(item[5] for item in seen)
    return Foreseen(outcomes, spectra if all(len(values) for values in spectra) else ())


def _fit(gram: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """Return c that minimises ‖τ − Σ cᵢΔWᵢ‖: G·c = (⟨τ, ΔWᵢ⟩), in units of each source's norm."""
    norms = np.sqrt(gram.diagonal().clip(0))
    safe = np.where(norms > 0, norms, 1.0)
    cosines = gram / np.outer(safe, safe)
    return np.linalg.pinv(cosines, rcond=1e-9, hermitian=True) @ (pull / safe) / safe
