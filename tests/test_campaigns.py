"""A few inputs of each campaign of `tests.campaigns`, and that the campaigns find what is to be found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns import CAMPAIGNS, campaign_class
from tests.campaigns.faulty import WHAT
from tests.campaigns.harness import Finding, NotHere, drawn, piece, scratch
from tests.campaigns.watch import Tally, interpreter, table

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the campaigns run on Linux")
# inputs of each that fit into seconds, and words for what most of them must come to: a slice that tries nothing proves
# nothing
SLICES = {
    "headers": (150, ("refused by both", "opened and inspected")),
    "keys": (150, ("refused", "opened, not planned")),
    "pickles": (300, ("refused", "opened as torch does")),
    "json": (200, ("recipe refused", "side-car used")),
    "requests": (150, ("refused", "answered")),
    "numbers": (50, ("the same", "within what was foreseen")),
    "hours": (8, ()),
}


@LINUX
@pytest.mark.parametrize("name", SLICES)
def test_a_few_inputs_of_a_campaign_find_nothing(name):
    count, words = SLICES[name]
    with scratch() as folder:
        outcomes, found = piece(campaign_class(name), folder, range(count))
    assert [(one.number, one.text) for one in found] == []
    assert outcomes.total() == count
    for word in words:
        assert outcomes[word] >= 3, outcomes


def _run(*arguments):
    given = [sys.executable, "-m", "tests.campaigns", "--minutes", "4", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        given, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", env=environment, check=False
    )


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("kills", 40), ("full-disk", 40), ("races", 6), ("rest", 60)])
def test_a_few_inputs_of_a_campaign_in_processes_find_nothing(name, count, tmp_path):
    try:
        interpreter(campaign_class(name).world if name != "rest" else "gradio4")
    except NotHere as error:
        pytest.skip(str(error))
    done = _run("--only", name, "--inputs", str(count), "--resume", str(tmp_path / "run.json"))
    assert f"| {name} | {count} | 0 | 0 | 0 | 0 | 0 | 0 |" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


@LINUX
@pytest.mark.slow
def test_whatever_an_input_does_is_found_and_the_next_is_tried(tmp_path):
    done = _run("--only", "faulty", "--resume", str(tmp_path / "run.json"))
    assert f"| faulty | {len(WHAT)} | 4 | 1 | 1 | 1 | 0 | 0 |" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    for said in (
        "KeyError: 'nowhere'",
        "hang: more than 4 s",
        "it took 1.3 GB",
        "ZeroDivisionError",
        "half of it",
    ):
        assert said in done.stderr
    kept = ROOT / "test-artefacts" / "campaigns" / "faulty"
    for number, what in enumerate(WHAT):
        folder = kept / f"1-{number}"
        assert folder.exists() == (what != "nothing")
        assert what == "nothing" or (folder / "what.txt").read_text() == what
    again = _run("--only", "faulty", "--resume", str(tmp_path / "run.json"))
    assert (
        f"| faulty | {len(WHAT)} | 4 | 1 | 1 | 1 | 0 | 0 |" in again.stdout
    )  # there was nothing left to try


@LINUX
@pytest.mark.parametrize("name", ["headers", "keys", "pickles", "json"])
def test_an_input_is_the_same_whenever_it_is_made(name):
    kind = campaign_class(name)
    with scratch() as folder, scratch() as other:
        one, same = kind(folder), kind(other)
        for number in (0, 7, 1234):
            assert one.make(number, drawn(kind, 5, number)) == same.make(number, drawn(kind, 5, number))
        assert one.make(1, drawn(kind, 5, 1)) != one.make(1, drawn(kind, 6, 1))


def test_every_campaign_is_there_and_the_table_names_what_it_found():
    assert {campaign_class(name).name for name in CAMPAIGNS if name != "atheris"} == set(CAMPAIGNS) - {
        "atheris"
    }
    tally = Tally(next=9)
    tally.outcomes["read"] = 1200
    tally.add(Finding(3, "lost", "x", "a file\nand more"))
    tally.add(Finding(4, "lost", "x", "a file\nand more"))
    assert table({"some": tally}).splitlines()[-1] == "| some | 1,200 | 0 | 0 | 0 | 0 | 2 | 0 |"
    assert tally.signatures["x"]["count"] == 2
    assert Tally.from_json(tally.to_json()) == tally
