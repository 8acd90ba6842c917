"""How `tests.webui` ends the WebUI that it started, whatever ends the driver."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.webui import guard

ROOT = Path(__file__).parents[1]
# a program that starts another; both say who they are, and neither ends by itself
PROGRAM = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open(sys.argv[1] + "~", "w").write(f"{os.getpid()} {child.pid}")
os.replace(sys.argv[1] + "~", sys.argv[1])
time.sleep(300)
"""
DRIVER = """
import subprocess, sys, time
from tests.webui import guard
guard.start([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
time.sleep(300)
"""


def _ids(path) -> list[int]:
    for _ in range(300):
        if path.exists():
            return [int(text) for text in path.read_text().split()]
        time.sleep(0.1)
    raise AssertionError("the program did not start")


def _runs(number) -> bool:
    if os.name == "nt":
        listed = subprocess.run(
            ["tasklist", "/FI", f"PID eq {number}", "/NH"], capture_output=True, text=True, check=True
        )
        return str(number) in listed.stdout.split()
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # one that ended and that nobody asked about is still listed
    said = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True, check=False
    )
    return bool(said.stdout.strip()) and "Z" not in said.stdout


def _all_end(numbers) -> bool:
    for _ in range(200):
        if not any(_runs(number) for number in numbers):
            return True
        time.sleep(0.1)
    return False


def test_stop_ends_the_program_with_what_it_started(tmp_path):
    process = guard.start([sys.executable, "-c", PROGRAM, str(tmp_path / "ids")])
    numbers = _ids(tmp_path / "ids")
    assert all(_runs(number) for number in numbers)
    guard.stop(process)
    assert process.poll() is not None
    assert _all_end(numbers)


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_it_ends_with_its_driver(tmp_path, how):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, PROGRAM, str(tmp_path / "ids")], cwd=ROOT)
    numbers = _ids(tmp_path / "ids")
    getattr(driver, how)()
    driver.wait(30)
    assert _all_end(numbers)


def test_a_program_that_ends_by_itself_is_seen_to(tmp_path):
    process = guard.start([sys.executable, "-c", "raise SystemExit(7)"])
    assert process.wait(30) == 7
    guard.stop(process)
