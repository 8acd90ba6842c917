"""What a recipe makes of every module, and what other methods would make of the same sources and ratios.

With ΔW of source i at a module, wᵢ what the recipe asks and τ = Σ cᵢΔWᵢ what the method makes of it:
‖τ‖² = cᵀGc, ⟨τ, ΔWᵢ⟩ = (Gc)ᵢ, ‖(τ − wᵢΔWᵢ)Vᵢ‖² = dᵀ·talk[i]·d with d = c − wᵢeᵢ.
For scalar methods all of it is read off Gram matrices; others are carried out at some modules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from lib_merge import recipe_edits
from lib_merge.analysis.cut import curve, lost, prunings, ranks_under, spectra_of
from lib_merge.analysis.measure import Bench
from lib_merge.analysis.model import CurvePoint, MethodRow, Outcome, RecipeReport
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import Child, Leaf, Node, Tree
from lib_merge.methods import METHODS, Method, Reads, Space
from lib_merge.ranks.policy import SizeEstimate
from lib_merge.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Figures of the merge at several modules, one row each.

    places   Int[module], of the modules on the bench
    asked    Float64[module source], ‖wᵢΔWᵢ‖²
    own      Float64[module source], ‖cᵢΔWᵢ‖², c the best fit τ ≈ Σ cᵢΔWᵢ
    square   Float64[module], ‖τ‖²
    pull     Float64[module source], ⟨τ, wᵢΔWᵢ⟩
    talk     Float64[module source], ‖(τ − wᵢΔWᵢ)Vᵢ‖²
    plain    Float64[module], ‖Σ wᵢΔWᵢ‖²
    toward   Float64[module], ⟨τ, Σ wᵢΔWᵢ⟩
    growth   Float64[module], S₀(τ) / max S₀(wᵢΔWᵢ); NaN where it is not known
    kept     Float64[module], share of ‖τ‖² that the rank policy keeps
    """

    places: np.ndarray
    asked: np.ndarray
    own: np.ndarray
    square: np.ndarray
    pull: np.ndarray
    talk: np.ndarray
    plain: np.ndarray
    toward: np.ndarray
    growth: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        """Return the number of modules."""
        return len(self.places)

    def at(self, places: Sequence[int]) -> Outcomes:
        """Return the rows of these modules."""
        rows = np.flatnonzero(np.isin(self.places, np.asarray(places, dtype=int)))
        return Outcomes(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Weighing:
    """The weights of a recipe on a bench.

    outer   Float64[module source], of the recipe's own source that holds the file
    inner   Float64[module source], of the file inside its group; 1 without groups
    groups  Int[source], which of the recipe's own sources holds the file
    ratios  of the recipe's own sources
    """

    outer: np.ndarray
    inner: np.ndarray
    groups: np.ndarray
    ratios: tuple[float, ...]

    @property
    def asked(self) -> np.ndarray:
        """Float64[module source], wᵢ."""
        product: np.ndarray = self.outer * self.inner
        return product


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a file in a tree.

    chain  its settings, from the recipe's own source (`group` is its place) down to the file
    """

    chain: tuple[Child, ...]
    group: int

    @property
    def ratio(self) -> float:
        """Product of the ratios on the way."""
        return math.prod(child.source.ratio for child in self.chain if child.source is not None)

    def weights(self, name: str, block: str, encoder: int) -> tuple[float, float]:
        """Return the weight of the recipe's own source at one module, and the file's weight inside of it."""
        inner = math.prod(child.weight(name, block, encoder) for child in self.chain[1:])
        return self.chain[0].weight(name, block, encoder), inner


def uses(root: Node) -> list[Use]:
    """Return every use of a file below, left to right, as `Node.leaves` has them."""

    def below(child: Child) -> Iterator[tuple[Child, ...]]:
        if isinstance(child, Leaf):
            yield (child,)
        else:
            yield from ((child, *chain) for inner in child.children for chain in below(inner))

    return [Use(chain, group) for group, child in enumerate(root.children) for chain in below(child)]


def stacks(node: Node) -> bool:
    """Tell whether every group inside is an uncut weighted sum, so that files carry one weight each."""
    return all(
        isinstance(child, Leaf) or (child.method.stacks and child.uncut and stacks(child))
        for child in node.children
    )


def weigh(bench: Bench, root: Node) -> Weighing:
    """Return the weights of every source at every module of the bench."""
    leaves = uses(root)
    rows = [
        [leaf.weights(m.task.name, m.task.block, m.task.encoder) for leaf in leaves] for m in bench.modules
    ]
    table = np.array(rows, dtype=float).reshape(len(bench.modules), len(leaves), 2)
    ratios = tuple(source.ratio for source in root.recipe.sources)
    return Weighing(table[:, :, 0], table[:, :, 1], np.array([leaf.group for leaf in leaves]), ratios)


def by_block(
    bench: Bench, weighing: Weighing
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Return block -> wᵢ per source (mean over its modules by energy), and block -> ‖wᵢΔWᵢ‖ per source."""
    asked = weighing.asked
    energy = bench.products.diagonal(axis1=1, axis2=2).clip(0)
    weights, heard = {}, {}
    for block, places in bench.blocks().items():
        own, total = asked[places], energy[places].sum(0)
        mean = np.divide(
            (own * energy[places]).sum(0), total, out=np.full(len(total), math.nan), where=total > 0
        )
        weights[block] = tuple(float(value) for value in mean)
        heard[block] = tuple(float(value) for value in np.sqrt((np.square(own) * energy[places]).sum(0)))
    return weights, heard


def coefficients(bench: Bench, weighing: Weighing, node: Node) -> np.ndarray:
    """Return Float64[module source], the cᵢ of a scalar method at every module.

    Args:
        bench: measured modules.
        weighing: what the recipe asks for.
        node: the recipe, of a scalar method.
    """
    groups = np.arange(len(weighing.ratios))
    member = (weighing.groups[None, :] == groups[:, None]).astype(float)  # Float64[group source]
    first = member.argmax(1)
    grams = np.zeros((len(bench.modules), len(groups), len(groups)))
    if node.method.reads is not Reads.NOTHING:
        rows = member[None] * weighing.asked[:, None, :]
        grams = rows @ bench.products @ rows.transpose(0, 2, 1)  # ⟨wᵢΔWᵢ, wⱼΔWⱼ⟩ of the recipe's own sources
    whole = grams.sum(0)
    cached: dict[tuple[float, ...], list[float]] = {}
    result = np.zeros_like(weighing.outer)
    for place, weights in enumerate(map(tuple, weighing.outer[:, first].tolist())):
        if node.method.reads is Reads.MODULE:
            each = node.coefficients(weights, functools.partial(grams.__getitem__, place))
        elif not (each := cached.get(weights, [])):
            each = cached[weights] = node.coefficients(weights, lambda: whole)
        result[place] = np.asarray(each)[weighing.groups]
    result *= weighing.inner
    return result


def direct(
    bench: Bench, weighing: Weighing, factors: np.ndarray, peaks: np.ndarray | None = None
) -> Outcomes:
    """Return the figures of τ = Σ cᵢΔWᵢ at every module.

    Args:
        bench: measured modules.
        weighing: what the recipe asks for.
        factors: Float64[module source], cᵢ.
        peaks: Float64[module], S₀(τ), where it is known.
    """
    asked, gram = weighing.asked, bench.products
    energy = gram.diagonal(axis1=1, axis2=2)
    applied = np.einsum("mij,mj->mi", gram, factors)
    away = factors[:, None, :] - asked[:, :, None] * np.eye(bench.count)  # row i: d = c − wᵢeᵢ
    talk = np.einsum("mij,mijk,mik->mi", away, bench.talk, away)
    count = len(bench.modules)
    return Outcomes(
        places=np.arange(count),
        asked=np.square(asked) * energy,
        own=np.square(factors) * energy,
        square=(factors * applied).sum(1).clip(0),
        pull=applied * asked,
        talk=talk.clip(0),
        plain=np.einsum("mi,mij,mj->m", asked, gram, asked).clip(0),
        toward=(applied * asked).sum(1),
        growth=np.full(count, math.nan) if peaks is None else growth(bench, asked, peaks),
        kept=np.ones(count),
    )


def growth(
    bench: Bench, asked: np.ndarray, peaks: np.ndarray, places: Sequence[int] | None = None
) -> np.ndarray:
    """Return Float64[module], S₀(τ) / max S₀(wᵢΔWᵢ); NaN where nothing is asked for.

    Args:
        bench: measured modules.
        asked: Float64[module source], wᵢ.
        peaks: Float64[module], S₀(τ).
        places: of these modules on the bench; all by default.
    """
    tops = bench.peaks if places is None else bench.peaks[np.asarray(places, dtype=int)]
    largest = (np.abs(asked) * tops).max(1, initial=0.0)
    ratios: np.ndarray = np.divide(peaks, largest, out=np.full(len(largest), math.nan), where=largest > 0)
    return ratios


def summed(bench: Bench, outcomes: Outcomes) -> Outcome:
    """Return the figures of several modules together."""
    full = bench.products[outcomes.places].diagonal(axis1=1, axis2=2).sum(0)
    asked, own, pull, talk = (getattr(outcomes, name).sum(0) for name in ("asked", "own", "pull", "talk"))
    norm, apart = math.sqrt(float(outcomes.square.sum())), math.sqrt(float(own.sum()))
    contributions = np.sqrt(own)
    total = float(contributions.sum())
    shares = contributions / total if total > 0 else contributions
    grown = outcomes.growth[~np.isnan(outcomes.growth)]
    return Outcome(
        modules=len(outcomes),
        norm=norm,
        apart=apart,
        cancel=norm / apart if apart > 0 else math.nan,
        to_source=tuple(norm / math.sqrt(value) if value > 0 else math.inf for value in full),
        shares=tuple(float(share) for share in shares),
        evenness=_evenness(shares),
        retention=tuple(float(p / a) if a > 0 else math.nan for p, a in zip(pull, asked)),
        crosstalk=tuple(math.sqrt(float(t / a)) if a > 0 else math.nan for t, a in zip(talk, asked)),
        growth=float(grown.max()) if len(grown) else math.nan,
    )


def _evenness(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    if len(shares) < 2 or not len(positive):
        return 0.0
    return float(-(positive * np.log(positive)).sum() / math.log(len(shares)))


# ------------------------------------------------------------------------ prospect


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Outcomes of a method that Gram matrices alone cannot tell, at some modules of the bench.

    outcomes  of the modules that were looked at
    spectra   per such module, all singular values; () where they are not known
    """

    outcomes: Outcomes
    spectra: tuple[np.ndarray, ...] = ()


# (recipe in its tree, bench, weighing, places on the bench) -> what it makes of these modules
Foresee = Callable[[Node, Bench, Weighing, Sequence[int]], Foreseen]


@dataclass(slots=True)
class Prospect:
    """One recipe over one bench.

    tree      the recipe in its tree
    size      what its file will hold
    spectra, stacked  singular values of τ and ranks before the cut per module of the bench; empty where only
                      some modules were carried out
    foresee   carries methods out that Gram matrices alone cannot tell; None where that is not wanted
    """

    bench: Bench
    tree: Tree
    size: SizeEstimate
    weighing: Weighing
    spectra: list[np.ndarray]
    stacked: np.ndarray
    foresee: Foresee | None = None
    outcomes: Outcomes | None = None
    report: RecipeReport | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe looked at."""
        return self.tree.root.recipe

    @property
    def names(self) -> list[str]:
        """Names of the modules on the bench."""
        return [module.task.name for module in self.bench.modules]


def look_ahead(
    bench: Bench, tree: Tree, foresee_modules: Foresee | None, cancelled: Callable[[], bool]
) -> Prospect:
    """Return what a recipe will make of the measured sources.

    Scalar methods over files or plain groups are exact, from Gram matrices of every module. Others are
    carried out; where that is not wanted the report stays empty. Inside a group with a method of its own, wᵢ
    is the product of the ratios on the way.

    Raises:
        RecipeError: a budget is too small.
        Cancelled: `cancelled()` became true.
    """
    node = tree.root
    weighing = weigh(bench, node)
    prospect = Prospect(
        bench=bench,
        tree=tree,
        size=foresee(tree),
        weighing=weighing,
        spectra=[],
        stacked=np.zeros(0, dtype=int),
        foresee=foresee_modules,
    )
    if node.method.space is Space.SCALAR and stacks(node):
        factors = coefficients(bench, weighing, node)
        prospect.spectra, prospect.stacked = spectra_of(bench, factors, cancelled)
        peaks = np.array([float(singular[0]) if len(singular) else 0.0 for singular in prospect.spectra])
        prospect.outcomes = direct(bench, weighing, factors, peaks)
        prospect.report = _report(prospect, prospect.outcomes, exact=True)
    elif foresee_modules is not None:
        seen = foresee_modules(node, bench, weighing, modules_for(bench, node.method))
        if len(seen.spectra) == len(bench.modules):
            prospect.spectra = list(seen.spectra)
            prospect.stacked = np.array(
                [int(np.count_nonzero(s > 1e-12 * s[0])) if len(s) else 0 for s in seen.spectra]
            )
        prospect.outcomes = seen.outcomes
        prospect.report = _report(prospect, seen.outcomes, exact=False)
    return prospect


# Modules looked at where a method must be carried out to be known; for a line of a table fewer will do.
CORE_SAMPLE, DENSE_SAMPLE, LINE_SAMPLE = 48, 16, 8


def modules_for(bench: Bench, method: Method, most: int | None = None) -> list[int]:
    """Return the modules that stand for all of them: evenly spaced in the order of names, so that every
    block is met.
    """
    count = len(bench.modules)
    wanted = most or (DENSE_SAMPLE if method.space is Space.DENSE else CORE_SAMPLE)
    if count <= wanted:
        return list(range(count))
    return sorted({int(step * count / wanted) for step in range(wanted)})


def _report(prospect: Prospect, outcomes: Outcomes, *, exact: bool) -> RecipeReport:
    bench, recipe, method = prospect.bench, prospect.recipe, prospect.tree.root.method
    blocks = {block: summed(bench, outcomes.at(places)) for block, places in bench.blocks().items()}
    rank, error, size, points = _cut(prospect, outcomes)
    weights, norms = by_block(bench, prospect.weighing)
    return RecipeReport(
        method=method.name,
        title=method.title,
        labels=tuple(file.label for file in bench.files),
        ratios=tuple(use.ratio for use in uses(prospect.tree.root)),
        total=sum(source.ratio for source in recipe.sources),
        whole=_whole(prospect, outcomes),
        blocks={block: part for block, part in blocks.items() if part.modules},
        policy=recipe.policy().text,
        rank=rank,
        error=error,
        bytes=size,
        curve=points,
        weights=weights,
        heard=norms,
        seen=(len(outcomes), len(bench.modules)),
        direct=exact,
        pruning=prunings(prospect.tree.root, prospect.names, prospect.spectra, prospect.size),
    )


def _whole(prospect: Prospect, outcomes: Outcomes) -> Outcome:
    """Return the figures of the whole merge; where only some modules were seen, norms grow as the plain
    sum's does.
    """
    part = summed(prospect.bench, outcomes)
    if len(outcomes) == len(prospect.bench.modules) or not outcomes.plain.sum() > 0:
        return part
    asked, products = prospect.weighing.asked, prospect.bench.products
    plain = float(np.einsum("mi,mij,mj->", asked, products, asked))
    scale = math.sqrt(max(plain, 0.0) / float(outcomes.plain.sum()))
    full = prospect.bench.whole.diagonal()
    norm = part.norm * scale
    to_source = tuple(norm / math.sqrt(value) if value > 0 else math.inf for value in full)
    return replace(part, norm=norm, apart=part.apart * scale, to_source=to_source)


def _cut(
    prospect: Prospect, outcomes: Outcomes
) -> tuple[tuple[int, int], float, int, tuple[CurvePoint, ...]]:
    """Return ((least, greatest) rank, relative error, bytes, curve)."""
    size, node = prospect.size, prospect.tree.root
    if not prospect.spectra:
        square = float(outcomes.square.sum())
        left = float((outcomes.square * (1.0 - outcomes.kept)).sum())
        error = math.sqrt(max(left, 0.0) / square) if square > 0 else 0.0
        return size.rank, error, size.bytes, ()
    names = prospect.names
    ranks = ranks_under(node, names, prospect.spectra, prospect.stacked, size)
    bytes_at = size.bytes_at(names)
    points = curve(prospect.spectra, prospect.stacked, bytes_at)
    if size.exact and not size.cut:
        return size.rank, 0.0, size.bytes, points
    kept = ranks[(ranks > 0) & ~size.fillers(names)]
    error = lost(prospect.spectra, ranks) if size.cut else 0.0
    return (int(min(kept, default=0)), int(max(kept, default=0))), error, bytes_at(ranks), points


def fitting(recipe: Recipe) -> list[Method]:
    """Return the methods that could merge the recipe's sources as they are: right number, roles given,
    nothing taken away.
    """
    roles = sorted(source.role for source in recipe.sources if source.role)
    count = len(recipe.sources)
    methods = []
    for method in METHODS.values():
        if count < 2 or not method.takes(count):
            continue
        if (method.roles and sorted(method.roles) != roles) or (
            method.removes and method.name != recipe.method
        ):
            continue
        methods.append(method)
    return methods


def compared(prospect: Prospect, only: Sequence[str] | None = None) -> tuple[MethodRow, ...]:
    """Return one row per method on the same sources and ratios.

    Args:
        prospect: the recipe looked at; methods that it cannot foresee are left out.
        only: names of methods to compare; by default all that fit, but dense ones, which take seconds each.
    """
    rows = []
    for method in fitting(prospect.recipe):
        compare = method.space is not Space.DENSE if only is None else method.name in only
        if not compare and method.name != prospect.recipe.method:
            continue
        outcomes = outcomes_of(prospect, method)
        if outcomes is not None:
            rows.append(_row(prospect, method, outcomes))
    return tuple(rows)


def outcomes_of(prospect: Prospect, method: Method) -> Outcomes | None:
    """Return the figures of a method on the same sources and ratios; None where that is not foreseen."""
    bench, recipe, weighing = prospect.bench, prospect.recipe, prospect.weighing
    if method.name == recipe.method:
        return prospect.outcomes
    node = prospect.tree.root.under(recipe_edits.with_method(recipe, method.name))
    if method.space is Space.SCALAR and stacks(node):
        return direct(bench, weighing, coefficients(bench, weighing, node))
    if prospect.foresee is None:
        return None
    return prospect.foresee(node, bench, weighing, modules_for(bench, method, LINE_SAMPLE)).outcomes


def _row(prospect: Prospect, method: Method, outcomes: Outcomes) -> MethodRow:
    whole = summed(prospect.bench, outcomes)
    plain_square, square, toward = (
        float(getattr(outcomes, name).sum()) for name in ("plain", "square", "toward")
    )
    both = math.sqrt(plain_square * square)
    return MethodRow(
        name=method.name,
        title=method.title,
        space=method.space,
        to_sum=math.sqrt(square / plain_square) if plain_square > 0 else math.nan,
        cosine=toward / both if both > 0 else math.nan,
        shares=whole.shares,
        retention=whole.retention,
        crosstalk=whole.crosstalk,
        kept=float(outcomes.square @ outcomes.kept) / square if square > 0 else 1.0,
        seen=len(outcomes),
        chosen=method.name == prospect.recipe.method,
    )
