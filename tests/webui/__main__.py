"""The journey inside a real WebUI: one line per check, exit code 1 if any failed."""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import sync_playwright

from lib_merge.samples import write_samples
from tests.browser.conftest import FLAGS as BROWSER_FLAGS
from tests.webui import grids, same
from tests.webui.server import ROOT, SHOTS, Webui, write_checkpoint

A, B = "sample-ink-style", "sample-mira-character"
failures: list[str] = []
# loads of the page whose best is taken; they vary by a tenth
LOADS = 10


def check(what, fine, detail=""):
    print(f"{'ok    ' if fine else 'FAILED'} {what}{f' ({detail})' if detail != '' else ''}", flush=True)
    if not fine:
        failures.append(what)


USED = """() => {
    const prompt = gradioApp().querySelector('#txt2img_prompt textarea');
    const { top, bottom } = prompt.getBoundingClientRect();
    const seen = prompt.checkVisibility() && bottom > 0 && top < innerHeight;
    return prompt.value.includes('<lora:webui-merge:1>') && seen;
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--webui", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM_PATH") or shutil.which("chromium"))
    parser.add_argument("--quick", action="store_true", help="leave out the start without the extension")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _told_to_end)
    webui = given.webui.resolve()
    loras = webui / "models" / "Lora"
    loras.mkdir(parents=True, exist_ok=True)
    write_samples(loras)
    write_checkpoint(webui / "models" / "Stable-diffusion")
    link = webui / "extensions" / "lora-merge"
    if link.is_symlink():
        link.unlink()
    merged = loras / "webui-test"
    shutil.rmtree(merged, ignore_errors=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=BROWSER_FLAGS)
        plain = None if given.quick else Webui(webui, given.python, ["--api"])
        link.symlink_to(ROOT, target_is_directory=True)
        try:
            server = Webui(webui, given.python, ["--api"])
            try:
                if plain is not None:
                    weighing(*weigh(browser, plain, server))
                    plain.stop()
                    plain = None
                journey(browser, server, merged)
            finally:
                server.stop()
            check("live merges go with the WebUI", gone(webui / "lora-merge" / "live"))
            server = Webui(webui, given.python, ["--api", "--api-auth", "me:secret"])
            try:
                locked(server)
            finally:
                server.stop()
        finally:
            if plain is not None:
                plain.stop()
            link.unlink()
            shutil.rmtree(merged, ignore_errors=True)
        browser.close()
    print(f"{'FAILED: ' + ', '.join(failures) if failures else 'all passed'}")
    return 1 if failures else 0


def _told_to_end(number, _frame):
    """Leave as by Ctrl+C: what was put into the WebUI is taken out again."""
    raise SystemExit(128 + number)


def gone(folder) -> bool:
    """True once a folder is not there, at the latest in ten seconds."""
    for _ in range(100):
        if not folder.exists():
            return True
        time.sleep(0.1)
    return False


def weigh(browser, *servers) -> list[dict]:
    """Seconds and sizes of the page of each: the best of several loads in turn, since other work only ever adds."""
    found = [[] for _ in servers]
    for _ in range(LOADS):
        for server, loads in zip(servers, found):
            context = browser.new_context(viewport={"width": 1400, "height": 1000})
            page = context.new_page()
            start = time.monotonic()
            page.goto(server.url)
            page.wait_for_selector("#txt2img_prompt textarea", timeout=120_000)
            seconds = time.monotonic() - start
            page.wait_for_timeout(2500)
            session = context.new_cdp_session(page)
            session.send("HeapProfiler.collectGarbage")
            heap = session.send("Runtime.getHeapUsage")["usedSize"] / 1e6
            counts = page.evaluate(
                """() => ({elements: document.querySelectorAll('*').length, components: (window.gradio_config || {components: []}).components.length,
                    doubles: (() => { const seen = {}; document.querySelectorAll('[id]').forEach((n) => (seen[n.id] = (seen[n.id] || 0) + 1)); return Object.keys(seen).filter((id) => seen[id] > 1); })()})"""
            )
            loads.append({"load": seconds, "heap": heap, **counts})
            context.close()
    return [
        {
            **min(loads, key=lambda item: item["load"]),
            "median": statistics.median(item["load"] for item in loads),
            "heap": min(item["heap"] for item in loads),
            "start": server.seconds,
        }
        for server, loads in zip(servers, found)
    ]


def weighing(plain, weight) -> None:
    """What the extension adds to a WebUI, against the same WebUI without it."""
    for name, most, unit in (
        ("components", 200, ""),
        ("elements", 1500, ""),
        ("load", 0.3, " s"),
        ("heap", 6, " MB"),
    ):
        more = weight[name] - plain[name]
        check(f"{name} added", more <= most, f"{more:.2f}{unit}, {plain[name]:.2f} without")
    print(f"       median load {weight['median']:.2f} s, {plain['median']:.2f} s without")
    print(f"       start {weight['start']:.1f} s, {plain['start']:.1f} s without (one start each; noisy)")
    # gradio numbers its own components, so that theirs have other ids with us there: they are counted, ours are named
    ours = [name for name in weight["doubles"] if "lora_merge" in name]
    more = len(weight["doubles"]) - len(plain["doubles"])
    check(
        "no id twice that was not before",
        not ours and more <= 0,
        f"{more} more of {len(plain['doubles'])} {ours}",
    )


def journey(browser, server, merged) -> None:
    context = browser.new_context(
        viewport={"width": 1400, "height": 1000}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("#txt2img_prompt textarea", timeout=120_000)
    grids.merge_tab(page)
    page.wait_for_function(
        "() => loraMerge.app.library.items.length >= 3 && loraMerge.app.library.scan.done >= loraMerge.app.library.scan.total",
        timeout=60_000,
    )
    pick(page, 0, A)
    pick(page, 1, B)
    for row, ratio in ((0, 0.6), (1, 0.4)):
        page.locator(".lm-row").nth(row).locator("input.lm-number").first.fill(str(ratio))
    ours = page.locator("#lora_merge_root")
    ours.get_by_role("button", name="Save options").click()
    ours.get_by_label("Sub-folder").fill("webui-test")
    ours.get_by_label("Name of the merge").fill("webui-merge")
    text = merge(page)
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=str(SHOTS / f"webui-{server.kind}.png"))
    check(
        "a merge in the tab", "asked = saved to" in text, text.splitlines()[1] if text.count("\n") else text
    )
    page.get_by_role("button", name="Use in txt2img").click()
    with contextlib.suppress(PlaywrightError):  # the server is asked first whether the file still is there
        page.wait_for_function(USED, timeout=20_000)
    prompt = page.locator("#txt2img_prompt textarea")
    check("Use in txt2img, with the prompt in view", page.evaluate(USED), prompt.input_value())
    _, answer = server.call("/sdapi/v1/loras")
    check("the WebUI lists it", any(item["name"] == "webui-merge" for item in answer))
    pictures(server, page)
    said = [error for error in errors if "lora" in error.lower() or "lm-" in error]
    check("no error of ours in the console", not said, "; ".join(said))
    page.reload()
    page.wait_for_selector("#lora_merge_root .lm-columns", state="attached", timeout=120_000)
    page.wait_for_function("() => loraMerge.app", timeout=60_000)
    ratios = page.evaluate("() => loraMerge.app.state.data.sources.map((row) => row.ratio)")
    check("the state survives a reload", ratios[0] == 0.25, ratios)
    card_button(page)
    rest(server)
    reload_ui(page)
    grids.live_prompt(server, page, check, A, B)
    grids.comparison(server, page, check)
    grids.plot(server, page, check)
    grids.in_the_page(server, page, check)
    page.screenshot(path=str(SHOTS / f"webui-{server.kind}-end.png"))
    context.close()
    same.same(browser, server, check)


def card_button(page) -> None:
    """A LoRA's card has a button that brings it into the Merge tab."""
    before = page.evaluate("() => loraMerge.app.state.data.sources.length")
    page.evaluate("() => switch_to_txt2img()")
    page.locator("#txt2img_extra_tabs button", has_text="Lora").first.click()
    card = page.locator("#txt2img_lora_cards .card", has_text="sample-neon-concept").first
    card.wait_for(timeout=60_000)
    card.hover()
    card.locator(".lora-merge-add").click()
    names = page.evaluate("() => loraMerge.app.state.data.sources.map((row) => row.name)")
    check(
        "a card's button adds its LoRA",
        len(names) == before + 1 and names[-1] == "sample-neon-concept",
        names,
    )


def reload_ui(page) -> None:
    """The WebUI's own "Reload UI" brings the tab back with what was set up."""
    page.evaluate("() => (window.lmOld = true)")
    page.get_by_text("Reload UI", exact=True).last.click()
    page.wait_for_function("() => !window.lmOld && window.loraMerge && loraMerge.app", timeout=180_000)
    names = page.evaluate("() => loraMerge.app.state.data.sources.map((row) => row.name)")
    check("Reload UI brings the tab back", names[-1:] == ["sample-neon-concept"], names)


def pick(page, row, name):
    page.locator(".lm-row").nth(row).locator(".lm-name").click()
    page.locator(".lm-picker input[type=search]").fill(name)
    page.keyboard.press("Enter")


def merge(page):
    page.wait_for_timeout(600)
    page.wait_for_function("() => !loraMerge.bridge.current && !loraMerge.bridge.queue.length")
    page.locator("#lora_merge_go").click()
    page.wait_for_function("() => loraMerge.app.output.job !== null", timeout=30_000)
    page.wait_for_function("() => loraMerge.app.output.job === null", timeout=120_000)
    page.wait_for_selector(".lm-result:not([hidden])", timeout=30_000)
    return page.locator(".lm-result").inner_text()


def pictures(server, page) -> None:
    """Stack = merge to the eye of a computer; an overwritten file counts at once."""
    nothing, _ = server.picture("a cat")
    stack, _ = server.picture(f"a cat <lora:{A}:0.6> <lora:{B}:0.4>")
    single, _ = server.picture("a cat <lora:webui-merge:1>")
    far = np.abs(stack - nothing)
    check("the LoRAs change the picture", far.mean() > 0.1, f"mean {far.mean():.3f}, at most {far.max():.0f}")
    grids.near.measure(server, A, B)
    check("merge = stack", *grids.near(stack, single))
    page.evaluate("() => (window.confirm = () => true)")
    grids.merge_tab(page)
    if not page.locator(".lm-save").is_visible():
        page.locator("#lora_merge_root").get_by_role("button", name="Save options").click()
    page.locator("#lora_merge_root").get_by_label("Overwrite").check()
    page.locator(".lm-row").nth(0).locator("input.lm-number").first.fill("0.25")
    page.locator(".lm-row").nth(1).locator("input.lm-number").first.fill("1.5")
    merge(page)
    stack, _ = server.picture(f"a cat <lora:{A}:0.25> <lora:{B}:1.5>")
    single_again, _ = server.picture("a cat <lora:webui-merge:1>")
    moved = np.abs(single - single_again)
    check("an overwritten LoRA counts in the next image", moved.mean() > 0.1, f"mean {moved.mean():.3f}")
    check("and equals its stack", *grids.near(stack, single_again))


def rest(server) -> None:
    base = "/lora-merge/v1"
    status, found = server.call(f"{base}/methods")
    check("REST methods", status == 200 and len(found["methods"]) > 20, status)
    status, found = server.call(f"{base}/loras")
    check("REST loras", status == 200 and any(item["name"] == A for item in found["items"]), status)
    body = {
        "sources": [{"name": A, "ratio": 1}, {"name": B, "ratio": 0.5}],
        "output": {"template": "rest", "folder": "webui-test", "overwrite": True},
    }
    status, found = server.call(f"{base}/merge", body)
    for _ in range(200):
        if found.get("state") not in ("waiting", "running"):
            break
        time.sleep(0.1)
        status, found = server.call(f"{base}/jobs/{found['job']}")
    check("REST merge", found.get("state") == "done", found.get("error") or found.get("state"))
    status, _ = server.call(f"{base}/merge", body, {"Content-Type": "text/plain"})
    check("REST takes JSON only", status == 415, status)
    status, found = server.call("/openapi.json")
    check("REST is in the OpenAPI page", status == 200 and f"{base}/merge" in found.get("paths", {}), status)


def locked(server) -> None:
    status, _ = server.call("/lora-merge/v1/loras")
    check("--api-auth closes our routes", status == 401, status)
    login = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
    status, _ = server.call("/lora-merge/v1/loras", None, login)
    check("and its login opens them", status == 200, status)
    wrong = {"Authorization": "Basic " + base64.b64encode(b"me:wrong").decode()}
    status, _ = server.call("/lora-merge/v1/loras", None, wrong)
    check("a wrong password does not", status == 401, status)


if __name__ == "__main__":
    sys.exit(main())
