"""Sweeps: what is said before is what is written, nothing else, and every file has a name of its own."""

from __future__ import annotations

import pytest

from lib_merge import recipe_edits
from lib_merge.errors import RecipeError
from lib_merge.recipe import Recipe, Source
from tests.test_tab_server import PAIR, _state, _wait, desk, host  # noqa: F401

KINDS = [
    {"kind": "ratio", "source": "B"},
    {"kind": "balance"},
    {"kind": "total"},
    {"kind": "rank", "values": [1.0, 2.0, 3.0]},
    {"kind": "knob", "knob": "drop_rate"},
]


def _files(host):  # noqa: F811
    return {path.name: path.stat().st_size for path in host.folder.rglob("*.safetensors")}


@pytest.mark.parametrize("asked", KINDS, ids=[one["kind"] for one in KINDS])
def test_what_is_said_before_is_what_is_written(desk, host, asked):  # noqa: F811
    template = {"ratio": "{sources}_{weights}_v{n}", "total": ""}.get(asked["kind"], "swept")
    method = "core_dare" if asked["kind"] == "knob" else "weighted_sum"
    ask = {"state": _state(*PAIR, method=method, output={"template": template}), "sweep": asked}
    before = _files(host)
    plan = desk.handle_dict({"op": "sweep_plan", **ask})
    assert plan["ok"], plan
    assert _files(host) == before  # nothing is written before it is asked for
    done = _wait(desk, desk.handle_dict({"op": "sweep", **ask}))
    assert done["state"] == "done", done
    assert done["result"]["failed"] == []
    new = {name: size for name, size in _files(host).items() if name not in before}
    assert set(new) == {step["name"] for step in plan["steps"]}
    assert [one["output"] for one in done["result"]["made"]] == [step["name"] for step in plan["steps"]]
    for step in plan["steps"]:
        assert new[step["name"]] <= step["bytes"]
        assert not step["exact"] or new[step["name"]] == step["bytes"]
    assert sum(new.values()) <= plan["bytes"] == sum(step["bytes"] for step in plan["steps"])
    assert plan["said"].startswith(f"{len(plan['steps'])} files")


def test_the_balance_keeps_the_total_as_guides_iterate(desk):  # noqa: F811
    ask = {"op": "sweep_plan", "state": _state(*PAIR), "sweep": {"kind": "balance"}}
    steps = desk.handle_dict(ask)["steps"]
    assert [step["label"] for step in steps][0::4] == ["A 0.7 / B 0.3", "A 0.3 / B 0.7"]
    assert all(sum(step["ratios"]) == pytest.approx(1.0) for step in steps)
    assert steps[0]["name"] == "out_A0.7-B0.3.safetensors"


def test_a_second_sweep_takes_nothing_from_the_first(desk, host):  # noqa: F811
    ask = {"state": _state(*PAIR), "sweep": {"kind": "ratio", "values": [0.1, 0.2]}}
    _wait(desk, desk.handle_dict({"op": "sweep", **ask}))
    first = _files(host)
    names = [step["name"] for step in desk.handle_dict({"op": "sweep_plan", **ask})["steps"]]
    assert names == ["out_A0.1_v1.safetensors", "out_A0.2_v1.safetensors"]
    _wait(desk, desk.handle_dict({"op": "sweep", **ask}))
    assert {name: _files(host)[name] for name in first} == first


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"kind": "ratio", "source": "Z"}, "there is no source Z"),
        ({"kind": "balance", "other": "A"}, "two different sources"),
        ({"kind": "rank", "values": [64.0, 128.0]}, "same file"),
        ({"kind": "knob", "knob": "nothing"}, "no knob"),
        ({"kind": "ratio", "values": ["much"]}, "not a number"),
        ({"kind": "rank", "values": [0.0]}, "rank 0"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_file(desk, host, sweep, said):  # noqa: F811
    before = _files(host)
    for op in ("sweep_plan", "sweep"):
        assert said in desk.handle_dict({"op": op, "state": _state(*PAIR), "sweep": sweep})["error"]
    assert _files(host) == before


def test_a_total_keeps_the_proportions_and_the_text_encoders_with_them():
    recipe = Recipe((Source(name="a", ratio=0.6, te_ratio=0.3), Source(name="b", ratio=0.2)))
    changed = recipe_edits.with_total(recipe, 1.6)
    assert [source.ratio for source in changed.sources] == pytest.approx([1.2, 0.4])
    assert changed.sources[0].te_ratio == pytest.approx(0.6)
    with pytest.raises(RecipeError, match="add up to 0"):
        recipe_edits.with_total(Recipe((Source(name="a", ratio=1), Source(name="b", ratio=-1))), 1.0)
