"""The closed family of errors that reach people.

Each message is one sentence (or two short ones) that says what failed, in which file, at which key, with both
shapes where shapes matter, and what to do. Anything that is not a `MergeError` is a defect of this program.
"""

from __future__ import annotations

import re
import unicodedata

# of one name, and of a whole message: what is longer nobody reads, and it hides what the sentence says
_LONGEST_NAME, _LONGEST = 240, 1500
_LONG_NAME = re.compile(rf"\S{{{_LONGEST_NAME + 1},}}")
_JOINERS = "\u200c\u200d"  # belong to the spelling of some languages


def legible(text: str) -> str:
    """Return a text as it can be shown on one line, wherever it comes from: line ends, control characters,
    signs that turn the direction of reading and half characters are escaped.
    """
    if text.isprintable():
        return text
    return "".join(sign if _is_shown(sign) else sign.encode("unicode_escape").decode() for sign in text)


def _is_shown(sign: str) -> bool:
    return sign.isprintable() or sign in _JOINERS or unicodedata.category(sign) == "Zs"


def _cut(name: re.Match[str]) -> str:
    return f"{name[0][: _LONGEST_NAME - 60]}…{name[0][-59:]}"


class MergeError(Exception):
    """Base of every error that a person can act on; `exit_code` is what the command line returns.

    A message may quote names out of files: they are shown escaped, and the middle of very long ones left out.
    """

    exit_code = 2

    def __str__(self) -> str:
        """Return the message as it can be shown."""
        text = _LONG_NAME.sub(_cut, legible(super().__str__()))
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rpartition(' ')[0]} …"


class FileFormatError(MergeError):
    """A file is truncated, damaged or not what its name says."""


class UnsafePickleError(FileFormatError):
    """A pickled file asks for more than tensors and is refused unread."""


class ModuleError(MergeError):
    """Tensors of one module do not fit together: missing pair, shapes at odds, two keys for one name."""


class UnsupportedKindError(MergeError):
    """An adapter kind whose weight change depends on the base model (DoRA, IA3, OFT, BOFT, GLoRA-A)."""


class FamilyError(MergeError):
    """The base family is unknown, ambiguous, or differs between sources."""


class NumericsError(MergeError):
    """NaN, infinity or a number that the saved precision cannot hold."""


class RecipeError(MergeError):
    """The request itself is wrong: unknown method or knob, wrong number of sources, a list that does not
    parse.
    """


class DeclarationError(MergeError):
    """A method is declared in a way that cannot be; raised when it is registered, for whoever wrote it."""


class OutputError(MergeError):
    """The result cannot be written where it was asked for."""


class VerifyError(MergeError):
    """The saved file differs from what was asked."""

    exit_code = 1


class Cancelled(MergeError):
    """The user stopped the job; nothing was written."""

    exit_code = 130
