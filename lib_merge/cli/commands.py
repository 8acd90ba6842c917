"""`python -m lib_merge …`: what can be typed, what recipe it asks for, and the verb that does it."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_merge import __version__, api
from lib_merge.analysis import analyze, to_html, to_json
from lib_merge.analysis.steps import Given, as_recipe
from lib_merge.blocks.weights import parse_elements
from lib_merge.cli.cautions import cautions
from lib_merge.cli.text import (
    ProgressLine,
    analysis_text,
    inspect_text,
    method_rows,
    methods_text,
    report_text,
    show,
    write_page,
)
from lib_merge.engine.report import MergeReport
from lib_merge.engine.threads import Job
from lib_merge.errors import Cancelled, MergeError, OutputError, RecipeError
from lib_merge.files.names import SUFFIX
from lib_merge.library.inspect import inspect_file
from lib_merge.library.partners import partner_stem, partners_of
from lib_merge.loaders import NAMINGS
from lib_merge.methods import DEFAULT_METHOD, METHODS, Method, Scope, get_method
from lib_merge.methods.words import FOREIGN, own_knob
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe import PRECISIONS, Recipe, Source
from lib_merge.recipe_edits import with_aside
from lib_merge.samples import write_samples

Arguments = argparse.Namespace
_NONE = (None, "", "-")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 1 verify differs, 2 bad input, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = _parser().parse_args(argv)
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
    arguments.models, arguments.method = [arguments.model], DEFAULT_METHOD
    for name in (
        "ratios",
        "blocks",
        "te_ratios",
        "roles",
        "elements",
        "knob",
        "keep_levels",
        "partners",
        "aside",
    ):
        setattr(arguments, name, None)
    arguments.seed = 0
    _merge(arguments, stop)


def _convert(arguments: Arguments, stop: _Interrupt) -> None:
    """Write one LoRA anew: known names, ΔW as LoRA factors, and nothing of it lost on the way."""
    _resize(arguments, stop)


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


# ---------------------------------------------------------------- from what is typed to a recipe


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the options of `merge` and `resize` ask for.

    Raises:
        RecipeError: a list of the wrong length, a value that is no number, a knob or role that the method
            does not have.
    """
    method = get_method(arguments.method)
    count = len(arguments.models)
    settings = [
        _per_source("ratios", arguments.ratios, count, 1.0),
        _per_source("blocks", arguments.blocks, count, None),
        _per_source("te_ratios", arguments.te_ratios, count, None),
        _roles(arguments.roles, method, count),
        _per_source("elements", arguments.elements, count, None),
    ]
    sources = tuple(
        Source(
            path=Path(model),
            name=Path(model).name,
            ratio=ratio,
            blocks=None if blocks in _NONE else blocks,
            te_ratio=_te_ratio(te),
            role=role,
            elements=() if rules in _NONE else parse_elements(rules),
        )
        for model, ratio, blocks, te, role, rules in zip(arguments.models, *settings)
    )
    recipe = Recipe(
        sources=sources,
        method=method.name,
        knobs=_knobs(arguments.knob or (), method, count),
        rank=None if arguments.rank is None else parse_policy(arguments.rank),
        conv_rank=arguments.conv_rank,
        prune=arguments.prune,
        prune_below=arguments.prune_below,
        precision=arguments.save_precision,
        seed=arguments.seed,
        family=arguments.family,
        names=arguments.target or "",
        trainable=arguments.trainable,
    )
    return with_aside(recipe, arguments.aside) if arguments.aside else recipe


def _per_source(name: str, values: list[Any] | None, count: int, default: Any) -> list[Any]:  # noqa: ANN401
    if values is None:
        return [default] * count
    if len(values) != count:
        message = f"--{name} has {len(values)} values for {count} models: give one for each."
        raise RecipeError(message)
    return values


def _roles(given: list[str] | None, method: Method, count: int) -> list[str | None]:
    roles = [None if role in _NONE else role for role in _per_source("roles", given, count, None)]
    if any(roles) and not method.roles:
        message = f"{method.name} has no roles: leave --roles out, or choose a method that has them."
        raise RecipeError(message)
    return roles


def _te_ratio(text: str | None) -> float | tuple[float, ...] | None:
    if text in _NONE:
        return None
    try:
        numbers = tuple(float(part) for part in str(text).split(","))
    except ValueError as error:
        message = f"text-encoder ratio {text!r} is not a number, nor two with a comma (TE1,TE2)."
        raise RecipeError(message) from error
    return numbers[0] if len(numbers) == 1 else numbers


def _knobs(given: Sequence[str], method: Method, count: int) -> dict[str, Any]:
    """Read NAME=VALUE for all sources and NAME@2=VALUE for the second one alone, whatever their order."""
    knobs: dict[str, Any] = {}
    for text in sorted(given, key=lambda text: "@" in text.partition("=")[0]):
        name, sign, value = text.partition("=")
        name, at, number = name.strip().partition("@")
        if not sign:
            message = f"--knob {text!r} is not NAME=VALUE."
            raise RecipeError(message)
        knob = own_knob(method, name) if name in FOREIGN else method.knob(name)
        if not at:
            knobs[name] = value.strip()
            continue
        if knob is None or knob.scope is not Scope.SOURCE:
            message = f"--knob {text!r}: {name} of {method.name} has one value for the whole merge."
            raise RecipeError(message)
        if not number.isdecimal() or not 1 <= int(number) <= count:
            message = f"--knob {text!r}: there is no source {number}; they count from 1 to {count}."
            raise RecipeError(message)
        values = knobs.get(name, knob.default if name == knob.name else 1.0 - float(knob.default))
        values = list(values) if isinstance(values, (list, tuple)) else [values] * count
        values[int(number) - 1] = value.strip()
        knobs[name] = values
    return knobs


# ---------------------------------------------------------------- what can be typed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib_merge", description="Merge LoRAs exactly.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"lora-merge {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _merge_options(_command(commands, "merge", "merge LoRAs into one", _merge))
    resize = _command(commands, "resize", "save one LoRA at another rank", _resize)
    resize.add_argument("--model", required=True, metavar="FILE")
    resize.add_argument("--save_to", required=True, metavar="OUT")
    _output_options(resize)
    convert = _command(commands, "convert", "write one LoRA with other names, or as plain LoRA", _convert)
    convert.add_argument("--model", required=True, metavar="FILE")
    convert.add_argument("--save_to", required=True, metavar="OUT")
    _output_options(convert)
    run = _command(commands, "run", "run a recipe (.json, or the one inside a merged LoRA)", _run_recipe)
    run.add_argument("recipe", metavar="RECIPE")
    run.add_argument("--save_to", metavar="OUT")
    run.add_argument("--keep_levels", metavar="DIR")
    _partner_option(run)
    run.add_argument("--overwrite", action="store_true")
    run.add_argument("--drop_unsupported", action="store_true")
    _search_options(run)
    verify = _command(commands, "verify", "hold a merged LoRA against its recipe", _verify)
    verify.add_argument("merged", metavar="MERGED")
    _search_options(verify)
    inspect = _command(commands, "inspect", "say what is in LoRA files", _inspect)
    inspect.add_argument("files", nargs="+", metavar="FILE")
    inspect.add_argument("--family", metavar="F")
    text = "say what is in LoRAs, what merging them will do, and what to do about it"
    _analyze_options(_command(commands, "analyze", text, _analyze))
    _command(commands, "methods", "list the merge methods", _methods)
    demo = _command(commands, "demo", "write synthetic sample LoRAs into a folder", _demo)
    demo.add_argument("folder", metavar="DIR")
    return parser


def _command(
    commands: Any,  # noqa: ANN401
    name: str,
    text: str,
    run: Callable[[Arguments, _Interrupt], None],
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _merge_options(merge: argparse.ArgumentParser) -> None:
    merge.add_argument("--models", nargs="+", required=True, metavar="FILE", help="the sources")
    merge.add_argument("--ratios", nargs="+", type=float, metavar="R", help="one per source, default 1")
    merge.add_argument("--save_to", required=True, metavar="OUT", help="output, .safetensors")
    merge.add_argument("--method", default=DEFAULT_METHOD, metavar="NAME", help="see `methods`")
    merge.add_argument(
        "--knob", action="append", metavar="NAME=VALUE", help="NAME@2=VALUE for the second source alone"
    )
    merge.add_argument("--roles", nargs="+", metavar="ROLE", help="one per source, - for none")
    merge.add_argument("--blocks", nargs="+", metavar="SPEC", help="block weights per source, - for none")
    merge.add_argument(
        "--elements", nargs="+", metavar="RULES", help="blocks:words:ratio rules per source, - for none"
    )
    merge.add_argument(
        "--te_ratios", nargs="+", metavar="R", help="text-encoder ratio per source: R, TE1,TE2 or -"
    )
    merge.add_argument(
        "--aside",
        nargs="+",
        metavar="LETTER",
        help="sources added on top of the merge of the others: A, B, …",
    )
    merge.add_argument("--seed", type=int, default=0, help="of random masks")
    merge.add_argument("--keep_levels", metavar="DIR", help="save every group of a hierarchical merge too")
    _partner_option(merge)
    _output_options(merge)


def _partner_option(parser: argparse.ArgumentParser) -> None:
    text = "then the same for the partner files of Wan 2.2 (high_noise and low_noise, HN and LN)"
    parser.add_argument("--partners", action="store_true", help=text)


def _output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rank", metavar="POLICY", help="lossless, a number, energy:0.99, error:0.01 or budget:50MB"
    )
    parser.add_argument("--conv_rank", type=int, metavar="N", help="rank of k×k convolutions")
    parser.add_argument(
        "--prune", type=float, default=0.0, metavar="X", help="drop what is below X of the largest"
    )
    text = "drop what is below X itself: ranks by their singular value, whatever the largest"
    parser.add_argument("--prune_below", type=float, default=0.0, metavar="X", help=text)
    parser.add_argument("--save_precision", default="fp16", choices=PRECISIONS)
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps, …")
    parser.add_argument("--family", metavar="F", help="base family where shapes cannot tell")
    parser.add_argument(
        "--target",
        choices=NAMINGS,
        help="names that this host loads, or of this spelling; by default what every host loads",
    )
    parser.add_argument(
        "--trainable", action="store_true", help="factors and alpha as trainers want them, to train on"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--drop_unsupported", action="store_true", help="leave out kinds that need the base model"
    )


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora_dir", action="append", metavar="DIR", help="where to look for the sources; repeatable"
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps, …")


def _analyze_options(parser: argparse.ArgumentParser) -> None:
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
