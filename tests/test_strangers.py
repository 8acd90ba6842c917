"""Who is let in: the tab's token, the standalone app's door, and what REST demands of who acts."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import socket
import threading
import time

import pytest

from lib_merge.ui.desk import Desk
from lib_merge.ui.operations import open_desk
from tests.factories import write_lora
from tests.test_tab_server import Host

fastapi = pytest.importorskip("fastapi", reason="every WebUI has it")
gradio = pytest.importorskip("gradio")
import uvicorn  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from starlette.websockets import WebSocketDisconnect  # noqa: E402

from lib_merge.ui.app import PlainHost, build_app  # noqa: E402
from lib_merge.ui.modules import add_modules, modules, version  # noqa: E402
from lib_merge.ui.strangers import TOKEN, add_token  # noqa: E402
from lib_merge.ui.tab import build_with  # noqa: E402

HOME = "http://127.0.0.1:7870"
SOCKET = "ws://127.0.0.1:7870/queue/join"
SAVE = {"id": 2, "op": "preset_save", "name": "stranger", "weights": {"IN04": 0.5}}


@pytest.fixture
def desk(tmp_path) -> Desk:
    return open_desk(Host(tmp_path))


# -------------------------------------------------------------------------------------------- the token


@pytest.mark.parametrize("token", [None, "", "guessed", 0, [], {}, True, "é", "\ud800", "a" * 100_000])
def test_a_request_without_our_token_does_nothing(desk, token):
    for request in (SAVE, {**SAVE, "token": token}):
        reply = json.loads(desk.handle(json.dumps(request)))
        assert (reply["ok"], reply["stale"], reply["id"]) == (False, True, 2)
        assert "reload the page" in reply["error"]
    assert not (desk.host.data_folder() / "presets.json").exists()
    assert json.loads(desk.handle(json.dumps({**SAVE, "token": desk.token})))["ok"]


def test_every_start_has_a_token_of_its_own_which_no_log_shows(tmp_path):
    one, other = open_desk(Host(tmp_path / "a")), open_desk(Host(tmp_path / "b"))
    assert one.token != other.token
    assert len(one.token) >= 40
    assert one.token not in repr(one)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://merge.example"}, 200),
        ({"origin": "http://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://merge.example.evil"}, 403),
        ({"origin": "http://elsewhere.example", "x-forwarded-host": "elsewhere.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
    ],
)
def test_only_a_page_of_the_servers_own_origin_is_given_the_token(headers, status):
    from starlette.middleware.cors import CORSMiddleware

    app = fastapi.FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    add_token(app, "secret")
    reply = TestClient(app, base_url="https://merge.example").get(TOKEN, headers=headers)
    assert reply.status_code == status
    assert ("secret" in reply.text) == (status == 200)
    assert "no-store" in reply.headers.get("cache-control", "") or status != 200


def test_a_page_that_asks_for_a_login_gives_the_token_to_who_has_it():
    from lib_merge.webui.rest import check_page_login

    app = fastapi.FastAPI()
    app.auth, app.tokens = {"me": "secret"}, {"cookie": "me"}
    add_token(app, "t", check_page_login)
    client = TestClient(app)
    assert client.get(TOKEN).status_code == 401
    client.cookies.set("access-token", "cookie")
    assert client.get(TOKEN).json() == {"token": "t"}


# -------------------------------------------------------------------------------------------- the modules


@pytest.fixture
def scripts(tmp_path):
    """A folder of modules, something beside it, and an application that gives them."""
    folder = tmp_path / "scripts"
    (folder / "core").mkdir(parents=True)
    (folder / "main.js").write_text('import "./core/dom.js";')
    (folder / "core" / "dom.js").write_text("export const el = 1;")
    (folder / "types.d.ts").write_text("")
    (tmp_path / "secret.js").write_text("secret")
    return folder


def _modules(scripts, **more):
    app = fastapi.FastAPI()
    add_modules(app, folder=scripts, **more)
    add_modules(app, folder=scripts.parent, **more)  # a WebUI may start the application twice
    return TestClient(app)


def test_modules_are_given_under_their_version_and_nothing_else_is(scripts):
    client, now = _modules(scripts), version(scripts)
    reply = client.get(f"/lora-merge/js/{now}/core/dom.js")
    assert reply.text == "export const el = 1;"
    assert reply.headers["content-type"].startswith("text/javascript")
    assert "immutable" in reply.headers["cache-control"]
    for name in ("types.d.ts", "core", "core/", "", "../secret.js", "..%2fsecret.js", "%2e%2e/secret.js", "core/../main.js",
                 "core//dom.js", "/main.js", f"{scripts}/main.js", "main.js%00", "core%5cdom.js", "scripts/main.js"):  # fmt: skip
        found = client.get(f"/lora-merge/js/{now}/{name}")
        assert found.status_code == 404 or found.text == 'import "./core/dom.js";', name
        assert "secret" not in found.text
    assert client.post(f"/lora-merge/js/{now}/main.js").status_code == 405


def test_another_version_is_given_todays_module_which_is_not_kept(scripts):
    client, before = _modules(scripts), version(scripts)
    (scripts / "core" / "dom.js").write_text("export const el = 22;")
    assert version(scripts) != before
    reply = client.get(f"/lora-merge/js/{before}/core/dom.js")
    assert (reply.text, reply.headers["cache-control"]) == ("export const el = 22;", "no-store")
    (scripts / "new.js").write_text("")
    assert client.get(f"/lora-merge/js/{version(scripts)}/new.js").status_code == 200


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_is_no_module(scripts):
    (scripts / "link.js").symlink_to(scripts.parent / "secret.js")
    (scripts / "room").symlink_to(scripts.parent)
    assert list(modules(scripts)) == ["main.js", "core/dom.js"]
    for name in ("link.js", "room/secret.js"):
        assert _modules(scripts).get(f"/lora-merge/js/x/{name}").status_code == 404


def test_modules_are_for_who_is_logged_in(scripts):
    from lib_merge.webui.rest import check_page_login

    client = _modules(scripts, check=check_page_login)
    client.app.auth, client.app.tokens = {"me": "secret"}, {"cookie": "me"}
    assert client.get("/lora-merge/js/x/main.js").status_code == 401
    client.cookies.set("access-token", "cookie")
    assert client.get("/lora-merge/js/x/main.js").status_code == 200


# -------------------------------------------------------------------------------------------- behind a proxy


class _Proxy:
    """What stands before a WebUI under --subpath: takes a prefix off, passes the Host on or puts its own there."""

    def __init__(self, inner: int, host: str = ""):
        class Passed(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                headers = {
                    name: value for name, value in self.headers.items() if name.lower() != "connection"
                }
                headers["Host"] = host or headers["Host"]
                body = self.rfile.read(int(headers.get("Content-Length", 0))) or None
                way = http.client.HTTPConnection("127.0.0.1", inner, timeout=60)
                way.request(self.command, self.path.removeprefix("/sd") or "/", body, headers)
                reply = way.getresponse()
                said = reply.read()
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in (
                        "content-length",
                        "transfer-encoding",
                        "connection",
                        "date",
                        "server",
                    ):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)
                way.close()

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Passed)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def ask(self, method, path, body=None, host="merge.example", **headers):
        """Ask as a browser does; return (status, text)."""
        way = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=60)
        given = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        way.request(method, f"/sd{path}", None if body is None else json.dumps(body), given)
        reply = way.getresponse()
        text = reply.read().decode()
        way.close()
        return reply.status, text

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def _serving(app):
    """Run an application on a port of its own, and give that."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield port
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def as_webui(desk):
    """The tab in a gradio application under a path of its own, as a WebUI started with --subpath serves it."""
    app = fastapi.FastAPI()
    add_token(app, desk.token)
    tab = build_with(desk)
    tab.root_path = "/sd"  # which gradio writes into its page; the server itself is asked without it
    app = gradio.mount_gradio_app(app, tab, path="/")
    with _serving(app) as port:
        yield port


def _saved(proxy, token, **headers):
    asked = {**SAVE, **({"token": token} if token else {})}
    body = {"fn_index": 0, "data": [json.dumps(asked)], "session_hash": "x"}
    status, text = proxy.ask("POST", "/run/predict", body, Content_Type="application/json", **headers)
    return status == 200 and json.loads(json.loads(text)["data"][0])["ok"]


@pytest.mark.parametrize("rewritten", [False, True], ids=["Host passed on", "Host rewritten"])
def test_behind_a_proxy_our_own_page_works_and_strangers_are_refused(desk, as_webui, rewritten):
    proxy = _Proxy(as_webui, f"127.0.0.1:{as_webui}" if rewritten else "")
    own = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors", "Referer": "https://merge.example/sd/"}
    assert proxy.ask("GET", "/", Sec_Fetch_Site="none")[0] == 200
    for headers in (own, {}):  # without TLS a browser says nothing of the site
        status, text = proxy.ask("GET", TOKEN, **headers)
        assert (status, json.loads(text)) == (200, {"token": desk.token})
    assert _saved(proxy, desk.token, Origin="https://merge.example", **own)
    (desk.host.data_folder() / "presets.json").unlink()
    strangers = (
        {"Origin": "http://elsewhere.example", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Origin": "http://elsewhere.example", "X_Forwarded_Host": "elsewhere.example"},
    )
    for headers in strangers:
        status, text = proxy.ask("GET", TOKEN, **headers)
        assert (status, desk.token in text) == (403, False), headers
        assert not _saved(proxy, "", **headers)
    assert not (desk.host.data_folder() / "presets.json").exists()
    proxy.close()


def test_a_browser_that_names_its_origin_to_a_proxy_that_rewrites_it_is_told_what_to_set(as_webui):
    proxy = _Proxy(as_webui, f"127.0.0.1:{as_webui}")
    status, text = proxy.ask("GET", TOKEN, Origin="https://merge.example", Sec_Fetch_Site="same-origin")
    proxy.close()
    assert status == 403
    assert "proxy_set_header Host $http_host" in json.loads(text)["detail"]


@pytest.mark.parametrize("rewritten", [False, True], ids=["Host passed on", "Host rewritten"])
def test_the_standalone_app_takes_nothing_through_a_proxy_and_says_where_it_is(tmp_path, rewritten):
    (tmp_path / "loras").mkdir()
    with _serving(build_app(PlainHost(tmp_path / "loras", tmp_path / "data"))) as port:
        proxy = _Proxy(port, f"127.0.0.1:{port}" if rewritten else "")
        body = {"fn_index": 0, "data": ["{}"], "session_hash": "x"}
        status, text = proxy.ask("POST", "/run/predict", body, Origin="https://merge.example")
        proxy.close()
    assert status == 403
    assert text.count("\n") == 1
    assert f"http://127.0.0.1:{port}/" in text


# -------------------------------------------------------------------------------------------- our own server


@pytest.fixture
def client(tmp_path):
    folder = tmp_path / "loras"
    (folder / "a b#?%").mkdir(parents=True)
    write_lora(folder / "a b#?%" / "ink.safetensors")
    (folder / "a b#?%" / "ink.png").write_bytes(b"\x89PNG\r\n\x1a\npicture")
    (folder / "alone.png").write_bytes(b"\x89PNG\r\n\x1a\nalone")
    (tmp_path / "outside.png").write_bytes(b"\x89PNG\r\n\x1a\noutside")
    with TestClient(build_app(PlainHost(folder, tmp_path / "data")), base_url=HOME) as found:
        yield found


@pytest.mark.parametrize("host", ["127.0.0.1:7870", "localhost:7870", "LOCALHOST:7870", "[::1]:7870"])
def test_loopback_names_with_the_port_are_let_in(client, host):
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        assert client.get("/config", headers=headers).status_code == 200


STRANGE = [
    {"host": "rebound.example:7870"},
    {"host": "127.0.0.1"},
    {"host": "127.0.0.1:1"},
    {"host": "127.0.0.1:7870@rebound.example"},
    {"host": "127.0.0.1.rebound.example:7870"},
    {"host": ""},
    {"origin": "http://elsewhere.example"},
    {"origin": "https://127.0.0.1:7870"},
    {"origin": "http://localhost:7870"},
    {"origin": "http://127.0.0.1:8000"},
    {"origin": "null"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
]


@pytest.mark.parametrize("headers", STRANGE, ids=str)
def test_nobody_else_is_let_in_by_any_way(client, headers):
    for path in (
        "/",
        "/config",
        "/info",
        TOKEN,
        "/lora-merge/file/style.css",
        "/lora-merge/js/x/main.js",
        "/queue/status",
        "/theme.css",
    ):
        reply = client.get(path, headers=headers)
        assert reply.status_code == 403, path
        assert "access-control-allow-origin" not in reply.headers
    body = {"fn_index": 0, "data": [json.dumps(SAVE)], "session_hash": "x"}
    for path in ("/run/predict", "/api/predict/", "/queue/join", "/reset", "/upload", "/login"):
        assert client.post(path, json=body, headers=headers).status_code == 403
        assert client.post(path, content=json.dumps(body), headers=headers).status_code == 403
    assert client.options("/run/predict", headers=headers).status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET, headers=headers):
        pytest.fail("it was accepted")


def test_a_link_opens_the_page_which_no_other_may_frame(client):
    said = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    page = client.get("/", headers=said)
    assert page.status_code == 200
    assert page.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert client.post("/", headers=said).status_code == 403


def test_a_request_of_gradio_itself_needs_the_token_too(client):
    def saved(request):
        body = {"fn_index": 0, "data": [json.dumps(request)], "session_hash": "x"}
        return json.loads(client.post("/run/predict", json=body).json()["data"][0])

    assert not saved(SAVE)["ok"]
    assert saved({**SAVE, "token": client.get(TOKEN).json()["token"]})["ok"]


def test_pictures_are_served_by_the_key_of_their_lora(client, tmp_path):
    host = PlainHost(tmp_path / "loras", tmp_path / "data")
    address = host.preview_url(tmp_path / "loras" / "a b#?%" / "ink.safetensors")
    assert client.get(f"/{address}").content.endswith(b"picture")
    outside = tmp_path / "outside.png"
    for path in ("alone.png", "0/alone.png", "0/alone", "0//alone.png", f"/{outside}", f"0/{outside}", f"{outside}",
                 "0/../outside.png", "0/%2e%2e/outside.png", "..%2foutside.png", "0/a b%23%3F%25/ink.png", "1/x", ""):  # fmt: skip
        assert client.get(f"/lora-merge/preview/{path}").status_code == 404, path


def test_no_other_file_of_this_machine_is_served(client, tmp_path):
    here = tmp_path / "outside.png"
    for path in (f"/file={here}", f"/file/{here}", "/file=install.py", "/file/install.py", "/proxy=http://x.hf.space",
                 "/lora-merge/file/install.py", "/lora-merge/file/../README.md", f"/lora-merge/file/{here}"):  # fmt: skip
        assert client.get(path).status_code == 404, path
    assert client.post("/upload", files={"files": b"x"}).status_code == 404


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_picture_under_a_name_that_is_no_text_is_served(client, tmp_path):
    folder = tmp_path / "loras"
    odd = folder / os.fsdecode(b"caf\xe9.safetensors")
    source = next((tmp_path / "loras").rglob("*.safetensors"))
    try:
        odd.write_bytes(source.read_bytes())
    except OSError:
        pytest.skip("this disk takes only names in UTF-8")
    odd.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\nodd")
    host = PlainHost(folder, tmp_path / "data")
    assert client.get(f"/{host.preview_url(odd)}").content.endswith(b"odd")
