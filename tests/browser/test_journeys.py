"""Three people at the tab, acting by what they can read on it alone: the first merge, tuning, eight sources."""

from __future__ import annotations

import pytest

from tests.browser.test_journey import _file
from tests.factories import dense_of, relative

pytestmark = [pytest.mark.browser, pytest.mark.both]


class Person:
    """Finds everything by its visible name, and only what is in the window or can be scrolled to."""

    def __init__(self, tab, width, height):
        tab.fresh()
        tab.page.set_viewport_size({"width": width, "height": height})
        self.tab, self.page = tab, tab.page

    def press(self, text, exact=True):
        self.page.get_by_role("button", name=text, exact=exact).first.click()

    def look(self, panel):
        self.page.get_by_role("tab", name=panel, exact=True).click()

    def reads(self, text):
        self.page.get_by_text(text, exact=False).filter(visible=True).first.wait_for(timeout=60000)

    def chooses(self, letter, name):
        self.press(f"{letter}: Pick a LoRA")
        self.page.keyboard.type(name)
        self.page.keyboard.press("Enter")

    def types(self, field, text):
        self.page.get_by_label(field, exact=True).fill(text)

    def takes(self, menu, text):
        self.page.get_by_label(menu, exact=True).select_option(label=text)


def test_the_first_merge(tab, app):
    """Two LoRAs, one button; sees what happened; no scrolling."""
    person = Person(tab, 1280, 720)
    person.reads("Pick two LoRAs")
    person.chooses("A", "sample-ink-style")
    person.reads("Pick a second LoRA")
    person.chooses("B", "sample-mira-character")
    person.types("Name of the merge", "journey-first")
    tab.planned()
    person.press("Merge")
    person.reads("Saved journey-first.safetensors")
    person.reads("asked = saved")
    person.reads("A1111 ✓")
    assert tab.page.evaluate("() => scrollY") == 0
    person.press("Close the result")
    person.look("History")
    person.reads("journey-first")
    a, b = (dense_of(_file(app, f"sample-{name}.safetensors"), 3) for name in ("ink-style", "mira-character"))
    wanted = {n: 0.5 * a.get(n, 0) + 0.5 * b.get(n, 0) for n in set(a) | set(b)}
    assert relative(dense_of(_file(app, "journey-first.safetensors"), 3), wanted) <= 1e-3


def test_tuning(tab, app):
    """Ratios, blocks, outcome, understanding and history beside each other at 1440×900, without scrolling."""
    person = Person(tab, 1440, 900)
    person.chooses("A", "sample-ink-style")
    person.chooses("B", "sample-mira-character")
    person.press("0.7 / 0.3")
    tab.preset("A", "STYLE-OUT")
    tab.quiet()
    person.look("Understand")
    person.reads("cosine")
    person.look("Compare")
    person.reads("Several merges at once")
    person.look("History")
    assert tab.page.get_by_label("Ratio of A, exact").is_visible()
    for name in ("Block weights", "Method", "Sources"):
        box = tab.page.locator(f"section[aria-label='{name}']").bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900 - 60, name
    assert tab.page.evaluate("() => scrollY") == 0
    person.types("Name of the merge", "journey-tuned")
    tab.planned()
    tab.page.keyboard.press("Control+Enter")
    person.reads("Saved journey-tuned.safetensors")
    tab.quiet()
    person.types("Ratio of A, exact", "0.6")
    tab.quiet()
    person.look("Outcome")
    person.reads("ratio: 0.7 → 0.6")
    person.press("Undo")
    assert [row["ratio"] for row in tab.state()["sources"]] == [0.7, 0.3]


def test_eight_sources_and_groups(tab, app):
    """Rows are added, grouped behind the dots, each group gets a method; one level is saved alone."""
    person = Person(tab, 1440, 900)
    person.chooses("A", "sample-ink-style")
    person.chooses("B", "sample-mira-character")
    for name in (
        "sample-neon-concept",
        "sample-ink-style",
        "sample-mira-character",
        "sample-neon-concept",
        "sample-ink-style",
        "sample-mira-character",
    ):
        person.press("+ Add source")
        tab.page.keyboard.type(name)
        tab.page.keyboard.press("Enter")
    for letter, group in zip("ABCD", "1122"):
        person.press(f"More of {letter}")
        person.takes(f"Group of {letter}", f"group {group}")
        person.press(f"More of {letter}")
    person.takes("Method of group 1", "Average")
    person.reads("A + B merged first, by")
    person.press("Equal")
    person.types("Name of the merge", "journey-eight")
    tab.planned()
    person.press("Merge")
    person.reads("Saved journey-eight.safetensors")
    tab.quiet()
    tab.saves(tab.page.get_by_role("button", name="Save this level").first.click)
    person.reads("Saved journey-eight_level-1_v1.safetensors")
    a, b = (dense_of(_file(app, f"sample-{name}.safetensors"), 3) for name in ("ink-style", "mira-character"))
    # an average divides by the sum of its ratios, whatever they are
    wanted = {n: 0.5 * a.get(n, 0) + 0.5 * b.get(n, 0) for n in set(a) | set(b)}
    assert relative(dense_of(_file(app, "journey-eight_level-1_v1.safetensors"), 3), wanted) <= 2e-3
