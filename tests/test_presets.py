"""Block-weight presets: those that are shipped, and tokens."""

from __future__ import annotations

import random

import pytest

from lib_merge.blocks import Preset, PresetStore, complement, find_preset, preset_hint, preset_names
from lib_merge.blocks.notation import draw_weight, parse_weight
from lib_merge.blocks.weights import resolve_blocks
from lib_merge.errors import RecipeError
from lib_merge.families import FAMILIES, family_of

ONES17 = (1.0,) * 17
FACE = Preset("Face", "SD1", tuple(float(place % 2) for place in range(17)))


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "presets.json")


def _resolve(spec, family="SD1", store=None, present=("BASE", "B00")):
    return resolve_blocks(spec, family, present, random.Random(0), "a", store=store)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shipped_preset_resolves_for_its_family(family):
    names = preset_names(family)
    assert {"ALL", "NONE", "ALL0.5", "NO-TEXT-ENCODER"} <= set(names)
    assert len(set(names)) == len(names)
    for name in names:
        assert preset_hint(name).endswith(".")
        weights, _ = _resolve(name.lower(), family)
        assert set(weights) <= {*(family_of(family).blocks or ("BASE", "B00")), "OTHER"}
        assert all(0.0 <= value <= 1.0 for value in weights.values())


def test_classic_presets_mean_what_they_are_called():
    for family in ("SD1", "SD2", "SDXL"):
        assert {"INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL", "STYLE", "CHARACTER"} <= set(
            preset_names(family)
        )
        ins, ind, inall, outs, outd, outall = (
            _resolve(name, family)[0] for name in ("INS", "IND", "INALL", "OUTS", "OUTD", "OUTALL")
        )
        for block in family_of(family).blocks:
            if block.startswith("IN"):
                assert ins[block] + ind[block] == inall[block]
                assert outall[block] == 0
            elif block.startswith("OUT"):
                assert outs[block] + outd[block] == outall[block]
                assert inall[block] == 0
        assert inall["BASE"] == outall["BASE"] == 1
    assert find_preset("outd", "SD1", family_of("SD1").blocks) == [1.0, *[0.0] * 7, *[1.0] * 4, *[0.0] * 5]
    assert find_preset("OUTALL", "SDXL", family_of("SDXL").blocks) == [1.0, *[0.0] * 5, *[1.0] * 6]
    assert find_preset("OUTALL", "Flux", family_of("Flux").blocks) is None


def test_pairs():
    for family in ("SD1", "SDXL"):
        style, character = (_resolve(name, family)[0] for name in ("STYLE", "CHARACTER"))
        assert all(style[b] > character[b] for b in family_of(family).blocks if b.startswith("OUT"))
        assert all(style[b] < character[b] for b in family_of(family).blocks if b.startswith("IN"))
        out, into = (_resolve(name, family)[0] for name in ("STYLE-OUT", "CHARACTER-IN"))
        assert complement(out) == {**into, "OTHER": 1.0}
    double, single = (_resolve(name, "Flux")[0] for name in ("DOUBLE", "SINGLE"))
    assert double["D18"] == single["S37"] == 1
    assert double["S00"] == single["D00"] == 0
    assert _resolve("NO-TEXT-ENCODER", "Flux")[0]["T5"] == 0
    without = _resolve("NO-TEXT-ENCODER", "Wan")[0]
    assert (without["BASE"], without["B00"], without["B39"]) == (0.0, 1.0, 1.0)


def test_tokens():
    plain = {
        " 0.5": 0.5,
        "-1": -1.0,
        ".5": 0.5,
        "1e-1": 0.1,
        "X + 0.10": "X+0.1",
        "X0.5": "X",
        "R*3-1.5": "R*3-1.5",
    }
    assert {text: parse_weight(text) for text in plain} == plain
    for bad in ("", "r", "nan", "inf", "1_0", "1e9", "X+..", "١", "0x1", "--1", "1,2", "R" * 99, "X*1e9"):
        assert parse_weight(bad) is None, bad
    draw = random.Random(1)
    assert draw_weight("X*-1+1", 0.3, draw) == (0.7, False)
    drawn = [draw_weight("R*3", 1.0, draw)[0] for _ in range(200)]
    assert 0 <= min(drawn) < 0.3 < 2.7 < max(drawn) <= 3
    drawn = [draw_weight("R*3-1.5", 1.0, draw)[0] for _ in range(200)]
    assert -1.5 <= min(drawn) < -1.2 < 1.2 < max(drawn) <= 1.5


def test_tokens_in_a_request(store):
    store.save(Preset("Mix", "SD1", ("X", "X-0.2", "R", *[1.0] * 14)))
    weights, notes = _resolve("mix x=0.7", store=store)
    assert weights["BASE"] == 0.7
    assert weights["IN01"] == pytest.approx(0.5)
    assert "drawn as" in notes[0]
    with pytest.raises(RecipeError, match="is not a number"):
        _resolve("X+..," + ",".join(["1"] * 16))
