"""What a person does in the tab, by mouse and by keyboard, and what lies on the disk afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

from tests.factories import dense_of, relative

pytestmark = [pytest.mark.browser, pytest.mark.gradio3]


def _file(app, name):
    return next(app.folder.rglob(name))


def _pair(tab):
    tab.fresh()
    tab.pick(0, "sample-ink-style")
    tab.pick(1, "sample-mira-character")
    tab.quiet()


@pytest.mark.both
def test_a_first_merge_in_five_clicks(tab, app):
    """Pick A, pick B, merge: the file holds 0.5·A + 0.5·B."""
    _pair(tab)
    tab.shot("picked")
    text = tab.merge()
    assert "asked = saved to" in text
    assert "Saved" in text
    saved = next(path for path in app.folder.rglob("*weighted_sum*.safetensors"))
    a, b = (
        dense_of(_file(app, f"{name}.safetensors"), 3)
        for name in ("sample-ink-style", "sample-mira-character")
    )
    wanted = {n: 0.5 * a.get(n, 0) + 0.5 * b.get(n, 0) for n in set(a) | set(b)}
    assert relative(dense_of(saved, 3), wanted) <= 1e-3
    tab.see("History")
    history = tab.page.locator(".lm-table tbody tr").first.inner_text()
    assert "Weighted sum" in history


def test_ratios_by_slider_and_by_number(tab):
    _pair(tab)
    tab.ratio(0, 1.35)
    slider = tab.page.locator(".lm-row").nth(1).locator("input[type=range]")
    slider.focus()
    tab.page.keyboard.press("ArrowRight")
    assert [row["ratio"] for row in tab.state()["sources"]] == [1.35, 0.55]
    assert "1.90" in tab.page.locator(".lm-sum").inner_text()
    tab.ratio(0, 7.5)  # any number is allowed, beyond the slider too
    assert tab.state()["sources"][0]["ratio"] == 7.5
    tab.page.get_by_role("button", name="Normalise to 1").click()
    assert sum(row["ratio"] for row in tab.state()["sources"]) == pytest.approx(1, abs=1e-3)
    tab.page.get_by_role("button", name="Equal").click()
    assert [row["ratio"] for row in tab.state()["sources"]] == [0.5, 0.5]
    tab.page.get_by_role("button", name="0.7 / 0.3").click()
    assert [row["ratio"] for row in tab.state()["sources"]] == [0.7, 0.3]


def test_blocks_by_keyboard(tab):
    _pair(tab)
    tab.cell(0, "IN01").click()
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowDown")
    assert tab.state()["sources"][0]["blocks"] == {"IN01": 0.9}
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.type("0.35")
    tab.page.keyboard.press("Enter")
    assert tab.state()["sources"][0]["blocks"]["IN02"] == 0.35
    tab.page.keyboard.press("Shift+ArrowRight")
    tab.page.keyboard.press("Shift+ArrowRight")
    tab.page.keyboard.press("Home")
    assert {"IN02": 0, "IN04": 0}.items() <= tab.state()["sources"][0]["blocks"].items()
    tab.page.keyboard.press("Control+z")
    assert tab.state()["sources"][0]["blocks"].get("IN04") is None
    tab.page.keyboard.press("Control+y")
    assert tab.state()["sources"][0]["blocks"]["IN04"] == 0
    assert "weight 0" in tab.cell(0, "IN04").get_attribute("aria-label")


def test_blocks_by_mouse(tab):
    _pair(tab)
    first, second = tab.cell(1, "OUT03").bounding_box(), tab.cell(1, "OUT06").bounding_box()
    x, y = first["x"] + 5, first["y"] + 15
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x, y + 8, steps=4)
    tab.page.mouse.move(second["x"] + 5, second["y"] + 15, steps=12)
    tab.page.mouse.up()
    blocks = tab.state()["sources"][1]["blocks"]
    assert len({blocks[name] for name in ("OUT03", "OUT04", "OUT05", "OUT06")}) == 1
    assert 0.8 <= blocks["OUT03"] < 1
    tab.cell(1, "OUT08").dblclick()
    tab.page.keyboard.type("0.25")
    tab.page.keyboard.press("Enter")
    assert tab.state()["sources"][1]["blocks"]["OUT08"] == 0.25
    tab.shot("painted")


def test_a_list_beside_the_row_and_presets_that_survive_a_reload(tab, app):
    _pair(tab)
    field = tab.page.locator(".lm-list").first
    field.fill("1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1")
    field.press("Tab")
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources[0].blocks.IN01 === 0")
    tab.see("Presets")
    tab.page.get_by_label("Name of the preset").fill("my <b>look</b>")
    tab.page.get_by_role("button", name="Save preset").click()
    tab.page.wait_for_selector(".lm-presets li")
    tab.open()
    assert tab.state()["sources"][0]["blocks"]["IN01"] == 0  # the state came back, too
    tab.preset("B", "my <b>look</b>")
    assert tab.state()["sources"][1]["blocks"]["IN01"] == 0
    tab.preset("A", "=c")
    assert tab.state()["sources"][0]["blocks"].get("IN01", 1) == 1
    assert tab.state()["sources"][0]["blocks"]["OUT03"] == 0
    stored = json.loads((app.data / "presets.json").read_text(encoding="utf-8"))
    assert "my <b>look</b>" in json.dumps(stored, ensure_ascii=False)


def test_block_weights_reach_the_file(tab, app):
    _pair(tab)
    tab.ratio(0, 1)
    tab.ratio(1, 1)
    tab.preset("A", "=0")
    tab.page.get_by_label("Name of the merge").fill("baked")
    tab.merge()
    b = dense_of(_file(app, "sample-mira-character.safetensors"), 7)
    found = dense_of(_file(app, "baked.safetensors"), 7)
    assert relative(found, b) <= 1e-3


@pytest.mark.both
def test_a_merge_can_be_cancelled_and_started_again(tab, app):
    _pair(tab)
    tab.page.get_by_label("Merge method").select_option("ties")
    tab.page.get_by_label("Name of the merge").fill("slow")
    tab.planned()
    tab.press()
    tab.page.wait_for_selector("progress:not([hidden])")
    tab.page.get_by_role("button", name="Cancel").click()
    tab.page.wait_for_function("() => window.loraMerge.app.output.job === null", timeout=60000)
    assert "Cancelled" in tab.page.locator(".lm-message").inner_text()
    assert not list(app.folder.rglob("slow*"))
    tab.page.get_by_label("Merge method").select_option("weighted_sum")
    assert "slow" in tab.merge()
    assert list(app.folder.rglob("slow.safetensors"))


def test_a_saved_merge_is_replaced_only_after_a_yes(tab, app):
    _pair(tab)
    tab.page.get_by_label("Name of the merge").fill("replaced")
    tab.merge()
    saved = _file(app, "replaced.safetensors")
    before, questions = saved.read_bytes(), []

    def no(dialog):
        questions.append(dialog.message)
        dialog.dismiss()

    tab.page.once("dialog", no)
    tab.ratio(0, 0.9)
    tab.options()
    tab.page.get_by_label("Overwrite").check()
    tab.page.keyboard.press("Control+Enter")
    tab.page.wait_for_timeout(1500)
    assert questions == ["Replace replaced.safetensors?"]
    assert saved.read_bytes() == before
    tab.page.once("dialog", lambda dialog: dialog.accept())
    tab.merge()
    assert saved.read_bytes() != before


def test_knobs_and_rank_are_asked_for(tab, app):
    _pair(tab)
    tab.page.get_by_label("Merge method").select_option("core_ties")
    tab.page.get_by_label("trim fraction, exact").fill("0.5")
    tab.settings()
    tab.page.get_by_label("Rank", exact=True).select_option("rank")
    tab.page.get_by_label("Value of the rank policy").fill("8")
    tab.page.get_by_label("Name of the merge").fill("knobs")
    assert "rank 8" in tab.merge()
    recipe = tab.state()
    assert recipe["knobs"]["core_ties"]["trim_fraction"] == 0.5


def test_a_knob_of_the_sources_takes_a_value_for_each(tab, app):
    _pair(tab)
    tab.page.get_by_label("Merge method").select_option("core_ties")
    each = tab.page.get_by_label("trim fraction, one for each LoRA")
    each.fill("0.2, 7")
    assert each.get_attribute("aria-invalid") == "true"
    assert "from 0 to 0.95" in tab.page.get_by_role("alert").inner_text()
    each.fill("0.2, 0.4")
    assert each.get_attribute("aria-invalid") == "false"
    assert not tab.page.get_by_role("alert").count()
    assert tab.state()["knobs"]["core_ties"]["trim_fraction"] == [0.2, 0.4]
    tab.shot("knob-for-each")
    tab.page.get_by_label("Name of the merge").fill("each")
    tab.merge()
    with safe_open(next(iter(app.folder.rglob("each.safetensors"))), "pt") as file:
        assert json.loads(file.metadata()["merge_recipe"])["knobs"]["trim_fraction"] == [0.2, 0.4]
    tab.page.reload()
    tab.page.wait_for_selector(".lm-columns")
    assert tab.page.get_by_label("trim fraction, one for each LoRA").input_value() == "0.2, 0.4"
    tab.page.get_by_label("trim fraction, one for each LoRA").fill("0.2, 7")
    tab.page.get_by_label("trim fraction, exact").fill("0.3")
    assert not tab.page.get_by_role("alert").count()
    assert tab.page.get_by_label("trim fraction, one for each LoRA").input_value() == ""
    assert tab.state()["knobs"]["core_ties"]["trim_fraction"] == 0.3


def test_history_opens_a_merge_again(tab, app):
    _pair(tab)
    tab.ratio(0, 0.9)
    tab.page.get_by_label("Name of the merge").fill("again")
    tab.merge()
    tab.fresh()
    assert not tab.state()["sources"][0]["key"]
    tab.see("History")
    row = tab.page.locator(".lm-entries tbody tr").filter(has_text="again").first
    row.get_by_role("button", name="Load").click()
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources[0].key")
    assert [row["ratio"] for row in tab.state()["sources"]] == [0.9, 0.5]
    row.get_by_label("More for again").click()
    tab.page.get_by_role("menuitem", name="Verify").click()
    tab.page.wait_for_function(
        "() => document.querySelector('.lm-message').textContent.includes('Verified')", timeout=60000
    )


def test_a_prompt_becomes_rows_and_rows_a_prompt(tab):
    _pair(tab)
    tab.page.get_by_role("button", name="From prompt or image…").click()
    tab.page.get_by_label("Prompt with LoRA tags").fill(
        "a cat <lora:sample-mira-character:0.8>, <lora:sample-ink-style:0.3:0.6> <lora:gone:1>"
    )
    tab.page.get_by_role("button", name="Read", exact=True).click()
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources.length === 3")
    rows = tab.state()["sources"]
    assert [row["name"] for row in rows] == ["sample-mira-character", "sample-ink-style", "gone"]
    assert rows[0]["ratio"] == 0.8
    assert (rows[1]["ratio"], rows[1]["te"]) == (0.6, [0.3])
    assert "gone" in tab.page.locator(".lm-drop .lm-warn").inner_text()
    tab.quiet()
    assert "C (gone) is missing" in tab.page.locator(".lm-outlook").inner_text()
    tab.page.get_by_label("Remove C").click()
    tab.page.get_by_role("button", name="Copy as prompt").click()
    tab.page.wait_for_function("() => document.querySelector('.lm-message').textContent.includes('<lora:')")
    text = tab.page.evaluate("() => navigator.clipboard.readText()")
    assert "<lora:sample-mira-character:0.8>" in text


def test_presets_of_another_tool(tab, tmp_path):
    _pair(tab)
    file = tmp_path / "lbwpresets.txt"
    file.write_text("FACE:1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0\nBROKEN:1,2\n", encoding="utf-8")
    tab.see("Presets")
    tab.page.get_by_label("Preset file of another tool").set_input_files(str(file))
    tab.page.wait_for_selector(".lm-report li")
    assert tab.page.locator(".lm-report .lm-bad").count() == 1
    tab.preset("A", "FACE")
    assert tab.state()["sources"][0]["blocks"]["IN01"] == 0


@pytest.mark.both
def test_a_hostile_file_stays_text(tab, app):
    _pair(tab)
    tab.pick(0, app.hostile)
    tab.planned()
    tab.see("Tools")
    tab.page.get_by_label("LoRA for the tools").click()
    tab.page.keyboard.type(app.hostile)
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".lm-facts-table", timeout=60000)
    tab.shot("inspected")
    tab.page.get_by_label("Name of the merge").fill("tamed")
    assert "Saved" in tab.merge()
    assert tab.page.evaluate("() => window.hacked") is None
    assert tab.page.locator("#lora_merge_root img[src=x]").count() == 0


def test_what_is_wrong_is_said_before_the_merge(tab):
    _pair(tab)
    tab.page.get_by_label("Merge method").select_option("slerp")
    tab.page.get_by_role("button", name="+ Add source").click()
    tab.page.keyboard.type("neon")
    tab.page.keyboard.press("Enter")
    tab.planned()
    assert "SLERP merges 2 sources; there are 3." in (
        tab.page.locator("[aria-label='What will come out']").inner_text()
    )
    tab.press()  # says why, where the eye is
    assert "SLERP merges 2 sources; there are 3." in tab.page.locator(".lm-result").inner_text()
    assert not tab.page.evaluate("() => loraMerge.app.output.job")


def test_a_level_is_merged_first(tab, app):
    _pair(tab)
    tab.group("A", "1")
    tab.group("B", "1")
    tab.page.get_by_label("Method of group 1").select_option("average")
    tab.page.get_by_label("Ratio of group 1").fill("0.5")
    tab.page.get_by_label("Name of the merge").fill("level")
    tab.merge()
    a, b = (
        dense_of(_file(app, f"{name}.safetensors"), 7)
        for name in ("sample-ink-style", "sample-mira-character")
    )
    wanted = {n: 0.25 * a.get(n, 0) + 0.25 * b.get(n, 0) for n in set(a) | set(b)}
    assert relative(dense_of(_file(app, "level.safetensors"), 7), wanted) <= 1e-3


@pytest.mark.both
def test_the_page_is_light_and_sound(tab):
    """Elements, duplicate ids, and a layout that holds at 800 pixels, dark and light."""
    _pair(tab)
    page = tab.page
    assert page.locator("#lora_merge_root *").count() <= 1500
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((node) => node.id)")
    ours = [name for name in ids if name.startswith("lora_merge")]
    assert len(ours) == len(set(ours))
    for width in (1280, 800):
        page.set_viewport_size({"width": width, "height": 900})
        over = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        assert over <= 0, f"the page is {over} pixels too wide at {width}"
        tab.shot(f"wide{width}")
    page.evaluate("() => document.body.classList.toggle('dark')")
    tab.shot("other-theme")
    colours = page.evaluate(
        "() => { const s = getComputedStyle(document.querySelector('#lora_merge_root .lm-card')); return [s.color, s.backgroundColor]; }"
    )
    light = [sum(map(float, text[text.index("(") + 1 : -1].split(",")[:3])) for text in colours]
    assert np.abs(light[0] - light[1]) > 200  # text and ground stay apart


@pytest.mark.both
def test_two_browsers_have_two_states(tab, browser, app):
    _pair(tab)
    other = browser.new_context()
    page = other.new_page()
    page.goto(app.url)
    page.wait_for_selector("#lora_merge_root .lm-columns", timeout=60000)
    assert not page.evaluate("() => window.loraMerge.app.state.data.sources[0].key")
    other.close()


@pytest.mark.both
def test_control_enter_merges(tab, app):
    _pair(tab)
    tab.page.get_by_label("Name of the merge").fill("keys")
    tab.planned()
    tab.page.locator(".lm-name").first.focus()
    tab.page.keyboard.press("Control+Enter")
    tab.page.wait_for_selector(".lm-result:not([hidden])", timeout=60000)
    assert list(app.folder.rglob("keys.safetensors"))


def test_the_analysis_advises_and_its_advice_is_applied(tab, app):
    _pair(tab)
    tab.pick(1, app.hostile)
    tab.planned()
    tab.see("Understand")
    tab.page.get_by_role("button", name="Analyse").click()
    tab.page.wait_for_selector(".lm-report-page", state="attached", timeout=60000)
    assert "cosine" in tab.page.locator("[aria-label=Analysis]").inner_text()
    tab.page.get_by_text("The whole report").click()
    tab.shot("report")
    assert tab.page.evaluate("() => window.hacked") is None
    tab.page.get_by_label("What is wrong?").select_option(index=1)
    apply = tab.page.locator("[aria-label=Analysis]").get_by_role("button", name="Apply")
    before = tab.state()
    if apply.count():
        apply.first.click()
        tab.page.wait_for_function("() => document.querySelector('.lm-message').textContent.includes('done')")
        assert tab.state() != before
