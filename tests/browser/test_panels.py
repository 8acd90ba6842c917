"""The panels beside the merge: the history and its entries, sweeps, validation, and what a reload finds again."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from tests.browser.test_journey import _file, _pair

pytestmark = [pytest.mark.browser, pytest.mark.gradio4]

# what a WebUI has: a prompt high up in a long page, which is hidden until its tab is chosen, a moment later
TXT2IMG = """() => {
    document.querySelectorAll('.fake').forEach((node) => node.remove());
    const page = document.createElement('div');
    page.className = 'fake';
    page.innerHTML = '<div id="txt2img_prompt"><textarea></textarea></div>'
        + '<div id="txt2img_neg_prompt"><textarea></textarea></div><div style="height: 3000px"></div>';
    page.hidden = true;
    document.body.prepend(page);
    window.switch_to_txt2img = () => setTimeout(() => {
        page.hidden = false;
        scrollTo(0, 2500);
        document.activeElement.blur();
    }, 150);
    loraMerge.app.catalog.can_generate = true;
    return loraMerge.app.below.history.draw();
}"""
SEEN = """() => { const field = document.querySelector('#txt2img_prompt textarea'), at = field.getBoundingClientRect();
    return document.activeElement === field && at.top >= 0 && at.bottom <= innerHeight; }"""


def _entry(tab, name):
    return tab.page.locator(f".lm-entries tr[data-entry]:has(bdi:text-is('{name}'))").first


def _more(tab, name, item):
    _entry(tab, name).locator(".lm-more").click()
    tab.page.get_by_role("menuitem", name=item).click()


def _active(tab, attribute="aria-label"):
    return tab.page.evaluate("(name) => document.activeElement.getAttribute(name)", attribute)


def _saved(tab, name):
    tab.page.get_by_label("Name of the merge").fill(name)
    tab.merge()
    tab.see("History")


@pytest.mark.both
def test_an_entry_is_loaded_at_the_rows_and_stays_automatic(tab):
    _pair(tab)
    _saved(tab, "loaded-again")
    tab.ratio(0, 0.8)
    tab.page.get_by_label("Merge method").select_option("average")
    tab.quiet()
    _entry(tab, "loaded-again").get_by_role("button", name="Load", exact=True).click()
    tab.page.wait_for_function("() => loraMerge.app.state.data.sources[0].ratio === 0.5")
    tab.page.wait_for_function("() => document.activeElement.matches('.lm-row .lm-name')")
    first = tab.page.locator(".lm-row").first.locator(".lm-name")
    box = first.bounding_box()
    assert 0 <= box["y"] <= 900 - box["height"]
    assert tab.state()["method"] == "weighted_sum"
    assert tab.state()["rank"]["mode"] == "auto"


@pytest.mark.both
def test_the_menu_of_an_entry_and_its_record_by_keyboard(tab):
    _pair(tab)
    _saved(tab, "record-me")
    dots = _entry(tab, "record-me").locator(".lm-more")
    dots.focus()
    tab.page.keyboard.press("Enter")
    assert tab.page.get_by_role("menu").count() == 1
    tab.page.keyboard.press("ArrowDown")
    assert tab.page.evaluate("() => document.activeElement.textContent") == "Record to copy…"
    tab.page.keyboard.press("Escape")
    assert tab.page.get_by_role("menu").count() == 0
    assert _active(tab, "class").endswith("lm-more")
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Enter")
    record = tab.page.get_by_label("Record", exact=True)
    record.wait_for()
    assert _active(tab, "class").startswith("lm-button")
    tab.page.keyboard.press("Enter")
    tab.page.locator(".lm-detail [role=status]:text-is('Copied.')").wait_for()
    copied = tab.page.evaluate("() => navigator.clipboard.readText()").replace("\r", "")
    assert copied == record.text_content()
    assert copied.startswith(
        "record-me\nSources: sample-ink-style, sample-mira-character\nMethod: Weighted sum"
    )
    tab.page.get_by_role("button", name="Copy as Markdown").click()
    tab.page.wait_for_function(
        "() => navigator.clipboard.readText().then((text) => text.includes('**Method:**'))"
    )
    tab.page.keyboard.press("Escape")
    assert record.count() == 0
    assert _active(tab, "class").endswith("lm-more")


@pytest.mark.both
def test_the_card_of_a_merge_follows_its_file(tab, app):
    _pair(tab)
    _saved(tab, "card-first")
    card = tab.page.locator(".lm-result")
    assert "card-first.safetensors" in card.inner_text()
    _more(tab, "card-first", "Rename…")
    field = tab.page.get_by_label("New name of the LoRA")
    assert field.input_value() == "card-first"
    field.fill("card-second")
    tab.page.keyboard.press("Enter")
    card.filter(has_text="card-second.safetensors").wait_for()
    assert _file(app, "card-second.safetensors")
    tab.quiet()
    _more(tab, "card-second", "Delete…")
    dialog = tab.page.get_by_role("dialog")
    assert "card-second" in dialog.inner_text()
    tab.page.keyboard.press("Escape")  # asked, and refused
    tab.quiet()
    assert _file(app, "card-second.safetensors")
    _more(tab, "card-second", "Delete…")
    dialog.get_by_role("button", name="Delete", exact=True).click()
    card.wait_for(state="hidden")
    assert not list(app.folder.rglob("card-second*"))
    tab.page.locator(".lm-trash summary").click()
    tab.page.get_by_label("Put card-second.safetensors back").click()
    _entry(tab, "card-second").wait_for()
    assert _file(app, "card-second.safetensors")
    assert card.is_hidden()  # what was closed is not opened again


def _ratios(app, pattern):
    found = {}
    for path in app.folder.rglob(pattern):
        with safe_open(path, "pt") as file:
            recipe = json.loads(file.metadata()["merge_recipe"])
        found[path.stem] = [round(source["ratio"], 6) for source in recipe["sources"]]
    return found


@pytest.mark.both
def test_a_sweep_asks_and_says_what_it_writes(tab, app):
    _pair(tab)
    tab.page.get_by_label("Name of the merge").fill("swept")
    tab.planned()
    tab.see("Compare")
    opener = tab.page.get_by_role("button", name="Sweep…")
    opener.focus()
    tab.page.keyboard.press("Enter")
    dialog = tab.page.get_by_role("dialog")
    files = dialog.get_by_label("Files").locator("tr")
    files.nth(4).wait_for()
    assert [row.split("\t")[1] for row in files.all_inner_texts()] == [
        f"A {one:g} / B {other:g}"
        for one, other in ((0.7, 0.3), (0.6, 0.4), (0.5, 0.5), (0.4, 0.6), (0.3, 0.7))
    ]
    assert "5 files, 11" in dialog.inner_text()
    assert "Nothing is written yet" in dialog.inner_text()
    tab.page.keyboard.press("Escape")
    assert tab.page.evaluate("() => document.activeElement.textContent") == "Sweep…"
    assert not list(app.folder.rglob("swept*"))
    tab.page.keyboard.press("Enter")
    tab.page.get_by_label("What changes").select_option("rank")
    tab.page.get_by_label("Values").fill("4, 900")
    dialog.locator(".lm-bad").wait_for(state="detached")
    tab.page.get_by_label("What changes").select_option("ratio")
    tab.page.get_by_label("Values").fill("nonsense")
    dialog.locator(".lm-sweep-said.lm-bad").wait_for()
    assert dialog.get_by_role("button", name="Save them").is_disabled()
    tab.page.get_by_label("Values").fill("0.25, 0.75")
    go = dialog.get_by_role("button", name="Save 2 files")
    go.wait_for()
    names = [row.split("\t")[2].removesuffix(".safetensors") for row in files.all_inner_texts()]
    go.click()
    dialog.get_by_text("2 files saved").wait_for(timeout=120000)
    assert sorted(_ratios(app, "swept*.safetensors").items()) == sorted(
        zip(names, ([0.25, 0.5], [0.75, 0.5]))
    )
    assert [row.split("\t")[0] for row in files.all_inner_texts()] == ["✓", "✓"]
    tab.page.keyboard.press("Enter")  # Close has the focus
    assert dialog.count() == 0
    tab.quiet()
    tab.quiet()
    offered = tab.page.get_by_label("Second recipe").locator("option").all_inner_texts()
    assert len(set(offered)) == len(offered)
    assert {"0.25", "0.75"} == {text.rpartition("A")[2] for text in offered if text.startswith("swept")}


def test_a_sweep_is_cancelled_while_it_runs(tab, app):
    _pair(tab)
    tab.page.get_by_label("Merge method").select_option("ties")
    tab.page.get_by_label("Name of the merge").fill("stopped")
    tab.planned()
    tab.see("Compare")
    tab.page.get_by_role("button", name="Sweep…").click()
    dialog = tab.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Save 5 files").click()
    dialog.get_by_text("Saving file 1 of 5").wait_for(timeout=60000)
    dialog.get_by_role("button", name="Cancel").click()
    dialog.locator(".lm-end").get_by_role("button", name="Close").wait_for(timeout=120000)
    said = dialog.locator(".lm-sweep-said").inner_text()
    assert "Cancelled; nothing was written" in said or "stopped after" in said
    assert len(list(app.folder.rglob("stopped*.safetensors"))) < 5


@pytest.mark.both
def test_a_merge_is_validated_step_by_step(tab):
    _pair(tab)
    _saved(tab, "check-me")
    tab.page.locator(".lm-result").get_by_role("button", name="Validate").click()
    steps = tab.page.locator(".lm-step")
    steps.nth(4).wait_for()
    assert steps.count() == 5
    assert "seen by itself" in steps.nth(0).inner_text()
    assert "4 of 5 steps to go" in tab.page.locator(".lm-step-state").inner_text()
    tab.page.get_by_label("Note on: Pictures were looked at").fill("the face is lost")
    failed = tab.page.get_by_label("Failed: Pictures were looked at")
    failed.focus()
    tab.page.keyboard.press("Enter")
    tab.page.locator(".lm-revise").wait_for()
    assert "lower total" in tab.page.locator(".lm-revise").inner_text()
    tab.page.wait_for_function("() => document.querySelector('.lm-step-state').textContent === '✕ to revise'")
    assert "Failed" in _active(tab)
    state = tab.page.get_by_label("Validation of check-me")
    tab.page.wait_for_function(
        "() => document.querySelector('[aria-label^=\"Validation of check-me\"]').textContent.includes('revise')"
    )
    for step in (
        "Pictures were looked at",
        "A range of strengths",
        "Unusual prompts",
        "As fast as the stack",
    ):
        tab.page.get_by_label(f"Passed: {step}").click()
        tab.page.locator(".lm-step.lm-is-passed", has_text=step).wait_for()
    tab.quiet()
    assert "✓ validated" in state.last.inner_text()
    assert tab.page.get_by_label("Note on: Pictures were looked at").input_value() == "the face is lost"
    tab.page.get_by_text("Ten test prompts").click()
    prompts = tab.page.locator(".lm-prompts > li")
    prompts.nth(9).wait_for()
    tab.page.get_by_label("Copy: landscape").click()
    prompts.nth(2).get_by_text("Copied.").wait_for()
    copied = tab.page.evaluate("() => navigator.clipboard.readText()")
    assert copied == "inkwash, mira, wide valley with a river, one tiny figure far away, <lora:check-me:1>"
    tab.shot("validation")


@pytest.mark.both
def test_what_goes_to_txt2img_is_seen_there(tab):
    _pair(tab)
    _saved(tab, "to-txt2img")
    tab.page.evaluate(TXT2IMG)
    tab.quiet()
    _entry(tab, "to-txt2img").get_by_role("button", name="Use in txt2img").click()
    tab.page.wait_for_function(SEEN)
    prompt = tab.page.locator("#txt2img_prompt textarea")
    assert prompt.input_value() == "inkwash, mira, <lora:to-txt2img:1>"
    tab.page.wait_for_timeout(400)
    assert tab.page.evaluate(SEEN)
    tab.page.evaluate(
        "() => loraMerge.app.output.result.use(loraMerge.app.output.result.shown)"
    )  # the card's: once is enough
    tab.page.wait_for_function(SEEN)
    assert prompt.input_value() == "inkwash, mira, <lora:to-txt2img:1>"
    # both tabs are on this one page, and the prompt is in view: what is below cannot be clicked at its place
    tab.page.get_by_label("Validation of to-txt2img").dispatch_event("click")
    tab.page.get_by_text("Ten test prompts").dispatch_event("click")
    tab.page.get_by_label("To txt2img: negative").dispatch_event("click")
    tab.page.wait_for_function(SEEN)
    assert prompt.input_value() == "inkwash, mira, sitting by a window, <lora:to-txt2img:1>"
    negative = tab.page.locator("#txt2img_neg_prompt textarea").input_value()
    assert negative == "inkwash, mira, window, person, face"


def test_what_was_only_judged_offers_what_works(tab):
    """A verdict on a column that was never saved makes an entry without a file."""
    _pair(tab)
    _saved(tab, "judged")
    tab.page.evaluate(
        """() => { const { bridge } = loraMerge, ask = bridge.ask.bind(bridge);
        bridge.ask = async (op, fields) => {
            const reply = await ask(op, fields);
            if (op === 'history') for (const entry of reply.entries) if (entry.name === 'judged')
                { entry.key = ''; reply.can[entry.id] = []; }
            return reply;
        };
        return loraMerge.app.below.history.draw(); }"""
    )
    tab.quiet()
    line = _entry(tab, "judged")
    assert "judged only, not saved" in line.inner_text()
    line.locator(".lm-more").click()
    items = tab.page.get_by_role("menuitem").all_inner_texts()
    assert items == ["Validate…", "Record to copy…", "Delete…"]
    tab.page.keyboard.press("Escape")


@pytest.mark.both
def test_a_merge_that_ends_while_the_page_reloads_has_its_card(tab, app):
    _pair(tab)
    tab.page.get_by_label("Name of the merge").fill("while-away")
    tab.planned()
    # the page goes before it was told of its job
    tab.page.evaluate(
        """() => { const { bridge } = loraMerge, ask = bridge.ask.bind(bridge);
        bridge.ask = (op, fields) => ask(op, fields).then((reply) =>
            op === 'merge' ? (window.begun = true, new Promise(() => {})) : reply); }"""
    )
    tab.press()
    tab.page.wait_for_function("() => window.begun", timeout=60000)
    tab.page.goto("about:blank")
    for _ in range(600):
        if list(app.folder.rglob("while-away.safetensors")):
            break
        tab.page.wait_for_timeout(100)
    tab.open()
    tab.page.locator(".lm-result", has_text="while-away.safetensors").wait_for()
    tab.quiet()
    # seen is seen
    tab.open()
    tab.quiet()
    assert not tab.page.locator(".lm-result").is_visible()


@pytest.mark.both
def test_two_windows_have_two_set_ups(tab, app):
    _pair(tab)
    tab.ratio(0, 0.65)
    own = tab.page.evaluate("() => sessionStorage.getItem('lora-merge-window')")
    other = tab.page.context.new_page()
    other.goto(app.url)
    other.wait_for_selector("#lora_merge_root .lm-columns", timeout=60000)
    ratios = "() => loraMerge.app.state.data.sources.map((row) => row.ratio)"
    assert other.evaluate(ratios) == [0.65, 0.5]  # it begins with what was set up last
    assert other.evaluate("() => sessionStorage.getItem('lora-merge-window')") != own
    other.locator(".lm-row").nth(1).locator("input.lm-number").first.fill("0.15")
    other.close()
    tab.open()
    assert tab.page.evaluate(ratios) == [0.65, 0.5]
    assert tab.page.evaluate("() => sessionStorage.getItem('lora-merge-window')") == own


def test_a_preview_is_stopped(tab):
    _pair(tab)
    tab.page.evaluate("() => { loraMerge.app.catalog.can_generate = true; }")
    tab.see("Compare")
    tab.page.evaluate(
        """() => { const page = document.createElement('div');
        page.innerHTML = '<button id="txt2img_generate">Generate</button><button id="txt2img_interrupt" '
            + 'style="display: none">Interrupt</button><div id="txt2img_results"></div>';
        document.body.append(page);
        const stop = page.querySelector('#txt2img_interrupt');
        page.querySelector('#txt2img_generate').onclick = () => (stop.style.display = 'block');
        stop.onclick = () => { window.stopped = (window.stopped || 0) + 1; stop.style.display = 'none'; };
        loraMerge.app.pictures.preview(); }"""
    )
    strip = tab.page.get_by_label("Preview", exact=True)
    strip.get_by_role("button", name="Stop").wait_for()
    tab.page.wait_for_function("() => document.querySelector('#txt2img_interrupt').style.display === 'block'")
    strip.get_by_role("button", name="Stop").click()
    strip.get_by_text("The preview was stopped.").wait_for(timeout=20000)
    assert tab.page.evaluate("() => window.stopped") == 1
    assert not tab.page.evaluate("() => loraMerge.app.pictures.busy")


def test_recipes_and_presets_are_saved_by_enter_and_told_in_words(tab, tmp_path):
    _pair(tab)
    tab.see("Recipes")
    name = tab.page.get_by_label("Name of the recipe")
    name.fill("by enter")
    name.press("Enter")
    tab.page.get_by_label("Delete by enter").wait_for()
    tab.page.get_by_label("Name of the recipe").fill("by enter")
    tab.page.get_by_label("Name of the recipe").press("Enter")
    dialog = tab.page.get_by_role("dialog")
    assert "Replace the recipe by enter?" in dialog.inner_text()
    tab.page.keyboard.press("Escape")
    assert _active(tab) == "Name of the recipe"
    tab.see("Presets")
    file = tmp_path / "lbwpresets.txt"
    file.write_text("SOFT:" + ",".join(["0.5"] * 17) + "\nBROKEN:1,2\n", encoding="utf-8")
    tab.page.get_by_label("Preset file of another tool").set_input_files(str(file))
    tab.page.get_by_text("1 preset was read, 1 line was refused.").wait_for()
    tab.page.get_by_label("Rename SOFT").click()
    field = tab.page.get_by_role("dialog").get_by_label("New name")
    field.fill("softer")
    field.press("Enter")
    tab.page.get_by_label("Delete softer").click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    tab.page.get_by_label("Delete softer").wait_for(state="detached")


WIDE = """(width) => {
    const box = document.querySelector('.lm-see');
    box.style.width = `${width}px`;
    const right = box.getBoundingClientRect().right + 0.5;
    const scrolls = '.lm-heat, .lm-scroll, .lm-sweep-steps, iframe, [hidden], option';
    return [...box.querySelectorAll('*')].filter((node) => !node.closest(scrolls)
        && node.getBoundingClientRect().width && node.getBoundingClientRect().right > right)
        .map((node) => node.tagName + '.' + node.className);
}"""


@pytest.mark.both
def test_every_panel_fits_a_narrow_column_and_a_wide_page(tab):
    _pair(tab)
    _saved(tab, "a-long-name_for-a-narrow-column_of-the-history_v{n}")
    tab.page.evaluate("() => { loraMerge.app.catalog.can_generate = true; }")
    for panel in ("History", "Compare", "Recipes", "Presets", "Tools"):
        tab.see(panel)
        if panel == "History":
            tab.page.get_by_label("Validation of a-long").first.click()
            tab.page.locator(".lm-step").nth(4).wait_for()
            tab.page.get_by_text("Ten test prompts").click()
            tab.page.locator(".lm-prompts > li").nth(9).wait_for()
        if panel == "Compare":
            tab.page.get_by_role("button", name="Compare recipes").click()
            tab.page.get_by_label("Block by block, both merges").wait_for(timeout=60000)
        if panel == "Tools":
            tab.page.get_by_label("LoRA for the tools").click()
            tab.page.keyboard.type("sample-mira")
            tab.page.keyboard.press("Enter")
            tab.page.locator(".lm-facts-table").wait_for(timeout=60000)
        for width in (440, 1200):
            assert tab.page.evaluate(WIDE, width) == [], (panel, width)
            tab.shot(f"{panel}-{width}")
        tab.page.evaluate("() => { document.querySelector('.lm-see').style.width = ''; }")
