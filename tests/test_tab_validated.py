"""The history's list: how far each merge is validated, and its changes in words."""

from __future__ import annotations

from lib_merge.kept.changes import differences
from tests.test_tab_server import PAIR, desk, host  # noqa: F401
from tests.test_tab_windows import _compared, _merged

STEPS = ("loads", "pictures", "strengths", "prompts", "speed")


def test_the_list_says_how_far_each_merge_is_validated(desk):  # noqa: F811
    done, failed, fresh = (
        _merged(desk, output={"template": name})["entry"] for name in ("one", "two", "three")
    )
    for step in STEPS:
        assert desk.handle_dict({"op": "validation_set", "entry": done, "step": step, "mark": "passed"})["ok"]
    desk.handle_dict({"op": "validation_set", "entry": failed, "step": "speed", "mark": "failed"})
    reply = desk.handle_dict({"op": "validations", "entries": [done, failed, fresh, "000099-deadbeef"]})
    assert reply["states"] == {done: "validated", failed: "revise", fresh: "open"}


def test_a_broken_comparison_costs_no_list(desk):  # noqa: F811
    entry = _merged(desk)["entry"]
    broken = _compared(desk, entry)
    desk.archive._database.write(
        lambda connection: connection.execute(
            "UPDATE comparisons SET comparison = '{' WHERE id = ?", (broken,)
        )
    )
    assert desk.handle_dict({"op": "validations", "entries": [entry]})["states"] == {entry: "open"}
    assert desk.handle_dict({"op": "validation", "entry": entry})["ok"]


def test_changes_have_no_needless_digits():
    before = {"method": "average", "sources": [{"name": "ink", "ratio": 0.5599999999999999}]}
    after = {"method": "average", "sources": [{"name": "ink", "ratio": 0.42}]}
    assert differences(before, after) == ["ink, ratio: 0.56 → 0.42"]
