"""Front doors of the project, and the WebUI's install hook.

python install.py              what a WebUI runs at its start: silent, installs nothing
python install.py --app        try it on this machine: sample LoRAs, a first merge, the tab where there is one
python install.py --test       make the test environments and run the whole test suite
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEEDED = ("torch", "safetensors", "gradio", "numpy")
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
)
BROWSER_PLACES = (
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


@dataclasses.dataclass(frozen=True)
class Suite:
    """One environment of the test suite and what runs in it."""

    name: str
    requirements: str
    selections: tuple[tuple[str, ...], ...]
    needs_browser: bool = False
    bare: str = ""  # requirements whose own requirements nothing here uses


TAB = ("tests/browser", "-m", "browser", "-p", "no:warnings")
# need fastapi and pillow, which every WebUI has and the engine does without
WEBUI = ("tests/test_compare.py", "tests/test_rest.py")
ENGINE = tuple(f"--ignore={path}" for path in WEBUI)
SUITES = (
    Suite(
        "engine",
        "test.txt",
        ((*ENGINE, "-m", "not slow and not browser"), (*ENGINE, "-m", "slow and not browser")),
        bare="oracles.txt",
    ),
    # the same journeys as A1111's gradio and as Forge's draw the page
    Suite("gradio3", "gradio3.txt", ((*WEBUI, "-p", "no:warnings"), TAB), needs_browser=True),
    Suite("gradio4", "gradio4.txt", ((*WEBUI, "-p", "no:warnings"), TAB), needs_browser=True),
)


class Failure(Exception):
    """Something a person has to act on; said in one sentence."""


def main() -> int:
    """Run one of the three doors."""
    if len(sys.argv) == 1:
        return hook()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    door = parser.add_mutually_exclusive_group(required=True)
    door.add_argument("--app", action="store_true", help="try it on this machine")
    door.add_argument("--test", action="store_true", help="run the test suite")
    parser.add_argument(
        "--lora-dir", metavar="DIR", help="your LoRAs instead of samples (they are only read)"
    )
    arguments, rest = parser.parse_known_args()
    if rest and not arguments.test:
        parser.error(f"unknown: {' '.join(rest)}")
    try:
        return test(rest) if arguments.test else app(arguments.lora_dir)
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def hook() -> int:
    """Say in one sentence when the WebUI lacks a package; it ships all four, so nothing is ever installed
    into it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"LoRA Merge: {' and '.join(missing)} is missing in this WebUI's Python; reinstall the WebUI.")
    return 0


# ------------------------------------------------------------------------------------------------
# environments


def environment(folder: Path, requirements: str, bare: str = "") -> Path:
    """Return the Python of an environment that has exactly `requirements`, made or renewed where needed.

    Args:
        folder: where it lies.
        requirements: a file of `.ci/requirements`.
        bare: another one, of packages that are installed without what they themselves require.
    """
    if sys.version_info < (3, 11):
        message = f"this needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}."
        raise Failure(message)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "requirements.stamp"
    wanted = _digest(requirements)
    if (
        python.is_file()
        and stamp.is_file()
        and stamp.read_text(encoding="utf-8") == wanted
        and _starts(python)
    ):
        return python
    print(
        f"Preparing {folder.relative_to(ROOT)} (once; torch is large, this takes some minutes) …", flush=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    # torch first and alone: a package that asks for "any torch" must find the pinned one in place
    _pip(python, "torch==2.13.0")
    _pip(python, "-r", str(ROOT / ".ci" / "requirements" / requirements))
    if bare:
        _pip(python, "--no-deps", "-r", str(ROOT / ".ci" / "requirements" / bare))
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _digest(requirements: str) -> str:
    files = sorted((ROOT / ".ci" / "requirements").glob("*.txt"))
    text = requirements + "".join(path.read_text(encoding="utf-8") for path in files) + sys.version
    return hashlib.sha256(text.encode()).hexdigest()


def _starts(python: Path) -> bool:
    return subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0


def _pip(python: Path, *what: str) -> None:
    run = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        print(run.stdout + run.stderr, file=sys.stderr)
        message = f"pip could not install {' '.join(what)}: see above; is there a network connection?"
        raise Failure(message)


# ------------------------------------------------------------------------------------------------ --app


def app(lora_dir: str | None) -> int:
    """Merge two LoRAs and say what came out."""
    python = environment(ROOT / ".venv", "app.txt")
    if lora_dir is None:
        folder = ROOT / "samples-loras"
        _engine(python, "demo", str(folder))
        print(f"Sample LoRAs (synthetic) are in {folder.name}.")
        ask = ["sample-ink-style.safetensors", "sample-mira-character.safetensors"]
        pairs = [[folder / name for name in ask]]
    else:
        folder = Path(lora_dir).expanduser()
        pairs = _pairs(python, folder)
    output = ROOT / "merged-loras"
    output.mkdir(exist_ok=True)
    report = _first_merge(python, pairs, output)
    _tell(report)
    command = [python, "-m", "lib_merge.ui.app", "--lora-dir", str(folder), "--data-dir", str(ROOT / "user")]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _engine(python: Path, *arguments: str) -> str:
    run = subprocess.run(
        [python, "-m", "lib_merge", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    if run.returncode:
        raise Failure(run.stderr.strip().splitlines()[-1] if run.stderr.strip() else "the engine failed")
    return run.stdout


def _pairs(python: Path, folder: Path) -> list[list[Path]]:
    """Return pairs of LoRAs of one family in a user's folder, nearest in name first."""
    files = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())[:200]
    families: dict[str, list[Path]] = {}
    for path in files:
        try:
            found = json.loads(_engine(python, "inspect", str(path), "--json"))[0]
        except Failure:
            continue
        if found["family"] and found["modules"]:
            families.setdefault(found["family"], []).append(path)
        ready = [members for members in families.values() if len(members) >= 2]
        if ready:
            return [ready[0][:2]]
    message = f"{folder} has no two LoRAs of one family that could be merged."
    raise Failure(message)


def _first_merge(python: Path, pairs: list[list[Path]], output: Path) -> dict:
    pair = pairs[0]
    target = output / ("first-merge_" + "+".join(path.stem for path in pair)[:80] + ".safetensors")
    print(f"Merging 0.6 × {pair[0].name} + 0.4 × {pair[1].name} …", flush=True)
    text = _engine(
        python,
        "merge",
        "--models",
        *map(str, pair),
        "--ratios",
        "0.6",
        "0.4",
        "--save_to",
        str(target),
        "--overwrite",
        "--drop_unsupported",
        "--json",
    )
    return json.loads(text)


def _tell(report: dict) -> None:
    ranks = report["rank"]
    print(
        f"\nSaved {Path(report['output']).relative_to(ROOT)}\n"
        f"  {report['family']}, {report['modules']} modules, rank {ranks['min']} to {ranks['max']}, "
        f"{report['bytes'] / 1e6:.1f} MB, {report['seconds']['total']:.1f} s\n"
        f"  asked = saved to {report['relative_error']:.3%} (worst module "
        f"{report['worst_module']['error']:.3%})"
    )
    for warning in report["warnings"]:
        print(f"  note: {warning}")


# ------------------------------------------------------------------------------------------------ --test


def test(extra: Sequence[str]) -> int:
    """Run every suite; the last line says how many tests passed, failed and were skipped."""
    passed = failed = skipped = 0
    not_run: list[str] = []
    browser = _browser()
    for suite in SUITES:
        if suite.needs_browser and browser is None:
            not_run.append(f"{suite.name}: no Chromium, Chrome or Edge is installed")
            continue
        python = environment(ROOT / ".venvs" / suite.name, suite.requirements, suite.bare)
        if (
            suite is SUITES[0]
            and subprocess.run([python, "-m", "ruff", "check", "."], cwd=ROOT, check=False).returncode
        ):
            failed += 1
            print("ruff found something: see above.")
        for selection in suite.selections:
            counts = _pytest(python, [*selection, *extra], browser)
            passed, failed, skipped = passed + counts[0], failed + counts[1], skipped + counts[2]
    if not (ROOT.parent / "shared" / "data").is_dir():
        not_run.append("tests on real LoRA files: the folder shared/data is not beside this checkout")
    for what in not_run:
        print(f"NOT RUN  {what}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    strict = os.environ.get("CI") == "true"
    return 1 if failed or not passed or (strict and not_run) else 0


def _pytest(python: Path, arguments: Sequence[str], browser: str | None) -> tuple[int, int, int]:
    """Run pytest, let its output through, and return (passed, failed, skipped)."""
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8", **({"CHROMIUM_PATH": browser} if browser else {})}
    process = subprocess.Popen(
        [python, "-m", "pytest", "--durations=8", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environ,
    )
    last = ""
    for line in process.stdout or ():
        sys.stdout.write(line)
        sys.stdout.flush()
        if re.search(r"\d+ (passed|failed|skipped|error)|no tests ran", line):
            last = line
    code = process.wait()
    count = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    bad = count.get("failed", 0) + count.get("error", 0)
    if code not in (0, 5) and not bad:
        bad = 1  # pytest itself broke: that is no success
    return count.get("passed", 0), bad, count.get("skipped", 0)


def _browser() -> str | None:
    given = os.environ.get("CHROMIUM_PATH")
    if given and Path(given).is_file():
        return given
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return found or next((place for place in BROWSER_PLACES if Path(place).is_file()), None)


if __name__ == "__main__":
    sys.exit(main())
