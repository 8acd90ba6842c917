"""The standalone tab's journey, done again inside a WebUI: the same functions on another page."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import tempfile
import threading
import time
import traceback
import types
from pathlib import Path

from tests.browser import test_around as around
from tests.browser import test_journey as journey
from tests.browser.conftest import Tab
from tests.browser.hostile import write_hostile
from tests.webui.grids import merge_tab
from tests.webui.server import SHOTS

STEPS = (
    journey.test_a_first_merge_in_five_clicks,
    journey.test_ratios_by_slider_and_by_number,
    journey.test_blocks_by_keyboard,
    journey.test_blocks_by_mouse,
    journey.test_a_list_beside_the_row_and_presets_that_survive_a_reload,
    journey.test_block_weights_reach_the_file,
    journey.test_a_merge_can_be_cancelled_and_started_again,
    journey.test_history_opens_a_merge_again,
    journey.test_a_prompt_becomes_rows_and_rows_a_prompt,
    journey.test_presets_of_another_tool,
    journey.test_a_hostile_file_stays_text,
    journey.test_a_level_is_merged_first,
    journey.test_control_enter_merges,
    around.test_tools_resize_and_bake_without_touching_what_is_set_up,
)
OURS = {"my <b>look</b>", "FACE"}


class Scoped:
    """A page whose labels and roles are looked for in our tab alone: the WebUI has a thousand of its own."""

    def __init__(self, page):
        self._page, self._root = page, page.locator("#lora_merge_root")

    def __getattr__(self, name):
        return getattr(self._root if name.startswith("get_by_") else self._page, name)


class Inside(Tab):
    """Our tab in a WebUI."""

    def __init__(self, page, place):
        super().__init__(Scoped(page), place, place.kind)

    def open(self):
        self.page.goto(self.app.url)
        self.page.wait_for_selector("#txt2img_prompt textarea", timeout=120_000)
        merge_tab(self.page)
        self.page.wait_for_function(
            "() => loraMerge.app && loraMerge.app.library.items.length >= 3 && loraMerge.app.library.scan.done >= loraMerge.app.library.scan.total",
            timeout=60_000,
        )

    def shot(self, label):
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=str(SHOTS / f"webui-{self.name}-{label}.png"))


def same(browser, server, check):
    """Every step, then what only a WebUI has: a generation to wait for, and cards."""
    loras = server.folder / "models" / "Lora"
    before = set(loras.rglob("*"))
    # A1111 puts file names into its own cards as markup: only what is in this file, and marks, try ours
    write_hostile(loras, "hostile ]}\u202egnp")
    place = types.SimpleNamespace(
        folder=loras,
        data=server.folder / "lora-merge",
        url=server.url,
        kind=f"{server.kind}-tab",
        hostile="hostile",
    )
    context = browser.new_context(
        viewport={"width": 1400, "height": 1000}, permissions=["clipboard-read", "clipboard-write"]
    )
    tab = Inside(context.new_page(), place)
    tab.page.on("dialog", lambda dialog: dialog.accept())
    scratch = Path(tempfile.mkdtemp())
    given = {"tab": tab, "app": place, "tmp_path": scratch, "browser": browser}
    try:
        for step in STEPS:
            _step(step, given, check)
        _waits(server, tab, check)
        _loads(tab, check)
        _card(tab, check)
        check("nothing of the hostile file ran", tab.page.evaluate("() => window.hacked") is None)
        said = [text for text in tab.errors if "lora_merge" in text.lower() or "loramerge" in text.lower()]
        check("no error of ours in the console of these steps", not said, "; ".join(said)[:300])
        _config(server, check)
    finally:
        names = tab.page.evaluate(
            "() => Object.values(loraMerge.app.catalog.presets).flat().filter((one) => one.own).map((one) => one.name)"
        )
        for name in OURS & set(names):
            tab.page.evaluate("(name) => loraMerge.bridge.ask('preset_delete', { name })", name)
        context.close()
        shutil.rmtree(scratch, ignore_errors=True)
        for path in sorted(set(loras.rglob("*")) - before, reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def _step(step, given, check):
    what = f"here too: {step.__name__.removeprefix('test_').replace('_', ' ')}"
    try:
        step(**{name: given[name] for name in inspect.signature(step).parameters})
    except Exception as error:  # the others are tried all the same, and a failed check says why
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "browser" in frame.filename][
            -1
        ]
        check(what, False, f"{where.line}: {' '.join(f'{type(error).__name__} {error}'.split())[:300]}")
        given["tab"].shot("failed")
    else:
        check(what, True)


def _loads(tab, check):
    """The result says that every module acts on the loaded checkpoint, by the WebUI's own table of names."""
    journey._pair(tab)
    tab.page.get_by_label("Name of the merge").fill("loaded-here")
    text = " ".join(tab.merge().split())
    found = re.search(r"(\d+) of (\d+) modules load on the checkpoint in use", text)
    check("every module loads on the checkpoint in use", bool(found) and found[1] == found[2], text[-300:])
    check("every host loads it", text.count("✓") == 6, text[-300:])


def _waits(server, tab, check):
    """A merge waits for a running generation and says so; Cancel stops the merge alone."""
    journey._pair(tab)
    answer = {}
    thread = threading.Thread(target=lambda: answer.update(got=server.picture("a cat", steps=16)))
    thread.start()
    server.until("sampling_step", 2, thread)
    tab.page.get_by_label("Name of the merge").fill("never")
    tab.planned()
    tab.page.locator("#lora_merge_go").click()
    tab.page.wait_for_function(
        "() => /waiting for the generation/.test(document.querySelector('.lm-foot').textContent)",
        timeout=30_000,
    )
    check("a merge waits for the generation and says so", thread.is_alive())
    begun = time.monotonic()
    tab.page.get_by_role("button", name="Cancel").click()
    tab.page.wait_for_function("() => loraMerge.app.output.job === null", timeout=60_000)
    seconds = time.monotonic() - begun
    # the generation takes all of a busy machine: there the page is answered in seconds
    check("a waiting merge is cancelled while it runs", thread.is_alive(), f"{seconds:.1f} s")
    thread.join(600)
    check("the generation was not touched", "got" in answer and answer["got"][0].shape == (128, 128, 3))
    check("and nothing was saved", not list(server.folder.joinpath("models", "Lora").rglob("never*")))


def _card(tab, check):
    """A merged LoRA has a card without anybody's pressing Refresh."""
    page = tab.page
    page.evaluate("() => switch_to_txt2img()")
    page.locator("#txt2img_extra_tabs button", has_text="Lora").first.click()
    page.locator("#txt2img_lora_cards .card").first.wait_for(timeout=60_000)
    merge_tab(page)
    journey._pair(tab)
    page.evaluate("() => switch_to_txt2img()")
    page.locator("#txt2img_extra_tabs button", has_text="Lora").first.click()
    page.locator("#txt2img_lora_cards .card").first.wait_for(timeout=60_000)
    there = page.locator("#txt2img_lora_cards .card", has_text="fresh-card")
    none = there.count() == 0
    merge_tab(page)
    page.get_by_label("Name of the merge").fill("fresh-card")
    tab.merge()
    page.evaluate("() => switch_to_txt2img()")
    there.first.wait_for(state="attached", timeout=60_000)
    check("the new LoRA's card comes by itself", none and there.count() == 1, there.count())


def _config(server, check):
    """Nothing of ours is in ui-config.json, where labels of the same name would overwrite each other."""
    found = json.loads((server.folder / "ui-config.json").read_text(encoding="utf-8"))
    ours = [name for name in found if "lora_merge" in name.lower() or "lora merge" in name.lower()]
    check("no label of ours in ui-config.json", not ours, ours)
