"""`python -m lib_merge analyze`: what is in LoRAs, what merging them will do, what to do about it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_merge import api
from lib_merge.analysis import AnalysisReport, analyze, to_html, to_json
from lib_merge.analysis.steps import Given, as_recipe
from lib_merge.cli.console import ProgressLine
from lib_merge.engine.job import Job
from lib_merge.errors import RecipeError
from lib_merge.files.store import write_text
from lib_merge.methods import METHODS, get_method
from lib_merge.recipe import Recipe


def add_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse keeps the class of subparsers private
    """Add the command to a parser's subparsers; its `run` default takes (arguments, something with
    `.asked`).
    """
    text = "say what is in LoRAs, what merging them will do, and what to do about it"
    parser: argparse.ArgumentParser = commands.add_parser(
        "analyze", help=text, description=text, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="LoRAs; with --recipe none, or where to look for its own"
    )
    parser.add_argument(
        "--recipe", metavar="RECIPE", help="a recipe (.json), or a merged LoRA that carries one"
    )
    parser.add_argument("--ratios", nargs="+", type=float, metavar="R", help="one per file, default 1")
    parser.add_argument(
        "--method", metavar="NAME", help="of the merge that is looked at, default weighted_sum"
    )
    parser.add_argument(
        "--compare",
        nargs="*",
        metavar="NAME",
        help="methods to compare, or all; by default those that take no seconds",
    )
    parser.add_argument("--html", metavar="REPORT", help="write one self-contained page")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--no_tensors", action="store_true", help="leave the table of tensors out of the JSON"
    )
    parser.add_argument(
        "--lora_dir", action="append", metavar="DIR", help="where to look for a recipe's sources; repeatable"
    )
    parser.add_argument(
        "--device", default="cpu", help="of methods that are carried out: auto, cpu, cuda, mps, …"
    )
    parser.add_argument("--family", metavar="F", help="base family where shapes cannot tell")
    return parser


def run(arguments: argparse.Namespace, stop: Any = None) -> None:  # noqa: ANN401
    """Analyse, and print or write what was asked for.

    Args:
        arguments: as `add_parser` declares them.
        stop: its `asked` becomes true when the user wants to stop.
    Raises:
        MergeError: a file or recipe is wrong, or the page cannot be written.
    """
    with ProgressLine() as progress:
        job = Job(
            device=arguments.device, progress=progress, cancelled=lambda: bool(getattr(stop, "asked", False))
        )
        report = analyze(_given(arguments), job=job, methods=_compared(arguments.compare))
    if arguments.html:
        write_text(Path(arguments.html), to_html(report))
    if arguments.json:
        _out(json.dumps(to_json(report, tensors=not arguments.no_tensors), allow_nan=False))
    else:
        _out(report_text(report))


def _given(arguments: argparse.Namespace) -> Given:
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
    return _with_method(recipe, arguments.method)


def _with_method(recipe: Recipe, method: str | None) -> Recipe:
    return recipe if method is None else replace(recipe, method=method)


def _compared(names: list[str] | None) -> list[str] | None:
    """Return the methods to compare; None for all but those that work number by number and take seconds
    each.
    """
    if names is None:
        return None
    return list(METHODS) if names == ["all"] else [get_method(name).name for name in names]


def _out(text: str) -> None:
    # names come from files: what the console cannot show is escaped, never an error
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def report_text(report: AnalysisReport) -> str:
    """Return a report in a few plain lines."""
    parts: tuple[Callable[[AnalysisReport], Iterator[str]], ...] = (_sources, _pairs, _merge, _advice)
    return "\n".join(_plain(line) for part in parts for line in part(report))


def _plain(line: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _sources(report: AnalysisReport) -> Iterator[str]:
    for source in report.sources:
        part = source.whole
        low, high = source.rank
        ranks = f"rank {low}" if low == high else f"rank {low} to {high}"
        yield (
            f"{source.name}: {report.family}, {source.modules} modules, {ranks}, norm "
            f"{part.norm:.4g}, effective rank "
            f"{part.effective_rank:.1f}, 99 % of the energy in rank {part.ranks.get(0.99, 0)}, text "
            f"encoders {source.encoder:.0%}"
        )
        if source.zero:
            yield f"  {len(source.zero)} tensors are zero"
        if source.broken:
            yield f"  {len(source.broken)} tensors hold NaN or infinity, first {source.broken[0]}"
    yield from (f"note: {note}" for note in (*report.notes, *report.training.warnings))


def _pairs(report: AnalysisReport) -> Iterator[str]:
    for pair in report.pairs:
        part = pair.whole
        names = " and ".join(report.sources[index].label for index in (pair.first, pair.second))
        line = f"{names}: {pair.relation} ({pair.reason})"
        if part.modules:
            line += (
                f"; overlap {part.overlap_out / part.chance_out:.1f} × chance in what they write, "
                f"{part.overlap_in / part.chance_in:.1f} × in what they read; signs disagree in "
                f"{part.conflict:.1%} "
                f"± {part.error:.1%}, expected {part.expected:.1%}"
            )
        yield line


def _merge(report: AnalysisReport) -> Iterator[str]:
    recipe = report.recipe
    if recipe is None or len(report.sources) < 2:
        return
    whole = recipe.whole
    each = ", ".join(
        f"{label}@{ratio:g} {share:.0%}"
        for label, ratio, share in zip(recipe.labels, recipe.ratios, whole.shares)
    )
    seen = "" if recipe.direct else f" (from {recipe.seen[0]} of {recipe.seen[1]} modules)"
    yield f"{recipe.title}{seen}: norm {whole.norm:.4g}, shares {each}"
    talk = ", ".join(f"{value:.0%}" for value in whole.crosstalk)
    yield (
        f"  {whole.cancel:.2f} × the norm of unrelated sources; others on each one's inputs: "
        f"{talk}; strongest direction × "
        f"{whole.growth:.2f}; {recipe.policy}: {recipe.bytes / 1e6:.1f} MB, relative error {recipe.error:.2%}"
    )


def _advice(report: AnalysisReport) -> Iterator[str]:
    for item in report.advice:
        yield f"advice: {item.title}. {item.reason}"
    if not report.advice:
        yield "advice: none; the numbers speak for no change"
