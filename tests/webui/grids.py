"""Pictures inside a real WebUI: live merges in prompts, the comparison script, X/Y/Z plots, preview, interrupt."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time

import numpy as np
from PIL import Image

from tests.webui.server import SHOTS

BASE = {
    "prompt": "a cat",
    "width": 64,
    "height": 64,
    "steps": 2,
    "seed": 7,
    "sampler_name": "Euler",
    "cfg_scale": 5,
}
MEAN, MOST = 0.05, 2
HIRES = {
    "enable_hr": True,
    "hr_scale": 2,
    "denoising_strength": 0.6,
    "hr_second_pass_steps": 2,
    "hr_additional_modules": ["Use same choices"],
    "hr_cfg": 5,
}


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(float)


class Near:
    """Pictures of a stack and of its merge are the same but for rounding.

    Where the WebUI rounds its model to bf16, as much as the order of two LoRAs alone moves a picture there.
    """

    def __init__(self):
        self.within = {}

    def measure(self, server, a, b):
        if not server.tree.rough:
            return
        tags = f"<lora:{a}:0.6>", f"<lora:{b}:0.4>"

        def apart(*pictures, **more):
            """How far apart the two orders are; one picture may happen to round alike in both."""
            found = []
            for what, size, steps in pictures:
                one, _ = server.picture(f"{what} {tags[0]} {tags[1]}", size=size, steps=steps, **more)
                two, _ = server.picture(f"{what} {tags[1]} {tags[0]}", size=size, steps=steps, **more)
                found.append(np.abs(one - two))
            mean, most = (1.5 * max(float(figure(part)) for part in found) for figure in (np.mean, np.max))
            return max(MEAN, mean), max(MOST, most)

        once = apart(("a cat", 128, 4), ("a cat", 64, 2), ("a house", 64, 2), ("a red bird", 64, 3))
        # the second pass goes on from what the first one has moved
        twice = apart(("a cat", 64, 2), ("a house", 64, 2), **HIRES, hr_upscaler=server.upscaler())
        self.within = {128: once, 64: once, "hires": twice}
        for what, within in self.within.items():
            print(f"       rounded to bf16: of {what} the same is {within}")

    def mean(self, size):
        return self.within.get(size, (MEAN, MOST))[0]

    def __call__(self, one, two, what=None):
        mean, most = self.within.get(what or one.shape[0], (MEAN, MOST))
        return _apart(one, two, mean, most)


def _apart(one, two, mean, most):
    apart = np.abs(one - two)
    return apart.mean() <= mean and apart.max() <= most, f"mean {apart.mean():.4f}, at most {apart.max():.0f}"


def equal(one, two):
    """The same weights made both: nothing is rounded otherwise."""
    return _apart(one, two, MEAN, MOST)


near = Near()


def ask(server, **more):
    """Pictures, their infotexts, and the WebUI's answer."""
    status, answer = server.call("/sdapi/v1/txt2img", {**BASE, **more}, timeout=900)
    if status != 200:
        return [], [], {"status": status, "said": answer}
    info = json.loads(answer["info"])
    return [pixels(text) for text in answer["images"]], info["infotexts"], info


def setup_of(page):
    return page.evaluate(
        "() => { const s = JSON.parse(JSON.stringify(loraMerge.app.state.data)); s.sources = s.sources.filter((row) => row.key).slice(0, 2); return JSON.stringify(s); }"
    )


def with_setup(setup):
    return {"alwayson_scripts": {"LoRA Merge": {"args": [setup, ""]}}}


def left_behind(server, page):
    """Names of live merges that anybody could see, and files in the LoRA folder."""
    _, listed = server.call("/sdapi/v1/loras")
    found = [item["name"] for item in listed if "lora-merge-live" in item["name"]]
    found += [path.name for path in (server.folder / "models" / "Lora").rglob("*lora-merge-live*")]
    page.evaluate("() => document.querySelector('#txt2img_lora_extra_refresh_internal').click()")
    page.wait_for_timeout(1500)
    cards = page.evaluate("() => document.documentElement.innerHTML.includes('lora-merge-live-')")
    return found + (["a card of it"] if cards else [])


def live_prompt(server, page, check, a, b):
    """`<merge:…>` together with `<lora:…>`: it equals the stack; infotext, Hires fix, batches."""
    merge_tab(page)
    page.evaluate(
        "() => loraMerge.app.state.replace({ sources: loraMerge.app.state.data.sources.slice(0, 2) })"
    )
    page.locator("#lora_merge_root").get_by_role("tab", name="Recipes").click()
    page.on("dialog", lambda dialog: dialog.accept())  # an earlier run may have left a recipe of that name
    page.get_by_label("Name of the recipe").fill("live pair")
    page.get_by_role("button", name="Save recipe").click()
    page.wait_for_function(
        "() => /live pair/.test(document.querySelector('.lm-presets').textContent)", timeout=20_000
    )
    ratios = page.evaluate("() => loraMerge.app.state.data.sources.slice(0, 2).map((row) => row.ratio)")
    stack = f"<lora:{a}:{ratios[0] * 0.8:g}> <lora:{b}:{ratios[1] * 0.8:g}>"
    third = "<lora:sample-neon-concept:0.5>"
    [one], _, _ = ask(server, prompt=f"a cat {stack} {third}")
    [two], texts, _ = ask(server, prompt=f"a cat <merge:live pair:0.8> {third}")
    check("<merge:…> with <lora:…> = stack", *near(one, two))
    good = (
        "<merge:live pair:0.8>" in texts[0]
        and "Merge recipe:" in texts[0]
        and "lora-merge-live" not in texts[0]
    )
    check(
        "its infotext has the tag and the recipe, no temporary name",
        good,
        texts[0][-160:] if not good else "",
    )
    check("the WebUI's own hashes stay", "sample-neon-concept:" in texts[0], "")
    hires = {**HIRES, "hr_upscaler": server.upscaler()}
    [one], _, _ = ask(server, prompt=f"a cat {stack}", **hires)
    [two], _, _ = ask(server, prompt="a cat <merge:live pair:0.8>", **hires)
    [none], _, _ = ask(server, prompt="a cat", **hires)
    check("with Hires fix too", *near(one, two, "hires"))
    check(
        "Hires fix shows the LoRAs", np.abs(one - none).mean() > 0.05, f"mean {np.abs(one - none).mean():.3f}"
    )
    many, texts, _ = ask(server, prompt="a cat <merge:live pair:0.8>", batch_size=2, n_iter=2)
    some, _, _ = ask(server, prompt=f"a cat {stack}", batch_size=2, n_iter=2)
    good = len(many) == len(some) and all(near(x, y)[0] for x, y in zip(many, some))
    check("batches", good, f"{len(many)} pictures")
    picture = Image.fromarray(one.astype(np.uint8))
    data = io.BytesIO()
    picture.save(data, "PNG")
    image = base64.b64encode(data.getvalue()).decode()
    # the first img2img of a process draws other noise for its VAE than every later one, in A1111 itself too
    found = []
    for prompt in ("a cat", f"a cat {stack}", f"a cat {stack}", "a cat <merge:live pair:0.8>", "a cat"):
        status, answer = server.call(
            "/sdapi/v1/img2img",
            {**BASE, "prompt": prompt, "init_images": [image], "denoising_strength": 0.7},
            timeout=600,
        )
        found.append(pixels(answer["images"][0]) if status == 200 else np.zeros((1, 1, 3)))
    check("img2img repeats itself", *near(found[1], found[2]))
    check("<merge:…> in img2img = stack", *near(found[2], found[3]))
    check(
        "img2img shows the LoRAs",
        np.abs(found[2] - found[4]).mean() > 0.05,
        f"{np.abs(found[2] - found[4]).mean():.3f}",
    )
    pictures, _, said = ask(server, prompt="a cat <merge:no such recipe:1>")
    good = said.get("status") == 422 and "no recipe called" in json.dumps(said)
    check("an unknown recipe makes no picture and says why", not pictures and good, said)
    unknown(server, check)
    over_the_steps(server, check)
    check("nothing of live merges is listed", not (found := left_behind(server, page)), found)


def unknown(server, check):
    """A live merge acts beside a LoRA that nobody knows."""
    [one], _, _ = ask(server, prompt="a cat <merge:live pair:0.8>")
    [two], _, _ = ask(server, prompt="a cat <lora:nobody-knows-it:1> <merge:live pair:0.8>")
    check("<merge:…> acts beside an unknown <lora:…>", *equal(one, two))


def over_the_steps(server, check):
    """A strength over the steps: constant = a number, windows and points move the picture, the end is clean."""

    def made(strength):
        pictures, _, said = ask(server, prompt=f"a cat <merge:live pair:{strength}>", steps=4)
        return pictures[0] if pictures else said

    begun = time.perf_counter()
    plain = made("te=1:unet=0.8")
    number = time.perf_counter() - begun
    found = {
        name: made(name)
        for name in ("te=1:unet=0.8@0-1", "te=1:unet=0.8@0-0.5", "te=1:unet=0.2@0,0.8@0.5,0@1")
    }
    none = made("te=1:unet=0")
    bad = [value for value in found.values() if isinstance(value, dict)]
    check("strengths over the steps make pictures", not bad, bad[:1])
    if bad:
        return
    always, half, curve = found.values()
    check("0.8@0-1 = 0.8", *equal(always, plain))
    apart = [np.abs(half - other).mean() for other in (plain, none)]
    check("0.8@0-0.5 is between 0.8 and nothing", min(apart) > 0, f"means {apart[0]:.3f}, {apart[1]:.3f}")
    check("a curve is another picture", np.abs(curve - plain).mean() > 0 and np.abs(curve - half).mean() > 0)
    check("nothing of it stays", *equal(made("te=1:unet=0.8"), plain))
    begun = time.perf_counter()
    made("te=1:unet=0@0,1@1")
    print(f"       a strength per step: {time.perf_counter() - begun:.1f} s, one number {number:.1f} s")


def speed(server, page, check):
    """Our part of a live merge's switching: merging, writing, clearing; the sources are small samples."""
    setup = json.loads(setup_of(page))
    seconds = []
    for ratio in (0.31, 0.32, 0.33):
        setup["sources"][0]["ratio"] = ratio
        begun = time.perf_counter()
        ask(
            server,
            **with_setup(json.dumps(setup)),
            script_name="LoRA merge comparison",
            script_args=_script(["Merge"]),
        )
        seconds.append(time.perf_counter() - begun)
    print(f"       a comparison of one column: {min(seconds):.2f} s in all")


def _script(columns, methods=(), **more):
    return [{"columns": columns, "methods": list(methods), **more}]


COLUMNS = ["No LoRA", "Each source at its ratio", "Stack at these ratios", "Merge"]


def comparison(server, page, check):
    """2 prompts × 2 seeds × {none, A, B, stack, merge, TIES}; stack = merge, nothing left behind."""
    setup = setup_of(page)
    script = {"script_name": "LoRA merge comparison"}
    given = _script(COLUMNS, ["ties"], prompts="{trigger} a cat\na dog", seeds="3, 4", maps=True)
    pictures, texts, info = ask(server, **script, script_args=given, **with_setup(setup))
    good = len(pictures) == 2 + 4 * 6 == len(texts)
    check("the comparison script", good, f"{len(pictures)} pictures" if pictures else info)
    if not good:
        return
    cells = pictures[2:]
    apart = [near(cells[6 * row + 3], cells[6 * row + 4]) for row in range(4)]
    check("its stack = its merge", all(fine for fine, _ in apart), "; ".join(text for _, text in apart))
    check(
        "its columns differ",
        np.abs(cells[0] - cells[3]).mean() > 0.05,
        f"{np.abs(cells[0] - cells[3]).mean():.3f}",
    )
    labels = [text.rpartition("Merge column: ")[2].split(", Merge")[0].strip('"') for text in texts[2:8]]
    check("every column is labelled", len(set(labels)) == 6, labels)
    check(
        "no temporary name in the infotext",
        not any("lora-merge-live" in text for text in texts),
        texts[-1][-120:],
    )
    state = page.evaluate("(text) => loraMerge.bridge.ask('picture_text', { text })", texts[2 + 5])["state"]
    check(
        "the infotext pastes back", state["method"] == "ties" and len(state["sources"]) == 2, state["method"]
    )
    found = page.evaluate("() => loraMerge.bridge.ask('comparison', {})")["found"]
    alike = next(one for one in found["figures"] if one["kind"] == "merge")["against"]
    stack = next(one for one in alike if one["column"] == "stack")
    check("its table", stack["difference"] <= near.mean(64) and stack["similarity"] > 0.99, stack)
    check("nothing is left behind", not (kept := left_behind(server, page)), kept)
    pictures, _, info = ask(server, **script, script_args=given, **with_setup(""))
    check("without a merge set up it is refused", info.get("status", 200) >= 400, info.get("status"))
    interrupt(server, page, check, setup)


def interrupt(server, page, check, setup):
    """What was done before an interrupt is kept."""
    answer = {}
    given = _script(COLUMNS, prompts="a cat\na dog\na bird", seeds="1, 2, 3")

    def work():
        answer["got"] = ask(
            server, script_name="LoRA merge comparison", script_args=given, steps=6, **with_setup(setup)
        )

    thread = threading.Thread(target=work)
    thread.start()
    server.until("job_no", 4, thread)
    server.call("/sdapi/v1/interrupt", {})
    thread.join()
    pictures, _, info = answer["got"]
    check(
        "an interrupt keeps what was done",
        4 <= len(pictures) < 1 + 45,
        f"{len(pictures)} of 46" if pictures else info,
    )
    check("and leaves nothing behind", not (kept := left_behind(server, page)), kept)


def plot(server, page, check):
    """The WebUI's own X/Y/Z plot over [Merge] balance × [Merge] method, from the tab's state and from the prompt."""
    _, scripts = server.call("/sdapi/v1/script-info")
    info = next(one for one in scripts if one["name"] == "x/y/z plot" and not one["is_img2img"])
    axes = info["args"][0]["choices"] or []
    ours = [axis for axis in axes if axis.startswith("[Merge]")]
    check("axes are there once", len(ours) == len(set(ours)) >= 10, len(ours))
    if not ours:
        return
    x, y = axes.index("[Merge] balance A:B"), axes.index("[Merge] method")

    def script(xs, ys):
        defaults = [arg["value"] for arg in info["args"]]
        given = [x, xs, [], y, "", ys, 0, "", []]
        return {"script_name": "X/Y/Z plot", "script_args": [*given, *defaults[9:]]}

    setup = with_setup(setup_of(page))
    pictures, texts, info_ = ask(server, **script("0-1 [3]", ["weighted_sum", "ties"]), **setup)
    good = len(pictures) == 1 + 6 or len(pictures) == 1
    check("an X/Y plot of merges", good, f"{len(pictures)} pictures {texts[0][-60:]}" if pictures else info_)
    flat, _, _ = ask(server, prompt="a cat")
    if pictures:
        check(
            "it shows merges",
            pictures[0].shape[1] >= 64 * 3 and pictures[0].std() > 1 and flat[0].std() > 1,
            pictures[0].shape,
        )
    again, _, _ = ask(server, **{**script("0, 1", ["weighted_sum"]), "prompt": "a cat <merge:live pair:1>"})
    check("a plot over <merge:NAME>", len(again) >= 1, len(again))
    none, _, info_ = ask(server, **script("0, 1", ["weighted_sum"]))
    check("without a merge a plot is refused", not none, info_.get("status"))


# answers about progress come seconds late on a busy machine, so the bar of one generation outlives the next one's click
_SLOW = """(seconds) => {
    const { open, send } = XMLHttpRequest.prototype;
    XMLHttpRequest.prototype.open = function (method, url, ...more) {
        this.lmLate = String(url).includes("internal/progress");
        return open.call(this, method, url, ...more);
    };
    XMLHttpRequest.prototype.send = function (...given) {
        if (this.lmLate) setTimeout(() => send.apply(this, given), 1000 * seconds);
        else send.apply(this, given);
    };
    window.lmQuick = () => Object.assign(XMLHttpRequest.prototype, { open, send });
}"""


@contextlib.contextmanager
def slow_progress(page, seconds):
    page.evaluate(_SLOW, seconds)
    yield
    page.evaluate("() => lmQuick()")


def in_the_page(server, page, check):
    """Preview and Compare from the tab, and the bar beside the gallery."""
    page.evaluate("() => switch_to_txt2img()")
    for name, value in (("width", 64), ("height", 64), ("steps", 2)):
        page.locator(f"#txt2img_{name} input[type=number]").first.fill(str(value))
        page.keyboard.press("Tab")
    with slow_progress(page, 3):
        refused(page, check)
        page.locator("#txt2img_prompt textarea").fill("a cat")
        merge_tab(page)
        page.locator("#lora_merge_root .lm-foot").get_by_role("button", name="Preview", exact=True).click()
        page.wait_for_selector(".lm-strip figure img, .lm-strip .lm-bad", timeout=120_000)
    count = page.locator(".lm-strip figure img").count()
    check("Preview shows stack and merge", count == 2, page.locator(".lm-strip").inner_text())
    page.locator("#lora_merge_root .lm-seeing").get_by_role("button", name="Compare in txt2img").click()
    panel = page.locator("#lora_merge_panel_txt2img")
    panel.get_by_label("Merge to compare").wait_for(timeout=20_000)
    check(
        "Compare in txt2img opens the script",
        panel.get_by_label("Merge to compare").input_value() == "Merge tab",
    )
    page.wait_for_function(
        "() => /pictures/.test(document.querySelector('#lora_merge_panel_txt2img .lm-estimate').textContent)",
        timeout=20_000,
    )
    before = panel.locator(".lm-estimate").inner_text()
    check("it says how many pictures", "pictures" in before, before)
    panel.get_by_text("Variants of the merge").click()
    panel.get_by_label("Strengths of the merge").fill("0.5, 0.8")
    page.wait_for_function(
        "(before) => document.querySelector('#lora_merge_panel_txt2img .lm-estimate').textContent !== before",
        arg=before,
        timeout=20_000,
    )
    said = panel.locator(".lm-estimate").inner_text()
    check("and how many more with two variants", int(said.split()[0]) == int(before.split()[0]) + 2, said)
    samplers = panel.get_by_label("Samplers to compare").locator("option").count()
    check("it offers the WebUI's samplers", samplers > 5, samplers)
    page.screenshot(path=str(SHOTS / f"webui-{server.kind}-compare.png"))
    panel.get_by_label("Strengths of the merge").fill("0.5")
    old = page.locator("#generation_info_txt2img textarea").input_value()
    page.locator("#txt2img_generate").click()
    page.wait_for_function(
        "(old) => document.querySelector('#generation_info_txt2img textarea').value !== old",
        arg=old,
        timeout=300_000,
    )
    page.wait_for_selector("#lora_merge_bar_txt2img:not([hidden])", timeout=20_000)
    page.wait_for_selector("#lora_merge_verdict_txt2img .lm-verdict", timeout=20_000)
    check(
        "the verdict form is beside the grid",
        page.locator("#lora_merge_verdict_txt2img .lm-verdict").count() >= 1,
    )
    texts = page.evaluate(
        "() => JSON.parse(document.querySelector('#generation_info_txt2img textarea').value).infotexts"
    )
    check("the panel's variant was made", any("merge × 0.5" in text for text in texts), len(texts))
    verdict(page, check)
    page.locator("#lora_merge_bar_txt2img").get_by_role("button", name="Save this merge").click()
    bar = page.locator("#lora_merge_bar_txt2img [role=status]")
    page.wait_for_function(
        "() => /Saved /.test(document.querySelector('#lora_merge_bar_txt2img [role=status]').textContent)",
        timeout=60_000,
    )
    check("Save this merge", "asked = saved" in bar.inner_text(), bar.inner_text())
    page.locator("#lora_merge_bar_txt2img").get_by_role("button", name="Keep as preview").click()
    page.wait_for_function(
        "() => /preview of/.test(document.querySelector('#lora_merge_bar_txt2img [role=status]').textContent)",
        timeout=60_000,
    )
    check("Keep as preview", True, bar.inner_text())
    page.locator("#lora_merge_bar_txt2img").get_by_role("button", name="Send recipe to Merge").click()
    page.wait_for_selector("#lora_merge_root .lm-columns", state="visible", timeout=20_000)
    check("Send recipe to Merge", page.locator(".lm-row").count() >= 1)


def refused(page, check):
    """A merge that nobody knows: an error in the page, with the sentence."""
    page.locator("#txt2img_prompt textarea").fill("a cat <merge:nothing of the kind:1>")
    page.locator("#txt2img_generate").click()
    found = page.locator("#html_log_txt2img").locator(".error, .lora-merge-refused").first
    found.wait_for(state="visible", timeout=60_000)
    said = found.inner_text()
    check("a refusal is an error in the page", "no recipe called 'nothing of the kind'" in said, said)


def verdict(page, check):
    form = page.locator("#lora_merge_verdict_txt2img .lm-verdict").first
    form.locator("summary").click()
    form.get_by_label("Against the stack").select_option("equal")
    form.get_by_label("Decision").select_option("keep")
    form.get_by_label("Notes").fill("seen in the grid")
    form.get_by_role("button", name="Write it down").click()
    page.wait_for_function(
        "() => /Written down/.test(document.querySelector('#lora_merge_verdict_txt2img').textContent)",
        timeout=20_000,
    )
    entries = page.evaluate("() => loraMerge.bridge.ask('history', {})")["entries"]
    found = [entry for entry in entries if entry["notes"] == "seen in the grid" and entry["grid"]]
    check(
        "a verdict goes to the history with its grid",
        len(found) == 1 and found[0]["verdict"]["decision"] == "keep",
        len(found),
    )


def merge_tab(page):
    """Go to our tab."""
    page.locator("#tabs > .tab-nav button, #tabs button[role=tab]").filter(
        has_text="LoRA Merge"
    ).first.click()
    page.wait_for_selector("#lora_merge_root .lm-columns", state="visible", timeout=60_000)
