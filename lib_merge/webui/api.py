"""REST under /lora-merge/v1: the same server side as the tab, behind the WebUI's own checks.

Bodies are JSON, checked by hand, so that pydantic 1 and 2 do alike. There is no route that deletes.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from lib_merge.ui.actions import Actions

PREFIX = "/lora-merge/v1"
MAX_BODY = 4 << 20
_QUERY = {"/inspect": ("name",), "/recipes": ("name",), "/history": ("search",)}
_BODY = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}, "required": True}}


def add_routes(app: FastAPI, desk: Actions) -> None:
    """Add our routes to the WebUI's application, once.

    Args:
        app: the WebUI's FastAPI.
        desk: answers the requests.
    """
    if any(getattr(route, "path", "").startswith(PREFIX) for route in app.routes):
        return
    logins = _api_logins()
    for method, path, op, summary in (
        ("GET", "/methods", "init", "Every merge method with its knobs"),
        ("GET", "/loras", "library", "Every LoRA in the LoRA folders"),
        ("GET", "/inspect", "inspect", "What is in one LoRA (?name=)"),
        ("GET", "/presets", "init", "Block-weight presets"),
        (
            "GET",
            "/recipes",
            "recipes",
            "Names of saved recipes; with ?name= one of them, as plan and merge take it",
        ),
        ("GET", "/history", "history", "What was merged, newest first (?search=)"),
        ("GET", "/jobs/{job}", "job", "How far a job is, and its result"),
        ("POST", "/plan", "plan", "What a merge would make"),
        ("POST", "/merge", "merge", "Start a merge; the answer has its job"),
        ("POST", "/verify", "verify", "Start to hold a merged LoRA against its recipe"),
        ("POST", "/jobs/{job}/cancel", "cancel", "Ask a job to stop"),
    ):
        app.add_api_route(
            PREFIX + path,
            _route(desk, op, path, logins),
            methods=[method],
            summary=summary,
            tags=["LoRA Merge"],
            name=f"lora_merge_{op}_{method.lower()}{path.count('/')}",
            openapi_extra=_described(method, path),
        )


def _described(method: str, path: str) -> dict[str, Any]:
    """Return what OpenAPI shows of a route beside its summary."""
    names = [("job", "path")] if "{job}" in path else []
    names += [(name, "query") for name in _QUERY.get(path, ())]
    kinds = {"path": "integer", "query": "string"}
    found: dict[str, Any] = {
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": {"type": kinds[place]}}
            for name, place in names
        ]
    }
    return {**found, **_BODY} if method == "POST" and "cancel" not in path else found


def _route(desk: Actions, op: str, path: str, logins: Mapping[str, str]) -> Callable[..., Any]:
    async def answer(request: Request) -> JSONResponse:
        from starlette.concurrency import run_in_threadpool

        _check_login(request, logins)
        fields = await _fields(request)
        found = await run_in_threadpool(_ask, desk, op, fields)
        if path in ("/methods", "/presets") and found.get("ok"):
            part = path.strip("/")
            found = {"ok": True, part: found[part]}
        return JSONResponse(found, status_code=200 if found.get("ok") else 422)

    answer.__name__ = f"lora_merge_{op}"
    return answer


async def _fields(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = dict(request.query_params)
    if request.method == "POST" and "cancel" not in request.url.path:
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise HTTPException(415, "send a JSON body")
        content = bytearray()
        async for chunk in request.stream():  # what the headers say of the length is only a claim
            content += chunk
            if len(content) > MAX_BODY:
                raise HTTPException(413, "the body is too large")
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "the body is not valid JSON") from error
        if not isinstance(body, dict):
            raise HTTPException(400, "the body is not a JSON object")
        fields = body
    if "job" in request.path_params:
        number = request.path_params["job"]
        fields["job"] = int(number) if str(number).isdigit() else number
    return fields


def _ask(desk: Actions, op: str, fields: dict[str, Any]) -> dict[str, Any]:
    fields.pop("op", None)
    if op == "library":
        desk.library.refresh(wait=True)
    if op in ("inspect", "verify") and "name" in fields:
        desk.library.refresh(wait=not desk.library.items())
        item = desk.library.find(str(fields["name"]))
        fields["key"] = item.key if item else str(fields["name"])
    if op == "recipes" and fields.get("name"):
        op, fields = "open", {"recipe": str(fields["name"])}
    if op in ("plan", "merge"):
        fields = {"state": _state(desk, fields)}
    return desk.handle_dict({**fields, "op": op})


def _state(desk: Actions, fields: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return the tab's state of a body: sources may name LoRAs by stem or alias instead of by key."""
    state = dict(fields["state"]) if isinstance(fields.get("state"), Mapping) else dict(fields)
    if not desk.library.items():
        desk.library.refresh(wait=True)
    rows = []
    given = state.get("sources")
    for row in given if isinstance(given, list) else []:
        if isinstance(row, Mapping) and not row.get("key") and row.get("name"):
            item = desk.library.find(str(row["name"]))
            row = {**row, "key": item.key if item else str(row["name"])}  # noqa: PLW2901
        rows.append(row)
    return {**state, "sources": rows}


def _api_logins() -> dict[str, str]:
    from modules import shared

    given = getattr(shared.cmd_opts, "api_auth", None) or ""
    return dict(pair.split(":", 1) for pair in given.split(",") if ":" in pair)


def _check_login(request: Request, logins: Mapping[str, str]) -> None:
    """Refuse who is not let in: --api-auth as the WebUI's own routes have it, and --gradio-auth's login."""
    if logins:
        name, password = _basic(request)
        right = name in logins and secrets.compare_digest(password.encode(), logins[name].encode())
        if not right:
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})
        return
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
