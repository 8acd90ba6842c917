"""`python -m lib_merge …`: the engine on the command line."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib_merge import __version__, api
from lib_merge.cli import analyze as cli_analyze
from lib_merge.cli.arguments import recipe_of
from lib_merge.cli.console import ProgressLine
from lib_merge.cli.text import inspect_text, method_rows, methods_text, report_text
from lib_merge.engine.job import Job
from lib_merge.engine.report import MergeReport
from lib_merge.errors import Cancelled, MergeError, OutputError
from lib_merge.library.inspect import inspect_file
from lib_merge.methods import DEFAULT_METHOD
from lib_merge.recipe import PRECISIONS, Recipe
from lib_merge.samples import write_samples

Arguments = argparse.Namespace


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
    with ProgressLine() as progress:
        job = _job(arguments, stop, progress)
        report = api.run_recipe(recipe, arguments.save_to, job=job, keep_levels=arguments.keep_levels)
    _show(report, as_json=arguments.json)


def _job(arguments: Arguments, stop: _Interrupt, progress: ProgressLine) -> Job:
    return Job(
        device=arguments.device,
        overwrite=getattr(arguments, "overwrite", False),
        drop_unsupported=getattr(arguments, "drop_unsupported", False),
        progress=progress,
        cancelled=lambda: stop.asked,
    )


def _show(report: MergeReport, *, as_json: bool) -> None:
    _out(json.dumps(report.to_json(), allow_nan=False) if as_json else report_text(report))


def _resize(arguments: Arguments, stop: _Interrupt) -> None:
    arguments.models, arguments.method = [arguments.model], DEFAULT_METHOD
    for name in ("ratios", "blocks", "te_ratios", "roles", "elements", "knob", "keep_levels"):
        setattr(arguments, name, None)
    arguments.seed = 0
    _merge(arguments, stop)


def _run_recipe(arguments: Arguments, stop: _Interrupt) -> None:
    recipe = api.load_recipe(arguments.recipe, arguments.lora_dir or ())
    if arguments.save_to is None:
        arguments.save_to = str(Path(arguments.recipe).with_suffix(".safetensors"))
    _run(recipe, arguments, stop)


def _verify(arguments: Arguments, stop: _Interrupt) -> None:
    with ProgressLine() as progress:
        report = api.verify(arguments.merged, arguments.lora_dir or (), job=_job(arguments, stop, progress))
    _show(report, as_json=arguments.json)


def _inspect(arguments: Arguments, _: _Interrupt) -> None:
    found = [inspect_file(Path(path), arguments.family) for path in arguments.files]
    _out(
        json.dumps(found, allow_nan=False)
        if arguments.json
        else "\n\n".join(inspect_text(item) for item in found)
    )


def _methods(arguments: Arguments, _: _Interrupt) -> None:
    _out(json.dumps(method_rows()) if arguments.json else methods_text())


def _demo(arguments: Arguments, _: _Interrupt) -> None:
    folder = Path(arguments.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the folder {arguments.folder} cannot be made: {error.strerror or error}."
        raise OutputError(message) from error
    for path in write_samples(folder):
        _out(f"{path.name}  {path.stat().st_size / 1e6:.1f} MB")


def _out(text: str) -> None:
    # names come from files: what the console cannot show is escaped, never an error
    stream = sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib_merge", description="Merge LoRAs exactly.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"lora-merge {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    merge = _command(commands, "merge", "merge LoRAs into one", _merge)
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
    merge.add_argument("--seed", type=int, default=0, help="of random masks")
    merge.add_argument("--keep_levels", metavar="DIR", help="save every group of a hierarchical merge too")
    _output_options(merge)
    resize = _command(commands, "resize", "save one LoRA at another rank", _resize)
    resize.add_argument("--model", required=True, metavar="FILE")
    resize.add_argument("--save_to", required=True, metavar="OUT")
    _output_options(resize)
    run = _command(commands, "run", "run a recipe (.json, or the one inside a merged LoRA)", _run_recipe)
    run.add_argument("recipe", metavar="RECIPE")
    run.add_argument("--save_to", metavar="OUT")
    run.add_argument("--keep_levels", metavar="DIR")
    run.add_argument("--overwrite", action="store_true")
    run.add_argument("--drop_unsupported", action="store_true")
    _search_options(run)
    verify = _command(commands, "verify", "hold a merged LoRA against its recipe", _verify)
    verify.add_argument("merged", metavar="MERGED")
    _search_options(verify)
    inspect = _command(commands, "inspect", "say what is in LoRA files", _inspect)
    inspect.add_argument("files", nargs="+", metavar="FILE")
    inspect.add_argument("--family", metavar="F")
    cli_analyze.add_parser(commands)
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


def _output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rank", metavar="POLICY", help="lossless, a number, energy:0.99, error:0.01 or budget:50MB"
    )
    parser.add_argument("--conv_rank", type=int, metavar="N", help="rank of k×k convolutions")
    parser.add_argument(
        "--prune", type=float, default=0.0, metavar="X", help="drop what is below X of the largest"
    )
    parser.add_argument("--save_precision", default="fp16", choices=PRECISIONS)
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps, …")
    parser.add_argument("--family", metavar="F", help="base family where shapes cannot tell")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--drop_unsupported", action="store_true", help="leave out kinds that need the base model"
    )


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora_dir", action="append", metavar="DIR", help="where to look for the sources; repeatable"
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps, …")
