"""How the page gets its scripts, and the panel that a WebUI's txt2img shows for the comparison."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

from tests.browser.test_journey import _pair

pytestmark = [pytest.mark.browser, pytest.mark.gradio4]

CHOICES = {
    "columns": ["No LoRA", "Stack at these ratios", "Merge"],
    "ticked": ["Merge"],
    "samplers": ["Euler", "DDIM"],
    "names": ["<img src=x onerror=alert(1)>"],
}
# what a WebUI has in its script list: a column with our field, which comes and goes with the chosen script
COLUMN = """() => {
    document.querySelector('.fake') && document.querySelector('.fake').remove();
    const column = document.createElement('div');
    column.id = 'lora_merge_compare_txt2img';
    column.className = 'fake';
    column.innerHTML = '<label id="lora_merge_asked_txt2img" class="lora-merge-setup"><textarea></textarea></label>';
    document.querySelector('gradio-app').after(column);
}"""
# the standalone server has no txt2img to answer for
ANSWERS = """(choices) => {
    const { bridge } = window.loraMerge;
    const ask = bridge.ask.bind(bridge);
    window.asked = [];
    bridge.ask = async (op, fields) => {
        if (!op.startsWith('compare_')) return ask(op, fields);
        window.asked.push([op, fields]);
        if (op === 'compare_choices') return choices;
        if (op === 'compare_estimate') return { said: `${JSON.parse(fields.asked).columns.length} columns`, wrong: false };
        return { prompts: 'one\\ntwo', said: fields.keep ? 'kept' : '' };
    };
}"""


def _panel(tab):
    tab.page.evaluate(ANSWERS, CHOICES)
    tab.page.evaluate(COLUMN)
    tab.page.wait_for_selector("#lora_merge_panel_txt2img fieldset")
    return tab.page.locator("#lora_merge_panel_txt2img")


def _field(tab):
    return json.loads(tab.page.locator("#lora_merge_asked_txt2img textarea").input_value())


@pytest.mark.both
def test_the_page_waits_for_one_small_script_only(tab, app):
    html = urllib.request.urlopen(app.url).read().decode()
    assert len(re.findall(r"<script[^>]*lora-merge", html)) == 1
    loaded = tab.page.evaluate("() => performance.getEntriesByType('resource').map((one) => one.name)")
    modules = {source for source in loaded if "/lora_merge/" in source or "/lora-merge/js/" in source}
    # the version stands in the address of what modules import, too
    assert all(re.search(r"/lora-merge/js/[0-9a-f]{16}/[a-z/]+\.js$", source) for source in modules)
    assert len({source.rpartition("/js/")[2].partition("/")[0] for source in modules}) == 1
    assert len(modules) > 30
    assert tab.page.evaluate("() => Object.keys(window).filter((name) => /lora|merge/i.test(name))") == [
        "loraMerge"
    ]


@pytest.mark.both
def test_only_todays_modules_are_kept_by_the_browser(tab):
    kept = tab.page.evaluate(
        "async () => { const [one] = performance.getEntriesByType('resource').map((one) => one.name)"
        ".filter((name) => name.endsWith('/main.js'));"
        " const old = one.replace(/js\\/[0-9a-f]+/, 'js/0000000000000000');"
        " return Promise.all([one, old].map(async (url) => (await fetch(url)).headers.get('cache-control'))); }"
    )
    assert kept == ["private, max-age=31536000, immutable", "no-store"]


@pytest.mark.both
def test_a_script_that_does_not_come_is_named(tab):
    tab.page.route("**/sources/sources.js*", lambda route: route.abort())
    tab.page.goto(tab.app.url)
    tab.page.get_by_text("could not load sources/sources.js").wait_for(timeout=30000)
    tab.page.unroute("**/sources/sources.js*")
    tab.errors.clear()  # the tab without its sources
    tab.open()


@pytest.mark.both
def test_without_a_route_of_ours_the_modules_come_as_files(tab):
    tab.page.route("**/lora-merge/js/**", lambda route: route.fulfill(status=404))
    tab.open()
    loaded = tab.page.evaluate("() => performance.getEntriesByType('resource').map((one) => one.name)")
    assert sum("/lora_merge/" in source for source in loaded) > 30
    tab.page.unroute("**/lora-merge/js/**")
    tab.errors.clear()  # the route that is missing


def test_the_comparisons_panel_tells_the_script_what_is_chosen(tab):
    _pair(tab)
    panel = _panel(tab)
    assert _field(tab)["columns"] == ["Merge"]
    panel.get_by_label("No LoRA").check()
    panel.get_by_text("Variants of the merge").click()
    panel.get_by_label("Methods to compare", exact=True).select_option("ties")
    panel.get_by_label("Methods to compare", exact=True).select_option("core_ties")
    panel.get_by_label("Remove TIES", exact=True).click()
    panel.get_by_label("Ratios to compare").fill("0.3/0.7")
    panel.get_by_label("Block knock-out").check()
    panel.get_by_label("Samplers to compare").select_option("DDIM")
    panel.get_by_label("Difference maps").check()
    panel.get_by_role("button", name="Fill in the test prompts").click()
    tab.page.wait_for_function(
        "() => /one/.test(document.querySelector('#lora_merge_asked_txt2img textarea').value)"
    )
    found = _field(tab)
    assert found["columns"] == ["No LoRA", "Merge"]
    assert (found["methods"], found["samplers"], found["prompts"]) == (["core_ties"], ["DDIM"], "one\ntwo")
    assert found["ratios"] == "0.3/0.7"
    assert found["knockout"] is found["maps"] is True
    panel.get_by_text("2 columns", exact=True).wait_for()
    panel.get_by_role("button", name="Keep these").click()
    panel.get_by_text("kept", exact=True).wait_for()
    # a change in the Merge tab may change how much it makes
    before = len(tab.page.evaluate("() => window.asked"))
    tab.ratio(0, 0.8)
    # what was asked before it may still be under way
    tab.page.wait_for_function(
        """(before) => window.asked.slice(before).some((one) => /"ratio":0.8/.test(one[1].setup || ""))""",
        arg=before,
    )
    tab.shot("panel")
    # the script is left and chosen again: a new column, the same panel
    tab.page.evaluate(COLUMN)
    tab.page.wait_for_function(
        "() => /core_ties/.test(document.querySelector('#lora_merge_asked_txt2img textarea').value)"
    )
    assert panel.get_by_label("Ratios to compare").input_value() == "0.3/0.7"
    # and the page is loaded anew
    tab.open()
    panel = _panel(tab)
    assert _field(tab)["methods"] == ["core_ties"]
    assert panel.get_by_label("No LoRA").is_checked()
    assert panel.get_by_label("Ratios to compare").is_visible()  # variants that are set are not hidden


def test_what_is_wrong_with_a_comparison_is_said_in_the_panel(tab):
    panel = _panel(tab)
    tab.page.evaluate(
        "() => (window.loraMerge.bridge.ask = async () => ({ said: '<b>no</b>', wrong: true }))"
    )
    panel.get_by_label("Seeds to compare").fill("x")
    said = panel.get_by_label("What will be made")
    tab.page.wait_for_selector(".lm-estimate.lm-bad")
    assert said.inner_text() == "<b>no</b>"
    assert panel.locator("img").count() == 0  # names are text
