"""The proof and the choice: two numbers in two sentences, in every place that shows them, that nobody mistakes."""

from __future__ import annotations

import json

import pytest

from lib_merge import Job, merge, verify
from lib_merge.cli.text import report_text
from lib_merge.engine.report import choice_words, proof_words
from lib_merge.kept.changes import differences
from lib_merge.ui.operations import open_desk
from tests.factories import write_lora
from tests.test_tab_server import PAIR, Host, _state, _wait


@pytest.fixture
def pair(tmp_path):
    return [write_lora(tmp_path / f"{name}.safetensors", seed=seed) for seed, name in enumerate("ab", 1)]


def _merged(pair, tmp_path, **more):
    return merge(pair, save_to=tmp_path / "m.safetensors", job=Job(overwrite=True), **more)


@pytest.mark.parametrize("policy", [2, "energy:0.7", "error:0.4", 5])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "float"])
def test_a_cut_is_no_error_of_the_file(pair, tmp_path, policy, precision):
    """What was cut is in the choice alone; the proof has the rounding of the saved numbers alone."""
    report = _merged(pair, tmp_path, rank=policy, save_precision=precision)
    figures = report.to_json()
    assert figures["relative_error"] > 0.1  # of which nearly all is the cut
    assert figures["cast_error"] < {"fp16": 2e-3, "bf16": 1e-2, "float": 2e-3}[precision]
    proof, choice = report.words()
    assert proof.startswith("saved exactly what rank")
    assert f"{figures['relative_error']:.1%}"[:-1] not in proof
    assert choice == f"{figures['energy_kept']:.1%} of the merge is kept"
    again = verify(tmp_path / "m.safetensors", [tmp_path])
    assert again.words()[1] == choice
    assert again.words()[0].split(", to")[0] == proof.split(", to")[0]


def test_an_exact_merge_has_a_proof_and_no_choice(pair, tmp_path):
    report = _merged(pair, tmp_path)
    assert report.words() == [f"asked = saved to {report.relative_error:.3%}"]
    assert report.to_json()["choice"] == ""


def test_ranks_that_differ_are_said_as_they_are(pair, tmp_path):
    report = _merged(pair, tmp_path, rank="energy:0.8")
    ranks = report.ranks()
    assert ranks["min"] < ranks["max"]
    assert f"ranks {ranks['min']} to {ranks['max']}" in report.words()[0]


def test_the_command_line_says_them_in_two_lines(pair, tmp_path):
    report = _merged(pair, tmp_path, rank=2)
    lines = report_text(report).splitlines()
    assert lines[1:3] == report.words()
    assert "asked = saved" not in report_text(report)
    assert "worst" not in report_text(report)
    assert "(worst" in report_text(_merged(pair, tmp_path))


def test_the_side_car_says_both(pair, tmp_path):
    report = _merged(pair, tmp_path, rank=2)
    notes = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["notes"]
    assert notes.splitlines()[-2:] == report.words()


def test_the_tab_and_the_history_say_both_also_of_merges_of_long_ago(tmp_path):
    host = Host(tmp_path)
    write_lora(host.folder / "a.safetensors", seed=1)
    write_lora(host.folder / "sub" / "b.safetensors", seed=2)
    desk = open_desk(host)
    desk.library.refresh(wait=True)
    state = {**_state(*PAIR), "rank": {"mode": "rank", "value": 2}}
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": state}))["result"]
    assert done["proof"].startswith("saved exactly what rank 2 can hold, to ")
    entry = desk.handle_dict({"op": "history"})["entries"][0]["report"]
    assert [entry["proof"], entry["choice"]] == [done["proof"], done["choice"]]
    old = {name: entry[name] for name in ("relative_error", "energy_kept", "rank")}
    assert proof_words(old) == "saved exactly what rank 2 can hold"
    assert choice_words(old) == done["choice"]


@pytest.mark.parametrize("figures", [{}, {"relative_error": "much"}, {"energy_kept": None}, {"rank": 3}])
def test_an_entry_that_somebody_edited_says_nothing(figures):
    assert proof_words(figures) == choice_words(figures) == ""


def test_nothing_that_was_cut_is_called_all_of_it():
    figures = {"relative_error": 0.01, "cast_error": 0.0, "energy_kept": 0.9999, "rank": {"min": 8, "max": 8}}
    assert proof_words(figures) == "saved exactly what rank 8 can hold, to less than 0.001%"
    assert choice_words(figures) == "more than 99.9% of the merge is kept"


def test_changes_between_merges_are_told_in_words():
    plain = {"method": "weighted_sum", "rank": "lossless"}
    ties = {"method": "ties", "rank": "sum", "knobs": {"normalize": False}}
    assert differences(plain, ties) == [
        "method: Weighted sum → TIES",
        "rank: Lossless → Sum of ranks",
        "Normalize: off",
    ]
    assert differences({**ties, "knobs": {}}, ties) == ["Normalize: on → off"]
    assert differences({**ties, "knobs": {"normalize": True}}, {**ties, "knobs": {}}) == ["nothing changed"]
    policies = {"rank": "16"}, {"rank": "energy:0.95"}, {"rank": "budget:50MB"}, {}, {"rank": "nonsense"}
    assert [differences(one, other)[0] for one, other in zip(policies, policies[1:])] == [
        "rank: 16 → 95% of every module",
        "rank: 95% of every module → a file of 50 MB",
        "rank: a file of 50 MB → Automatic",
        "rank: Automatic → nonsense",
    ]
