"""Understanding from the tab's server side: analyses in parts, advice on the state, reports kept with merges, recipes compared."""

from __future__ import annotations

import json
import re
import time

import pytest

from lib_merge.analysis import analyze, to_json
from lib_merge.analysis.comparison import compare_reports
from lib_merge.errors import RecipeError
from lib_merge.kept.archive import Archive
from lib_merge.ui.operations import open_desk
from tests.factories import write_lora
from tests.test_tab_server import PAIR, Host, _state, _wait

ENTRY = "000001-0123abcd"


@pytest.fixture
def host(tmp_path):
    found = Host(tmp_path)
    write_lora(found.folder / "a.safetensors", seed=1)
    write_lora(found.folder / "sub" / "b.safetensors", seed=2)
    write_lora(found.folder / "loud.safetensors", seed=3, size=0.4)
    return found


@pytest.fixture
def desk(host):
    found = open_desk(host)
    found.library.refresh(wait=True)
    return found


def _ask(desk, op, **fields):
    reply = desk.handle_dict({"op": op, **fields})
    assert reply["ok"], reply
    return reply


def _analysis(desk, state, **fields):
    """Every report that a browser gets, in the order in which they come."""
    started = _ask(desk, "analyze", state=state, **fields)
    found, have = [], ""
    for _ in range(2000):
        reply = _ask(desk, "analysis", job=started["job"], have=have)
        if "report" in reply:
            found.append(reply["report"])
            have = reply["report"]["stage"]
        if reply["state"] not in ("waiting", "running"):
            assert reply["state"] == "done", reply
            return found, started["job"]
        time.sleep(0.002)
    raise AssertionError("the analysis did not end")


def _merged(desk, state, name):
    """Merge, wait for the report beside it, and return the entry's id."""
    done = _wait(desk, _ask(desk, "merge", state={**state, "output": {"template": name}}))
    assert done["state"] == "done", done
    for _ in range(1000):
        if desk.reports.text(done["result"]["entry"], "json") is not None:
            return done["result"]["entry"]
        time.sleep(0.01)
    raise AssertionError("no report was kept with the merge")


def test_an_analysis_arrives_in_parts_and_can_be_saved(desk, host):
    rows = [(key, ratio, {"id": number}) for number, (key, ratio, _) in enumerate(PAIR, 7)]
    found, job = _analysis(desk, _state(*rows))
    last = found[-1]
    assert last["stage"] == "advice"
    assert last["rows"] == [7, 8]
    assert [source["label"] for source in last["sources"]] == ["a", "b"]
    assert "tensors" not in last["sources"][0]
    page, full = (_ask(desk, "analysis_export", job=job, form=form)["text"] for form in ("html", "json"))
    assert page.startswith("<!doctype html>")
    assert "Tensors of" in page
    assert "Tensors of" not in _ask(desk, "analysis_export", job=job, form="page")["text"]
    assert len(json.loads(full)["sources"][0]["tensors"]["rows"]) == 12
    for text in (page, full):
        assert str(host.base) not in text
    assert not desk.handle_dict({"op": "analysis_export", "job": 999, "form": "html"})["ok"]


def test_another_ratio_needs_no_reading(desk, monkeypatch):
    from lib_merge.analysis import steps

    _analysis(desk, _state(*PAIR))
    measured = []
    monkeypatch.setattr(steps.measure, "run", lambda *given: measured.append(given) or iter(()))
    changed = (PAIR[0], (PAIR[1][0], 0.9, {}))
    last = _analysis(desk, _state(*changed))[0][-1]
    assert not measured
    assert last["recipe"]["ratios"] == [0.6, 0.9]
    assert last["pairs"]


def test_a_file_that_changed_is_read_again(desk, host):
    first = _analysis(desk, _state(*PAIR))[0][-1]
    size = (host.folder / "a.safetensors").stat().st_size
    write_lora(host.folder / "a.safetensors", seed=9)
    assert (host.folder / "a.safetensors").stat().st_size == size
    again = _analysis(desk, _state(*PAIR))[0][-1]
    assert again["sources"][0]["whole"]["norm"] != first["sources"][0]["whole"]["norm"]


def test_groups_keep_their_rows_apart(desk):
    state = _state(
        ("0/a.safetensors", 0.5, {"id": 1, "group": "A"}),
        ("0/loud.safetensors", 0.5, {"id": 2}),
        ("0/sub/b.safetensors", 0.5, {"id": 3, "group": "A"}),
        groups={"A": {"method": "weighted_sum", "ratio": 0.5}},
    )
    last = _analysis(desk, state)[0][-1]
    assert last["rows"] == [1, 3, 2]
    assert [source["label"] for source in last["sources"]] == ["a", "b", "loud"]


def test_advice_changes_what_it_says_and_nothing_else(desk):
    spare = {"key": "", "ratio": 0.1, "on": True, "id": 9}
    off = {"key": "0/sub/b.safetensors", "ratio": 0.2, "on": False, "id": 8}
    state = _state(
        ("0/a.safetensors", 0.5, {"id": 1, "role": "style"}), ("0/loud.safetensors", 0.5, {"id": 2})
    )
    state["sources"][1]["blocks"] = {"IN01": 0.5}
    state["sources"] = [off, *state["sources"], spare]
    state["knobs"] = {"ties": {"trim_fraction": 0.3}}
    report = _analysis(desk, state)[0][-1]
    balance = next(item for item in report["advice"] if item["id"] == "balance")
    changed = _ask(desk, "apply", state=state, changes=balance["apply"])["state"]
    rows = {row["id"]: row for row in changed["sources"]}
    assert rows[1]["ratio"] > 0.5 > rows[2]["ratio"]
    assert rows[1]["role"] == "style"
    assert rows[2]["blocks"] == {"IN01": 0.5}
    assert {**rows[8], **off} == rows[8]
    assert {**rows[9], **spare} == rows[9]
    assert changed["knobs"]["ties"] == {"trim_fraction": 0.3}
    left = _ask(desk, "apply", state=state, changes={"keep": [1], "ratios": [None, 1.0]})["state"]["sources"]
    assert {row["id"]: row["on"] for row in left} == {2: True, 1: False, 8: False, 9: True}
    assert not desk.handle_dict({"op": "apply", "state": state, "changes": {"nonsense": 1}})["ok"]


def test_every_start_and_try_can_be_clicked(desk):
    state = _state(*PAIR)
    report = _analysis(desk, state)[0][-1]
    offered = [*report["starts"], *(item for symptom in report["symptoms"] for item in symptom["tries"])]
    assert {
        f"start-role-{index}-{role}" for index in (0, 1) for role in ("style", "character", "concept")
    } <= {item["id"] for item in offered}
    for item in offered:
        assert _ask(desk, "apply", state=state, changes=item["apply"])["state"] != state
    concept = next(item for item in offered if item["id"] == "start-role-1-concept")
    rows = _ask(desk, "apply", state=state, changes=concept["apply"])["state"]["sources"]
    assert [row["ratio"] for row in rows] == [0.6, 0.4]


def test_a_merge_goes_before_an_analysis(desk):
    started = [_ask(desk, "analyze", state=_state(*PAIR))["job"] for _ in range(4)]
    _wait(desk, _ask(desk, "merge", state=_state(*PAIR)))
    states = [desk.jobs.get(job).state for job in started]
    assert "cancelled" in states
    assert _analysis(desk, _state(*PAIR))[0][-1]["stage"] == "advice"


def test_a_report_lies_with_every_merge(desk, host):
    entry = _merged(desk, _state(*PAIR), "one")
    page = _ask(desk, "report", entry=entry, form="html")["text"]
    assert page.startswith("<!doctype html>")
    assert str(host.base) not in page
    kept = json.loads(_ask(desk, "report", entry=entry, form="json")["text"])
    assert kept["recipe"]["ratios"] == [0.6, 0.4]
    assert kept["recipe"]["whole"] == _analysis(desk, _state(*PAIR))[0][-1]["recipe"]["whole"]
    _ask(desk, "remove", entry=entry)
    assert desk.reports.text(entry, "json") is None
    assert {path.suffix for path in (host.base / "data" / "trash").glob(f"{entry}-report.*")} == {
        ".json",
        ".html",
    }


def test_two_recipes_side_by_side(desk):
    first = _merged(desk, _state(*PAIR), "one")
    blocks = {"IN04": 0.5, "BASE": 0.0}
    second = _merged(desk, _state(PAIR[0], (PAIR[1][0], 0.8, {"blocks": blocks}), method="average"), "two")
    found = _ask(desk, "compare_recipes", entry=first, other=second)
    assert [entry["name"] for entry in found["entries"]] == ["one", "two"]
    assert found["missing"] == []
    assert "method: Weighted sum → Average" in found["changes"]
    assert any("ratio: 0.4 → 0.8" in line for line in found["changes"])
    assert [row["block"] for row in found["blocks"]] == ["BASE", "IN04", "M00", "OUT03", "OUT07"]
    base, lower = found["blocks"][0], found["blocks"][1]
    assert base["sides"][0]["weights"] == pytest.approx([0.6, 0.4])
    assert base["sides"][1]["weights"] == pytest.approx([0.6, 0.0])
    assert base["sides"][1]["shares"] == pytest.approx([1.0, 0.0])
    assert lower["sides"][1]["weights"] == pytest.approx([0.6, 0.4])
    for row in found["blocks"]:
        norms = [side["norm"] for side in row["sides"]]
        assert row["change"] == pytest.approx(norms[1] / norms[0] - 1)
    assert found["whole"][1]["total"] == pytest.approx(1.4)
    assert found["pairs"][0][0]["relation"] == "unrelated"


def test_a_report_can_be_made_later(desk, host):
    entry = _merged(desk, _state(*PAIR), "one")
    before = desk.reports.read(entry)
    desk.archive._database.write(lambda connection: connection.execute("DELETE FROM reports"))
    found = _ask(desk, "compare_recipes", entry=entry, other=entry)
    assert found["missing"] == [entry, entry]
    assert found["blocks"] == []
    done = _wait(desk, _ask(desk, "report_make", entry=entry))
    assert done["state"] == "done", done
    assert desk.reports.read(entry)["recipe"]["whole"] == before["recipe"]["whole"]
    (host.folder / "a.safetensors").unlink()
    desk.library.refresh(wait=True)
    refused = desk.handle_dict({"op": "report_make", "entry": entry})
    assert "a is not in the LoRA folders any more" in refused["error"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": "other"}',
        '{"format": "lora-merge-analysis", "recipe": 3, "sources": [1, {}]}',
    ],
)
def test_a_damaged_report_is_no_error(tmp_path, text, monkeypatch):
    reports = Archive(tmp_path).reports
    monkeypatch.setattr(reports, "text", lambda entry, form: text)
    found = compare_reports(reports.read(ENTRY), None)
    assert found["blocks"] == []
    assert found["whole"] == [{}, {}]


@pytest.mark.parametrize("entry", ["", "../../x", "000001-0123abcd/..", "000001"])
def test_only_entries_have_reports(tmp_path, entry):
    with pytest.raises(RecipeError):
        Archive(tmp_path).reports.text(entry, "json")


def test_numbers_of_a_stored_report_are_numbers(pair_report):
    found = compare_reports(
        pair_report, {**pair_report, "recipe": {**pair_report["recipe"], "blocks": {"IN04": {"norm": "x"}}}}
    )
    assert next(row for row in found["blocks"] if row["block"] == "IN04")["sides"][1]["norm"] is None
    assert all(row["sides"][1] is None for row in found["blocks"] if row["block"] != "IN04")
    json.dumps(found, allow_nan=False)


@pytest.fixture
def pair_report(host):

    return to_json(
        analyze([host.folder / "a.safetensors", host.folder / "sub" / "b.safetensors"]), tensors=False
    )


def test_the_page_of_an_analysis_calls_the_sources_as_the_tab_does(desk):
    state = _state(
        ("0/a.safetensors", 0.5, {"on": False}),
        ("0/a.safetensors", 0.5, {"group": "A"}),
        ("0/loud.safetensors", 0.5, {}),
        ("0/sub/b.safetensors", 0.5, {"group": "A"}),
        groups={"A": {"method": "weighted_sum", "ratio": 0.5}},
    )
    _, job = _analysis(desk, state)
    page = _ask(desk, "analysis_export", job=job, form="page")["text"]
    table = page[page.index("<h2>Sources</h2>") :]
    assert re.findall(r'class="chip"[^>]*>([A-Z]+)</span>(\w+)\.safetensors', table)[:3] == [
        ("B", "a"),
        ("D", "b"),
        ("C", "loud"),
    ]
