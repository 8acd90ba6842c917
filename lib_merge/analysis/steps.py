"""The analysis in steps, so that what is known first can be shown first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Union

from lib_merge.analysis import measure
from lib_merge.analysis.advice import advise
from lib_merge.analysis.evidence import held_places
from lib_merge.analysis.forecast import Forecaster
from lib_merge.analysis.measure import Bench
from lib_merge.analysis.model import STAGES, AnalysisReport, SourceReport
from lib_merge.analysis.outcome import compared, look_ahead
from lib_merge.analysis.recognition import Traits, recognise, traits_of, with_flatness
from lib_merge.analysis.sources import pair_report, source_report
from lib_merge.analysis.symptoms import starting_points, symptoms
from lib_merge.analysis.training import training
from lib_merge.engine.threads import Job, exact_numerics
from lib_merge.engine.tree import MISFIT, Leaf, Tree, open_tree
from lib_merge.errors import RecipeError
from lib_merge.recipe import Recipe, Source

Given = Union[Recipe, Sequence[Union[str, Path, Source]]]


@dataclass(frozen=True, slots=True)
class Options:
    """What an analysis looks at.

    family     decides where shapes cannot
    carry_out  carry methods out that Gram matrices alone cannot tell; without it their figures stay empty
    methods    names to compare; by default all that fit, but dense ones
    seed       of the sampled entries
    before     a complete report; what it measured of the same files in the same order is not measured again
    """

    family: str | None = None
    carry_out: bool = True
    methods: Sequence[str] | None = None
    seed: int = 0
    before: AnalysisReport | None = None


def analyze(given: Given, job: Job | None = None, **options: Any) -> AnalysisReport:  # noqa: ANN401
    """Say what is in LoRAs, what merging them will do, and what to do about it.

    Args:
        given: a recipe with paths, or files (merged by a weighted sum at ratio 1).
        job: device, progress, cancel and the way files are opened.
        options: the fields of `Options`.
    Returns:
        The complete report.
    Raises:
        MergeError: a file is damaged or of another family, the recipe is wrong, or the job was cancelled.
    """
    *_, last = analyze_steps(given, job, **options)
    return last


def analyze_steps(
    given: Given,
    job: Job | None = None,
    **options: Any,  # noqa: ANN401
) -> Iterator[AnalysisReport]:
    """Yield the report as it grows: files (no tensor read), sources, pairs, recipe, methods, advice.

    See `analyze`.
    """
    start = time.perf_counter()
    job, chosen = job or Job(), Options(**options)
    recipe = as_recipe(given, chosen.family)
    # the sources are shown whatever is wrong with their merge, so they are opened for the plainest one
    plainest = Recipe(recipe.sources, seed=recipe.seed, family=recipe.family)
    with open_tree(plainest, job.open_file, drop_unsupported=True, look_only=True) as tree:
        cached = _cached(chosen.before, tree)
        if cached is None:
            grown = _grown(recipe, tree, job, chosen)
        else:
            grown = _ahead(cached, recipe, tree, job, chosen)
        for report in grown:
            yield replace(report, seconds=time.perf_counter() - start)


def as_recipe(given: Given, family: str | None = None) -> Recipe:
    """Return a recipe as it is, or a weighted sum of the given files at ratio 1.

    Raises:
        RecipeError: no source at all.
    """
    if isinstance(given, Recipe):
        return given
    sources = tuple(
        item if isinstance(item, Source) else Source(path=Path(item), name=Path(item).name) for item in given
    )
    if not sources:
        message = "there is nothing to look at: give at least one LoRA."
        raise RecipeError(message)
    return Recipe(sources, family=family)


def _grown(recipe: Recipe, tree: Tree, job: Job, options: Options) -> Iterator[AnalysisReport]:
    leaves = tree.root.leaves()
    files = tuple(measure.file_info(leaf, label) for leaf, label in zip(leaves, measure.labels(leaves)))
    bench = Bench(tree.root.family, files)
    notes = [note for file in tree.files for note in file.notes]
    report = AnalysisReport(
        stage="files",
        family=tree.root.family,
        training=training(files, [_ranks(leaf) for leaf in leaves]),
        notes=(*notes, *(note for note in tree.root.notes if MISFIT in note)),
        bench=bench,
    )
    yield report
    listed = measure.tasks(tree.root, options.seed)
    with exact_numerics(measure.CPU):
        for done, measured in enumerate(measure.run(listed, job.cancelled), 1):
            bench.modules.append(measured)
            job.tell("measure", done, len(listed))
    sources = tuple(
        _told(source_report(bench, index), traits_of(leaf.file)) for index, leaf in enumerate(leaves)
    )
    report = replace(report, stage="sources", sources=sources)
    yield report
    pairs = tuple(pair_report(bench, a, b) for a in range(bench.count) for b in range(a + 1, bench.count))
    report = replace(report, stage="pairs", pairs=pairs)
    yield report
    yield from _ahead(report, recipe, tree, job, options)


def _told(source: SourceReport, traits: Traits) -> SourceReport:
    """Return a source with what it is recognised as, now that its spectrum is known."""
    shaped = with_flatness(traits, source.whole.effective_rank, source.rank)
    return replace(source, marks=recognise(shaped))


def _ahead(
    report: AnalysisReport, recipe: Recipe, tree: Tree, job: Job, options: Options
) -> Iterator[AnalysisReport]:
    """Yield what depends on the recipe: its outcome, the other methods, the advice."""
    assert report.bench is not None
    recipe.check()
    forecast = Forecaster(job) if options.carry_out else None
    prospect = look_ahead(report.bench, tree.under(recipe), forecast, job.cancelled)
    report = replace(report, stage="recipe", recipe=prospect.report)
    yield report
    report = replace(report, stage="methods", methods=compared(prospect, options.methods))
    yield report
    advice = tuple(advise(report, prospect))
    yield replace(
        report,
        stage="advice",
        advice=advice,
        starts=starting_points(recipe, report.family, held_places(report)),
        symptoms=symptoms(report, prospect, advice),
    )


def reweigh(
    report: AnalysisReport,
    recipe: Recipe,
    job: Job | None = None,
    **options: Any,  # noqa: ANN401
) -> AnalysisReport:
    """Return the report for other ratios, blocks or another method over the same files in the same order.

    Nothing that was measured is measured again; where the files were too large to keep their Gram matrices,
    or where the recipe has other files, everything is.

    Args:
        report: complete, as `analyze` returned it, with its bench.
        recipe: the changed recipe, with paths.
        job: as in `analyze`.
        options: as in `analyze`.
    """
    return analyze(recipe, job, **{**options, "before": report})


def _cached(before: AnalysisReport | None, tree: Tree) -> AnalysisReport | None:
    """Return what an earlier report knows of these files, as of the stage `pairs`; None where they must be
    measured.
    """
    if before is None or before.bench is None or STAGES.index(before.stage) < STAGES.index("pairs"):
        return None
    if not before.bench.holds_grams or not before.bench.fits(tree.root.leaves()):
        return None
    nothing: tuple[Any, ...] = ()
    return replace(
        before, stage="pairs", recipe=None, methods=nothing, advice=nothing, starts=nothing, symptoms=nothing
    )


def _ranks(leaf: Leaf) -> tuple[int, int]:
    ranks = [part.module.layout.rank for part in leaf.parts.values() if part.module.layout.rank]
    return min(ranks, default=0), max(ranks, default=0)
