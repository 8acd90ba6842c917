"""The classes of the wire in other languages: JSON Schema for OpenAPI, TypeScript for the page, examples.

Everything comes from the forms of `lib_merge.ui.protocol`, so that no field is described twice.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from lib_merge.ui.desk import Operation
from lib_merge.ui.protocol import Field, Form, Sort, bounds, fields_of, form_of, write


def example(annotation: Any) -> Any:  # noqa: ANN401
    """Return an example that `read` takes: what must be given, and what has an example of its own."""
    return _example(form_of(annotation))


def _example(form: Form) -> Any:  # noqa: ANN401
    if form.about.example is not None:
        return form.about.example
    if form.sort is Sort.OBJECT:
        fields = fields_of(typing.cast("type", form.kind)).items()
        return {name: _example(field.form) for name, field in fields if field.required or _shows(field.form)}
    if form.sort is Sort.LIST:
        return [_example(form.items[0])] if _shows(form.items[0]) else []
    if form.sort is Sort.UNION:
        return _example(form.items[0])
    if form.sort is Sort.CHOICE:
        return form.choices[0]
    least = form.about.least or 0
    return {Sort.TEXT: "", Sort.NUMBER: float(least), Sort.WHOLE: int(least), Sort.SWITCH: False}.get(
        form.sort, {}
    )


def _shows(form: Form) -> bool:
    """Tell whether a form, or a field somewhere in it, has an example."""
    if form.about.example is not None:
        return True
    if form.sort is Sort.OBJECT:
        return any(_shows(field.form) for field in fields_of(typing.cast("type", form.kind)).values())
    return form.sort is Sort.LIST and _shows(form.items[0])


def summary(thing: object) -> str:
    """Return the first line of a docstring, without its full stop."""
    text = (getattr(thing, "__doc__", None) or "").strip().split("\n\n", 1)[0]
    return " ".join(text.split()).rstrip(".")


class Schemas:
    """JSON Schemas; those of dataclasses stand in `components` once and are referred to."""

    def __init__(self, version: str = "3.1.0") -> None:
        """Write for an OpenAPI version: 3.0 and 3.1 say null differently."""
        self.components: dict[str, Any] = {}
        self._old = version.startswith("3.0")
        self._closed: set[type] = set()
        self._kinds: dict[str, type] = {}

    def of(self, annotation: Any, *, closed: bool = False) -> dict[str, Any]:  # noqa: ANN401
        """Return the schema of an annotation.

        Args:
            annotation: as `form_of` takes it.
            closed: of requests: no other fields are taken.
        """
        return self._schema(form_of(annotation), closed)

    def fields(self, kind: type) -> dict[str, dict[str, Any]]:
        """Return the schema of every field of a request."""
        return {name: self._schema(field.form, True) for name, field in fields_of(kind).items()}

    def _schema(self, form: Form, closed: bool) -> dict[str, Any]:
        schema = self._bare(form, closed)
        about = form.about
        if form.null and form.sort is not Sort.ANY:
            schema = self._nullable(schema)
        more = {"description": about.says, "example": about.example}
        more = {name: value for name, value in more.items() if value not in ("", None)}
        if "$ref" in schema and more:
            schema = {"allOf": [schema]}
        return {**schema, **more}

    def _nullable(self, schema: dict[str, Any]) -> dict[str, Any]:
        if not self._old:
            return {"anyOf": [schema, {"type": "null"}]}
        if "enum" in schema:
            schema = {**schema, "enum": [*schema["enum"], None]}
        return {**({"allOf": [schema]} if "$ref" in schema else schema), "nullable": True}

    def _bare(self, form: Form, closed: bool) -> dict[str, Any]:
        sort, (least, most) = form.sort, (form.about.least, form.about.most)
        if sort is Sort.OBJECT:
            return self._object(typing.cast("type", form.kind), closed)
        if sort is Sort.UNION:
            return {"anyOf": [self._schema(one, closed) for one in form.items]}
        if sort is Sort.CHOICE:
            return {
                "type": "string" if isinstance(form.choices[0], str) else "integer",
                "enum": [*form.choices],
            }
        if sort is Sort.WHOLE:
            low, high = bounds(form)
            return {"type": "integer", "minimum": int(low), "maximum": int(high)}
        limits: dict[str, Any] = {}
        low_name, high_name = _LIMITS.get(sort, ("minimum", "maximum"))
        if least is not None:
            limits[low_name] = least if sort is Sort.NUMBER else int(least)
        if most is not None:
            limits[high_name] = most if sort is Sort.NUMBER else int(most)
        if sort is Sort.LIST:
            return {"type": "array", "items": self._schema(form.items[0], closed), **limits}
        if sort is Sort.MAP:
            return {"type": "object", "additionalProperties": self._schema(form.items[0], closed), **limits}
        return {**({"type": _TYPES[sort]} if sort in _TYPES else {}), **limits}

    def _object(self, kind: type, closed: bool) -> dict[str, Any]:
        name = kind.__name__
        if self._kinds.setdefault(name, kind) is not kind:
            message = f"two classes are called {name}."
            raise TypeError(message)
        if name not in self.components or (closed and kind not in self._closed):
            if closed:
                self._closed.add(kind)
            component: dict[str, Any] = {"type": "object", "description": f"{summary(kind)}."}
            self.components[name] = component
            fields = fields_of(kind)
            component["properties"] = {
                field: {**self._schema(known.form, closed), **_default(known)}
                for field, known in fields.items()
            }
            required = [field for field, known in fields.items() if known.required]
            if required:
                component["required"] = required
            if kind in self._closed:
                component["additionalProperties"] = False
        return {"$ref": f"#/components/schemas/{name}"}


def _default(field: Field) -> dict[str, Any]:
    """Return a field's default where it says something."""
    default = None if field.required else write(field.default)
    return (
        {"default": default}
        if isinstance(default, (bool, int, float)) or (default and isinstance(default, str))
        else {}
    )


_TYPES = {Sort.TEXT: "string", Sort.NUMBER: "number", Sort.SWITCH: "boolean"}
_LIMITS = {
    Sort.TEXT: ("minLength", "maxLength"),
    Sort.LIST: ("minItems", "maxItems"),
    Sort.MAP: ("minProperties", "maxProperties"),
}


def typescript(operations: Iterable[Operation]) -> str:
    """Return `types.d.ts`: an interface per class, and request and reply of every operation by name."""
    types = TypeScript()
    lines = ["/** Every operation that the page may ask for. */", "export interface Operations {"]
    for one in sorted(operations, key=lambda one: one.name):
        request, reply = types.of(one.request, given=True), types.of(one.reply)
        lines += [
            f"    /** {summary(one.work)}. */",
            f"    {one.name}: {{ request: {request}; reply: {reply} }};",
        ]
    head = "/* Made by `python -m tests.typescript` from the dataclasses of lib_merge/ui; change those. */"
    return "\n".join([head, "", types.interfaces(), *lines, "}", ""])


class TypeScript:
    """Interfaces for the JavaScript, one per dataclass."""

    def __init__(self) -> None:
        """Start with none."""
        self._given: dict[str, type] = {}  # sent by the page: fields with a default may be left out
        self._all: dict[str, type] = {}

    def of(self, annotation: Any, *, given: bool = False) -> str:  # noqa: ANN401
        """Return the type of an annotation; `given` where the page sends it."""
        form = form_of(annotation)
        for kind in _kinds(form):
            if self._all.setdefault(kind.__name__, kind) is not kind:
                message = f"two classes are called {kind.__name__}."
                raise TypeError(message)
            if given:
                self._given[kind.__name__] = kind
        return _typed(form)

    def interfaces(self) -> str:
        """Return every interface that `of` met, by name."""
        return "\n".join(self._interface(kind) for _, kind in sorted(self._all.items()))

    def _interface(self, kind: type) -> str:
        lines = [f"/** {summary(kind)}. */", f"export interface {kind.__name__} {{"]
        for name, field in fields_of(kind).items():
            if field.form.about.says:
                lines.append(f"    /** {field.form.about.says}. */")
            sent = kind.__name__ in self._given and not field.required
            lines.append(f"    {name}{'?' if sent or field.form.about.omit else ''}: {_typed(field.form)};")
        return "\n".join([*lines, "}", ""])


def _typed(form: Form) -> str:
    if form.sort in _SCRIPT:
        text = _SCRIPT[form.sort]
    elif form.sort is Sort.CHOICE:
        text = " | ".join(json.dumps(choice) for choice in form.choices)
    elif form.sort is Sort.UNION:
        text = " | ".join(_typed(one) for one in form.items)
    elif form.sort is Sort.MAP:
        text = f"Record<string, {_typed(form.items[0])}>"
    elif form.sort is Sort.LIST:
        inner = _typed(form.items[0])
        text = f"({inner})[]" if "|" in inner else f"{inner}[]"
    else:
        text = typing.cast("type", form.kind).__name__
    return f"{text} | null" if form.null and form.sort is not Sort.ANY else text


_SCRIPT = {
    Sort.TEXT: "string",
    Sort.NUMBER: "number",
    Sort.WHOLE: "number",
    Sort.SWITCH: "boolean",
    Sort.ANY: "any",
}


def _kinds(form: Form) -> Iterator[type]:
    """Yield the dataclasses of a form, itself first; none of them holds itself."""
    if form.sort is Sort.OBJECT:
        kind = typing.cast("type", form.kind)
        yield kind
        for field in fields_of(kind).values():
            yield from _kinds(field.form)
    for item in form.items:
        yield from _kinds(item)
