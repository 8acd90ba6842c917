"""`python -m lib_merge …`: each command as one verb."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lib_merge import api
from lib_merge.adapters import open_lora
from lib_merge.analysis import analyze, to_html, to_json
from lib_merge.analysis.steps import Given, as_recipe
from lib_merge.cli.cautions import cautions
from lib_merge.cli.options import Verb, parser_of
from lib_merge.cli.text import (
    ProgressLine,
    analysis_text,
    inspect_text,
    method_rows,
    methods_text,
    presets_text,
    report_text,
    show,
    write_page,
)
from lib_merge.cli.typed import recipe_of
from lib_merge.engine.report import MergeReport
from lib_merge.engine.threads import Job
from lib_merge.errors import Cancelled, MergeError, OutputError, RecipeError
from lib_merge.files.names import SUFFIX
from lib_merge.library.inspect import inspect_file
from lib_merge.library.partners import partner_stem, partners_of
from lib_merge.methods import DEFAULT_METHOD, METHODS, get_method
from lib_merge.recipe import Recipe
from lib_merge.samples import write_samples

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 1 verify differs, 2 bad input, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments, rest = parser_of(VERBS).parse_known_args(argv)
    if rest:
        arguments.parser.unknown(rest)
    stop = _Interrupt()
    previous = signal.signal(signal.SIGINT, stop)
    try:
        arguments.run(arguments, stop)
    except MergeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped by the user; nothing was written.\n")
        return Cancelled.exit_code
    except BrokenPipeError:
        return 0
    finally:
        signal.signal(signal.SIGINT, previous)
    return 0


class _Interrupt:
    """First Ctrl+C asks the engine to stop between two modules; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _merge(arguments: Arguments, stop: _Interrupt) -> None:
    _run(recipe_of(arguments), arguments, stop)


def _run(recipe: Recipe, arguments: Arguments, stop: _Interrupt) -> None:
    if arguments.keep_levels and recipe.flat:
        message = "--keep_levels saves the groups of a merge, and this one has none: make some with --group."
        raise RecipeError(message)
    wanted: list[tuple[Recipe, Path, list[str]]] = [(recipe, Path(arguments.save_to), cautions(recipe))]
    if arguments.partners:
        wanted.append(_partners(recipe, arguments))
    reports = []
    with ProgressLine() as progress:
        job = _job(arguments, stop, progress)
        for one, target, notes in wanted:
            report = api.run_recipe(one, target, job=job, keep_levels=arguments.keep_levels)
            report.warnings[:0] = notes
            reports.append(report)
    if arguments.json and arguments.partners:
        show(json.dumps([report.to_json() for report in reports], allow_nan=False))
        return
    for report in reports:
        _show(report, as_json=arguments.json)


def _partners(recipe: Recipe, arguments: Arguments) -> tuple[Recipe, Path, list[str]]:
    """Return the recipe for the partner files, where it is saved, and what to know of it."""
    partners = partners_of(recipe, [Path(folder) for folder in getattr(arguments, "lora_dir", None) or ()])
    first = Path(arguments.save_to)
    target = first.with_name(f"{partner_stem(first.stem, partners)}{first.suffix}")
    if target.exists() and not arguments.overwrite:
        message = f"{target.name} exists already; choose another name or add --overwrite."
        raise OutputError(message)
    return partners.recipe, target, [*partners.notes, *cautions(partners.recipe)]


def _job(arguments: Arguments, stop: _Interrupt, progress: ProgressLine) -> Job:
    return Job(
        device=arguments.device,
        overwrite=getattr(arguments, "overwrite", False),
        drop_unsupported=getattr(arguments, "drop_unsupported", False),
        progress=progress,
        cancelled=lambda: stop.asked,
        # a merge that bears its name must not write its notes into it
        recipe_file=Path(arguments.recipe) if getattr(arguments, "recipe", None) else None,
    )


def _show(report: MergeReport, *, as_json: bool) -> None:
    show(json.dumps(report.to_json(), allow_nan=False) if as_json else report_text(report))


def _resize(arguments: Arguments, stop: _Interrupt) -> None:
    if arguments.rank is None and not (arguments.conv_rank or arguments.prune or arguments.prune_below):
        raise RecipeError(_which_rank(arguments.model, arguments.family))
    _alone(arguments, stop)


def _which_rank(model: str, family: str | None) -> str:
    """Return what a resize without a rank is told: which ranks there are, and which can be asked for."""
    with open_lora(model, family) as file:
        ranks = [module.layout.rank for module in file.modules.values() if module.layout.rank]
    low, high = min(ranks, default=0), max(ranks, default=0)
    there = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return (
        f"resize needs --rank: {Path(model).name} has {there}; give a number such as --rank "
        f"{max(1, high // 2)}, energy:0.99, error:0.01 or budget:50MB."
    )


def _alone(arguments: Arguments, stop: _Interrupt) -> None:
    """Merge one LoRA with nothing: known names, ΔW as LoRA factors, and nothing of it lost on the way."""
    arguments.models, arguments.method, arguments.seed = [arguments.model], DEFAULT_METHOD, 0
    for name in _OF_MERGES:
        setattr(arguments, name, None)
    _merge(arguments, stop)


_OF_MERGES = (
    "ratios",
    "blocks",
    "te_ratios",
    "roles",
    "elements",
    "knob",
    "group",
    "keep_levels",
    "partners",
    "aside",
)


def _run_recipe(arguments: Arguments, stop: _Interrupt) -> None:
    recipe = api.load_recipe(arguments.recipe, arguments.lora_dir or ())
    if arguments.save_to is None:
        arguments.save_to = str(Path(arguments.recipe).with_suffix(SUFFIX))
    _run(recipe, arguments, stop)


def _verify(arguments: Arguments, stop: _Interrupt) -> None:
    with ProgressLine() as progress:
        report = api.verify(arguments.merged, arguments.lora_dir or (), job=_job(arguments, stop, progress))
    _show(report, as_json=arguments.json)


def _inspect(arguments: Arguments, _: _Interrupt) -> None:
    inspected = [inspect_file(Path(path), arguments.family) for path in arguments.files]
    show(
        json.dumps(inspected, allow_nan=False)
        if arguments.json
        else "\n\n".join(inspect_text(item) for item in inspected)
    )


def _methods(arguments: Arguments, _: _Interrupt) -> None:
    show(json.dumps(method_rows()) if arguments.json else methods_text())


def _presets(arguments: Arguments, _: _Interrupt) -> None:
    found = api.presets(arguments.family)
    show(json.dumps(found) if arguments.json else presets_text(found))


def _demo(arguments: Arguments, _: _Interrupt) -> None:
    folder = Path(arguments.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the folder {arguments.folder} cannot be made: {error.strerror or error}."
        raise OutputError(message) from error
    for path in write_samples(folder):
        show(f"{path.name}  {path.stat().st_size / 1e6:.1f} MB")


def _analyze(arguments: Arguments, stop: _Interrupt) -> None:
    with ProgressLine() as progress:
        job = Job(device=arguments.device, progress=progress, cancelled=lambda: stop.asked)
        report = analyze(_looked_at(arguments), job=job, methods=_compared(arguments.compare))
    if arguments.html:
        write_page(Path(arguments.html), to_html(report))
    if arguments.json:
        show(json.dumps(to_json(report, tensors=not arguments.no_tensors), allow_nan=False))
    else:
        show(analysis_text(report))


def _looked_at(arguments: argparse.Namespace) -> Given:
    if arguments.recipe:
        if arguments.ratios or arguments.method:
            message = "--ratios and --method belong to files; a recipe has its own."
            raise RecipeError(message)
        folders = [*(arguments.lora_dir or ()), *{str(Path(file).parent) for file in arguments.files}]
        return api.load_recipe(arguments.recipe, folders)
    recipe = as_recipe(arguments.files, arguments.family)
    if arguments.ratios is not None:
        if len(arguments.ratios) != len(recipe.sources):
            message = (
                f"--ratios has {len(arguments.ratios)} values for {len(recipe.sources)} "
                "files: give one for each."
            )
            raise RecipeError(message)
        pairs = zip(recipe.sources, arguments.ratios)
        recipe = replace(recipe, sources=tuple(replace(source, ratio=ratio) for source, ratio in pairs))
    return recipe if arguments.method is None else replace(recipe, method=arguments.method)


def _compared(names: list[str] | None) -> list[str] | None:
    """Return the methods to compare; None for all but those that work number by number and take seconds
    each.
    """
    if names is None:
        return None
    return list(METHODS) if names == ["all"] else [get_method(name).name for name in names]


VERBS: Mapping[str, Verb] = {
    "merge": _merge,
    "resize": _resize,
    "convert": _alone,
    "run": _run_recipe,
    "verify": _verify,
    "inspect": _inspect,
    "analyze": _analyze,
    "methods": _methods,
    "presets": _presets,
    "demo": _demo,
}
