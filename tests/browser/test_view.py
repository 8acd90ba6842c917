"""What is in view: the bar at every size, nothing that does nothing, and nothing that keeps anybody out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.test_journey import _pair

pytestmark = [pytest.mark.browser, pytest.mark.both]
AXE = Path(__file__).parents[2] / ".venvs" / "node" / "node_modules" / "axe-core" / "axe.min.js"
# width, height and how far the page is enlarged
SIZES = [(800, 900, 1), (1280, 720, 1), (1280, 720, 1.5), (1280, 720, 2), (1440, 900, 1), (3840, 2160, 1)]
INSIDE = """(selector) => {
    const node = document.querySelector(selector);
    if (!node || !node.offsetParent && getComputedStyle(node).position !== "fixed") return `${selector} is not shown`;
    const box = node.getBoundingClientRect();
    if (!box.width || !box.height) return `${selector} has no size`;
    if (box.top < 0 || box.left < 0 || box.bottom > innerHeight + 0.5 || box.right > innerWidth + 0.5)
        return `${selector} is at ${[box.left, box.top, box.right, box.bottom].map(Math.round)} in ${innerWidth} × ${innerHeight}`;
    const over = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    return node.contains(over) || over.contains(node) ? "" : `${selector} lies below ${over.className}`;
}"""


def _inside(tab, selector):
    tab.page.wait_for_timeout(60)  # a frame, in which the bar follows
    found = tab.page.evaluate(INSIDE, selector)
    assert not found, found


def _sizes(tab):
    for width, height, zoom in SIZES:
        tab.page.set_viewport_size({"width": round(width / zoom), "height": round(height / zoom)})
        for place in (0, 100000):
            tab.page.evaluate("(place) => window.scrollTo(0, place)", place)
            yield


def test_merge_progress_and_result_are_in_view_at_every_size(tab, app):
    _pair(tab)
    tab.page.get_by_label("Name of the merge").fill("in-view")
    tab.planned()
    for _ in _sizes(tab):
        _inside(tab, "#lora_merge_go")
        _inside(tab, ".lm-output-name")
    tab.page.evaluate(
        """() => { const { bar } = loraMerge.app.output; bar.run(true);
        bar.progress({ what: "merge", state: "running", stage: "merge", done: 1, total: 4, share: 0.2, left: 9 }); }"""
    )
    for _ in _sizes(tab):
        for selector in ("progress", ".lm-stage"):
            _inside(tab, selector)
        assert tab.page.get_by_role("button", name="Cancel").is_visible()
    tab.page.evaluate("() => loraMerge.app.output.bar.run(false)")
    tab.merge()
    for _ in _sizes(tab):
        _inside(tab, ".lm-result h3")
        _inside(tab, ".lm-proof")
        _inside(tab, "[aria-label='Close the result']")
    tab.page.get_by_label("Close the result").click()
    assert not tab.page.locator(".lm-result").is_visible()


def test_a_first_merge_takes_three_clicks_two_names_and_no_scrolling(tab, app):
    """As a person does it at 1280×720; the result is there 100 ms after the end of the job."""
    page = tab.page
    page.set_viewport_size({"width": 1280, "height": 720})
    tab.fresh()
    page.evaluate(
        "() => { window.clicks = 0; addEventListener('click', (e) => (clicks += e.isTrusted), true); }"
    )
    page.get_by_role("button", name="A: Pick a LoRA").click()
    page.keyboard.type("ink-style")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="B: Pick a LoRA").click()
    page.keyboard.type("mira")
    page.keyboard.press("Enter")
    page.evaluate(
        """() => { const { output } = loraMerge.app, ask = output.needs.ask;
        output.needs.ask = async (op, fields) => { const reply = await ask(op, fields);
            if (op === "job" && reply.state === "done") window.ended = performance.now(); return reply; };
        new MutationObserver(() => { if (!document.querySelector(".lm-result").hidden) window.seen ??= performance.now(); })
            .observe(document.querySelector(".lm-result"), { attributes: true, childList: true }); }"""
    )
    tab.press()
    page.wait_for_function("() => window.seen", timeout=60000)
    assert page.evaluate("() => window.clicks") == 3
    assert page.evaluate("() => window.scrollY") == 0
    assert page.evaluate("() => window.seen - window.ended") < 100
    _inside(tab, ".lm-result h3")
    assert "Saved" in page.get_by_label("Merge", exact=True).get_by_role("status").first.inner_text()


def test_merge_is_within_ten_tabs_of_the_first_control(tab):
    _pair(tab)
    tab.open()
    for _ in range(10):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("() => document.activeElement.textContent") == "Go to Merge":
            tab.page.keyboard.press("Enter")
        if tab.page.evaluate("() => document.activeElement.id") == "lora_merge_go":
            return
    raise AssertionError("ten Tabs do not reach Merge")


def test_what_does_nothing_is_not_shown(tab):
    page = tab.page
    tab.fresh()

    def seen(text):
        return page.get_by_text(text, exact=True).filter(visible=True).count()

    assert not seen("Ratios")
    assert not page.locator(".lm-sum").is_visible()
    assert not page.locator(".lm-row input[type=range]").first.is_visible()
    assert not page.locator(".lm-grid").is_visible()
    assert page.get_by_text("Pick two LoRAs", exact=False).first.is_visible()
    for label in ("Seed", "Rank of convolutions", "Precision", "Rank"):
        assert not page.get_by_label(label, exact=True).is_visible(), label
    assert page.locator("#lora_merge_root *").count() <= 600
    _pair(tab)
    assert seen("Ratios")
    assert "Σ 1.00" in page.locator(".lm-sum").inner_text()
    tab.more("A")
    assert not page.get_by_label("text encoder ratio of A").count()  # it changes none
    tab.more("B")
    assert page.get_by_label("text encoder ratio of B").is_visible()
    tab.settings()
    assert not page.get_by_label("Rank of convolutions").is_visible()
    page.get_by_label("Merge method").select_option("dare")
    assert page.get_by_label("Seed").is_visible()
    tab.pick(1, "neon")
    tab.quiet()
    assert page.get_by_label("Rank of convolutions").is_visible()
    tab.open()
    assert page.get_by_label("Rank", exact=True).is_visible()  # the fold is as it was left


def test_the_file_of_the_result_is_renamed_and_deleted(tab, app):
    _pair(tab)
    tab.ratio(0, 0.37)  # the only file with these tensors
    tab.page.get_by_label("Name of the merge").fill("card-before")
    tab.merge()
    refresh = tab.page.get_by_role("button", name="Refresh", exact=True)
    saved = next(app.folder.rglob("card-before.safetensors"))
    saved = saved.rename(saved.with_name("card-after.safetensors"))
    refresh.click()
    tab.page.locator(".lm-result h3", has_text="card-after").wait_for(timeout=20000)
    saved.unlink()
    refresh.click()
    tab.page.wait_for_selector(".lm-result", state="hidden", timeout=20000)


def test_a_refusal_has_the_button_that_mends_it(tab):
    _pair(tab)
    tab.page.get_by_label("Merge method").select_option("slerp")
    tab.page.get_by_role("button", name="+ Add source").click()
    tab.page.keyboard.type("neon")
    tab.page.keyboard.press("Enter")
    tab.planned()
    tab.page.keyboard.press("Control+Enter")
    card = tab.page.get_by_label("Result", exact=True)
    assert card.get_by_role("alert").inner_text().startswith("Not merged.")
    card.get_by_role("button", name="Merge by Weighted sum").click()
    tab.quiet()
    assert tab.state()["method"] == "weighted_sum"
    assert not card.is_visible()
    tab.page.get_by_label("Name of the merge").fill("sample-ink-style")
    tab.options()
    tab.page.get_by_label("Sub-folder").fill("styles")
    tab.planned()
    tab.press()
    assert "exists already" in card.inner_text()
    card.get_by_role("button", name="Add a number to the name").click()
    assert tab.planned() == "styles/sample-ink-style_v1.safetensors"


def test_likely_trigger_words_are_picked_into_the_field(tab):
    _pair(tab)
    tab.options()
    field = tab.page.get_by_label("Trigger words", exact=True)
    assert field.input_value() == "inkwash, mira"
    chip = tab.page.get_by_role("button", name="Trigger word red hair")
    chip.click()
    assert field.input_value() == "inkwash, mira, red hair"
    assert chip.get_attribute("aria-pressed") == "true"
    tab.page.get_by_role("button", name="Trigger word mira").click()
    assert tab.state()["output"]["triggers"] == "inkwash, red hair"


def test_messages_cover_no_control_and_go(tab):
    _pair(tab)
    tab.page.evaluate("() => loraMerge.app.say('x '.repeat(30), true)")
    covered = tab.page.evaluate(
        """() => { const box = document.querySelector('.lm-message').getBoundingClientRect();
        return [...document.querySelectorAll('#lora_merge_root :is(button, input, select, textarea, a, .lm-cell)')]
            .filter((node) => node.offsetParent && !node.closest('.lm-message'))
            .map((node) => [node, node.getBoundingClientRect()])
            .filter(([, one]) => one.left < box.right && one.right > box.left && one.top < box.bottom && one.bottom > box.top)
            .map(([node]) => node.textContent || node.getAttribute('aria-label')); }"""
    )
    assert covered == []
    tab.ratio(0, 0.6)  # what was wrong may be mended by this
    assert tab.page.locator(".lm-message").inner_text() == ""


def _axe(tab, state):
    found = tab.page.evaluate(
        """() => axe.run('#lora_merge_root', { resultTypes: ['violations'] }).then((result) => result.violations
            .filter((one) => ['serious', 'critical'].includes(one.impact))
            .map((one) => `${one.id}: ${one.nodes.slice(0, 4).map((node) => node.html.slice(0, 160)).join(' | ')}`))"""
    )
    assert found == [], f"{state}: {found}"


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: python -m tests.javascript does")
def test_axe_finds_nothing_serious(tab, app):
    page = tab.page
    tab.fresh()
    page.add_script_tag(path=str(AXE))
    _axe(tab, "empty")
    _pair(tab)
    for dark in (False, True):
        page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", dark)
        page.wait_for_timeout(300)
        _axe(tab, f"picked, dark: {dark}")
    tab.more("B")
    tab.settings()
    tab.options()
    page.get_by_label("Merge method").select_option("dare_ties")
    tab.quiet()
    _axe(tab, "all open")
    page.locator(".lm-name").first.click()
    _axe(tab, "picker")
    page.keyboard.press("Escape")
    page.get_by_label("Merge method").select_option("weighted_sum")
    page.get_by_label("Name of the merge").fill("heard")
    tab.merge()
    _axe(tab, "result")
    for name in ("Understand", "Compare", "History", "Recipes", "Presets", "Tools"):
        tab.see(name)
        page.wait_for_timeout(500)
        _axe(tab, name)
