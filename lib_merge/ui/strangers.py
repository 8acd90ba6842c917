"""Who may ask: our own page, and no other that the same browser has open.

Any page of the web can send requests to a server on this machine or in this network; the browser carries
them out and only hides the answers. So a request that acts shows what another page cannot have: in the tab a
token, which is new at every start of the server and is given out at one address, to pages of the server's
own origin alone. It is no part of gradio's configuration, which gradio lets pages of other origins read.
Where the server is ours alone (the standalone app), nobody else gets past its door at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

# what ASGI, the protocol of Python's web servers, hands over
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN = "/lora-merge/token"
_UNREAD = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# gradio's routes for files, which our page has no use for
_FILES = ("/file", "/proxy=", "/upload", "/stream")


def add_token(app: FastAPI, token: str, check: Callable[[Request], object] = lambda request: None) -> None:
    """Give the token to pages of the server's own origin, at `TOKEN`; once for an application.

    A page of another origin has its own in `Origin` or says `cross-site` in `Sec-Fetch-Site`, and cannot
    change either; where a browser sends neither, it does not show the answer to a page of another origin.

    Args:
        app: the server.
        token: what requests of the page have to carry.
        check: raises HTTPException for who is not logged in.
    """
    if any(getattr(route, "path", "") == TOKEN for route in app.routes):
        return

    async def give(request: Request) -> Response:
        check(request)
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
        own = origin is None or origin.partition("://")[2] == request.headers.get("host")
        if not own or site != "same-origin":
            message = (
                "only the page of this server is given a token; behind a proxy, have it pass on the name "
                "that the browser asked for (nginx: proxy_set_header Host $http_host)"
            )
            raise HTTPException(403, message)
        return JSONResponse({"token": token}, headers=_UNREAD)

    app.add_api_route(TOKEN, give, methods=["GET"], name="lora_merge_token", include_in_schema=False)


class OwnPageOnly:
    """The door of a server that is for the browser on this machine alone (ASGI).

    It lets in what names the server by a loopback name and its own port, so that no foreign name can be made
    to mean this machine, and comes from no page of another origin; following a link to it is allowed.
    """

    def __init__(self, app: Application) -> None:
        """Stand before `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it in one sentence."""
        refusal = _refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)


def _refusal(scope: Scope) -> Response | None:
    """Return the answer to a request that is not let in."""
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    port = (scope.get("server") or ("", None))[1]
    hosts = [f"{name}:{port}" for name in _LOOPBACK] + [name for name in _LOOPBACK if port in (None, 80)]
    host = headers.get("host", [])
    if len(host) != 1 or host[0].lower() not in hosts:
        return _no(f"open this page at http://{hosts[0]}/; it is for this computer alone")
    if any(origin != f"http://{host[0]}" for origin in headers.get("origin", [])) or _foreign(scope, headers):
        return _no(
            "a page of another site may not ask this program for anything, nor its own page through a proxy; "
            f"it is at http://{hosts[0]}/ on this computer"
        )
    return PlainTextResponse("not here", 404) if scope["path"].startswith(_FILES) else None


def _foreign(scope: Scope, headers: dict[str, list[str]]) -> bool:
    """Tell whether a page of another site asks; following a link to our page is no asking."""
    said = {name: headers.get(f"sec-fetch-{name}", [""])[-1] for name in ("site", "mode", "dest")}
    if said["site"] not in ("same-site", "cross-site"):
        return False
    return (scope.get("method"), said["mode"], said["dest"]) != ("GET", "navigate", "document")


def _no(sentence: str) -> Response:
    return PlainTextResponse(f"{sentence}.\n", 403, headers=_UNREAD)
