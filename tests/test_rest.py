"""The REST API on a FastAPI of its own: answers, refusals, logins, and what the OpenAPI page says."""

from __future__ import annotations

import sys
import time
import types

import pytest

from lib_merge.ui.operations import open_desk
from tests.factories import write_lora
from tests.test_tab_server import Host

fastapi = pytest.importorskip("fastapi", reason="every WebUI has it")
from fastapi.testclient import TestClient  # noqa: E402

from lib_merge.webui import rest  # noqa: E402

V1 = "/lora-merge/v1"


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Return a function that makes a client; `api_auth` is the WebUI's option."""
    desk = open_desk(Host(tmp_path))
    for number, name in enumerate(("ink", "mira")):
        write_lora(tmp_path / "loras" / f"{name}.safetensors", seed=number)

    def start(api_auth=None, login=None):
        shared = types.ModuleType("modules.shared")
        shared.cmd_opts = types.SimpleNamespace(api_auth=api_auth)
        modules = types.ModuleType("modules")
        modules.shared = shared
        monkeypatch.setitem(sys.modules, "modules", modules)
        monkeypatch.setitem(sys.modules, "modules.shared", shared)
        app = fastapi.FastAPI()
        if login:
            app.auth, app.tokens = {"me": "secret"}, {login: "me"}
        rest.add_routes(app, desk)
        return TestClient(app)

    return start


def test_a_merge_by_names_and_its_history(serve):
    client = serve()
    assert {item["name"] for item in client.get(f"{V1}/loras").json()["items"]} == {"ink", "mira"}
    assert "weighted_sum" in {method["name"] for method in client.get(f"{V1}/methods").json()["methods"]}
    assert client.get(f"{V1}/inspect", params={"name": "ink"}).json()["ok"]
    sources = [{"name": "ink", "ratio": 0.6}, {"name": "mira", "ratio": 0.4}]
    state = {"sources": sources, "output": {"template": "both"}}
    assert client.post(f"{V1}/plan", json=state).json()["plan"]["name"] == "both.safetensors"
    job = client.post(f"{V1}/merge", json=state).json()["job"]
    for _ in range(600):
        now = client.get(f"{V1}/jobs/{job}").json()
        if now["state"] not in ("waiting", "running"):
            break
        time.sleep(0.05)
    assert now["state"] == "done", now
    assert now["result"]["relative_error"] < 1e-3
    [entry] = client.get(f"{V1}/history").json()["entries"]
    assert entry["name"] == "both"
    assert "both" in client.get(f"{V1}/recipes").json()["all"]
    opened = client.get(f"{V1}/recipes", params={"name": "both"}).json()["state"]
    assert [row["ratio"] for row in opened["sources"]] == [0.6, 0.4]
    assert client.post(f"{V1}/plan", json={"state": opened}).json()["ok"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{bad", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"sources": 3}', "application/json", 422),
        (b'{"sources": [{"name": "../../etc/passwd"}]}', "application/json", 422),
    ],
)
def test_a_body_that_is_none_is_refused(serve, content, kind, status):
    assert serve().post(f"{V1}/merge", content=content, headers={"content-type": kind}).status_code == status


def test_a_body_without_end_is_refused_before_it_is_whole(serve):
    taken = []

    def endless():
        for number in range(1000):
            taken.append(number)
            yield b" " * (1 << 20)

    reply = serve().post(f"{V1}/plan", content=endless(), headers={"content-type": "application/json"})
    assert reply.status_code == 413


def test_api_auth_and_the_page_login(serve):
    client = serve(api_auth="me:secret,you:other")
    assert client.get(f"{V1}/methods").status_code == 401
    assert client.get(f"{V1}/methods", auth=("me", "other")).status_code == 401
    assert client.get(f"{V1}/methods", auth=("you", "other")).status_code == 200
    client = serve(login="token")
    assert client.get(f"{V1}/methods").status_code == 401
    client.cookies.set("access-token", "wrong")
    assert client.get(f"{V1}/methods").status_code == 401
    for name in ("access-token", "access-token-unsecure", "access-token-unsecure-Ab1"):
        client.cookies.clear()
        client.cookies.set(name, "token")
        assert client.get(f"{V1}/methods").status_code == 200


def test_openapi_names_parameters_and_nothing_deletes(serve):
    paths = serve().get("/openapi.json").json()["paths"]
    ours = {path: item for path, item in paths.items() if path.startswith(V1)}
    assert len(ours) == 11
    assert not any("delete" in item for item in ours.values())
    assert [p["name"] for p in ours[f"{V1}/inspect"]["get"]["parameters"]] == ["key", "name"]
    assert [p["name"] for p in ours[f"{V1}/jobs/{{job}}"]["get"]["parameters"]] == ["job"]
    assert "requestBody" in ours[f"{V1}/merge"]["post"]
