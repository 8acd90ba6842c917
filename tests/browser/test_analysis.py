"""Understanding a merge in the tab: it arrives by itself, every number can be reached, advice is one click, reports are kept."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.browser, pytest.mark.gradio3]
COMPLETE = "() => { const a = window.loraMerge.app.analysis; return a.report && a.report.stage === 'advice' && !a.busy && !a.stale(); }"


@pytest.fixture(scope="module", autouse=True)
def louder(app):
    """A third LoRA ten times as strong as the first."""
    path = next(app.folder.rglob("sample-mira-character.safetensors"))
    tensors = {key: value * 10 if "lora_up" in key else value for key, value in load_file(str(path)).items()}
    save_file(
        tensors, str(app.folder / "ten-times.safetensors"), {"ss_sd_model_name": "ponyDiffusion.safetensors"}
    )


def _set_up(tab, *names):
    tab.fresh()
    tab.page.evaluate("() => window.loraMerge.app.library.refresh(true)")
    tab.page.wait_for_function(
        "() => window.loraMerge.app.library.items.some((item) => item.name === 'ten-times')"
    )
    for row, name in enumerate(names):
        tab.pick(row, name)
    tab.see("Understand")
    tab.page.wait_for_function(COMPLETE, timeout=60000)


def _box(tab):
    return tab.page.locator("[aria-label=Analysis]")


@pytest.mark.both
def test_it_arrives_by_itself_first_parts_first_and_blocks_nothing(tab):
    tab.fresh()
    tab.see("Understand")
    tab.page.evaluate(
        """() => { const a = window.loraMerge.app.analysis, show = a.show.bind(a); window.stages = [];
        a.show = (report, job) => { window.stages.push(report.stage); show(report, job); }; }"""
    )
    tab.pick(0, "sample-ink-style")
    tab.pick(1, "sample-mira-character")
    tab.page.wait_for_function("() => window.loraMerge.app.analysis.job", timeout=20000)
    tab.ratio(0, 0.55)  # the page answers while it measures
    assert tab.state()["sources"][0]["ratio"] == 0.55
    assert tab.page.evaluate("() => window.loraMerge.app.output.job") is None
    tab.page.wait_for_function(COMPLETE, timeout=60000)
    stages = tab.page.evaluate("() => window.stages")
    order = ["files", "sources", "pairs", "recipe", "methods", "advice"]
    assert stages[-1] == "advice"
    assert len(stages) >= 2
    places = [order.index(stage) for stage in stages]
    assert any(one < other for one, other in zip(places, places[1:]))
    assert "cosine 0.00" in _box(tab).inner_text()
    assert "unrelated" in _box(tab).inner_text()
    assert "Nothing about these LoRAs asks for a change" in _box(tab).inner_text()


def test_numbers_by_mouse_and_by_keyboard(tab):
    _set_up(tab, "sample-ink-style", "sample-mira-character")
    cells = tab.page.locator(".lm-heat-cell")
    readout = tab.page.locator(".lm-map .lm-readout").first
    report = tab.page.evaluate("() => window.loraMerge.app.analysis.report")
    cells.nth(1).hover()
    assert "IN01, A sample-ink-style" in readout.inner_text()
    assert (
        f"{100 * report['recipe']['blocks']['IN01']['shares'][0]:.1f} % of the merge" in readout.inner_text()
    )
    cells.first.focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowDown")
    assert "IN01, B sample-mira-character" in readout.inner_text()
    assert cells.nth(1).get_attribute("aria-label") == cells.nth(1).get_attribute("title")
    assert tab.page.locator('.lm-heat-cell[tabindex="0"]').count() == 1
    for kind, says in (("Norm", "norm"), ("Cosine", "cosine"), ("Conflict", "signs differ in")):
        tab.page.get_by_role("radio", name=kind).click()
        tab.page.locator(".lm-heat-cell:not(.lm-heat-none)").first.hover()
        assert says in tab.page.locator(".lm-map .lm-readout").first.inner_text()
    tab.page.keyboard.press("ArrowRight")  # the choice is one tab stop; arrows go round
    assert tab.page.get_by_role("radio", name="Dominance").get_attribute("aria-checked") == "true"


def test_the_curve_tells_every_rank_and_sets_one(tab):
    _set_up(tab, "sample-ink-style", "sample-mira-character")
    curve = tab.page.locator("svg.lm-curve")
    points = tab.page.evaluate("() => window.loraMerge.app.analysis.report.recipe.curve")
    text = curve.text_content()
    assert "Rank of every module" in text
    assert "Energy kept" in text
    curve.focus()
    tab.page.keyboard.press("Home")
    for _ in range(4):
        tab.page.keyboard.press("ArrowRight")
    said = curve.get_attribute("aria-valuetext")
    assert said.startswith(f"rank {points[4]['rank']}: {100 * points[4]['energy']:.2f} % of the energy kept")
    box = curve.bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4)
    assert curve.get_attribute("aria-valuetext") != said
    curve.focus()
    tab.page.keyboard.press("Home")
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("Enter")
    assert tab.state()["rank"] == {"mode": "rank", "value": points[1]["rank"]}
    tab.page.wait_for_function(COMPLETE, timeout=60000)
    assert f"rank {points[1]['rank']}:" in curve.text_content()


def test_advice_is_carried_out_and_taken_back(tab):
    _set_up(tab, "sample-ink-style", "ten-times")
    assert "Balance" in tab.page.locator(".lm-advice").inner_text()
    before = [row["ratio"] for row in tab.state()["sources"]]
    apply = tab.page.locator(".lm-advice").get_by_role("button", name="Apply: Balance →")
    apply.focus()
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_function("() => document.querySelector('.lm-message').textContent.includes('done')")
    after = [row["ratio"] for row in tab.state()["sources"]]
    assert after[0] > before[0] > after[1]
    tab.page.wait_for_function(COMPLETE, timeout=60000)
    assert "sum of ratios 1" in _box(tab).inner_text()
    tab.page.keyboard.press("Control+z")  # the focus is still in the panel
    assert [row["ratio"] for row in tab.state()["sources"]] == before


def test_a_role_is_one_click(tab):
    _set_up(tab, "sample-ink-style", "sample-mira-character")
    tab.page.locator(".lm-analysis summary").filter(has_text="Starting points").click()
    tab.page.get_by_role("button", name="Start: character for B").click()
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources[1].ratio === 0.5")
    tab.page.get_by_role("button", name="Start: style for A").click()
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources[0].ratio === 0.7")
    tab.page.wait_for_function(COMPLETE, timeout=60000)
    tab.page.get_by_role("button", name="Start: As character and style, by block").click()
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources[0].ratio === 0.5")
    assert tab.state()["sources"][0]["blocks"]


def test_what_is_wrong_answers_with_this_merge(tab):
    _set_up(tab, "sample-ink-style", "ten-times")
    report = tab.page.evaluate("() => window.loraMerge.app.analysis.report")
    pick = tab.page.get_by_label("What is wrong?")
    titles = pick.locator("option").all_inner_texts()[1:]
    assert titles == [item["title"] for item in report["symptoms"]]
    assert len(titles) == 7
    for item in report["symptoms"]:
        pick.select_option(item["id"])
        text = _box(tab).inner_text()
        assert item["says"][0] in text
        for offered in item["tries"]:
            assert offered["title"] in text
    pick.select_option("dominates")
    tries = tab.page.locator("[aria-label='What to try']").get_by_role("button")
    before = tab.state()["sources"]
    tries.first.click()
    tab.page.wait_for_function("() => document.querySelector('.lm-message').textContent.includes('done')")
    assert tab.state()["sources"] != before


def test_exports_stand_alone(tab, tmp_path):
    _set_up(tab, "sample-ink-style", "img src")
    for form in ("HTML", "JSON"):
        with tab.page.expect_download() as waiting:
            tab.page.get_by_role("button", name=f"Save as {form}").click()
        file = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(file)
        text = file.read_text(encoding="utf-8")
        assert waiting.value.suggested_filename == f"lora-analysis.{form.lower()}"
        assert str(tab.app.folder) not in text
        if form == "JSON":
            assert json.loads(text)["format"] == "lora-merge-analysis"
            continue
        asked = []
        page = tab.page.context.new_page()
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(file.as_uri())
        assert page.locator("svg").count() >= 5
        assert page.evaluate("() => window.hacked") is None
        assert page.locator("img").count() == 0
        assert len(asked) == 1
        page.close()
    tab.page.get_by_text("The whole report").click()
    frame = tab.page.frame_locator(".lm-report-page")
    frame.locator("h1").wait_for(timeout=20000)
    assert tab.page.evaluate("() => window.hacked") is None


def test_two_recipes_stand_side_by_side(tab):
    _set_up(tab, "sample-ink-style", "sample-mira-character")
    tab.page.get_by_label("Name of the merge").fill("before")
    tab.merge()
    tab.ratio(0, 0.8)
    tab.page.get_by_label("Merge method").select_option("average")
    tab.page.get_by_label("Name of the merge").fill("after")
    tab.merge()
    tab.see("Compare")
    tab.page.wait_for_function(
        "() => document.querySelector('[aria-label=\"Second recipe\"]').textContent.includes('after')"
    )
    tab.page.get_by_role("button", name="Compare recipes").click()
    table = tab.page.get_by_label("Block by block, both merges")
    table.wait_for(timeout=60000)
    changes = tab.page.get_by_label("What changed").inner_text()
    assert "method: Weighted sum → Average" in changes
    assert "ratio: 0.5 → 0.8" in changes
    box = tab.page.locator("section[aria-label='Compare recipes']")
    assert "Weighted sum" in box.get_by_label("First merge", exact=True).inner_text()
    assert "Average" in box.get_by_label("Second merge", exact=True).inner_text()
    blocks = table.locator("tbody tr")
    assert blocks.count() == 17
    assert "0.5 ·" in blocks.nth(1).inner_text()
    assert "0.8 ·" in blocks.nth(1).inner_text()
    assert table.locator(".lm-differs").count() > 0
    for kind in ("Weight", "Norm", "Cross-talk"):
        box.get_by_role("radio", name=kind).click()
        assert box.locator(".lm-heat-cell").count() == 4 * 17
    tab.shot("compared")
    box.get_by_text("Both reports").click()
    for at in (0, 1):
        box.frame_locator("iframe").nth(at).locator("h1").wait_for(timeout=20000)


def test_it_can_be_switched_off(tab):
    _set_up(tab, "sample-ink-style", "sample-mira-character")
    tab.page.get_by_label("automatically").uncheck()
    tab.ratio(0, 0.9)
    tab.page.wait_for_timeout(1500)
    assert "analyse again" in _box(tab).inner_text()
    tab.open()
    tab.see("Understand")
    assert not tab.page.get_by_label("automatically").is_checked()
    tab.page.wait_for_timeout(1500)
    assert tab.page.evaluate("() => window.loraMerge.app.analysis.report") is None
    _box(tab).get_by_role("button", name="Analyse").click()
    tab.page.wait_for_function(COMPLETE, timeout=60000)


@pytest.mark.both
def test_the_panel_is_readable(tab):
    """No sideways scrolling of the page; text and ground stay apart; numbers in cells have contrast."""
    _set_up(tab, "sample-ink-style", "ten-times")
    for summary in tab.page.locator(".lm-analysis > .lm-panel > details > summary").all():
        summary.click()
    for width in (1280, 800):
        for dark in (False, True):
            _readable(tab, dark, width)


def _readable(tab, dark, width):
    page = tab.page
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", dark)
    page.wait_for_timeout(400)
    assert page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 0
    over = page.evaluate(
        """() => { const box = document.querySelector('.lm-analysis').getBoundingClientRect();
        return [...document.querySelectorAll('.lm-analysis > .lm-panel > *')].filter((node) => node.getBoundingClientRect().right > box.right).length; }"""
    )
    assert over == 0
    lowest = page.evaluate(
        """() => { const light = (text) => { const p = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)); return 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2]; };
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const cells = [...document.querySelectorAll('.lm-heat-cell:not(.lm-heat-none)')].map((node) => { const s = getComputedStyle(node); return ratio(light(s.color), light(s.backgroundColor)); });
        const card = light(getComputedStyle(document.querySelector('.lm-analysis')).backgroundColor);
        const lines = [['.lm-curve text', 'fill', 4.5], ['.lm-plot-line', 'stroke', 3], ['.lm-plot-mark', 'stroke', 3], ['.lm-readout', 'color', 4.5]].map(([where, what, least]) => 4.5 * ratio(light(getComputedStyle(document.querySelector(where))[what]), card) / least);
        return Math.min(...cells, ...lines); }"""
    )
    assert lowest >= 4.5, f"dark: {dark}, {width} pixels wide"
    tab.shot(f"{'dark' if dark else 'light'}-{width}")
