"""Whether a value fits a JSON Schema: as much of it as the project writes, for OpenAPI 3.0 and 3.1."""

from __future__ import annotations

import math

_SORTS = {
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and float(v).is_integer(),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
}
_SAYS = {"description", "example", "default"}
_KNOWN = {
    "$ref", "allOf", "anyOf", "nullable", "type", "enum", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "minProperties", "maxProperties", "items", "properties", "required", "additionalProperties",
}  # fmt: skip


def fits(value, schema, components) -> bool:
    """Return True where the schema allows the value; `components` as OpenAPI has them."""
    unknown = set(schema) - _KNOWN - _SAYS
    assert not unknown, f"{unknown} is not understood here"
    if value is None and schema.get("nullable"):
        return True
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return fits(value, components[name], components)
    return (
        all(fits(value, one, components) for one in schema.get("allOf", ()))
        and ("anyOf" not in schema or any(fits(value, one, components) for one in schema["anyOf"]))
        and ("type" not in schema or _SORTS[schema["type"]](value))
        and ("enum" not in schema or value in schema["enum"])
        and _within(value, schema)
        and _inside(value, schema, components)
    )


def _within(value, schema) -> bool:
    sizes = {str: "Length", list: "Items", dict: "Properties"}
    if type(value) in sizes:
        name = sizes[type(value)]
        return schema.get(f"min{name}", 0) <= len(value) <= schema.get(f"max{name}", math.inf)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)


def _inside(value, schema, components) -> bool:
    if isinstance(value, list) and "items" in schema:
        return all(fits(item, schema["items"], components) for item in value)
    if not isinstance(value, dict):
        return True
    named = schema.get("properties", {})
    if not set(schema.get("required", ())) <= set(value):
        return False
    rest = schema.get("additionalProperties", True)
    return all(
        fits(item, named[name], components)
        if name in named
        else rest is not False and (rest is True or fits(item, rest, components))
        for name, item in value.items()
    )
