"""The page's JavaScript modules, at addresses that change when they do.

Modules import each other by relative addresses, so a version in the query of the first would not reach the
others: it is a folder of the address, which is on no disk. What is asked for by today's version may be kept
for ever; by any other version today's module is given, and not kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, Response

FOLDER = Path(__file__).resolve().parents[2] / "javascript" / "lora_merge"
ROUTE = "/lora-merge/js/{version}/{name:path}"
_HEADERS = {"Cross-Origin-Resource-Policy": "same-origin", "X-Content-Type-Options": "nosniff"}


def modules(folder: Path = FOLDER) -> dict[str, Path]:
    """Return the modules by their addresses in the folder; links are none."""
    found = {}
    for place, rooms, names in os.walk(folder):
        rooms[:] = sorted(room for room in rooms if not Path(place, room).is_symlink())
        for path in (Path(place, name) for name in sorted(names) if name.endswith(".js")):
            if not path.is_symlink():
                found[path.relative_to(folder).as_posix()] = path
    return found


def version(folder: Path = FOLDER) -> str:
    """Return what is another one as soon as a module is changed, added or removed."""
    told = hashlib.sha256()
    for name, path in modules(folder).items():
        now = path.stat()
        told.update(f"{name}\n{now.st_mtime_ns}\n{now.st_size}\n".encode())
    return told.hexdigest()[:16]


def add_modules(
    app: FastAPI, check: Callable[[Request], object] = lambda request: None, folder: Path = FOLDER
) -> None:
    """Give the modules at `ROUTE`, to be read only; once for an application.

    Args:
        app: the server.
        check: raises HTTPException for who is not logged in.
        folder: where they lie; nothing outside it is given.
    """
    if any(getattr(route, "path", "") == ROUTE for route in app.routes):
        return

    def give(request: Request) -> Response:
        check(request)
        path = modules(folder).get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such module")
        current = request.path_params["version"] == version(folder)
        kept = "private, max-age=31536000, immutable" if current else "no-store"
        # by name, as Windows may have text/plain for .js, which browsers do not run
        return FileResponse(path, media_type="text/javascript", headers={**_HEADERS, "Cache-Control": kept})

    app.add_api_route(ROUTE, give, methods=["GET"], name="lora_merge_modules", include_in_schema=False)
