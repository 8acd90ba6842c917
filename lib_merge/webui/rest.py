"""REST under /lora-merge/v1: the operations that declare a route, behind the WebUI's own checks.

Routes, request checks and OpenAPI come from the operations' types (`lib_merge.ui.desk`); there is no pydantic
model, so that pydantic 1 and 2 do alike, and no route that deletes.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

from lib_merge.ui.describe import Schemas, example, summary
from lib_merge.ui.desk import OPERATIONS, Desk, Operation
from lib_merge.ui.protocol import Sort, dumps, fields_of
from lib_merge.ui.remedies import Remedy

log = logging.getLogger("lib_merge")
PREFIX = "/lora-merge/v1"
MAX_BODY = 4 << 20
# a request whose one field this is may come without it around it
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
        if list(fields) == [BARE]:
            schema = {"anyOf": [hints[BARE], schema]}
            shown = shown[BARE]
        description["requestBody"] = {
            "content": {"application/json": {"schema": schema, "example": shown}},
            "required": True,
        }
    return description


def _content(says: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": says, "content": {"application/json": {"schema": schema}}}


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
        if list(known) == [BARE] and not isinstance(fields.get(BARE), dict):
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
    if isinstance(fields.get(BARE), Mapping):
        fields = {**fields, BARE: _by_name(desk, fields[BARE])}
    return desk.handle_dict({**fields, "op": operation.name}, strict=True)


def _by_name(desk: Desk, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a set-up whose rows may name LoRAs by stem or alias instead of by key."""
    rows = state.get("sources")
    if not isinstance(rows, list):
        return state
    library, keyed = desk.listed(), []
    for row in rows:
        if isinstance(row, Mapping) and not row.get("key") and isinstance(row.get("name"), str):
            item = library.find(row["name"])
            row = {**row, "key": item.key if item else row["name"]}  # noqa: PLW2901
        keyed.append(row)
    return {**state, "sources": keyed}


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
