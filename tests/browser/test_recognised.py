"""What LoRAs are recognised as: the mark in the list and on the row, and what is done about it."""

from __future__ import annotations

import pytest
import torch

from lib_merge.samples import sd15_modules, synthetic_lora
from tests.browser.test_journey import _file
from tests.factories import dense_of, relative, write

pytestmark = [pytest.mark.browser, pytest.mark.gradio4]
SPEED = "lcm-lora-sdv1-5"
SAID = "speed LoRA (LCM): the file's name and metadata: modelspec.description"


@pytest.fixture
def extra(app):
    """A folder for more LoRAs, gone after the test."""
    folder = app.folder / "extra"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.fixture
def three(tab, extra):
    tensors = synthetic_lora(list(sd15_modules())[::8], 4, seed=11)
    write(extra / f"{SPEED}.safetensors", tensors, {"modelspec.description": "step distillation <b>x</b>"})
    tab.fresh()
    _listed(tab, SPEED)
    tab.pick(0, "sample-ink-style")
    tab.pick(1, "sample-mira-character")
    tab.page.get_by_role("button", name="+ Add source").click()
    tab.page.locator(".lm-picker input[type=search]").fill(SPEED)
    return tab


def _listed(tab, name):
    """Wait until a file that was just written is in the list."""
    tab.page.evaluate("() => loraMerge.app.library.refresh(true)")
    tab.page.wait_for_function(f"() => loraMerge.app.library.items.some((item) => item.name === '{name}')")


def _chosen(tab):
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".lm-picker", state="hidden")
    tab.ratio(2, 0.8)
    tab.quiet()


def _ratios(tab):
    return [row["ratio"] for row in tab.state()["sources"]]


def test_a_speed_lora_is_marked_in_the_list_and_on_its_row(three):
    listed = three.page.locator(".lm-pick.lm-active .lm-mark")
    assert (listed.inner_text(), listed.get_attribute("title")) == ("speed: LCM", SAID)
    _chosen(three)
    marks = three.page.locator(".lm-row .lm-mark")
    assert marks.count() == 1
    shown = three.page.locator(".lm-row").nth(2).locator(".lm-mark")
    assert (shown.inner_text(), shown.get_attribute("title")) == ("speed: LCM", SAID)
    three.shot("marked")


def test_buttons_for_all_ratios_leave_that_of_a_speed_lora(three):
    _chosen(three)
    message = three.page.locator(".lm-message")
    three.page.get_by_role("button", name="Equal").click()
    assert _ratios(three) == [0.5, 0.5, 0.8]
    assert f"C keeps its ratio: {SAID}." in message.inner_text()
    three.ratio(0, 0.9)
    three.ratio(1, 0.3)
    three.page.get_by_role("button", name="Normalise to 1").click()
    assert _ratios(three) == [0.75, 0.25, 0.8]
    three.page.get_by_role("button", name="0.7 / 0.3").click()
    assert _ratios(three) == [0.7, 0.3, 0.8]
    three.page.get_by_role("button", name="Set all to").click()
    assert _ratios(three) == [1, 1, 0.8]
    three.ratio(2, 0.6)  # by hand it is set as any other
    assert _ratios(three) == [1, 1, 0.6]


def test_one_click_puts_a_speed_lora_outside_a_method_that_spoils_it(three, app):
    _chosen(three)
    three.page.get_by_label("Merge method").select_option("core_ties")
    three.quiet()
    facts = three.page.locator(".lm-outlook")
    assert f"C ({SPEED}) is a speed LoRA" in facts.inner_text()
    three.shot("offered")
    facts.get_by_role("button", name="Add C outside Core-space TIES").click()
    three.page.wait_for_function("() => loraMerge.app.state.data.method === 'weighted_sum'")
    three.quiet()
    assert [row["group"] for row in three.state()["sources"]] == ["1", "1", ""]
    assert three.state()["groups"]["1"]["method"] == "core_ties"
    assert "is a speed LoRA" not in facts.inner_text()
    three.page.get_by_label("Name of the merge").fill("fast")
    three.merge()
    three.page.get_by_role("button", name="Save this level").click()
    three.page.wait_for_selector("text=Use the saved file instead", timeout=60000)
    whole, level, speed = (
        dense_of(_file(app, f"{name}.safetensors"), 7) for name in ("fast", "fast_level-1_v1", SPEED)
    )
    wanted = {name: level.get(name, 0) + 0.8 * speed.get(name, 0) for name in whole}
    assert relative(whole, wanted) <= 2e-3


def test_one_click_merges_the_partner_files_of_wan(tab, app, extra):
    name = "diffusion_model.blocks.0.self_attn.q"
    for value, stem in ((1.0, "ink_high_noise"), (2.0, "ink_low_noise"), (3.0, "surf_HN"), (4.0, "surf_LN")):
        up, down = torch.full((64, 2), value), torch.eye(2, 64)
        write(extra / f"{stem}.safetensors", {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
    tab.fresh()
    _listed(tab, "surf_LN")
    tab.pick(0, "ink_high_noise")
    tab.pick(1, "surf_HN")
    tab.page.get_by_label("Name of the merge").fill("wave_high_noise")
    tab.merge()
    button = tab.page.get_by_role("button", name="The same for the low-noise files")
    tab.saves(button.click)
    assert "wave_low_noise.safetensors" in tab.page.locator(".lm-result").inner_text()
    assert _file(app, "wave_low_noise.safetensors").is_file()
    assert [row["name"] for row in tab.state()["sources"]] == ["ink_high_noise", "surf_HN"]


def test_the_rows_menu_keeps_only_modules_that_all_have(three):
    _chosen(three)
    three.preset("C", "=:NOT shared_only:0")
    assert three.state()["sources"][2]["elements"] == ":NOT shared_only:0"
    assert "shared_only" in three.page.locator(".lm-row").nth(2).locator(".lm-rules").inner_text()
    three.quiet()
    assert three.page.locator(".lm-outlook .lm-bad").count() == 0
