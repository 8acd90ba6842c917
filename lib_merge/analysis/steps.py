"""The analysis in steps, so that what is known first can be shown first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib_merge.adapters import LoraFile, open_lora
from lib_merge.analysis import measure as benches
from lib_merge.analysis.advice import advise
from lib_merge.analysis.measure import Bench
from lib_merge.analysis.model import STAGES, AnalysisReport
from lib_merge.analysis.outcome import Forecast, compared, look_ahead
from lib_merge.analysis.sources import pair_report, source_report
from lib_merge.analysis.symptoms import starting_points, symptoms
from lib_merge.analysis.training import training
from lib_merge.analysis.weights import Given, Leaf, as_recipe, leaves, open_files
from lib_merge.recipe import Recipe

Progress = Callable[[str, int, int], None]
Cancel = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Options:
    """How an analysis runs.

    family     decides where shapes cannot
    forecast   carries out methods that Gram matrices alone cannot tell; see `lib_merge.analysis.forecast`
    methods    names to compare; by default all that fit, but dense ones
    seed       of the sampled entries
    progress   called with (stage, done, total)
    cancelled  asked between modules
    open_file  opens a file
    before     a complete report; what it measured of the same files in the same order is not measured again
    """

    family: str | None = None
    forecast: Forecast | None = None
    methods: Sequence[str] | None = None
    seed: int = 0
    progress: Progress | None = None
    cancelled: Cancel | None = None
    open_file: Callable[[Path], LoraFile] = open_lora
    before: AnalysisReport | None = None


def analyze(given: Given, **options: Any) -> AnalysisReport:  # noqa: ANN401
    """Say what is in LoRAs, what merging them will do, and what to do about it.

    Args:
        given: a recipe with paths, or files (merged by a weighted sum at ratio 1).
        options: the fields of `Options`.
    Returns:
        The complete report.
    Raises:
        MergeError: a file is damaged or of another family, the recipe is wrong, or `cancelled()` became true.
    """
    *_, last = analyze_steps(given, **options)
    return last


def analyze_steps(given: Given, **options: Any) -> Iterator[AnalysisReport]:  # noqa: ANN401
    """Yield the report as it grows: files (no tensor read), sources, pairs, recipe, methods, advice; see
    `analyze`.
    """
    start = time.perf_counter()
    chosen = Options(**options)
    recipe = as_recipe(given, chosen.family)
    files = open_files(recipe, chosen.open_file)
    try:
        found = leaves(recipe, files)
        known = _known(chosen.before, found)
        grown = _grown(recipe, found, chosen) if known is None else _ahead(known, recipe, found, chosen)
        for report in grown:
            yield replace(report, seconds=time.perf_counter() - start)
    finally:
        for file in files.values():
            file.close()


def _grown(recipe: Recipe, found: Sequence[Leaf], options: Options) -> Iterator[AnalysisReport]:
    family = found[0].file.family or ""
    files = tuple(benches.file_info(leaf, label) for leaf, label in zip(found, benches.labels(found)))
    bench = Bench(family, files)
    ranks = [_ranks(leaf) for leaf in found]
    notes = [note for file in {leaf.file.path: leaf.file for leaf in found}.values() for note in file.notes]
    report = AnalysisReport(
        "files", family, training=training(files, ranks), notes=(*notes, *benches.misfits(found)), bench=bench
    )
    yield report
    listed = benches.tasks(found, family, options.seed)
    for done, measured in enumerate(benches.run(listed, options.cancelled), 1):
        bench.modules.append(measured)
        if options.progress is not None:
            options.progress("measure", done, len(listed))
    sources = tuple(source_report(bench, index) for index in range(bench.count))
    report = replace(report, stage="sources", sources=sources)
    yield report
    pairs = tuple(pair_report(bench, a, b) for a in range(bench.count) for b in range(a + 1, bench.count))
    report = replace(report, stage="pairs", pairs=pairs)
    yield report
    yield from _ahead(report, recipe, found, options)


def _ahead(
    report: AnalysisReport, recipe: Recipe, found: Sequence[Leaf], options: Options
) -> Iterator[AnalysisReport]:
    """Yield what depends on the recipe: its outcome, the other methods, the advice."""
    assert report.bench is not None
    prospect = look_ahead(report.bench, recipe, found, options.forecast, options.cancelled)
    report = replace(report, stage="recipe", recipe=prospect.report)
    yield report
    report = replace(report, stage="methods", methods=compared(prospect, options.forecast, options.methods))
    yield report
    advice = tuple(advise(report, prospect))
    yield replace(
        report,
        stage="advice",
        advice=advice,
        starts=starting_points(recipe, report.family),
        symptoms=symptoms(report, prospect, advice),
    )


def reweigh(report: AnalysisReport, recipe: Recipe, **options: Any) -> AnalysisReport:  # noqa: ANN401
    """Return the report for other ratios, blocks or another method over the same files in the same order.

    Nothing that was measured is measured again; where the files were too large to keep their Gram matrices,
    or where the recipe has other files, everything is.

    Args:
        report: complete, as `analyze` returned it, with its bench.
        recipe: the changed recipe, with paths.
        options: as in `analyze`.
    """
    return analyze(recipe, **{**options, "before": report})


def _known(before: AnalysisReport | None, found: Sequence[Leaf]) -> AnalysisReport | None:
    """Return what an earlier report knows of these files, as of the stage `pairs`; None where they must be
    measured.
    """
    if before is None or before.bench is None or STAGES.index(before.stage) < STAGES.index("pairs"):
        return None
    if not before.bench.holds_grams or not before.bench.fits(found):
        return None
    nothing: tuple[Any, ...] = ()
    return replace(
        before, stage="pairs", recipe=None, methods=nothing, advice=nothing, starts=nothing, symptoms=nothing
    )


def _ranks(leaf: Leaf) -> tuple[int, int]:
    found = [part.module.layout.rank for part in leaf.parts.values() if part.module.layout.rank]
    return min(found, default=0), max(found, default=0)
