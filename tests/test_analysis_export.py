"""What leaves the analysis: JSON, the HTML page, the command line; names and metadata are hostile."""

from __future__ import annotations

import functools
import json
import math
import re
from html.parser import HTMLParser

import pytest

from lib_merge import Recipe, Source
from lib_merge.analysis import STAGES, analyze, analyze_steps, to_html, to_json
from lib_merge.analysis.plots import DIVERGING, SEQUENTIAL, Axes, Scale, curve, heat_map, text
from lib_merge.cli.commands import main
from lib_merge.engine.threads import Job
from lib_merge.errors import Cancelled
from tests.factories import write_lora

# what Gram matrices alone tell: quick, and enough here
look = functools.partial(analyze, carry_out=False)

EVIL = "<img src=x onerror=alert(1)>\"'&"
EVIL_META = {
    "ss_sd_model_name": "C:\\Users\\someone\\secret\\<script>alert(2)</script>.safetensors",
    "ss_output_name": "\u202egnp.exe",
    "modelspec.trigger_phrase": "</td><script>alert(3)</script>",
    "ss_optimizer": "javascript:alert(4)",
    "ss_unet_lr": "/home/someone/secret/lr.txt",
    "ss_lr_scheduler": "cosine, as in D:\\Some One\\secret\\notes.txt",
    "ss_network_module": "networks.lora from ~/secret/tools/x.py",
}


class Page(HTMLParser):
    """Collects tags and attributes; a browser would see the same."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in ("meta", "br", "rect", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def _page(report):
    page = Page()
    page.feed(to_html(report))
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def pair(tmp_path):
    return [
        write_lora(tmp_path / f"{EVIL.replace('/', '')}.safetensors", seed=1, metadata=EVIL_META),
        write_lora(tmp_path / "plain.safetensors", seed=2, metadata={"ss_unet_lr": "0.0001"}),
    ]


def test_names_and_metadata_cannot_become_markup(pair):
    page = _page(look(pair))
    assert {"script", "img", "a", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    shown = "".join(page.words)
    assert EVIL in shown
    assert "alert(3)" in shown
    assert "\u202e" not in to_html(look(pair))


def test_no_place_on_a_disk_leaves(pair, tmp_path):
    report = look(pair)
    for out in (json.dumps(to_json(report), ensure_ascii=False), to_html(report)):
        assert str(tmp_path) not in out
        assert "someone" not in out
        assert "secret" not in out


@pytest.mark.parametrize(
    "line",
    ["https://example.org/a/b", "N/A", "1/2 and 3/4", "512 × 768", "a: b", "cosine/linear", "<lora:x:1>"],
)
def test_what_is_no_place_stays(line):
    from lib_merge.analysis.training import _short

    assert _short(line) == line


def test_every_block_and_tensor_is_in_the_page(pair):
    report = look(pair)
    page, short = to_html(report), to_html(report, tensors=False)
    for source in report.sources:
        assert all(text(tensor.key) in page for tensor in source.tensors)
        assert not any(f"<td>{text(tensor.key)}</td>" in short for tensor in source.tensors)
        for block in source.blocks:
            assert f"<td>{block}</td>" in short


def test_the_page_fetches_nothing_and_has_its_plots(pair):
    page = to_html(look(pair))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme:dark" in page
    assert page.count("<svg") == 9  # four maps with their keys, and the curve
    for label in (
        "Rank of every module",
        "Energy kept",
        "Who dominates where",
        "What pairs want",
        "What is wrong?",
    ):
        assert label in page


def test_every_stage_can_be_exported(pair):
    for report, stage in zip(analyze_steps(pair, carry_out=False), STAGES):
        assert report.stage == stage
        _page(report)
        assert json.loads(json.dumps(to_json(report), allow_nan=False))["stage"] == stage


def test_one_file_and_a_broken_one_can_be_exported(tmp_path):
    import torch

    from tests.factories import lora_tensors, write

    tensors = {key: torch.full_like(value, math.nan) for key, value in lora_tensors(1).items()}
    for path in (write_lora(tmp_path / "one.safetensors"), write(tmp_path / "broken.safetensors", tensors)):
        report = look([path])
        _page(report)
        json.dumps(to_json(report), allow_nan=False)
    assert len(report.sources[0].broken) == 12


def test_json_has_what_was_promised(pair):
    found = to_json(look(pair))
    assert found["format"] == "lora-merge-analysis"
    source = found["sources"][0]
    assert source["whole"]["ranks"].keys() == {"0.9", "0.95", "0.99", "0.999"}
    assert source["tensors"]["columns"] == ["key", "count", "mean", "std", "low", "high"]
    assert len(source["tensors"]["rows"]) == 12
    assert found["pairs"][0]["names"][1] == "plain"
    assert found["training"]["rows"][0]["field"] == "base"
    assert {"shares", "crosstalk", "retention", "growth", "cancel", "to_source"} <= found["recipe"][
        "whole"
    ].keys()
    assert len(found["symptoms"]) == 7
    assert "tensors" not in to_json(look(pair), tensors=False)["sources"][0]


def test_colours_keep_their_order_of_lightness():
    """The sequential scale only grows lighter, the diverging one is lightest in the middle; text is readable on all."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    scale = Scale(0, 1, SEQUENTIAL, str)
    steps = [light(scale.colour(i / 50)) for i in range(51)]
    assert steps == sorted(steps)
    both = [light(Scale(-1, 1, DIVERGING, str).colour(i / 25)) for i in range(-25, 26)]
    assert both.index(max(both)) == 25
    for value in (i / 50 for i in range(51)):
        found = heat_map("t", ["r"], ["c"], [[value]], scale)
        fill, ink = re.findall(r"fill:(#[0-9a-f]{3,6})", found)
        ink = "#000000" if ink == "#000" else "#ffffff"
        contrast = (max(light(fill), light(ink)) + 0.05) / (min(light(fill), light(ink)) + 0.05)
        assert contrast >= 4.5


def test_text_and_curves():
    assert text("a\x00b\u202ec<") == "a�b�c&lt;"
    assert text("x" * 50, 10) == "x" * 9 + "…"
    drawn = curve("t<", [(0, 0), (4, 1)], Axes("across <", "up &", str), (4, "mark >"))
    assert "across &lt;" in drawn
    assert "mark &gt;" in drawn
    assert heat_map("t", ["r"], ["c"], [[math.nan]], Scale(0, 1, SEQUENTIAL, str)).count("<rect") == 0


def test_cancel_stops_between_modules(pair):
    with pytest.raises(Cancelled):
        look(pair, job=Job(cancelled=lambda: True))


def test_command_line(pair, tmp_path, capsys):
    files = [str(path) for path in pair]
    page = tmp_path / "report.html"
    assert main(["analyze", *files, "--ratios", "0.6", "0.4", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "unrelated" in said
    assert "Weighted sum" in said
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (
        main(["analyze", *files, "--json", "--no_tensors", "--method", "core_ties", "--compare", "tsv"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"]["method"] == "core_ties"
    assert [row["name"] for row in found["methods"]] == ["tsv", "core_ties"]
    assert main(["analyze", *files, "--ratios", "1"]) == 2
    assert main(["analyze", *files, "--html", str(tmp_path / "no" / "x.html")]) == 2
    assert main(["analyze", str(tmp_path / "missing.safetensors")]) == 2
    assert main(["analyze"]) == 2


def test_command_line_takes_a_recipe(pair, tmp_path, capsys):
    recipe = Recipe(tuple(Source(path=path, name=path.name, ratio=0.5) for path in pair))
    place = tmp_path / "recipe.json"
    place.write_text(recipe.dumps(), encoding="utf-8")
    assert main(["analyze", "--recipe", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["total"] == 1.0
    assert main(["analyze", "--recipe", str(place), "--method", "ties"]) == 2
