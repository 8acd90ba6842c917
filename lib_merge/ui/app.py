"""The tab on a plain machine: the same page without a WebUI around it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import socket
import threading
import urllib.parse
import webbrowser
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from lib_merge.errors import MergeError, OutputError
from lib_merge.library.library import key_of
from lib_merge.ui.modules import add_modules
from lib_merge.ui.operations import open_desk
from lib_merge.ui.pictures import picture_beside
from lib_merge.ui.strangers import OwnPageOnly, add_token
from lib_merge.ui.tab import build_with

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger("lib_merge")
PORT = 7870
TRIES = 20
# gradio's page asks a script server and a font server; nothing here needs them, and they need not know of us
_OUTSIDE = re.compile(
    r"""<script\b[^>]*\bsrc\s*=\s*"https?://[^>]*>\s*</script>|<link\b[^>]*\bhref\s*=\s*"https?://[^>]*>"""
)


class PlainHost:
    """A folder of LoRAs, no WebUI: everything but generating works."""

    name = "standalone"
    loader = ""

    def __init__(self, folder: Path, data: Path, device: str = "cpu") -> None:
        """Serve `folder`; keep presets and history in `data`."""
        self._folder, self._data, self._device = folder, data, device
        self._lock = threading.Lock()

    def lora_folders(self) -> list[Path]:
        """Return the one folder."""
        return [self._folder]

    def data_folder(self) -> Path:
        """Return where presets and history are kept."""
        return self._data

    def extension_folders(self) -> list[Path]:
        """Return nothing: there are no neighbours."""
        return []

    def device(self) -> torch.device:
        """Return the device asked for."""
        return torch.device(self._device)

    def busy_lock(self) -> contextlib.AbstractContextManager[Any]:
        """Return a lock of our own."""
        return self._lock

    def refresh_loras(self, changed: Sequence[Path]) -> None:
        """Do nothing: nobody else lists them."""

    def alias_of(self, path: Path) -> str:
        """Return the file's stem."""
        return path.stem

    def preview_url(self, path: Path) -> str:
        """Return the address of a picture beside the LoRA."""
        if picture_beside(path) is None:
            return ""
        return f"lora-merge/preview/{urllib.parse.quote(key_of(0, path.relative_to(self._folder)))}"

    def can_generate(self) -> bool:
        """Return False."""
        return False

    def option(self, name: str, default: Any) -> Any:  # noqa: ANN401
        """Return the default: there is no settings page."""
        return "" if name == "lora_merge_folder" else default

    def known_names(self, stems: Collection[str]) -> set[str] | None:
        """Return None: no checkpoint is loaded here."""
        del stems
        return None

    def checkpoint(self) -> tuple[str, str]:
        """Return nothing: no checkpoint is loaded here."""
        return "", ""

    def claims_name(self, stem: str) -> Path | None:
        """Return a LoRA of that stem in any sub-folder."""
        return next((path for path in self._folder.rglob("*.safetensors") if path.stem == stem), None)


def build_app(host: PlainHost) -> FastAPI:
    """Return the web application: the tab at /, our scripts and styles put into its page."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    desk = open_desk(host)
    add_token(app, desk.token)
    add_modules(app)

    @app.get("/lora-merge/file/{name:path}")
    def asset(name: str) -> Response:
        path = ROOT / name
        if path not in _assets():
            return Response(status_code=404)
        kind = "text/css" if path.suffix == ".css" else "text/javascript"
        return FileResponse(path, media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})

    @app.get("/lora-merge/preview/{key:path}")
    def preview(key: str) -> Response:
        try:
            picture = picture_beside(desk.library.resolve(key))
        except MergeError:
            picture = None
        return FileResponse(picture) if picture is not None else Response(status_code=404)

    @app.middleware("http")
    async def inject(request: Request, call_next: Any) -> Response:  # noqa: ANN401
        response: Any = await call_next(request)
        if request.url.path != "/" or "text/html" not in response.headers.get("content-type", ""):
            return response  # type: ignore[no-any-return]
        body = b"".join([part async for part in response.body_iterator]).decode("utf-8")
        page = _OUTSIDE.sub("", body).replace("</head>", f"{_head()}</head>", 1)
        return HTMLResponse(page, response.status_code, {"Content-Security-Policy": "frame-ancestors 'self'"})

    app.add_middleware(OwnPageOnly)

    # the system's own fonts: a local page has no reason to ask a font server
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(app, build_with(desk, theme), path="/")


def _assets() -> list[Path]:
    return [*(ROOT / "javascript").rglob("*.js"), ROOT / "style.css"]


def _head() -> str:
    style = '<link rel="stylesheet" href="lora-merge/file/style.css">'
    return f'<title>LoRA Merge</title>{style}<script src="lora-merge/file/javascript/lora_merge.js"></script>'


def free_port(wanted: int) -> socket.socket:
    """Return a socket that listens on this computer alone, at the wanted port or the next free one.

    Raises:
        OutputError: none of the twenty from there on is free.
    """
    for port in range(wanted, min(wanted + TRIES, 1 << 16)):
        listener = socket.socket(socket.AF_INET)
        if os.name == "nt":  # there, reuse would take a port that another program has
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError:
            listener.close()
            continue
        return listener
    message = f"no port from {wanted} on is free: choose another with --port."
    raise OutputError(message)


def lora_folder(given: Path) -> Path:
    """Return the folder of LoRAs; one that is not there is made, so that merges have a place.

    Raises:
        OutputError: it is no folder, or cannot be made.
    """
    folder = given.expanduser().resolve()
    if not folder.exists():
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            message = f"the folder {given} cannot be made: {error.strerror or error}."
            raise OutputError(message) from error
        log.info("The folder %s was not there and has been made: put LoRAs into it.", given)
    if not folder.is_dir():
        message = f"{given} is no folder: give the one that your LoRAs are in."
        raise OutputError(message)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the tab until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m lib_merge.ui.app", description=__doc__)
    parser.add_argument("--lora-dir", type=Path, required=True, help="your LoRAs; merges are saved below it")
    parser.add_argument("--data-dir", type=Path, help="presets and history; beside the LoRAs by default")
    parser.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; the next free one if busy")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        folder = lora_folder(given.lora_dir)
        listener = free_port(given.port)
        host = PlainHost(folder, (given.data_dir or folder / ".lora-merge").resolve(), given.device)
        app = build_app(host)
    except MergeError as error:
        log.error("%s", error)  # noqa: TRY400 - one sentence for people, no traceback
        return 2
    port = listener.getsockname()[1]
    if given.port and port != given.port:
        log.info("Port %d is taken by another program, so this is at %d.", given.port, port)
    address = f"http://127.0.0.1:{port}/"
    log.info("LoRA Merge is at %s  (Ctrl+C ends it)", address)
    if not given.no_browser:
        threading.Timer(1.5, webbrowser.open, (address,)).start()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
