"""What is around a merge: levels, tools, history, pictures, and what survives a restart."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors import safe_open

from tests.browser.hostile import EVIL
from tests.browser.test_journey import _file, _pair
from tests.browser.test_panels import _more
from tests.factories import dense_of, exif_comment, relative, write_lora

pytestmark = [pytest.mark.browser, pytest.mark.gradio4]


def test_a_level_is_saved_alone_and_takes_the_groups_place(tab, app):
    _pair(tab)
    for letter in "AB":
        tab.group(letter, "1")
    tab.page.get_by_label("Method of group 1").select_option("core_ties")
    tab.page.get_by_label("trim fraction of group 1, exact").fill("0.4")
    tab.page.get_by_label("Ratio of group 1").fill("0.5")
    tab.page.get_by_label("Name of the merge").fill("whole")
    tab.merge()
    tab.saves(lambda: tab.page.get_by_role("button", name="Save this level").click())
    whole, level = (dense_of(_file(app, f"{name}.safetensors"), 7) for name in ("whole", "whole_level-1_v1"))
    assert relative(whole, {name: 0.5 * value for name, value in level.items()}) <= 2e-3
    with safe_open(_file(app, "whole_level-1_v1.safetensors"), "pt") as file:
        recipe = json.loads(file.metadata()["merge_recipe"])
    assert (recipe["method"], recipe["knobs"]["trim_fraction"]) == ("core_ties", 0.4)
    tab.shot("level")
    tab.page.get_by_role("button", name="Use the saved file instead").click()
    [row] = tab.state()["sources"]
    assert (row["name"], row["ratio"]) == ("whole_level-1_v1", 0.5)
    tab.page.get_by_label("Name of the merge").fill("whole-again")
    tab.merge()
    assert relative(dense_of(_file(app, "whole-again.safetensors"), 7), whole) <= 2e-3


def test_tools_resize_and_bake_without_touching_what_is_set_up(tab, app):
    _pair(tab)
    before = tab.state()["sources"]
    tab.see("Tools")
    tab.page.get_by_label("LoRA for the tools").click()
    tab.page.keyboard.type("sample-ink")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".lm-facts-table", timeout=60000)
    assert "LoRA × 192" in tab.page.locator(".lm-facts-table").inner_text()
    assert tab.page.locator(".lm-bar").count() > 10
    tab.page.get_by_label("New rank", exact=True).select_option("rank")
    tab.page.get_by_label("Value of the new rank").fill("4")
    tab.page.get_by_label("Strength to bake in").fill("0.5")
    tab.page.get_by_label("Block weights to bake in").fill("OUT03-OUT11=0")
    forecast = tab.page.locator(".lm-forecast")
    forecast.filter(has_text="sample-ink-style_r4_x0.5_baked_v1.safetensors").wait_for()
    assert "16 → at most 4" in forecast.inner_text()
    foreseen = re.search("14 MB → at most ([0-9.]+) MB", forecast.inner_text())
    tab.saves(lambda: tab.page.get_by_role("button", name="Save as a new LoRA").click())
    with safe_open(_file(app, "sample-ink-style_r4_x0.5_baked_v1.safetensors"), "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - not a dict
    assert {shape[0] for key, shape in shapes.items() if "lora_down" in key} == {4}
    assert not any("up_blocks_1" in key for key in shapes)
    assert tab.state()["sources"] == before
    saved = _file(app, "sample-ink-style_r4_x0.5_baked_v1.safetensors").stat().st_size
    assert 0.5 * float(foreseen[1]) <= saved / 1e6 <= float(foreseen[1]) + 0.05
    forecast.filter(has_text="sample-ink-style_r4_x0.5_baked_v2.safetensors").wait_for()
    tab.page.get_by_label("Block weights to bake in").fill("nonsense")
    tab.page.wait_for_selector(".lm-wrong")
    assert "nonsense" in forecast.locator(".lm-bad").inner_text()
    tab.page.get_by_label("Block weights to bake in").fill("")
    tab.page.get_by_label("Strength to bake in").fill("1")
    tab.page.get_by_label("Value of the new rank").fill("64")
    forecast.filter(has_text="rank 64 is more than this LoRA has: it comes out at rank 16").wait_for()
    assert "sample-ink-style_r16_v1.safetensors" in forecast.inner_text()


def test_the_history_runs_again_says_what_changed_and_throws_away(tab, app):
    _pair(tab)
    tab.page.get_by_label("Name of the merge").fill("step{n}")
    tab.merge()
    tab.ratio(0, 0.9)
    tab.quiet()
    assert "ratio: 0.5 → 0.9" in tab.page.locator(".lm-changes").inner_text()
    tab.merge()
    tab.see("History")
    _more(tab, "step2", "Changes…")
    tab.page.locator(".lm-detail", has_text="0.5 → 0.9").wait_for()
    setup = tab.state()["sources"]
    _more(tab, "step2", "Run again…")
    tab.page.get_by_label("Name to run it under").fill("step-other")
    tab.page.evaluate(
        "() => loraMerge.app.below.drawHistory()"
    )  # as after every merge: what is open stays open
    typed = "document.activeElement.getAttribute('aria-label') + '=' + document.activeElement.value"
    assert tab.page.evaluate(f"() => {typed}") == "Name to run it under=step-other"
    tab.page.get_by_role("button", name="Run", exact=True).click()
    tab.page.wait_for_function(
        "() => document.querySelector('.lm-message').textContent.includes('same tensors')", timeout=60000
    )
    assert tab.state()["sources"] == setup
    before = _file(app, "step2.safetensors").read_bytes()
    tab.quiet()
    _more(tab, "step2", "Run again…")
    tab.page.get_by_role("button", name="Run", exact=True).click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Replace").click()
    tab.page.wait_for_function(
        "() => document.querySelector('.lm-message').textContent.startsWith('step2')", timeout=60000
    )
    assert _file(app, "step2.safetensors").read_bytes() == before
    tab.page.get_by_label("Search the history").fill("step-other")
    tab.page.wait_for_function("() => document.querySelectorAll('.lm-entries tbody tr').length === 1")
    _more(tab, "step-other", "Delete…")
    tab.page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    tab.page.wait_for_function("() => !document.querySelector('.lm-entries tbody tr')")
    assert not list(app.folder.rglob("step-other*"))
    assert list((app.data / "trash").glob("*step-other.safetensors.kept"))
    tab.page.locator(".lm-trash summary").click()
    tab.page.get_by_label("Put step-other.safetensors back").click()
    tab.page.wait_for_selector('.lm-table tbody tr:has-text("step-other")', timeout=60000)
    assert _file(app, "step-other.safetensors").read_bytes()
    tab.page.wait_for_selector(".lm-trash .lm-dim")
    tab.shot("trash")


@pytest.mark.both
def test_a_dropped_picture_fills_the_rows_and_a_picture_becomes_the_card(tab, app, tmp_path):
    image = pytest.importorskip("PIL.Image")
    text = "a cat <lora:sample-neon-concept:0.7:stop=12>\nSteps: 20"
    picture = tmp_path / "generated.jpg"
    image.new("RGB", (900, 1200), "#336699").save(picture, exif=exif_comment(text))
    _pair(tab)
    tab.page.get_by_role("button", name="From prompt or image…").click()
    tab.page.get_by_label("A generated picture").set_input_files(str(picture))
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources.length === 1")
    assert tab.state()["sources"][0]["ratio"] == 0.7
    assert "stop (stop=12) cannot be baked" in tab.page.locator(".lm-drop .lm-warn").inner_text()
    tab.options()
    tab.page.get_by_label("A picture for the card").set_input_files(str(picture))
    tab.page.wait_for_selector("img.lm-thumb[src^='data:']")
    tab.page.get_by_label("Name of the merge").fill("with-card")
    tab.merge()
    saved = image.open(_file(app, "with-card.preview.png"))
    assert saved.size == (576, 768)
    assert max(abs(a - b) for a, b in zip(saved.convert("RGB").getpixel((5, 5)), (0x33, 0x66, 0x99))) < 5
    tab.page.locator(".lm-row .lm-name").first.click()
    tab.page.keyboard.type("with-card")
    shown = tab.page.locator(".lm-pick img")
    shown.wait_for()
    tab.page.wait_for_function("() => document.querySelector('.lm-pick img').naturalWidth === 576")


def test_hostile_names_neither_turn_sentences_round_nor_become_markup(tab):
    _pair(tab)
    tab.pick(0, "img src")
    tab.pick(1, "img src")
    tab.options()
    tab.page.get_by_label("Trigger words", exact=True).fill(EVIL)
    tab.planned()
    notes = tab.page.locator("[aria-label='What will come out']").inner_text()
    assert "A and B are the same file" in notes
    marks = (
        "() => /[\\u202a-\\u202e\\u2066-\\u2069]/.test(document.querySelector('#lora_merge_root').innerText)"
    )
    assert not tab.page.evaluate(marks)
    for name in ("History", "Presets", "Tools"):
        tab.see(name)
        assert not tab.page.evaluate(marks)
    tab.page.get_by_role("button", name="From prompt or image…").click()
    tab.page.get_by_label("Prompt with LoRA tags").fill(
        "<lora:<img src=x onerror=window.hacked=1>:1> <lora:\u202egnp:1>"
    )
    tab.page.get_by_role("button", name="Read", exact=True).click()
    tab.quiet()
    assert tab.page.evaluate("() => window.hacked") is None
    assert tab.page.locator("#lora_merge_root img[src=x]").count() == 0


@pytest.mark.both
def test_eight_rows_stay_light_and_whole_at_800_pixels(tab):
    _pair(tab)
    for name in ("neon", "ink", "mira", "img src", "neon", "ink"):
        tab.page.get_by_role("button", name="+ Add source").click()
        tab.page.keyboard.type(name)
        tab.page.keyboard.press("Enter")
    tab.group("C", "2")
    tab.page.get_by_label("Preset for A", exact=True).focus()
    tab.quiet()
    assert tab.page.locator("#lora_merge_root *").count() <= 1200
    for width in (1280, 800):
        tab.page.set_viewport_size({"width": width, "height": 900})
        wide = tab.page.evaluate(
            "() => [...document.querySelectorAll('#lora_merge_root *')].filter((node) => !node.closest('.lm-grid, .lm-table, .lm-scroll, .lm-heat, .lm-output-name')"
            " && node.getBoundingClientRect().right > innerWidth).map((node) => node.outerHTML.slice(0, 300))"
        )
        assert wide == []
        tab.shot(f"eight{width}")


@pytest.mark.both
def test_what_is_set_up_survives_a_restart_of_the_program(tab, app):
    _pair(tab)
    tab.ratio(1, 0.35)
    tab.cell(0, "OUT04").click()
    tab.page.keyboard.press("Home")
    before = tab.state()
    app.stop()
    app.start()
    tab.errors.clear()  # the page of the program that was ended
    tab.open()
    tab.planned()
    assert tab.state()["sources"] == before["sources"]
    assert "exact" in tab.page.locator(".lm-facts").nth(1).inner_text()


@pytest.mark.both
def test_a_merge_goes_on_over_a_reload_of_the_page(tab, app):
    _pair(tab)
    tab.page.get_by_label("Merge method").select_option("ties")
    tab.page.get_by_label("Name of the merge").fill("over-reload")
    tab.planned()
    tab.press()
    tab.page.wait_for_selector("progress:not([hidden])")
    tab.open()
    tab.page.wait_for_function("() => window.loraMerge.app.output.job !== null")
    tab.page.get_by_role("button", name="Cancel").click()
    tab.page.wait_for_function("() => window.loraMerge.app.output.job === null", timeout=60000)
    assert "Cancelled" in tab.page.locator(".lm-message").inner_text()
    assert not list(app.folder.rglob("over-reload*"))


def test_new_files_are_in_the_picker_without_being_asked_for(tab, app):
    _pair(tab)
    source = _file(app, "sample-neon-concept.safetensors")
    added = source.with_name("came-later.safetensors")
    added.write_bytes(source.read_bytes())
    try:
        tab.page.locator(".lm-row .lm-name").first.click()
        tab.page.keyboard.type("came-later")
        tab.page.locator(".lm-pick", has_text="came-later").wait_for()
    finally:
        added.unlink()


def test_a_broken_presets_file_is_named_and_kept(tab, app):
    tab.quiet()
    file = app.data / "presets.json"
    kept = file.read_bytes() if file.exists() else None
    app.stop()
    file.write_text('{"presets": [', encoding="utf-8")
    app.start()
    tab.errors.clear()
    tab.open()
    assert "presets" in tab.page.locator(".lm-message.lm-bad").inner_text()
    aside = [path for path in file.parent.iterdir() if path.name.startswith("presets") and path != file]
    assert any(path.read_text(encoding="utf-8") == '{"presets": [' for path in aside)
    if kept is not None:
        file.write_bytes(kept)


def test_progress_says_what_it_waits_for_and_how_long_it_takes(tab):
    def shown(**now):
        state = {
            "what": "merge",
            "state": "running",
            "stage": "merge",
            "done": 3,
            "total": 9,
            "share": 0.3,
            "left": None,
        }
        return tab.page.evaluate(
            "(now) => { const { output } = window.loraMerge.app; output.progress(now);"
            " return [output.bar.stage.textContent, output.bar.bar.hasAttribute('value') ? output.bar.bar.value : null]; }",
            {**state, **now},
        )

    assert shown(stage="queue", total=0, done=0) == ["waiting for the generation to finish", None]
    assert shown(state="waiting", stage="") == ["waiting for the one before …", None]
    assert shown(left=12.2) == ["merging · 3 of 9 modules · about 13 s left", 0.3]
    assert shown(stage="verify", left=300, share=0.5) == ["proving · 3 of 9 modules · about 5 min left", 0.5]


def test_cells_are_chosen_across_rows_by_keyboard(tab, app):
    _pair(tab)
    tab.cell(0, "OUT04").focus()
    tab.page.keyboard.press("Shift+ArrowRight")
    tab.page.keyboard.press("Control+Shift+ArrowDown")
    assert tab.page.locator(".lm-cell[aria-selected=true]").count() == 4
    tab.page.keyboard.press("Home")
    rows = tab.state()["sources"]
    assert [(row["blocks"]["OUT04"], row["blocks"]["OUT05"]) for row in rows] == [(0, 0), (0, 0)]
    tab.page.keyboard.press("ArrowLeft")
    assert tab.page.locator(".lm-cell[aria-selected=true]").count() == 0


def test_settings_reach_a_state_that_left_them_as_they_were(tab, app):
    tab.page.evaluate(
        """() => {
            const data = loraMerge.app.state.data;
            data.defaults = { template: "old_{n}", folder: "old", precision: "bf16" };
            Object.assign(data.output, { template: "old_{n}", folder: "mine" });
            data.precision = "bf16";
            loraMerge.app.state.store();
        }"""
    )
    tab.page.reload()
    tab.page.wait_for_selector(".lm-columns")
    state = tab.state()
    assert state["output"]["template"] == "{sources}_{method}_{weights}_v{n}"
    assert state["precision"] == "fp16"
    assert state["output"]["folder"] == "mine"


def test_all_ratios_are_set_at_once(tab):
    _pair(tab)
    tab.page.get_by_label("One ratio for all").fill("0.3")
    tab.page.get_by_role("button", name="Set all to").click()
    assert [row["ratio"] for row in tab.state()["sources"]] == [0.3, 0.3]


@pytest.mark.both
def test_a_picker_over_1800_files_draws_what_is_seen(tab, app):
    """Links to one small file; the list knows all of them, the page holds a screenful."""
    folder = app.folder / "many"
    folder.mkdir()
    first = write_lora(folder / "many-0000.safetensors")
    for number in range(1, 1800):
        (folder / f"many-{number:04}.safetensors").hardlink_to(first)
    try:
        tab.page.locator(".lm-row").first.locator(".lm-name").click()
        tab.page.get_by_label("Refresh the list").click()
        tab.page.wait_for_function(
            "() => loraMerge.app.library.items.length >= 1800 && loraMerge.app.library.scan.done === loraMerge.app.library.scan.total",
            timeout=60000,
        )
        assert tab.page.locator(".lm-picker [role=option]").count() < 60
        assert tab.page.evaluate("() => document.querySelectorAll('*').length") < 3000
        tab.page.locator(".lm-picker input[type=search]").fill("many-1799")
        assert tab.page.locator(".lm-picker [role=option]").count() == 1
        tab.page.keyboard.press("Enter")
        assert tab.state()["sources"][0]["name"] == "many-1799"
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_how_strong_each_goes_in_is_said_before_the_merge(tab, app):
    _pair(tab)
    names = ("sample-ink-style", "sample-mira-character")
    a, b = (
        sum(np.square(d).sum() for d in dense_of(_file(app, f"{n}.safetensors")).values()) ** 0.5
        for n in names
    )
    line = tab.page.locator(".lm-outlook li", has_text="strength at these ratios")
    tab.ratio(0, 0.9)
    tab.ratio(1, 0.6)
    tab.quiet()
    share = round(100 * 0.9 * a / (0.9 * a + 0.6 * b))
    assert f"A {share} % · B {100 - share} %" in line.inner_text()
    assert "mostly" not in line.inner_text()
    tab.ratio(0, 9)
    tab.quiet()
    assert "; mostly A" in line.inner_text()
    tab.preset("A", "=0")
    tab.quiet()
    assert "A 0 % · B 100 %" in line.inner_text()


def test_older_merges_are_a_click_away(tab):
    _pair(tab)
    tab.page.get_by_label("Name of the merge").fill("older-1")
    tab.merge()
    tab.page.get_by_label("Name of the merge").fill("older-2")
    tab.merge()
    tab.see("History")
    tab.page.evaluate("() => { loraMerge.app.below.history.count = 1; loraMerge.app.below.refresh(); }")
    tab.page.get_by_text("the newest 1 of").wait_for()
    assert tab.page.locator(".lm-table tbody tr[data-entry]").count() == 1
    tab.page.get_by_role("button", name="Show older").click()
    tab.page.get_by_text("the newest 1 of").wait_for(state="detached")
    assert tab.page.locator(".lm-table tbody tr[data-entry]").count() >= 2


def test_a_block_says_what_it_is_known_for(tab):
    _pair(tab)
    assert "1/8 as wide" in tab.cell(0, "IN01").get_attribute("title")
    assert "1/32 as wide" in tab.cell(0, "OUT03").get_attribute("title")
