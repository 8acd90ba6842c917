"""The closed family of errors that reach people.

Each message is one sentence (or two short ones) that says what failed, in which file, at which key, with both
shapes where shapes matter, and what to do. Anything that is not a `MergeError` is a defect of this program.
"""

from __future__ import annotations


class MergeError(Exception):
    """Base of every error that a person can act on; `exit_code` is what the command line returns."""

    exit_code = 2


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
