"""The test suite: which tests run in which environment, and side by side in two lanes.

    python install.py --test                       everything
    python install.py --test --quick               the engine's core and the checks of the code
    python install.py --test tests/test_budget.py  that file in its environment (a folder or a test's id, too)
    python install.py --test -k ties               what is called so, in the engine's environment
    python install.py --test --in gradio3 tests/browser/test_grid.py

What is not known here goes to pytest. The last line says how many tests passed, failed and were skipped.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from environments import NODE, ROOT, Failure, node, thin

LANES = 2
CHROMIUMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
)
CHROMIUM_PLACES = (
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


class World:
    """One environment that tests run in; made when the first of them does."""

    def __init__(self, name: str, bare: str = "") -> None:
        """Name an environment, and with it its requirements."""
        self.name, self._bare = name, bare
        self._lock = threading.Lock()

    def python(self) -> Path:
        """Return its Python."""
        with self._lock:
            return thin(ROOT / ".venvs" / self.name, f"{self.name}.txt", self._bare)


ENGINE, GRADIO3, GRADIO4 = World("engine", bare="oracles.txt"), World("gradio3"), World("gradio4")
WORLDS = {world.name: world for world in (ENGINE, GRADIO3, GRADIO4)}
BROWSER = "tests/browser"
# need fastapi and pillow, which every WebUI has and the engine does without
WEBUI = (
    "tests/test_app.py",
    "tests/test_compare.py",
    "tests/test_live.py",
    "tests/test_rest.py",
    "tests/test_strangers.py",
)
# import diffusers, peft and transformers, which takes longer than most sessions need for their first test
CLIENTS = (
    "tests/test_converters.py",
    "tests/test_mergekit_oracle.py",
    "tests/test_peft_oracle.py",
    "tests/test_real_client.py",
)
# take longest, so that they are begun first; the others go by size, which says roughly how long they take
LONG = (
    "tests/test_loaded.py",
    "tests/test_advice_tried.py",
    "tests/test_methods.py",
    "tests/test_campaigns.py",
    "tests/test_size.py",
    "tests/test_analysis_advice.py",
    "tests/test_analysis_numbers.py",
    "tests/test_publishing.py",
    "tests/test_disks_that_fail.py",
    "tests/test_faults.py",
    "tests/test_merge_real.py",
)


@dataclasses.dataclass(frozen=True)
class Work:
    """Something that runs in one environment by itself: a session of pytest, or a check of the code."""

    name: str
    world: World
    arguments: tuple[str, ...]
    module: str = "pytest"
    shared: bool = False  # with works like it: each file is run by the one that comes to it first


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a work: counts of tests, and everything it printed."""

    passed: int
    failed: int
    skipped: int
    output: str = ""


CHECKS = (
    Work("ruff check", ENGINE, ("check", "."), "ruff"),
    Work("ruff format", ENGINE, ("format", "--check", "--quiet", "."), "ruff"),
)
JAVASCRIPT = Work("JavaScript", ENGINE, (), "tests.javascript")


def whole(browser: bool) -> list[Work]:
    """Return all there is to run: first what is of one piece, then what the lanes share to the end."""
    tab = (BROWSER, "-m")
    works = [
        Work("the tab on gradio 4", GRADIO4, (*tab, "both or not gradio3", "-p", "no:warnings")),
        Work("the tab on gradio 3", GRADIO3, (*tab, "both or not gradio4", "-p", "no:warnings")),
    ]
    return [
        *(works if browser else ()),
        Work("WebUI on gradio 4", GRADIO4, (*WEBUI, "-p", "no:warnings")),
        Work("WebUI on gradio 3", GRADIO3, (*WEBUI, "-p", "no:warnings")),
        Work("engine, clients", ENGINE, CLIENTS),
        Work("mypy", ENGINE, (), "mypy"),
        *CHECKS,
        *((JAVASCRIPT,) if node() else ()),
        *_engine(),
    ]


def quick() -> list[Work]:
    """Return the core: what runs in the engine's environment and is not slow."""
    return [*CHECKS, *_engine("-m", "not slow")]


def _engine(*options: str) -> list[Work]:
    """Return a session of the engine's tests for each lane."""
    files = [file for file in _engine_files() if file not in CLIENTS]
    files.sort(key=lambda file: (-LONG[::-1].index(file) - 1 if file in LONG else 0, -_size(file)))
    return [
        Work(f"engine, lane {lane + 1}", ENGINE, (*files, *options), shared=True) for lane in range(LANES)
    ]


def _engine_files() -> list[str]:
    files = (path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("test_*.py"))
    return sorted(file for file in files if file not in WEBUI)


def _size(file: str) -> int:
    return (ROOT / file).stat().st_size


# ------------------------------------------------------------------------------------------------ the choice


def chosen(rest: Sequence[str], world: World | None) -> list[Work]:
    """Return one session of pytest for each environment that the tests named in `rest` belong to.

    Args:
        rest: arguments of pytest; those that are paths or ids of tests say what runs.
        world: run them there and nowhere else.
    """
    targets = [argument for argument in rest if _is_target(argument)]
    options = [argument for argument in rest if argument not in targets]
    if not targets:
        # ids hold names that no file of tests does, of methods and families: a whole environment is asked
        meant = {world or world_of(file) for file in _mentioning(_words(options))}
        targets = [*WEBUI, BROWSER] if meant and ENGINE not in meant else _engine_files()
    by_world: dict[World, list[str]] = {}
    for part in (part for target in targets for part in _parts(target)):
        by_world.setdefault(world or world_of(part), []).append(part)
    return [
        Work(f"in {world.name}", world, (*files, *options, *_quiet(world)))
        for world, files in by_world.items()
    ]


def _quiet(world: World) -> tuple[str, ...]:
    return () if world is ENGINE else ("-p", "no:warnings")


def world_of(target: str) -> World:
    """Return the environment of a test file or a test's id."""
    file = target.partition("::")[0].replace(os.sep, "/").removeprefix("./")
    return GRADIO4 if file in WEBUI or f"{file}/".startswith(f"{BROWSER}/") else ENGINE


def _is_target(argument: str) -> bool:
    path = argument.partition("::")[0]
    if argument.startswith("-"):
        return False
    if (ROOT / path).exists():
        return True
    if path.endswith(".py") or "/" in path or "::" in argument:
        message = f"there is no {path} in {ROOT.name}."
        raise Failure(message)
    return False


def _parts(target: str) -> list[str]:
    """Return the test files in a folder, and anything else as it is."""
    if not (ROOT / target.partition("::")[0]).is_dir():
        return [target]
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / target).resolve().rglob("test_*.py"))


def _words(options: Sequence[str]) -> set[str]:
    """Return the words of `-k EXPRESSION`."""
    at = [number for number, option in enumerate(options[:-1]) if option == "-k"]
    text = " ".join(options[number + 1] for number in at)
    return {word.lower() for word in re.findall(r"\w+", text)} - {"and", "or", "not"}


def _mentioning(words: set[str]) -> Iterator[str]:
    """Yield the test files in whose path or text one of the words stands."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")) if words else ():
        file = path.relative_to(ROOT).as_posix()
        text = f"{file} {path.read_text(encoding='utf-8')}".lower()
        if any(word in text for word in words):
            yield file


# ------------------------------------------------------------------------------------------------ running


def run(arguments: Sequence[str]) -> int:
    """Run what is asked for; return the exit code."""
    rest = list(arguments)
    core = "--quick" in rest
    world = _asked_world(rest)
    rest = [argument for argument in rest if argument != "--quick"]
    browser = chromium()
    not_run = []
    if core or not any(_is_target(argument) or argument == "-k" for argument in rest):
        works = quick() if core else whole(browser is not None)
        works = [
            dataclasses.replace(work, arguments=(*work.arguments, *rest)) if work.module == "pytest" else work
            for work in works
        ]
        if not core and node() is None:
            not_run.append(f"the JavaScript's checks and unit tests: {NODE}")
        if not core and browser is None:
            not_run.append("the tab in a browser: no Chromium, Chrome or Edge is installed")
        if not (ROOT.parent / "shared" / "data").is_dir():
            not_run.append("tests on real LoRA files: the folder shared/data is not beside this checkout")
        outcomes = list(_side_by_side(works, browser))
    else:
        outcomes = [_run(work, browser, live=True) for work in chosen(rest, world)]
    for what in not_run:
        print(f"NOT RUN  {what}")
    passed, failed, skipped = (
        sum(getattr(outcome, field) for outcome in outcomes) for field in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    strict = os.environ.get("CI") == "true"
    return 1 if failed or not passed or (strict and not_run) else 0


def _asked_world(rest: list[str]) -> World | None:
    """Take `--in NAME` out of the arguments and return that environment."""
    if "--in" not in rest:
        return None
    at = rest.index("--in")
    name = rest[at + 1] if at + 1 < len(rest) else ""
    del rest[at : at + 2]
    if name not in WORLDS:
        message = f"--in takes one of {', '.join(WORLDS)}."
        raise Failure(message)
    return WORLDS[name]


def _side_by_side(works: Sequence[Work], browser: str | None) -> Iterator[Outcome]:
    """Run works in lanes and print each one's output when it has ended."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as begun, ThreadPoolExecutor(LANES) as pool:
        works = [_sharing(work, begun) if work.shared else work for work in works]
        running = {pool.submit(_run, work, browser): work for work in works}
        try:
            for done in as_completed(running):
                outcome, work = done.result(), running[done]
                print(
                    f"\n──── {work.name} (after {time.monotonic() - start:.0f} s)\n{outcome.output}",
                    flush=True,
                )
                yield outcome
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _sharing(work: Work, begun: str) -> Work:
    return dataclasses.replace(work, arguments=(*work.arguments, "--share", begun))


def _run(work: Work, browser: str | None, live: bool = False) -> Outcome:
    """Run one work.

    Args:
        work: what to run.
        browser: the Chromium that the tab is tried in.
        live: print everything as it comes.
    """
    options = ["--durations=8"] if work.module == "pytest" else []
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8", **({"CHROMIUM_PATH": browser} if browser else {})}
    if not live:
        # beside another lane, threads of a product that wait for each other only take its turn
        environ = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environ}
    process = subprocess.Popen(
        [work.world.python(), "-m", work.module, *options, *work.arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environ,
    )
    output = ""
    while text := process.stdout.read(1 if live else -1) if process.stdout else "":
        output += text
        if live:
            print(text, end="", flush=True)
    code = process.wait()
    if work.module == "pytest":
        return _counted(output, code)
    return Outcome(0, int(code != 0), 0, output)


def _counted(output: str, code: int) -> Outcome:
    """Read what pytest counted from its summary."""
    summaries = re.findall(
        r"^.*(?:\d+ (?:passed|failed|skipped|error)|no tests ran).*$", output, re.MULTILINE
    )
    last = summaries[-1] if summaries else ""
    count = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    bad = count.get("failed", 0) + count.get("error", 0)
    if code not in (0, 5) and not bad:
        bad = 1  # pytest itself broke: that is no success
        output += f"\npytest ended with exit code {code} and counted no failure.\n"
    return Outcome(count.get("passed", 0), bad, count.get("skipped", 0), output)


def chromium() -> str | None:
    """Return the Chromium, Chrome or Edge of this machine."""
    given = os.environ.get("CHROMIUM_PATH")
    if given and Path(given).is_file():
        return given
    named = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    return named or next((place for place in CHROMIUM_PLACES if Path(place).is_file()), None)
