"""The block grid under the hand: keys, mouse, wheel, whole rows; and a page on which nothing jumps."""

from __future__ import annotations

import pytest

from tests.browser.test_journey import _pair

pytestmark = [pytest.mark.browser, pytest.mark.gradio4]

WATCH = """(selectors) => {
    window.places = {};
    const look = () => {
        for (const selector of selectors) {
            const node = document.querySelector(selector);
            if (!node) continue;
            const box = node.getBoundingClientRect();
            if (!box.width) continue; // not shown yet
            const at = `${Math.round(box.left + scrollX)},${Math.round(box.top + scrollY)}`;
            (window.places[selector] = window.places[selector] || new Set()).add(at);
        }
        requestAnimationFrame(look);
    };
    look();
}"""


def _seen(tab):
    return tab.page.evaluate(
        "() => Object.fromEntries(Object.entries(window.places).map(([key, value]) => [key, [...value]]))"
    )


def _blocks(tab, row):
    return tab.state()["sources"][row]["blocks"]


@pytest.mark.both
def test_nothing_jumps_while_energies_and_plan_arrive(tab):
    """On a slow machine, too: what is under the pointer stays there when answers come in."""
    _pair(tab)
    slow = tab.page.context.new_cdp_session(tab.page)
    slow.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    tab.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
    tab.open()
    tab.page.evaluate(WATCH, [".lm-row:nth-child(2)", "#lora_merge_go", "[aria-label='Undo']"])
    tab.pick(0, "sample-ink-style")
    tab.pick(1, "sample-mira-character")
    tab.quiet()
    tab.page.evaluate("() => (window.loraMerge.app.library.looked = {})")
    tab.page.evaluate(
        WATCH,
        [
            ".lm-row:nth-child(2)",
            ".lm-ratios",
            ".lm-cell",
            ".lm-list",
            "[aria-label='Redo']",
            "#lora_merge_go",
        ],
    )
    tab.page.evaluate("() => window.loraMerge.app.grid.measure()")
    tab.page.get_by_label("Ratio of A, exact").fill("0.8")
    tab.page.evaluate("() => window.loraMerge.app.say('something to read')")
    tab.page.locator(".lm-row .lm-name").first.click()
    tab.page.keyboard.press("Escape")
    tab.quiet()
    moved = {selector: places for selector, places in _seen(tab).items() if len(places) > 1}
    assert not moved


def test_choosing_a_lora_leaves_the_rows_where_they_are(tab):
    tab.fresh()
    tab.page.evaluate(WATCH, [".lm-row:nth-child(1)", ".lm-row:nth-child(2)", ".lm-ratios", "#lora_merge_go"])
    tab.pick(0, "sample-ink-style")
    tab.pick(1, "sample-mira-character")
    tab.planned()
    moved = {selector: places for selector, places in _seen(tab).items() if len(places) > 1}
    assert not moved


@pytest.mark.both
def test_the_wheel_turns_only_the_cell_that_has_the_focus(tab):
    _pair(tab)
    tab.quiet()
    cell, other = tab.cell(0, "IN04"), tab.cell(0, "IN07")
    other.hover()
    tab.page.mouse.wheel(0, 100)
    tab.page.wait_for_timeout(150)
    assert _blocks(tab, 0) == {}
    tab.page.evaluate("() => scrollTo(0, 0)")
    cell.click()
    tab.page.mouse.wheel(0, 100)
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources[0].blocks.IN04 === 0.95")
    assert _blocks(tab, 0) == {"IN04": 0.95}
    assert tab.page.evaluate("() => scrollY") == 0
    other.hover()
    tab.page.mouse.wheel(0, 100)
    tab.page.wait_for_timeout(150)
    assert _blocks(tab, 0) == {"IN04": 0.95}


def test_a_selection_over_rows_is_set_at_once_and_copied_rows_arrive(tab):
    _pair(tab)
    tab.quiet()
    tab.cell(0, "OUT03").click()
    tab.cell(1, "OUT05").click(modifiers=["Shift"])
    assert tab.page.locator(".lm-selected").count() == 6
    tab.page.keyboard.type("0.3")
    tab.page.keyboard.press("Enter")
    wanted = {"OUT03": 0.3, "OUT04": 0.3, "OUT05": 0.3}
    assert (_blocks(tab, 0), _blocks(tab, 1)) == (wanted, wanted)
    tab.cell(0, "M00").click()
    tab.page.keyboard.type("0")
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.press("Control+c")
    tab.page.keyboard.press("Control+ArrowDown")
    assert "B M00" in tab.page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    tab.page.keyboard.press("Control+v")
    assert _blocks(tab, 1) == {**wanted, "M00": 0}
    tab.page.keyboard.press("Control+z")
    assert _blocks(tab, 1) == wanted
    tab.page.keyboard.press("Control+Shift+Z")
    assert _blocks(tab, 1) == {**wanted, "M00": 0}


def test_a_preset_and_its_complement_and_a_complement_to_any_row(tab):
    _pair(tab)
    tab.page.get_by_role("button", name="+ Add source").click()
    tab.page.keyboard.type("neon")
    tab.page.keyboard.press("Enter")
    tab.preset("A", "+STYLE-OUT")
    assert _blocks(tab, 0)["IN04"] == 0
    assert _blocks(tab, 1)["OUT04"] == 0
    for block in ("BASE", "IN04", "M00", "OUT04"):
        assert _blocks(tab, 0).get(block, 1) + _blocks(tab, 1).get(block, 1) == pytest.approx(1)
    third = tab.state()["sources"][2]["id"]
    tab.preset("A", f">{third}")
    assert _blocks(tab, 2) == _blocks(tab, 1)
    assert tab.page.locator("#lora_merge_root option").count() < 250


def test_a_preset_with_drawn_values_is_drawn_once(tab, tmp_path):
    _pair(tab)
    file = tmp_path / "lbwpresets.txt"
    file.write_text("DICE:R,0,0,0,0,0,0,0,R,R,R,0,0,0,0,0,0\n", encoding="utf-8")
    tab.see("Presets")
    tab.page.get_by_label("Preset file of another tool").set_input_files(str(file))
    tab.page.wait_for_selector(".lm-report li")
    tab.preset("A", "DICE")
    tab.page.wait_for_function("() => window.loraMerge.app.state.data.sources[0].blocks.IN01 === 0")
    drawn = _blocks(tab, 0)
    assert 0 <= drawn["OUT03"] <= 1
    assert len({drawn[block] for block in ("BASE", "OUT03", "OUT04", "OUT05")}) > 1
    tab.open()
    assert _blocks(tab, 0) == drawn


@pytest.mark.both
def test_the_whole_tab_by_keyboard_only(tab, app):
    """From an empty tab to a saved merge without a pointer."""
    tab.fresh()
    keys = tab.page.keyboard

    def until(text, most=60):
        for _ in range(most):
            label = tab.page.evaluate(
                "() => { const a = document.activeElement; return (a.getAttribute('aria-label') || a.textContent || '').trim(); }"
            )
            if text in label:
                visible = tab.page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
                assert visible != "none", f"{label} has the focus and does not show it"
                return
            keys.press("Tab")
        raise AssertionError(f"{text} is not reached by Tab; the focus is on {label}")

    until("A: Pick a LoRA")
    keys.press("Enter")
    keys.type("ink")
    keys.press("Enter")
    until("Ratio of A")
    keys.press("ArrowRight")
    until("More of A")
    keys.press("Enter")
    until("Move A down")
    keys.press("Enter")
    assert "B" in tab.page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert [bool(row["key"]) for row in tab.state()["sources"]] == [False, True]
    until("Move B up")
    keys.press("Enter")
    until("B: Pick a LoRA")
    keys.press("Enter")
    keys.type("mira")
    keys.press("ArrowDown")
    keys.press("ArrowUp")
    keys.press("Enter")
    until("A BASE", 80)
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    assert _blocks(tab, 0) == {"IN01": 0.95}
    until("Name of the merge", 80)
    keys.press("Control+a")
    keys.type("by-keys")
    tab.planned()
    keys.press("Control+Enter")
    tab.page.wait_for_selector(".lm-result:not([hidden])", timeout=60000)
    assert tab.state()["sources"][0]["ratio"] == 0.55
    assert list(app.folder.rglob("by-keys.safetensors"))
