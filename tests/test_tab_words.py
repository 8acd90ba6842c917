"""Merges in words: the record to copy, labels that tell entries apart, settings by their titles."""

from __future__ import annotations

import re

from lib_merge.kept.changes import differences, title_of
from lib_merge.kept.history import Entry
from lib_merge.kept.labels import LONGEST, labels
from lib_merge.methods import METHODS
from lib_merge.ui import catalog
from tests.test_tab_server import desk, host  # noqa: F401

RECIPE = {
    "method": "ties",
    "rank": "sum",
    "knobs": {"trim_fraction": 0.3, "normalize": True},
    "sources": [
        {"name": "ink.safetensors", "ratio": 0.6, "te_ratio": 0.2, "blocks": {"OUT03": 0.5}},
        {
            "name": "group 1",
            "ratio": 0.4,
            "recipe": {"method": "weighted_sum", "sources": [{"name": "mira.safetensors", "ratio": 0.7}]},
        },
    ],
}


def _record(desk, **fields):  # noqa: F811
    entry = desk.history.add(recipe=RECIPE, method="ties", time="2026-11-27T20:00:00+00:00", **fields)
    return desk.handle_dict({"op": "record", "entry": entry.id})


def test_a_record_has_the_five_lines(desk):  # noqa: F811
    reply = _record(desk, name="both", notes="hands are better\nfaces worse")
    assert reply["text"].splitlines() == [
        "both",
        "Sources: ink, (mira)",
        "Method: TIES, Trim fraction 0.3, Rank: Sum of ranks",
        "Weights: ",
        "  ink 0.6, text encoder 0.2, blocks OUT03=0.5",
        "  (mira) 0.4 [Weighted sum: mira 0.7]",
        "Notes: ",
        "  hands are better",
        "  faces worse",
        "Date: 2026-11-27T20:00:00+00:00",
    ]
    assert reply["markdown"].startswith("**both**\n\n- **Sources:** ink, \\(mira\\)\n")


def test_nothing_of_a_stranger_becomes_markup(desk):  # noqa: F811
    evil = "<img src=x onerror=alert(1)> [a](javascript:b) `c` **d** ![e](f) | g \u202e &lt; https://h.i"
    markdown = _record(desk, name=evil, notes=f"# {evil}\n- {evil}")["markdown"]
    bare = re.sub(r"\\.", "", markdown.replace("**", "").replace("\n- ", "\n").replace("\n  - ", "\n"))
    assert not re.search(r"[<>\[\]`!|&*#]", bare)
    assert "\u202e" not in markdown
    assert "https://" not in markdown  # an address would become a link by itself


def test_a_record_of_an_entry_that_says_little_is_a_record(desk):  # noqa: F811
    entry = desk.history.add(name="m")
    assert desk.handle_dict({"op": "record", "entry": entry.id})["text"].count("unknown") == 3


def _entry(number, name, ratios, **recipe):
    sources = [{"name": "x", "ratio": ratio} for ratio in ratios]
    return Entry(id=f"{number:06d}-00000000", name=name, sources=sources, recipe=recipe)


def test_entries_of_a_sweep_have_labels_of_their_own():
    long = "a-long-name-of-a-style-and-a-character-that-menus-cut-off-before-its-end"
    entries = [
        _entry(n, f"{long}{'-' * n}same-ending-as-the-rest", (n / 10, 1 - n / 10)) for n in range(1, 6)
    ]
    entries += [_entry(9, "same", (0.5,), knobs={"drop_rate": rate}) for rate in (0.1, 0.2)]
    entries[-1] = _entry(10, "same", (0.5,), knobs={"drop_rate": 0.2})
    entries += [_entry(n, "twin", (1.0,)) for n in (11, 12)]
    said = labels(entries)
    assert len(set(said.values())) == len(entries) == len(said)
    assert said[entries[0].id].startswith("0.1 / 0.9 · a-long-name")
    assert "Drop rate 0.2" in said[entries[6].id]
    assert said[entries[7].id] == "№ 11 · 1 · twin"
    assert all(len(text) < 2 * LONGEST for text in said.values())
    assert labels([_entry(1, "alone", (1.0,))]) == {"000001-00000000": "alone"}


def test_groups_are_compared_by_their_files():
    before = {**RECIPE, "sources": RECIPE["sources"][:1]}
    assert differences(before, RECIPE) == ["(mira) was added at 0.4"]


def test_every_knob_has_a_title_that_is_no_id():
    for method in catalog.methods():
        for knob in method.knobs:
            assert knob.title == title_of(knob.name)
            assert "_" not in knob.title
            assert knob.title[0].isupper()
            assert len(knob.title) > 2
    assert len({title_of(knob.name) for one in METHODS.values() for knob in one.knobs}) == len(
        {knob.name for one in METHODS.values() for knob in one.knobs}
    )


def test_an_import_counts_in_words(desk):  # noqa: F811
    text = "GOOD:1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1\nBAD:1,x,1\n"
    said = desk.handle_dict({"op": "preset_import", "text": text})["said"]
    assert said == "1 preset was read, 1 line was refused."
    said = desk.handle_dict({"op": "preset_import", "text": f"{text}WORSE:2,y"})["said"]
    assert said == "1 preset was read, 2 lines were refused."
