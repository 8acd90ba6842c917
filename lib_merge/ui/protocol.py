"""What goes over the wire: dataclasses that are read from JSON and written as JSON.

A class says by its annotations what it takes: `str`, `int`, `float` (finite), `bool`, `Literal`, an `Enum`,
`X | None`, `list[X]`, `dict[str, X]`, another dataclass, unions of these that differ as JSON, and `Any` for
what is passed on unread. `Annotated[X, About(...)]` says the rest: meaning, bounds, an example. `read` takes
exactly that and refuses the rest in one sentence that names the field; `lib_merge.ui.describe` tells the same
to other languages.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from lib_merge.errors import RecipeError, legible

T = TypeVar("T")
SAFE = 2**53 - 1  # the largest whole number that JavaScript keeps exactly
SHOWN = 40  # characters of a wrong value in a sentence
LONGEST = 800  # characters of a sentence
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class About:
    """What a field means besides its type.

    says      one sentence for people who write requests
    least     smallest number, or least length of a text, list or object
    most      largest number, or most length
    example   a value to show
    omit      left out when it is written at its default
    """

    says: str = ""
    least: float | None = None
    most: float | None = None
    example: Any = None
    omit: bool = False


class Stored:
    """Base of records that browsers keep: a field that another version left there is dropped, not refused."""

    __slots__ = ()


class Sort(str, Enum):
    """What a form is as JSON."""

    TEXT = "text"
    NUMBER = "number"
    WHOLE = "whole"
    SWITCH = "switch"
    CHOICE = "choice"
    LIST = "list"
    MAP = "map"
    OBJECT = "object"
    UNION = "union"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Form:
    """An annotation, understood.

    null      takes null, too
    items     of a list or map its one form, of a union its members
    choices   of a choice, as JSON has them
    kind      the dataclass of an object, the Enum of a choice that has one
    """

    sort: Sort
    about: About = About()
    null: bool = False
    items: tuple[Form, ...] = ()
    choices: tuple[str | int, ...] = ()
    kind: type | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a dataclass; `default` is `dataclasses.MISSING` where it must be given."""

    form: Form
    default: Any

    @property
    def required(self) -> bool:
        """True where the field has no default."""
        return self.default is dataclasses.MISSING


# ------------------------------------------------------------------------------------------------ annotations

_PLAIN = {str: Sort.TEXT, float: Sort.NUMBER, int: Sort.WHOLE, bool: Sort.SWITCH}


@functools.cache
def fields_of(kind: type) -> Mapping[str, Field]:
    """Return the fields of a dataclass by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {}
    for field in dataclasses.fields(kind):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        fields[field.name] = Field(form_of(hints[field.name]), default)
    return fields


def form_of(annotation: Any) -> Form:  # noqa: ANN401
    """Return what an annotation means.

    Raises:
        TypeError: it cannot be read from JSON; a fault of the program, found by its tests.
    """
    origin, given = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        about = next((one for one in given[1:] if isinstance(one, About)), About())
        return dataclasses.replace(form_of(given[0]), about=about)
    if annotation is Any:
        return Form(Sort.ANY, null=True)
    if annotation in _PLAIN:
        return Form(_PLAIN[annotation])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return Form(Sort.CHOICE, choices=tuple(one.value for one in annotation), kind=annotation)
    if origin is typing.Literal:
        return Form(Sort.CHOICE, choices=given)
    if origin in (typing.Union, types.UnionType):
        return _union([one for one in given if one is not type(None)], null=type(None) in given)
    if origin in (list, tuple, Sequence):
        return Form(Sort.LIST, items=(form_of(given[0]),))
    if origin in (dict, Mapping):
        return Form(Sort.MAP, items=(form_of(given[1]),))
    if dataclasses.is_dataclass(annotation):
        return Form(Sort.OBJECT, kind=typing.cast("type", annotation))
    message = f"{annotation!r} has no form as JSON."
    raise TypeError(message)


def _union(given: Sequence[Any], *, null: bool) -> Form:
    if len(given) == 1:
        return dataclasses.replace(form_of(given[0]), null=null)
    return Form(Sort.UNION, null=null, items=tuple(form_of(one) for one in given))


# ------------------------------------------------------------------------------------------------ reading


def read(kind: type[T], value: object, *, dropped: list[str] | None = None) -> T:
    """Return JSON objects as a dataclass.

    Args:
        kind: the class.
        value: what `json.loads` returned.
        dropped: where given, unknown fields of `Stored` classes are noted here instead of refused.
    Raises:
        RecipeError: one sentence that names the field, what it is and what it takes.
    """
    return typing.cast("T", _read(Form(Sort.OBJECT, kind=kind), value, "", dropped))


def _read(form: Form, value: object, at: str, dropped: list[str] | None) -> Any:  # noqa: ANN401
    if value is None and form.null:
        return None
    sort = form.sort
    if sort is Sort.ANY:
        return value
    if sort is Sort.UNION:
        member = next((one for one in form.items if _json_sort(one) == _sort_of(value)), None)
        return _refuse(form, value, at) if member is None else _read(member, value, at, dropped)
    if _json_sort(form) != _sort_of(value):
        return _refuse(form, value, at)
    if sort is Sort.OBJECT:
        return _object(form, typing.cast("Mapping[str, object]", value), at, dropped)
    if sort is Sort.CHOICE:
        return _choice(form, value, at)
    if sort in (Sort.NUMBER, Sort.WHOLE):
        return _number(form, typing.cast("float", value), at)
    length = len(typing.cast("Sequence[object]", value)) if sort is not Sort.SWITCH else 0
    if (form.about.most is not None and length > form.about.most) or length < (form.about.least or 0):
        return _refuse(form, value, at)
    if sort is Sort.LIST:
        items = typing.cast("Sequence[object]", value)
        return [_read(form.items[0], one, f"{at}[{index}]", dropped) for index, one in enumerate(items)]
    if sort is Sort.MAP:
        pairs = typing.cast("Mapping[str, object]", value).items()
        return {name: _read(form.items[0], one, _below(at, name), dropped) for name, one in pairs}
    return value


def _object(form: Form, value: Mapping[str, object], at: str, dropped: list[str] | None) -> object:
    kind = typing.cast("type", form.kind)
    known = fields_of(kind)
    for name in value:
        if name in known:
            continue
        if dropped is None or not issubclass(kind, Stored):
            raise RecipeError(_unknown(name, at, known))
        dropped.append(_below(at, name))
    given = {}
    for name, field in known.items():
        if name in value:
            given[name] = _read(field.form, value[name], _below(at, name), dropped)
        elif field.required:
            message = f"{_below(at, name)} is missing; it takes {words(field.form)}."
            raise RecipeError(message)
    return kind(**given)


def _choice(form: Form, value: object, at: str) -> object:
    if value not in form.choices or isinstance(value, bool):
        return _refuse(form, value, at)
    if form.kind is not None:
        return form.kind(value)
    return value


def _number(form: Form, value: float, at: str) -> float | int:
    least, most = bounds(form)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    whole = form.sort is Sort.WHOLE
    if not (math.isfinite(number) and least <= number <= most) or (whole and number != int(number)):
        _refuse(form, value, at)
    return int(value) if whole else number


def bounds(form: Form) -> tuple[float, float]:
    """Return the least and the most that a number may be."""
    widest = SAFE if form.sort is Sort.WHOLE else math.inf
    least = -widest if form.about.least is None else form.about.least
    return least, widest if form.about.most is None else form.about.most


def _json_sort(form: Form) -> str:
    """Return how a form comes as JSON; the members of a union differ in it."""
    if form.sort is Sort.CHOICE:
        return "text" if isinstance(form.choices[0], str) else "number"
    return {Sort.WHOLE: "number", Sort.MAP: "object"}.get(form.sort, str(form.sort.value))


def _sort_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (list, tuple)):
        return "list"
    whole = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    return "object" if whole else "none"


def _below(at: str, name: str) -> str:
    if not name.isidentifier() and not (at and name.isascii() and name.isalnum()):
        return f"{at}[{_quoted(name)}]"
    return f"{at}.{name}" if at else name


def _refuse(form: Form, value: object, at: str) -> typing.NoReturn:
    message = f"{at or 'the request'} is {shown(value)}; it takes {words(form)}."
    raise RecipeError(message)


def _unknown(name: str, at: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name[:SHOWN], list(known), 1, cutoff=0.6)
    takes = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known) or 'none'}."
    return f"there is no field {_below(at, name)}; {takes}"


def shown(value: object) -> str:
    """Return a value as a sentence has it: short, on one line."""
    sort = _sort_of(value)
    if sort == "list":
        return f"a list of {len(typing.cast('Sequence[object]', value))}"
    if sort in ("object", "none"):
        return "an object"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN:
        return "a number of very many digits"
    return json.dumps(value)


def sentence(error: object) -> str:
    """Return what an error says on one line, however long a name it quotes."""
    text = " ".join(legible(" ".join(str(error).splitlines())).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= SHOWN else f"{text[:SHOWN]}…", ensure_ascii=False)


def words(form: Form) -> str:
    """Return what a form takes, in words: `a number from 0 to 1 or null`."""
    least, most = form.about.least, form.about.most
    said = {
        Sort.TEXT: "text",
        Sort.NUMBER: "a number",
        Sort.WHOLE: "a whole number",
        Sort.SWITCH: "true or false",
        Sort.LIST: "a list",
        Sort.MAP: "an object",
        Sort.OBJECT: "an object",
        Sort.ANY: "anything",
    }.get(form.sort, "")
    if form.sort is Sort.CHOICE:
        said = " or ".join(json.dumps(choice) for choice in form.choices)
    elif form.sort is Sort.UNION:
        said = " or ".join(words(one) for one in form.items)
    elif form.sort in (Sort.NUMBER, Sort.WHOLE):
        said += f" from {least:g}" if least is not None else ""
        said += f"{' to' if least is not None else ' up to'} {most:.15g}" if most is not None else ""
    elif most is not None or least is not None:
        unit = {Sort.TEXT: "characters", Sort.LIST: "entries"}.get(form.sort, "fields")
        said += f" of {f'at most {most:g}' if most is not None else f'at least {least:g}'} {unit}"
    return f"{said} or null" if form.null and form.sort is not Sort.ANY else said


# ------------------------------------------------------------------------------------------------ writing


def write(value: object) -> Any:  # noqa: ANN401
    """Return a dataclass, and everything in it, as JSON objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        data = {}
        for name, field, ready in _writing(type(value)):
            item = getattr(value, name)
            if not (field.form.about.omit and item == field.default):
                data[name] = item if ready else write(item)
        return data
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): write(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [write(item) for item in value]
    return value


@functools.cache
def _writing(kind: type) -> tuple[tuple[str, Field, bool], ...]:
    """Return (name, field, holds JSON already) of every field."""
    return tuple((name, field, _ready(field.form)) for name, field in fields_of(kind).items())


def _ready(form: Form) -> bool:
    """Tell whether what a form holds needs no `write`: long lists are not walked for nothing."""
    plain = form.sort in (Sort.ANY, Sort.TEXT, Sort.NUMBER, Sort.WHOLE, Sort.SWITCH)
    return plain or (form.sort in (Sort.LIST, Sort.MAP, Sort.UNION) and all(map(_ready, form.items)))


def dumps(value: object) -> str:
    """Return JSON text that every reader takes: no NaN, no infinity, and half characters, as names of files
    may have them, escaped to be read.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return text if text.isascii() else _HALF.sub(lambda half: f"\\\\u{ord(half[0]):04x}", text)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
