from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # sites that are not ours, by names of their own (test_strangers)
    "--host-resolver-rules=MAP elsewhere.example 127.0.0.1, MAP rebound.example 127.0.0.1",
]
# pictures of the page cost a second each: always of a failure, of the rest where a folder is named
SHOTS = os.environ.get("LORA_MERGE_SHOTS")
FAILURES = Path(SHOTS or ROOT / "test-artefacts")
UNTOUCHED = (
    "() => !loraMerge.app.state.past.length && !loraMerge.app.state.data.sources.some((row) => row.key)"
)


def _chromium() -> str | None:
    return os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = _chromium()
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


class Served:
    """The standalone app with a folder of LoRAs of its own."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, folder.parent / "data"
        self.hostile = "hostile" if os.name == "nt" else "img src"  # finds that file
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = folder.parent / "app.log"
        self.process = None
        self.start()

    def start(self):
        command = [
            sys.executable,
            "-m",
            "lib_merge.ui.app",
            "--lora-dir",
            str(self.folder),
            "--data-dir",
            str(self.data),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--no-browser"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.url, timeout=20).read()
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """One program for all tests: each has a browser of its own, and names its merges as no other does."""
    from lib_merge.samples import write_samples
    from tests.browser.hostile import write_hostile

    base = tmp_path_factory.mktemp("tab")
    folder = base / "loras"
    (folder / "characters").mkdir(parents=True)
    (folder / "styles").mkdir()
    for path in write_samples(folder):
        where = "characters" if "mira" in path.name else "styles"
        path.rename(folder / where / path.name)
    write_hostile(folder)
    served = Served(folder)
    yield served
    served.stop()


class Tab:
    """The page, with what a person sees and does."""

    def __init__(self, page, app, name):
        self.page, self.app, self.name = page, app, name
        self.errors = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._line)
        self.open()

    def _line(self, line):
        # gradio's own page asks for fonts and an iframe script from other hosts; here there is no network
        foreign = "net::ERR_" in line.text or "Unable to preload CSS" in line.text
        if line.type == "error" and not foreign:
            self.errors.append(line.text)

    def open(self):
        self.page.goto(self.app.url)
        self.page.wait_for_selector("#lora_merge_root .lm-columns", timeout=60000)
        self.page.wait_for_function(
            "() => window.loraMerge.app && window.loraMerge.app.library.items.length >= 3 && window.loraMerge.app.library.scan.done >= window.loraMerge.app.library.scan.total",
            timeout=30000,
        )

    def fresh(self):
        """An empty tab; a page that was just opened in a browser of its own is not loaded twice."""
        if not self.page.evaluate(UNTOUCHED):
            self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            self.open()

    def pick(self, row, name):
        self.page.locator(".lm-row").nth(row).locator(".lm-name").click()
        self.page.locator(".lm-picker input[type=search]").fill(name)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector(".lm-picker", state="hidden")

    def preset(self, letter, value):
        """Choose from a row's menu, which is filled when it gets the focus."""
        menu = self.page.get_by_label(f"Preset for {letter}", exact=True)
        menu.focus()
        menu.select_option(value)

    def ratio(self, row, value):
        field = self.page.locator(".lm-row").nth(row).locator("input.lm-number").first
        field.fill(str(value))

    def cell(self, row, block):
        column = self.page.evaluate("(block) => window.loraMerge.app.grid.columns.indexOf(block)", block)
        return self.page.locator(".lm-grid > .lm-contents").nth(row + 1).locator(".lm-cell").nth(column)

    def state(self):
        return self.page.evaluate("() => window.loraMerge.app.state.data")

    def quiet(self):
        """Wait until nothing is asked for, nothing is due to be asked for, and every energy is read."""
        self.page.wait_for_function(
            "() => { const { app, bridge } = window.loraMerge;"
            " return !bridge.current && !bridge.queue.length && !app.output.due && !app.grid.reading; }",
            timeout=120000,
        )

    def planned(self):
        """Wait until the plan fits what is set up now, and return the name it shows."""
        self.quiet()
        return self.page.locator(".lm-output-name").inner_text()

    def merge(self):
        self.planned()
        self.saves(self.press)
        text = self.page.locator(".lm-result").inner_text()
        assert not {"null", "undefined", "NaN"} & set(text.split()), text
        return text

    def saves(self, work):
        """Do something that saves a LoRA and wait for the new result: the card of a merge before is no answer."""
        self.page.evaluate("() => (window.before = document.querySelector('.lm-result').firstChild)")
        work()
        self.page.wait_for_function(
            "() => { const card = document.querySelector('.lm-result');"
            " return !card.hidden && card.firstChild !== window.before && window.loraMerge.app.output.job === null; }",
            timeout=60000,
        )
        self.quiet()

    def press(self):
        """Press Merge, as by its name in the bar."""
        self.page.get_by_role("button", name="Merge", exact=True).click()

    def see(self, name):
        """Show one of the panels beside what is set up."""
        self.page.get_by_role("tab", name=name, exact=True).click()
        self.quiet()

    def options(self):
        """Open what is saved beside the file, where it is not open already."""
        if not self.page.locator(".lm-save").is_visible():
            self.page.get_by_role("button", name="Save options").click()

    def settings(self):
        """Open the settings that few need, where they are not open already."""
        if not self.page.get_by_label("Rank", exact=True).is_visible():
            self.page.get_by_text("More settings").click()

    def more(self, letter):
        """Open what is behind the three dots of a row, where it is not open already."""
        dots = self.page.get_by_label(f"More of {letter}", exact=True)
        if dots.get_attribute("aria-expanded") == "false":
            dots.click()

    def group(self, letter, name):
        """Put a row into a group."""
        self.more(letter)
        self.page.get_by_label(f"Group of {letter}").select_option(name)

    def shot(self, label):
        """Take a picture for people, where they asked for them."""
        if SHOTS:
            self.keep(label)

    def keep(self, label):
        import gradio

        FAILURES.mkdir(exist_ok=True)
        self.page.screenshot(
            path=str(FAILURES / f"{self.name}-{label}-gradio{gradio.__version__[0]}.png"), full_page=True
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.failed = report.failed
    return report


@pytest.fixture
def tab(browser, app, request):
    if app.process.poll() is not None:
        app.start()  # a test that ended the program and failed takes no other along
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    shown = Tab(page, app, request.node.name.removeprefix("test_")[:40])
    yield shown
    if getattr(request.node, "failed", True):
        shown.keep("failed")
    shown.shot("end")
    assert not shown.errors, shown.errors
    context.close()
