"""REST under /lora-merge/v1: the operations that declare a route, behind the WebUI's own checks.

Routes, request checks and OpenAPI come from the operations' types (`lib_merge.ui.desk`); there is no pydantic
model, so that pydantic 1 and 2 do alike, and no route that deletes.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

from lib_merge.blocks.weights import parse_elements
from lib_merge.errors import MergeError, RecipeError, legible
from lib_merge.ui.describe import Schemas, example, summary
from lib_merge.ui.desk import OPERATIONS, Desk, Operation
from lib_merge.ui.listing import LoraRequest
from lib_merge.ui.protocol import Sort, dumps, fields_of, sentence
from lib_merge.ui.remedies import Remedy
from lib_merge.webui.answers import NAMED

log = logging.getLogger("lib_merge")
PREFIX = "/lora-merge/v1"
MAX_BODY = 4 << 20
# a request with this field may be what the field holds, alone
BARE = "state"
_OK = {"type": "object", "properties": {"ok": {"type": "boolean", "enum": [True]}}, "required": ["ok"]}
_WHOLE = re.compile(r"-?[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request was refused, in one sentence; of a set-up also what mends it, or why nothing does."""

    ok: bool
    error: str
    remedy: Remedy | None = None
    unmended: str = ""


def add_routes(app: FastAPI, desk: Desk) -> None:
    """Add our routes to the WebUI's application, once.

    Args:
        app: the WebUI's FastAPI.
        desk: answers the requests.
    """
    if any(getattr(route, "path", "").startswith(PREFIX) for route in app.routes):
        return
    logins = _api_logins()
    schemas = Schemas(str(getattr(app, "openapi_version", "3.0.2")))
    for operation in OPERATIONS.values():
        if operation.rest:
            method, _, path = operation.rest.partition(" ")
            app.add_api_route(
                PREFIX + path,
                _route(desk, operation, method, logins),
                methods=[method],
                summary=summary(operation.work),
                tags=["LoRA Merge"],
                name=f"lora_merge_{operation.name}",
                openapi_extra=_described(operation, method, path, schemas),
            )
    _name_answers(schemas)
    _describe_components(app, schemas)


# -------------------------------------------------------------------------------------------- OpenAPI


def _described(operation: Operation, method: str, path: str, schemas: Schemas) -> dict[str, Any]:
    """Return what OpenAPI shows of a route: parameters, body, answers."""
    fields = fields_of(operation.request)
    in_path = [name for name in fields if f"{{{name}}}" in path]
    in_query = [name for name in fields if method == "GET" and name not in in_path]
    hints = schemas.fields(operation.request)
    description: dict[str, Any] = {
        "parameters": [
            {
                "name": name,
                "in": "path" if name in in_path else "query",
                "required": name in in_path or fields[name].required,
                "schema": hints[name],
            }
            for name in (*in_path, *in_query)
        ],
        "responses": {
            "200": _content("The answer", {"allOf": [_OK, schemas.of(operation.reply)]}),
            "422": _content("Refused, in one sentence", schemas.of(Failure)),
        },
    }
    if len(fields) > len(in_path) + len(in_query):
        schema, shown = schemas.of(operation.request, closed=True), example(operation.request)
        if BARE in fields:
            schema = {"anyOf": [hints[BARE], schema]}
            shown = shown[BARE]
        description["requestBody"] = {
            "content": {"application/json": {"schema": schema, "example": shown}},
            "required": True,
        }
    return description


def _content(says: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": says, "content": {"application/json": {"schema": schema}}}


def _name_answers(schemas: Schemas) -> None:
    """Say what the fields hold that operations pass on as plain JSON."""
    for component, fields in NAMED.items():
        known = schemas.components[component]["properties"]
        for name, kinds in fields.items():
            said = {key: value for key, value in known[name].items() if key == "description"}
            null = [{"type": "null"}] if "anyOf" in known[name] else []
            nullable = {"nullable": True} if known[name].get("nullable") else {}
            known[name] = {"anyOf": [*map(schemas.of, kinds), *null], **nullable, **said}


def _describe_components(app: FastAPI, schemas: Schemas) -> None:
    """Let the application's OpenAPI page hold our components, too, as FastAPI says to extend it."""
    before = app.openapi

    def openapi() -> dict[str, Any]:
        page = before()
        page.setdefault("components", {}).setdefault("schemas", {}).update(schemas.components)
        return page

    app.openapi = openapi


# -------------------------------------------------------------------------------------------- requests


def _route(
    desk: Desk, operation: Operation, method: str, logins: Mapping[str, str] | None
) -> Callable[..., Any]:
    async def answer(request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        _check_login(request, logins)
        fields = await _fields(request, operation, method)
        reply = await run_in_threadpool(_ask, desk, operation, fields)
        return Response(dumps(reply), 200 if reply["ok"] else 422, media_type="application/json")

    answer.__name__ = f"lora_merge_{operation.name}"
    return answer


async def _fields(request: Request, operation: Operation, method: str) -> dict[str, Any]:
    """Return the operation's fields from path, query and body.

    Raises:
        HTTPException: a body that is none.
    """
    known = fields_of(operation.request)
    texts = {**request.query_params, **request.path_params}
    fields: dict[str, Any] = {
        name: int(text)
        if name in known and known[name].form.sort is Sort.WHOLE and _WHOLE.fullmatch(text)
        else text
        for name, text in texts.items()
    }
    if method != "GET":
        fields.update(await _body(request, empty=set(known) <= set(request.path_params)))
        if (
            BARE in known
            and not isinstance(fields.get(BARE), dict)
            and not (fields and set(fields) <= set(known))
        ):
            fields = {BARE: fields}
    return fields


async def _body(request: Request, *, empty: bool) -> dict[str, Any]:
    """Return the body of what acts: JSON, which no page of another site can send without being let.

    Args:
        request: what is asked.
        empty: there may be none; the type has to be said all the same.
    Raises:
        HTTPException: a body that is none.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise HTTPException(415, "send a JSON body")
    content = bytearray()
    async for chunk in request.stream():  # what the headers say of the length is only a claim
        content += chunk
        if len(content) > MAX_BODY:
            raise HTTPException(413, "the body is too large")
    if empty and not content.strip():
        return {}
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not valid JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


def _ask(desk: Desk, operation: Operation, fields: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in fields.items() if name not in ("op", "id")}
    rows: list[Any] = []
    try:
        if LoraRequest is operation.request:
            _check_named(desk, fields)
        if isinstance(fields.get(BARE), Mapping):
            fields = {**fields, BARE: _by_name(desk, fields[BARE])}
            given = fields[BARE].get("sources")
            rows = given if isinstance(given, list) else []
    except MergeError as error:
        return {"ok": False, "error": sentence(error)}
    reply = desk.handle_dict({**fields, "op": operation.name}, strict=True)
    return reply if reply["ok"] else {**reply, "error": _with_name(str(reply["error"]), rows)}


def _check_named(desk: Desk, fields: Mapping[str, Any]) -> None:
    """Raise `RecipeError` where a request about one LoRA names none, or one that is not there."""
    if not set(fields) <= {"key", "name"}:
        return  # what is no field is refused with the others
    if not fields.get("key") and not fields.get("name"):
        message = "say which LoRA: name=, as `loras` lists it."
        raise RecipeError(message)
    if not fields.get("key") and isinstance(fields["name"], str):
        _key_of(desk, fields["name"])


def _key_of(desk: Desk, name: str) -> str:
    """Return the key of a LoRA by stem, alias or key.

    Raises:
        RecipeError: there is none of that name; it says what is there that is spelt like it.
    """
    library = desk.listed()
    item = library.find(name)
    if item is None and not any(one.key == name for one in library.items()):
        near = difflib.get_close_matches(name, [one.name for one in library.items()], 1)
        hint = f"did you mean {near[0]}?" if near else "`loras` lists what is there."
        message = f"there is no LoRA called {name[:80]!r} in the LoRA folders; {hint}"
        raise RecipeError(message)
    return item.key if item is not None else name


def _by_name(desk: Desk, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a set-up whose rows may name LoRAs by stem or alias instead of by key.

    Raises:
        RecipeError: a row without a LoRA, a LoRA that is not there, an element rule that is none.
    """
    rows = state.get("sources")
    if not isinstance(rows, list):
        return state
    keyed = []
    for number, row in enumerate(rows):
        if isinstance(row, Mapping) and not row.get("key"):
            if not row.get("name"):
                message = f"sources[{number}] names no LoRA: give its name or its key."
                raise RecipeError(message)
            if isinstance(row["name"], str):
                row = {**row, "key": _key_of(desk, row["name"])}  # noqa: PLW2901
        if isinstance(row, Mapping) and isinstance(row.get("elements"), str):
            _check_rules(row)
        keyed.append(row)
    return {**state, "sources": keyed}


def _check_rules(row: Mapping[str, Any]) -> None:
    """Raise `RecipeError`, with the LoRA's name, for element rules that are none."""
    try:
        parse_elements(row["elements"])
    except RecipeError as error:
        message = f"{row.get('name') or row.get('key')}: {error}"
        raise RecipeError(message) from error


_ROW = re.compile(r"\bsources\[(\d+)\]")


def _with_name(error: str, rows: Sequence[Any]) -> str:
    """Return a refusal that names the LoRA of the row that it is about."""
    at = _ROW.search(error)
    row = rows[int(at[1])] if at is not None and int(at[1]) < len(rows) else None
    name = (row.get("name") or row.get("key")) if isinstance(row, Mapping) else None
    return error if not isinstance(name, str) else f"{legible(name[:80])}: {error}"


# -------------------------------------------------------------------------------------------- logins


def _api_logins() -> dict[str, str] | None:
    """Return what --api-auth says, name -> password; None where it is not given.

    One that cannot be read lets nobody in: who gave it did not mean to leave the door open.
    """
    from modules import shared

    given = getattr(shared.cmd_opts, "api_auth", None)
    if given is None:
        return None
    pairs = [pair.split(":", 1) for pair in str(given).split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        log.error("--api-auth is not NAME:PASSWORD,NAME:PASSWORD: LoRA Merge's API lets nobody in.")
        return {}
    return dict(pairs)


def _check_login(request: Request, logins: Mapping[str, str] | None) -> None:
    """Refuse who is not let in: --api-auth as the WebUI's own routes have it, and --gradio-auth's login."""
    if logins is None:
        check_page_login(request)
        return
    name, password = _basic(request)
    right = name in logins and secrets.compare_digest(password.encode(), logins[name].encode())
    if not right:
        raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})


def check_page_login(request: Request) -> None:
    """Refuse who is not logged in where the WebUI's page asks for it (--gradio-auth)."""
    page = request.app
    if getattr(page, "auth", None) is not None and not _logged_in(request, getattr(page, "tokens", {}) or {}):
        raise HTTPException(401, "Not authenticated")


def _basic(request: Request) -> tuple[str, str]:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            name, _, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            return "", ""
        return name, password
    return "", ""


def _logged_in(request: Request, tokens: Mapping[str, Any]) -> bool:
    """Gradio 3 calls the cookie access-token, gradio 4 adds an id of the page to it."""
    return any(
        value in tokens
        for name, value in request.cookies.items()
        if name.startswith(("access-token", "access_token"))
    )
