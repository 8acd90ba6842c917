"""The registry of merge methods: one declaration feeds tab, command line, API, README and tests.

A method is one function in one of three spaces (`Space`). What other code wants to know of it (does it elect
signs, drop at random, take something away?) is a trait of its declaration: no other file lists methods by
name. A declaration is checked when it is registered: nonsense is refused at import, not in a worker.
"""

from __future__ import annotations

import difflib
import inspect
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import Enum
from typing import Any, NoReturn, ParamSpec, Union

from torch import Tensor

from lib_merge.errors import DeclarationError, RecipeError
from lib_merge.linalg.core import Bases
from lib_merge.linalg.svd import Triplets
from lib_merge.methods.inputs import ColumnInput, CoreInput, DenseInput, RowInput, ScalarInput

Value = Union[float, int, bool, str]
PerSource = Sequence[float]  # what a method is given for a knob of scope "source"
Function = Callable[..., Any]  # its arguments and result are those of its space: see `Method.coefficients` …
Settings = Mapping[str, object]  # every knob's value, as `Method.settings` returns them

# What is merged where nothing else is asked for.
DEFAULT_METHOD = "weighted_sum"
# Knobs that the engine itself acts on: see `Method.global_trim` and `Method.normalised`.
TRIM_FRACTION, TRIM_SCOPE, NORMALIZE = "trim_fraction", "trim_scope", "normalize"


class Choice(str, Enum):
    """A closed set of words; each is its own text wherever text is wanted."""

    def __str__(self) -> str:
        """Return the word, in every version of Python."""
        return str(self.value)


class Space(Choice):
    """Where a method acts."""

    SCALAR = "scalar"  # ΔW = Σ cᵢ ΔWᵢ: the function returns the coefficients cᵢ; exact at any rank
    CORE = "core"  # on the small matrices Mᵢ of ΔWᵢ = P·Mᵢ·Qᵀ; exact, rank ≤ Σ rᵢ
    DENSE = "dense"  # elementwise on ΔW: a tile of all sources to a tile of the result


class Reads(Choice):
    """Which Gram matrix a scalar method reads."""

    NOTHING = "nothing"
    MODULE = "module"
    RECIPE = "recipe"  # summed over the whole LoRA


class Gives(Choice):
    """What a core method returns."""

    CORE = "core"  # Float64[a b], or its SVD where that is known
    ROWS = "rows"  # Float32[a in]
    COLUMNS = "columns"  # Float64[in], a factor for each column of Σ τᵢ


class Scope(Choice):
    """Whether a knob has one value or one for each source."""

    RECIPE = "recipe"
    SOURCE = "source"


class Complaint(Choice):
    """What people say of a merge that did not come out well, and a method may be worth a try for."""

    MUDDY = "muddy"
    ARTEFACTS = "artefacts"
    WORSE = "worse"  # than the stack


class KnobKind(Choice):
    """What a knob takes."""

    CHOICE = "choice"
    SWITCH = "switch"
    WHOLE = "whole"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Knob:
    """One typed setting of a method.

    name, default, help   as the user meets them; `help` also names the paper's letter
    minimum, maximum      closed range of a number
    step                  of its slider; a default without a decimal point makes a whole number
    choices               of a word
    scope                 one value, or a value per source
    """

    name: str
    default: Value
    help: str
    minimum: float = 0.0
    maximum: float = 1.0
    step: float = 0.01
    choices: tuple[str, ...] = ()
    scope: Scope = Scope.RECIPE

    @property
    def kind(self) -> KnobKind:
        """What the knob takes, told from its choices and its default."""
        if self.choices:
            return KnobKind.CHOICE
        if isinstance(self.default, bool):
            return KnobKind.SWITCH
        return KnobKind.WHOLE if isinstance(self.default, int) else KnobKind.NUMBER

    def check(self, value: object, method: str) -> Value:
        """Return `value` in the knob's type.

        Raises:
            RecipeError: not of the type, not finite, or out of range.
        """
        where = f"knob {self.name} of {method}"
        if self.kind is KnobKind.CHOICE:
            if str(value) in self.choices:
                return str(value)
            message = f"{where} is {value!r}; it takes {' or '.join(self.choices)}."
            raise RecipeError(message)
        if self.kind is KnobKind.SWITCH:
            word = str(value).strip().lower()
            if word in ("true", "on", "yes", "1", "1.0", "false", "off", "no", "0", "0.0"):
                return word in ("true", "on", "yes", "1", "1.0")
            message = f"{where} is {value!r}; it takes on or off."
            raise RecipeError(message)
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        whole = self.kind is KnobKind.WHOLE
        if not self.minimum <= number <= self.maximum or (whole and number != int(number)):
            kind = "a whole number" if whole else "a number"
            given = reprlib.repr(value)
            message = f"{where} is {given}; it takes {kind} from {self.minimum:g} to {self.maximum:g}."
            raise RecipeError(message)
        return int(number) if whole else number


def _undeclared(*_: object, **__: object) -> NoReturn:
    message = "a method without a function"
    raise DeclarationError(message)


@dataclass(frozen=True, slots=True)
class Method:
    """What the registry knows of one method.

    Declaration:
        name, title, sentence, paper   as the user meets them; the paper is a link
        space      where it acts
        function   the method itself: what it is given in its space, and its knobs by keyword
        knobs      its settings
        sources    (least, most) number of sources; None: any number
        roles      what each source is for, where the method tells them apart
        symmetric  the order of the sources does not matter
        reads      of scalar methods
        gives, bases  of core methods: what it returns, and in which bases it is given the sources

    Traits, which other code asks for:
        stacks     ΔW = Σ wᵢΔWᵢ and nothing else: what stacking the sources in the prompt gives
        adds       a sum that is neither averaged nor separated: what sources share counts several times
        averages   unrelated sources come out fainter than they went in
        kin_only   leaves next to nothing of sources that have nothing in common
        elects     one sign is elected for every number, and what disagrees is left out
        drops      leaves out at random
        removes    takes something away from a source: no alternative to a merge
        spherical  goes along the sphere, where opposite sources have no way between them
        normalises  the ratios' total does not change the result; with a knob `normalize`, while that is on
        core_variant  the method that takes the same steps with the same knobs in the LoRAs' shared
                      directions, where nothing needs to be cut; "" where there is none
        helps      complaint -> why the method is worth a try for it, as the end of a sentence
    """

    name: str
    _: KW_ONLY
    title: str
    sentence: str
    paper: str
    space: Space
    function: Function = _undeclared
    knobs: tuple[Knob, ...] = ()
    sources: tuple[int, int | None] = (1, None)
    roles: tuple[str, ...] = ()
    symmetric: bool = True
    reads: Reads = Reads.NOTHING
    gives: Gives = Gives.CORE
    bases: Bases = Bases.ANY
    stacks: bool = False
    adds: bool = False
    averages: bool = False
    kin_only: bool = False
    elects: bool = False
    drops: bool = False
    removes: bool = False
    spherical: bool = False
    normalises: bool = False
    core_variant: str = ""
    helps: Mapping[Complaint, str] = field(default_factory=dict)

    def knob(self, name: str) -> Knob:
        """Return the knob of that name.

        Raises:
            RecipeError: the method has no such knob; names those it has.
        """
        for knob in self.knobs:
            if knob.name == name:
                return knob
        names = ", ".join(knob.name for knob in self.knobs) or "none"
        message = (
            f"{self.name} has no knob {name!r}; its knobs: "
            f"{names}.{_nearest(name, [k.name for k in self.knobs])}"
        )
        raise RecipeError(message)

    @property
    def thins(self) -> bool:
        """Whether it leaves numbers of a source out: by an election, at random, or by their size."""
        return self.elects or self.drops or self.space is Space.DENSE

    @property
    def dilutes(self) -> bool:
        """Whether a source comes out at another strength than its ratio says, because of the others."""
        return self.averages or self.normalises

    def takes(self, count: int) -> bool:
        """Tell whether the method takes `count` sources."""
        least, most = self.sources
        return count >= least and (most is None or count <= most)

    def check_sources(self, count: int) -> None:
        """Raise `RecipeError` when the method does not take `count` sources."""
        if self.takes(count):
            return
        least, most = self.sources
        takes = f"exactly {least}" if least == most else f"{least} to {most}" if most else f"at least {least}"
        plural = "source" if takes in ("exactly 1", "at least 1") else "sources"
        message = f"{self.name} takes {takes} {plural}; this recipe has {count}."
        raise RecipeError(message)

    def settings(self, given: Mapping[str, object], count: int) -> dict[str, Value | tuple[Value, ...]]:
        """Return every knob's value: the given ones checked, the rest at their defaults.

        Args:
            given: name -> value; a per-source knob may be a list of `count` values, or one value for all.
            count: number of sources.
        Raises:
            RecipeError: an unknown knob, or a value that it does not take.
        """
        for name in given:
            self.knob(name)
        resolved: dict[str, Value | tuple[Value, ...]] = {}
        for knob in self.knobs:
            value = given.get(knob.name, knob.default)
            if knob.scope is Scope.SOURCE:
                values: Sequence[object] = value if isinstance(value, (list, tuple)) else [value] * count
                if len(values) != count:
                    message = f"knob {knob.name} of {self.name} has {len(values)} values for {count} sources."
                    raise RecipeError(message)
                resolved[knob.name] = tuple(knob.check(item, self.name) for item in values)
            else:
                resolved[knob.name] = knob.check(value, self.name)
        return resolved

    def coefficients(self, given: ScalarInput, settings: Settings) -> list[float]:
        """Return cᵢ of a scalar method, ΔW = Σ cᵢ ΔWᵢ."""
        factors: list[float] = self.function(given, **settings)
        return factors

    def core(self, given: CoreInput, settings: Settings) -> Tensor | Triplets:
        """Return the merged core of a core method, Float64[a b], or its SVD."""
        merged: Tensor | Triplets = self.function(given, **settings)
        return merged

    def rows(self, given: RowInput, settings: Settings) -> Tensor:
        """Return the merged rows of a core method that gives rows, Float32[a in]."""
        merged: Tensor = self.function(given, **settings)
        return merged

    def columns(self, given: ColumnInput, settings: Settings) -> Tensor:
        """Return a factor for each column of Σ τᵢ of a core method that gives columns, Float64[in]."""
        factors: Tensor = self.function(given, **settings)
        return factors

    def tile(self, given: DenseInput, settings: Settings) -> Tensor:
        """Return a band of rows of the result of a dense method, Float[rows in]."""
        merged: Tensor = self.function(given, **settings)
        return merged

    def normalised(self, settings: Settings) -> bool:
        """Tell whether, at these settings, the ratios' total does not change the result."""
        return self.normalises and bool(settings.get(NORMALIZE, True))

    def global_trim(self, settings: Settings) -> Sequence[float] | None:
        """Return per source the share of its smallest numbers to trim over the whole LoRA; None where every
        module is trimmed by itself.
        """
        if settings.get(TRIM_SCOPE) != "global":
            return None
        return settings[TRIM_FRACTION]  # type: ignore[return-value]


METHODS: dict[str, Method] = {}
Declared = ParamSpec("Declared")


def _registers(record: Callable[Declared, Method]) -> Callable[Declared, Callable[[Function], Function]]:
    """Return the decorator that takes what `record` takes, and registers the decorated function."""
    known = inspect.signature(record).parameters

    def declare(*names: Declared.args, **declared: Declared.kwargs) -> Callable[[Function], Function]:
        for word in declared:
            if word not in known:
                message = (
                    f"method {names[0]!r} is declared wrong: there is no {word!r} to declare."
                    f"{_nearest(word, list(known))}"
                )
                raise DeclarationError(message)

        def register(function: Function) -> Function:
            method = _settled(replace(record(*names, **declared), function=function))
            METHODS[method.name] = method
            return function

        return register

    return declare


# Registers the decorated function; see `Method` for what can be declared.
#
#     @merge_method("name", title="…", sentence="…", paper="https://…", space=Space.DENSE, knobs=(…,))
merge_method = _registers(Method)


def get_method(name: str) -> Method:
    """Return a method by name.

    Raises:
        RecipeError: no such method; names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    message = f"there is no merge method {name!r}.{_nearest(name, list(METHODS))} `methods` lists all."
    raise RecipeError(message)


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, cutoff=0.4)
    return f" Did you mean {close[0]}?" if close else ""


# ---------------------------------------------------------------- what a declaration must be

# What the function of a method is given, by space and, in core space, by what it gives.
_INPUTS: Mapping[Choice, type] = {
    Space.SCALAR: ScalarInput,
    Space.DENSE: DenseInput,
    Gives.CORE: CoreInput,
    Gives.ROWS: RowInput,
    Gives.COLUMNS: ColumnInput,
}


def _settled(method: Method) -> Method:
    """Return the method with words as members of their enums.

    Raises:
        DeclarationError: what was declared cannot be.
    """
    try:
        enums: dict[str, type[Enum]] = {"space": Space, "reads": Reads, "gives": Gives, "bases": Bases}
        words = {name: _member(enum, name, getattr(method, name)) for name, enum in enums.items()}
        scopes = (_member(Scope, f"the scope of {knob.name}", knob.scope) for knob in method.knobs)
        knobs = tuple(replace(knob, scope=scope) for knob, scope in zip(method.knobs, scopes))
        method = replace(method, knobs=knobs, **words)
        wrong = next(_wrong(method), None)
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        message = f"method {method.name!r} is declared wrong: {wrong}."
        raise DeclarationError(message)
    return method


def _member(enum: type[Enum], what: str, word: str) -> Any:  # noqa: ANN401
    try:
        return enum(word)
    except ValueError:
        message = f"{what} is {word!r}; it takes {' or '.join(str(word.value) for word in enum)}"
        raise ValueError(message) from None


def _wrong(method: Method) -> Iterator[str]:
    """Yield what is wrong with a declaration, each as a clause."""
    if not method.name.isidentifier():
        yield "its name is no Python name, and so no word for the command line"
    if method.name in METHODS:
        yield "there is a method of that name already"
    if not method.title or not method.sentence.endswith(".") or not method.paper.startswith("https://"):
        yield "it needs a title, a sentence with a full stop, and a link to its paper"
    least, most = method.sources
    if least < 1 or (most is not None and most < least):
        yield f"it takes {least} to {most} sources"
    if method.roles and (least, most) != (len(method.roles),) * 2:
        yield f"it has {len(method.roles)} roles and takes {least} to {most or 'any number of'} sources"
    if len({*method.roles, ""}) <= len(method.roles):
        yield "a role is empty or named twice"
    if method.space is not Space.SCALAR and method.reads is not Reads.NOTHING:
        yield f"it reads a Gram matrix, which is for scalar methods, and is {method.space}"
    if method.space is not Space.CORE and (method.gives, method.bases) != (Gives.CORE, Bases.ANY):
        yield f"gives and bases are for core methods, and it is {method.space}"
    if method.bases is Bases.LEFT and method.gives is not Gives.ROWS:
        yield f"left bases alone are for methods that give rows, and it gives {method.gives}"
    yield from _wrong_knobs(method)
    yield from _wrong_function(method)
    yield from _wrong_traits(method)


def _wrong_knobs(method: Method) -> Iterator[str]:
    names = [knob.name for knob in method.knobs]
    if len(set(names)) < len(names):
        yield "a knob is named twice"
    for knob in method.knobs:
        if not knob.name.isidentifier():
            yield f"knob {knob.name!r} is no Python name"
        if not knob.help.endswith("."):
            yield f"the help of knob {knob.name} is no sentence"
        if knob.kind in (KnobKind.WHOLE, KnobKind.NUMBER) and not (
            knob.minimum < knob.maximum and 0 < knob.step <= knob.maximum - knob.minimum
        ):
            yield (
                f"knob {knob.name} goes from {knob.minimum:g} to {knob.maximum:g} in steps of {knob.step:g}"
            )
        try:
            knob.check(knob.default, method.name)
        except RecipeError:
            yield f"the default {knob.default!r} of knob {knob.name} is none of its values"
    if TRIM_SCOPE in names and not any(
        knob.name == TRIM_FRACTION and knob.scope is Scope.SOURCE for knob in method.knobs
    ):
        yield f"{TRIM_SCOPE} needs a knob {TRIM_FRACTION} with a value per source"


def _wrong_function(method: Method) -> Iterator[str]:
    parameters = list(inspect.signature(method.function).parameters.values())
    first, rest = (parameters[0] if parameters else None), parameters[1:]
    given = _INPUTS[method.gives if method.space is Space.CORE else method.space].__name__
    annotation = getattr(first, "annotation", None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        yield f"its function takes no {given}"
    elif annotation is not first.empty and getattr(annotation, "__name__", annotation) != given:
        yield f"its function takes {annotation} and is given {given}"
    names, taken = [knob.name for knob in method.knobs], [parameter.name for parameter in rest]
    if sorted(names) != sorted(taken):
        yield f"its knobs are {', '.join(names) or 'none'}, its function takes {', '.join(taken) or 'none'}"
    if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in rest):
        yield "its function takes knobs by position; put a * before them"


def _wrong_traits(method: Method) -> Iterator[str]:
    names = {knob.name for knob in method.knobs}
    if not set(method.helps) <= set(Complaint):
        yield f"it helps against {', '.join(method.helps)}; known are {', '.join(Complaint)}"
    if method.stacks and (method.space is not Space.SCALAR or not method.adds or names):
        yield "what stacks is a scalar sum without knobs"
    if NORMALIZE in names and not method.normalises:
        yield f"it has a knob {NORMALIZE} and is not declared to normalise"
    if not method.core_variant:
        return
    variant = METHODS.get(method.core_variant)
    if variant is None or variant.space is not Space.CORE:
        yield f"its core variant {method.core_variant!r} is no core method registered before it"
    elif {knob.name for knob in variant.knobs} != names - {TRIM_SCOPE}:
        yield f"its core variant {method.core_variant!r} has other knobs, so it does something else"
