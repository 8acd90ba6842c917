"""Rules that the page and Python share, and what the page computes by itself; the modules run in Node, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lib_merge import Recipe, Source
from lib_merge.analysis import analyze, plots, to_json
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe_edits import letter
from lib_merge.ui.protocol import fields_of
from lib_merge.ui.state import Defaults, Output, Rank, Row, TabState, named, tab_state
from tests.factories import write_lora

SCRIPTS = Path(__file__).parents[1] / "javascript" / "lora_merge"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed")
SETTINGS = {"template": "{sources}_v{n}", "folder": "merged", "precision": "fp16", "names": ""}


MODULES = (
    "core/letters.js",
    "core/format.js",
    "core/state.js",
    "outlook/strength.js",
    "analysis/figures.js",
    "analysis/curve.js",
)


def run(code, kept=None):
    """Return what `code` returns, as JSON, with what the modules export; `kept` is what the browser has stored."""
    imports = [f"import({json.dumps((SCRIPTS / name).as_uri())})" for name in MODULES]
    page = f"""
        const kept = {json.dumps({"lora-merge-state-1": json.dumps(kept)} if kept else {})};
        globalThis.localStorage = {{ getItem: (key) => kept[key] ?? null, setItem: () => {{}} }};
        const space = Object.assign({{}}, ...(await Promise.all([{", ".join(imports)}])));
        console.log(JSON.stringify((() => {{ {code} }})()));
    """
    done = subprocess.run(
        [NODE, "--input-type=module", "-"],
        input=page, capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_letters_are_those_of_python():
    assert run("return [...Array(800).keys()].map(space.letterOf);") == [
        letter(index) for index in range(800)
    ]


@pytest.mark.parametrize(
    "names", [[], ["A", "B"], ["B", "1", "A"], ["2", "z", "AB", "faces", "1"], ["ABC", "A", "A"], ["é", "A"]]
)
def test_groups_go_by_the_names_of_python(names):
    assert run(f"return space.groupNames({json.dumps(names)});") == named(names)


def test_the_pages_fresh_state_is_the_one_of_python():
    fresh = run(f"return new space.State({json.dumps(SETTINGS)}).data;")
    assert set(fresh) == set(fields_of(TabState)) - {"preview"}
    assert set(fresh["sources"][0]) == set(fields_of(Row))
    assert set(fresh["output"]) == set(fields_of(Output)) - {"preview", "based_on_name"}
    assert set(fresh["rank"]) == set(fields_of(Rank))
    assert set(fresh["defaults"]) == set(fields_of(Defaults))
    tab_state(fresh)


def test_rank_policies_are_told_in_the_words_of_python():
    policies = [
        "lossless",
        "sum",
        "16",
        "energy:0.95",
        "energy:0.999",
        "error:0.05",
        "budget:50MB",
        "budget:1.25MB",
    ]
    told = [parse_policy(text).words for text in policies]
    assert run(f"return {json.dumps(policies)}.map(space.policyWords);") == told


def test_proof_and_choice_are_two_sentences():
    cut = {"proof": "saved exactly what rank 8 can hold, to 0.030%", "choice": "93.0% of the merge is kept"}
    whole = {"proof": "asked = saved to 0.021%", "choice": ""}
    told = run(f"return {json.dumps([cut, whole, {}])}.map(space.proven);")
    assert told == [f"{cut['proof']}; {cut['choice']}", whole["proof"], ""]


def test_a_state_of_0_1_opens_with_its_groups_numbered():
    row = {"id": 1, "key": "0/a.safetensors", "name": "a", "ratio": 0.5, "te": None, "on": True, "role": ""}
    row |= {"blocks": {}, "elements": ""}
    sources = [{**row, "group": "B"}, {**row, "id": 2, "group": ""}, {**row, "id": 3, "group": "A"}]
    groups = {"A": {"method": "ties", "ratio": 0.4}, "B": {"method": "average", "ratio": 1}}
    output = {
        "template": "x",
        "folder": "",
        "overwrite": False,
        "triggers": None,
        "notes": "",
        "based_on": "",
    }
    kept = {
        "version": 1,
        "next": 4,
        "sources": sources,
        "groups": groups,
        "method": "slerp",
        "output": output,
    }
    state = run(f"return new space.State({json.dumps(SETTINGS)}).data;", kept=kept)
    assert [one["group"] for one in state["sources"]] == ["1", "", "2"]
    assert {name: group["method"] for name, group in state["groups"].items()} == {"1": "average", "2": "ties"}
    assert tab_state(state).method == "slerp"


# norm 2; half of the energy is the UNet's, the text encoders have 0.3 and 0.2 in one block
LOOKED = {
    "norm": 2.0,
    "block_energy": {"BASE": 0.5, "IN04": 0.5},
    "encoder_energy": {"BASE": {"1": 0.3, "2": 0.2}},
}


@pytest.mark.parametrize(
    ("te", "energy"),
    [
        (None, 0.25),
        ([0.0], 0.5 * 0.25),
        ([1.0, 1.0], 0.5 * 0.25 + 0.5),
        ([None, 1.0], 0.5 * 0.25 + 0.3 * 0.25 + 0.2),
        ([1.0, None], 0.5 * 0.25 + 0.3 + 0.2 * 0.25),
        ([0.0, 1.0], 0.5 * 0.25 + 0.2),
    ],
)
def test_how_strong_a_source_goes_in_follows_each_text_encoder(te, energy):
    row = json.dumps({"ratio": 0.5, "te": te, "blocks": {}})
    size = run(f"return space.strengthOf({row}, {json.dumps(LOOKED)}, 1);")
    assert size == pytest.approx(2.0 * energy**0.5)


def test_how_strong_a_source_goes_in_follows_block_weights_and_the_group():
    row = json.dumps({"ratio": 0.5, "te": [None, 1.0], "blocks": {"BASE": 0.5, "IN04": 0.0}})
    size = run(f"return space.strengthOf({row}, {json.dumps(LOOKED)}, -0.5);")
    assert size == pytest.approx(0.5 * 2.0 * (0.25 * (0.3 * 0.25 + 0.2)) ** 0.5)
    without = {**LOOKED, "encoder_energy": {}}  # as it was measured by an older version
    size = run(f"return space.strengthOf({row}, {json.dumps(without)}, 1);")
    assert size == pytest.approx(2.0 * (0.25 * 0.5 * 0.25) ** 0.5)


def test_no_line_of_the_javascript_is_longer_than_110_characters():
    files = [*SCRIPTS.parent.rglob("*.js"), *(SCRIPTS.parents[1] / "tests" / "javascript").glob("*.js")]
    long = [
        f"{file.name}:{number}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 110
    ]
    assert len(files) > 40
    assert long == []


def test_every_import_is_of_a_module_that_is_there_and_none_goes_round():
    imports = {
        file: [
            (file.parent / name).resolve()
            for name in re.findall(r'^import [^;]*?from "([^"]+)";', file.read_text(encoding="utf-8"), re.M)
        ]
        for file in SCRIPTS.rglob("*.js")
    }
    assert all(to in imports for found in imports.values() for to in found)
    left = dict(imports)
    while leaves := [file for file, found in left.items() if not any(to in left for to in found)]:
        for file in leaves:
            del left[file]
    assert not left, sorted(file.name for file in left)


# ------------------------------------------------------------------ the report's pictures and the tab's


def test_maps_of_the_tab_have_the_colours_and_words_of_a_reports():
    numbers = [
        -12.0,
        -1.0,
        -0.937,
        -0.2572,
        -0.0449,
        -0.004,
        0.0,
        0.0951,
        0.3333,
        0.6181,
        0.99,
        1.0,
        3.26,
        11.0,
    ]
    told = run(
        f"""const numbers = {json.dumps(numbers)};
        return Object.fromEntries(Object.entries(space.SCALES).map(([name, scale]) =>
            [name, numbers.map((value) => [scale.write(value), scale.style(value)])]));"""
    )
    for name, scale in (("shares", plots.SHARE), ("cosine", plots.COSINE), ("excess", plots.EXCESS)):
        for value, (written, style) in zip(numbers, told[name]):
            assert written == scale.write(value), (name, value)
            ground, colour = re.fullmatch(r"background:rgb\(([\d,]+)\);color:(#\w+)", style).groups()
            wanted = scale.colour(value)
            parts = [int(wanted[at : at + 2], 16) for at in (1, 3, 5)]
            assert max(abs(int(a) - b) for a, b in zip(ground.split(","), parts)) <= 1, (name, value)
            assert colour == plots.ink(wanted), (name, value)


def _cells(svg):
    """Return (row, column) -> what stands in the cell of a heat map."""
    return {
        (row, column): shown
        for row, column, shown in re.findall(r"<title>([^<]*), ([^<,]*): ([^<]*)</title>", svg)
    }


def test_maps_and_curve_of_the_tab_show_what_a_report_shows(tmp_path):
    files = [write_lora(tmp_path / f"{name}.safetensors", seed=seed) for seed, name in enumerate("ab")]
    report = analyze(
        Recipe(
            sources=tuple(Source(file, ratio=ratio) for file, ratio in zip(files, (0.8, 0.3))),
            rank=parse_policy(3),
        )
    )
    blocks = plots.block_names(report)
    told = run(
        f"""const report = {json.dumps(to_json(report))}, blocks = {json.dumps(blocks)}, [pair] = report.pairs;
        const written = (scale, value) => value === null || value === undefined ? null : scale.write(value);
        return {{
            shares: [0, 1].map((at) => blocks.map((block) =>
                written(space.SCALES.shares, space.shareOf(report, at, block)))),
            pairs: ["cosine", "excess"].map((kind) => blocks.map((block) =>
                written(space.SCALES[kind], space.pairFigure(pair, kind, block)))),
            line: space.linePoints(report.recipe.curve.map((point) => ({{ x: point.rank, y: point.energy }}))),
            cut: space.cutText(report.recipe),
        }};"""
    )
    shares = _cells(plots.dominance_map(report, blocks))
    names = sorted({row for row, _ in shares})
    assert told["shares"] == [[shares.get((row, block)) for block in blocks] for row in names]
    assert any(value for row in told["shares"] for value in row)
    for figures, shown in (
        (plots.pair_map(report, blocks, lambda part: part.cosine, plots.COSINE), told["pairs"][0]),
        (plots.pair_map(report, blocks, plots._sure_excess, plots.EXCESS), told["pairs"][1]),
    ):
        cells = {column: value for (_, column), value in _cells(figures).items()}
        assert shown == [cells.get(block) for block in blocks]
    svg = plots.rank_curve(report)
    line = [tuple(map(float, at.split(","))) for at in re.search(r'points="([^"]+)"', svg)[1].split()]
    own = [tuple(map(float, at.split(","))) for at in told["line"].split()]
    most = report.recipe.curve[-1].energy
    # both begin at (0, 0) and end at the largest rank: the same shares of the way between
    for (x, y), (left, up) in zip(line, own, strict=True):
        assert (x - 62) / (560 - 62 - 16) == pytest.approx((left - 66) / (430 - 66 - 14), abs=1e-3)
        assert most * (214 - y) / (214 - 14) == pytest.approx((186 - up) / (186 - 10), abs=2e-3)
    assert told["cut"] in svg
