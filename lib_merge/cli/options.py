"""What can be typed: commands, options, and what is said of a slip."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from lib_merge import __version__
from lib_merge.cli import manual
from lib_merge.errors import legible
from lib_merge.families import FAMILIES
from lib_merge.loaders import NAMINGS
from lib_merge.methods import DEFAULT_METHOD
from lib_merge.recipe import PRECISIONS

PROGRAM = "python -m lib_merge"
Verb = Callable[..., None]


class Parser(argparse.ArgumentParser):
    """Says a slip as one sentence, and where help is; never the whole usage."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        """Keep the lines of the manual as they are, and take no shortened options."""
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        said = _sentence(message, self.prog)
        sys.stderr.write(f"{said}\nHelp and examples: {self.prog} --help\n")
        raise SystemExit(2)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """End for words that no option takes."""
        known = [name for action in self._actions for name in action.option_strings]
        word = legible(words[0])
        near = difflib.get_close_matches(word.partition("=")[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        what = "option" if word.startswith("-") else "place for"
        self.error(f"there is no {what} {word}{hint}")


_SAID: tuple[tuple[str, str], ...] = (
    (r"argument (\S+): invalid float value: (.+)", r"\1 takes numbers, and \2 is none."),
    (r"argument (\S+): invalid int value: (.+)", r"\1 takes a whole number, and \2 is none."),
    (r"argument (\S+): expected .*argument.*", r"\1 needs a value."),
    (r"argument (\S+): ignored explicit argument .*", r"\1 takes no value."),
    (r"argument (.+): not allowed with argument (.+)", r"\1 and \2 exclude each other."),
)


def _sentence(message: str, program: str) -> str:
    """Return what argparse says of a slip in our words; what is not known here stays as it is."""
    required = re.fullmatch(r"the following arguments are required: (.+)", message)
    if required:
        names = required[1].split(", ")
        if names == ["COMMAND"]:
            return f"say what is to be done: {PROGRAM} COMMAND, with one of {', '.join(manual.COMMANDS)}."
        return f"{program.rpartition(' ')[2]} needs {' and '.join(names)}."
    of = re.fullmatch(r"argument (--\S+): invalid choice: '(.+?)' \(choose from (.+)\)", message)
    if of:
        return f"{of[1]} takes one of {of[3].replace(chr(39), '')}; {legible(of[2])!r} is none."
    choice = re.fullmatch(r"argument COMMAND: invalid choice: '(.+?)' \(.*", message)
    if choice:
        near = difflib.get_close_matches(choice[1], manual.COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(manual.COMMANDS)}."
        return f"there is no command {legible(choice[1])}; {hint}"
    for pattern, said in _SAID:
        if re.fullmatch(pattern, message):
            return legible(re.sub(pattern, said, message))
    return legible(message if message.endswith((".", "?")) else f"{message}.")


def parser_of(verbs: Mapping[str, Verb]) -> Parser:
    """Return the parser; the namespace it makes has the verb as `run`, and its own parser as `parser`."""
    parser = Parser(prog=PROGRAM, description=manual.PROGRAM, epilog=manual.OVERVIEW)
    parser.add_argument("--version", action="version", version=f"lora-merge {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, add in _OPTIONS.items():
        text = manual.COMMANDS[name]
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=manual.EPILOGS.get(name)
        )
        command.set_defaults(run=verbs[name], parser=command)
        command.add_argument("--json", action="store_true", help="JSON on stdout")
        add(command)
    return parser


# ---------------------------------------------------------------- by command


def _merge(merge: Parser) -> None:
    merge.add_argument("--models", nargs="+", required=True, metavar="FILE", help="the sources: A, B, C, …")
    merge.add_argument("--ratios", nargs="+", type=float, metavar="R", help="one per source, default 1")
    merge.add_argument("--save_to", required=True, metavar="OUT", help="output, .safetensors")
    merge.add_argument(
        "--method", default=DEFAULT_METHOD, metavar="NAME", help="see `methods`; default weighted_sum"
    )
    merge.add_argument(
        "--knob",
        action="append",
        metavar="NAME=VALUE",
        help="a setting of the method; NAME@2=VALUE for the second source alone; repeatable",
    )
    merge.add_argument("--roles", nargs="+", metavar="ROLE", help="one per source, - for none")
    merge.add_argument("--blocks", nargs="+", metavar="SPEC", help="block weights per source, - for none")
    merge.add_argument("--elements", nargs="+", metavar="RULES", help="element rules per source, - for none")
    merge.add_argument(
        "--te_ratios", nargs="+", metavar="R", help="text-encoder ratio per source: R, TE1,TE2 or -"
    )
    merge.add_argument(
        "--group",
        nargs="+",
        action="append",
        metavar="SOURCE",
        help="merge these sources first (A B method=… ratio=…); repeatable, a group may hold earlier ones",
    )
    merge.add_argument(
        "--aside", nargs="+", metavar="LETTER", help="sources added on top of the merge of the others"
    )
    merge.add_argument("--seed", type=int, default=0, help="of random masks")
    _level_option(merge)
    _partner_option(merge)
    _output_options(merge)


def _resize(resize: Parser) -> None:
    resize.add_argument("--model", required=True, metavar="FILE")
    resize.add_argument("--save_to", required=True, metavar="OUT")
    _output_options(resize)


def _run(run: Parser) -> None:
    run.add_argument("recipe", metavar="RECIPE", help="a recipe (.json), or a merged LoRA that carries one")
    run.add_argument("--save_to", metavar="OUT", help="default: RECIPE.safetensors")
    _level_option(run)
    _partner_option(run)
    run.add_argument("--overwrite", action="store_true", help="replace an existing output")
    run.add_argument(
        "--drop_unsupported", action="store_true", help="leave out kinds that need the base model"
    )
    _search_options(run)


def _verify(verify: Parser) -> None:
    verify.add_argument("merged", metavar="MERGED")
    _search_options(verify)


def _inspect(inspect: Parser) -> None:
    inspect.add_argument("files", nargs="+", metavar="FILE")
    inspect.add_argument("--family", metavar="F", help="base family where shapes cannot tell")


def _analyze(parser: Parser) -> None:
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


def _presets(parser: Parser) -> None:
    first = next(iter(FAMILIES))
    parser.add_argument("--family", default=first, metavar="F", help=f"base family, default {first}")


def _methods(_: Parser) -> None:
    """Take nothing."""


def _demo(demo: Parser) -> None:
    demo.add_argument("folder", metavar="DIR")


_OPTIONS: Mapping[str, Callable[[Parser], None]] = {
    "merge": _merge,
    "resize": _resize,
    "convert": _resize,
    "run": _run,
    "verify": _verify,
    "inspect": _inspect,
    "analyze": _analyze,
    "methods": _methods,
    "presets": _presets,
    "demo": _demo,
}


# ---------------------------------------------------------------- shared


def _level_option(parser: Parser) -> None:
    text = "save every group of a hierarchical merge, too, each as a LoRA of its own"
    parser.add_argument("--keep_levels", metavar="DIR", help=text)


def _partner_option(parser: Parser) -> None:
    text = "then the same for the partner files of Wan 2.2 (high_noise and low_noise, HN and LN)"
    parser.add_argument("--partners", action="store_true", help=text)


def _output_options(parser: Parser) -> None:
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


def _search_options(parser: Parser) -> None:
    parser.add_argument(
        "--lora_dir", action="append", metavar="DIR", help="where to look for the sources; repeatable"
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps, …")
