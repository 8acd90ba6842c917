"""The REST API on a FastAPI of its own: answers, refusals, logins, and what the OpenAPI page says."""

from __future__ import annotations

import json
import sys
import time
import types

import pytest

from lib_merge.ui.desk import OPERATIONS
from lib_merge.ui.operations import open_desk
from tests.documentation import ROOT, blocks
from tests.factories import write_lora
from tests.schema import fits
from tests.test_tab_server import Host

fastapi = pytest.importorskip("fastapi", reason="every WebUI has it")
from fastapi.testclient import TestClient  # noqa: E402

from lib_merge.webui import rest  # noqa: E402

V1 = "/lora-merge/v1"
DOCUMENTED = ROOT / ".docs" / "rest.md"


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


def _ended(client, job):
    for _ in range(1200):
        now = client.get(f"{V1}/jobs/{job}").json()
        if now["state"] not in ("waiting", "running"):
            return now
        time.sleep(0.05)
    raise TimeoutError(now)


def test_a_merge_by_names_and_its_history(serve):
    client = serve()
    assert {item["name"] for item in client.get(f"{V1}/loras").json()["items"]} == {"ink", "mira"}
    assert "weighted_sum" in {method["name"] for method in client.get(f"{V1}/methods").json()["methods"]}
    assert client.get(f"{V1}/inspect", params={"name": "ink"}).json()["ok"]
    sources = [{"name": "ink", "ratio": 0.6}, {"name": "mira", "ratio": 0.4}]
    state = {"sources": sources, "output": {"template": "both"}}
    assert client.post(f"{V1}/plan", json=state).json()["plan"]["name"] == "both.safetensors"
    now = _ended(client, client.post(f"{V1}/merge", json=state).json()["job"])
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


@pytest.mark.parametrize(
    "given", ["nonsense", "me", ":", "me:", ":secret", "", ",", "me:secret,", "me:secret,you"]
)
def test_api_auth_that_cannot_be_read_lets_nobody_in(serve, given):
    client = serve(api_auth=given)
    for auth in (None, ("", ""), ("me", ""), ("", "secret"), ("me", "secret"), ("nonsense", "")):
        assert client.get(f"{V1}/methods", auth=auth).status_code == 401
        assert client.post(f"{V1}/jobs/1/cancel", json={}, auth=auth).status_code == 401


def test_whatever_acts_demands_json_as_no_page_of_another_site_can_send_it(serve):
    client = serve()
    posts = [path for path, item in client.get("/openapi.json").json()["paths"].items() if "post" in item]
    assert f"{V1}/jobs/{{job}}/cancel" in posts
    for path in posts:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
            "application/jsonp",
        ):
            reply = client.post(
                path.format(job=1), content=b"{}", headers={"content-type": kind} if kind else {}
            )
            assert reply.status_code == 415, (path, kind)
    for content in (b"", b"{}", b" "):
        reply = client.post(
            f"{V1}/jobs/1/cancel", content=content, headers={"content-type": "application/json"}
        )
        assert (reply.status_code, "not known" in reply.json()["error"]) == (422, True)


def test_openapi_names_parameters_and_nothing_deletes(serve):
    paths = serve().get("/openapi.json").json()["paths"]
    ours = {path: item for path, item in paths.items() if path.startswith(V1)}
    promised = {
        "methods", "loras", "inspect", "presets", "recipes", "history", "plan", "merge", "verify", "jobs/{job}", "jobs/{job}/cancel",
        "analyze", "analysis/{job}",
    }  # fmt: skip
    declared = {f"{V1}{one.rest.partition(' ')[2]}" for one in OPERATIONS.values() if one.rest}
    assert {f"{V1}/{name}" for name in promised} <= declared
    assert declared == set(ours)
    assert not any("delete" in item for item in ours.values())
    assert [p["name"] for p in ours[f"{V1}/inspect"]["get"]["parameters"]] == ["key", "name"]
    assert [p["name"] for p in ours[f"{V1}/jobs/{{job}}"]["get"]["parameters"]] == ["job"]
    assert "requestBody" in ours[f"{V1}/merge"]["post"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"sources": [{"name": "ink"}, {"name": "mira", "ratio": "abc"}]}, 'sources[1].ratio is "abc"; it takes a number.'),
        ({"sources": [{"name": "ink", "raito": 1}]}, "there is no field state.sources[0].raito; did you mean ratio?"),
        ({"sources": 3}, "state.sources is 3; it takes a list."),
        ({"sources": [{"name": "ink"}], "seed": "a"}, 'state.seed is "a"; it takes a whole number.'),
        ({"sources": [{"name": "ink"}], "method": "nonsense"}, "there is no method 'nonsense'."),
        ({"state": {"sources": [], "nonsense": 1}}, "there is no field state.nonsense;"),
        ({"state": {"sources": []}, "nonsense": 1}, "there is no field nonsense;"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_body_is_said_in_one_sentence(serve, body, sentence):
    for path in ("plan", "merge"):
        reply = serve().post(f"{V1}/{path}", json=body)
        assert reply.status_code == 422
        assert sentence in reply.json()["error"]
        assert reply.json()["error"].count("\n") == 0


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("jobs/²", 'job is "²"; it takes a whole number.'),
        ("jobs/1.5", 'job is "1.5"; it takes a whole number.'),
        ("jobs/77", "that job is not known any more"),
        ("history?count=none", 'count is "none"; it takes a whole number from 1.'),
        ("inspect?nmae=ink", "there is no field nmae; did you mean name?"),
        ("loras?x=1", "there is no field x;"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_too(serve, path, sentence):
    reply = serve().get(f"{V1}/{path}")
    assert reply.status_code == 422
    assert sentence in reply.json()["error"]


def test_numbers_in_an_address_are_numbers(serve):
    assert serve().get(f"{V1}/history", params={"count": "5"}).json() == {
        "ok": True,
        "entries": [],
        "total": 0,
        "labels": {},
        "can": {},
    }


def _references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def test_openapi_has_real_schemas_whose_examples_are_accepted(serve):
    client = serve()
    page = client.get("/openapi.json").json()
    components = page["components"]["schemas"]
    ours = {path: item for path, item in page["paths"].items() if path.startswith(V1)}
    assert {ref.rpartition("/")[2] for ref in _references([ours, components])} <= set(components)
    bodies = 0
    for path, item in ours.items():
        for method, route in item.items():
            answer = route["responses"]["200"]["content"]["application/json"]["schema"]
            assert answer["allOf"][1], path
            if "requestBody" not in route:
                continue
            bodies += 1
            content = route["requestBody"]["content"]["application/json"]
            assert fits(content["example"], content["schema"], components), path
            reply = client.request(method, path, json=content["example"])
            assert reply.status_code == 200 or "merged" in reply.json()["error"], (path, reply.json())
    assert bodies == 4


def test_answers_fit_the_schemas_that_openapi_gives_them(serve):
    client = serve()
    page = client.get("/openapi.json").json()
    for path in ("methods", "loras", "presets", "recipes", "history", "inspect"):
        schema = page["paths"][f"{V1}/{path}"]["get"]["responses"]["200"]["content"]["application/json"][
            "schema"
        ]
        reply = client.get(f"{V1}/{path}", params={"name": "ink"} if path == "inspect" else {}).json()
        assert fits(reply, schema, page["components"]["schemas"]), path
    planned = client.post(f"{V1}/plan", json={"sources": [{"name": "ink"}]}).json()
    assert planned["plan"]["estimate"] is False  # what clients of 0.1 read
    schema = page["paths"][f"{V1}/plan"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert fits(planned, schema, page["components"]["schemas"])


def _answer(page, path, method="get"):
    return page["paths"][f"{V1}/{path}"][method]["responses"]["200"]["content"]["application/json"]["schema"]


def test_an_analysis_is_started_and_its_report_read(serve):
    client = serve()
    page = client.get("/openapi.json").json()
    components = page["components"]["schemas"]
    sources = [{"name": "ink", "ratio": 0.6}, {"name": "mira", "ratio": 0.4}]
    for body in ({"sources": sources}, {"state": {"sources": sources}, "all": False}):
        started = client.post(f"{V1}/analyze", json=body).json()
        assert fits(started, _answer(page, "analyze", "post"), components)
        now = _ended(client, started["job"])
        assert (now["state"], now["result"]["stage"]) == ("done", "advice"), now
        assert fits(now, _answer(page, "jobs/{job}"), components)
        told = client.get(f"{V1}/analysis/{started['job']}").json()
        assert fits(told, _answer(page, "analysis/{job}"), components)
        assert [source["label"] for source in told["report"]["sources"]] == ["ink", "mira"]
        assert told["report"]["recipe"]["ratios"] == [0.6, 0.4]
    assert not client.get(f"{V1}/analysis/{started['job']}", params={"have": "advice"}).json().get("report")


def test_openapi_tells_what_reports_recipes_and_facts_of_files_hold(serve):
    """Each field of a real answer is one that is told, and none that is told is missing."""
    client = serve()
    components = client.get("/openapi.json").json()["components"]["schemas"]
    state = {"sources": [{"name": "ink", "group": "1"}, {"name": "mira"}], "output": {"template": "both"}}
    done = _ended(client, client.post(f"{V1}/merge", json=state).json()["job"])
    checked = _ended(client, client.post(f"{V1}/verify", json={"name": "both"}).json()["job"])
    found = client.get(f"{V1}/inspect", params={"name": "both"}).json()["found"]
    [entry] = client.get(f"{V1}/history").json()["entries"]
    job = client.post(f"{V1}/analyze", json=state).json()["job"]
    _ended(client, job)
    report = client.get(f"{V1}/analysis/{job}").json()["report"]
    report.pop("rows")  # the page's own
    for name, value in (
        ("MergeResult", done["result"]),
        ("MergeResult", checked["result"]),
        ("FileFacts", found),
        ("SavedRecipe", entry["recipe"]),
        ("Analysis", report),
    ):
        assert fits(value, components[name], components), name
        assert set(value) <= set(components[name]["properties"]), name
    for name, field, kind in (
        ("JobReply", "result", "MergeResult"),
        ("InspectReply", "found", "FileFacts"),
        ("Entry", "recipe", "SavedRecipe"),
        ("AnalysisReply", "report", "Analysis"),
    ):
        assert {"$ref": f"#/components/schemas/{kind}"} in components[name]["properties"][field]["anyOf"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"sources": [{"name": "inc"}]}, "there is no LoRA called 'inc' in the LoRA folders; did you mean ink?"),
        ({"sources": [{"name": "ink"}, {"name": "../../etc/passwd"}]}, "there is no LoRA called '../../etc/passwd' in"),
        ({"sources": [{"ratio": 1}]}, "sources[0] names no LoRA: give its name or its key."),
        ({"sources": [{"name": "ink"}, {"name": "mira", "ratio": "abc"}]}, "mira: state.sources[1].ratio is \"abc\""),
        ({"sources": [{"name": "ink", "elements": "a:b"}]}, "ink: element rule 'a:b' is not blocks:elements:ratio."),
        ({"sources": [{"key": "0/gone.safetensors"}]}, "gone.safetensors is not in the LoRA folders"),
        ({"sources": {"sources[0]": 1}}, "state.sources is "),
    ],
)  # fmt: skip
def test_a_refusal_names_the_lora(serve, body, sentence):
    client = serve()
    for path in ("plan", "merge", "analyze"):
        reply = client.post(f"{V1}/{path}", json=body)
        assert reply.status_code == 422
        assert sentence in reply.json()["error"], path


def test_what_is_asked_about_one_lora_names_it_too(serve):
    client = serve()
    for answer in (
        client.get(f"{V1}/inspect", params={"name": "gone"}),
        client.post(f"{V1}/verify", json={"name": "gone"}),
    ):
        assert answer.json()["error"].startswith("there is no LoRA called 'gone' in the LoRA folders;")
    assert "say which LoRA" in client.get(f"{V1}/inspect").json()["error"]


def test_the_bodies_that_are_documented_are_taken(serve):
    client = serve()
    bodies = [block for block in blocks(DOCUMENTED) if block.sort == "body"]
    assert {route for block in bodies for route in block.about.split()} >= {
        "plan",
        "merge",
        "analyze",
        "verify",
    }
    for block in bodies:
        for route in block.about.split():
            reply = client.post(f"{V1}/{route}", json=json.loads(block.text))
            assert reply.status_code == 200, (route, reply.json())
            if "job" in reply.json():
                assert _ended(client, reply.json()["job"])["state"] == "done"
