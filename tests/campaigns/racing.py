"""Merges at once: four into one file, eight into eight, each in a process of its own, while another process reads the
library, the history and the notes all the time, and must never see a broken one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from lib_merge import metadata
from lib_merge.errors import MergeError
from lib_merge.files.reader import open_tensors
from lib_merge.kept.archive import Archive
from lib_merge.library.library import read_facts, walk
from lib_merge.recipe import loads
from tests.campaigns.desks import desk_at, furnish, merged
from tests.campaigns.harness import Campaign, Inputs, NotHere, Overheard, Problem

# rounds after which the folder and its history are new
RENEW = 25


class Races(Campaign):
    """See the module."""

    name = "races"
    aim = 300
    share = 1.5

    def __init__(self, folder: Path):
        super().__init__(folder)
        if not hasattr(os, "fork"):
            raise NotHere("it needs processes that fork")
        self._base = folder / "base"
        self._merges = 0
        self._renew()

    def _renew(self) -> None:
        shutil.rmtree(self._base, ignore_errors=True)
        furnish(self._base)
        desk_at(self._base).history.list()
        self._merges = 0

    def make(self, number: int, rng: random.Random) -> Inputs:
        count, one = (8, False) if number % 3 == 2 else (4, True)
        names = ["won" if one else f"out{index}" for index in range(count)]
        ratios = [round(rng.uniform(0.1, 2.0), 3) for _ in names]
        return {
            "race.json": json.dumps({"names": names, "ratios": ratios, "fresh": number % RENEW == 0}).encode()
        }

    def attempt(self, inputs: Inputs) -> str:
        case = json.loads(inputs["race.json"])
        if case["fresh"]:
            self._renew()
        reading, writing = os.pipe()
        reader = _apart(lambda: _read_until(reading, self._base))
        ready, go = os.pipe()
        started = [
            _apart(lambda name=name, ratio=ratio: _merge(self._base, name, ratio, ready))
            for name, ratio in zip(case["names"], case["ratios"])
        ]
        os.write(go, b"x" * len(started))
        said = [_end(child) for child in started]
        os.close(writing)
        os.close(reading)
        os.kill(reader[0], signal.SIGTERM)
        said.append(_end(reader))
        for end in (ready, go):
            os.close(end)
        wrong = [text for text in said if text]
        if wrong:
            raise Problem("partial" if "broken" in wrong[0] else "traceback", wrong[0])
        self._merges += len(started)
        self._check(case)
        return "four into one" if len(set(case["names"])) == 1 else "eight into eight"

    def _check(self, case: dict) -> None:
        loras = self._base / "loras"
        for name, ratio in zip(case["names"], case["ratios"]):
            lora = loras / f"{name}.safetensors"
            with open_tensors(lora) as file:
                made = loads(metadata.recipe_of(file.metadata) or "{}")
            side = metadata.read_side_car(lora)
            if not side:
                raise Problem("lost", f"{lora.name} has no notes")
            if side["description"] != metadata.describe_recipe(made):
                raise Problem(
                    "other", f"the notes of {lora.name} describe another merge: {side['description']}"
                )
            if len(set(case["names"])) > 1 and made.sources[0].ratio != ratio:
                raise Problem("lost", f"{lora.name} is not the merge of this round")
            if made.sources[0].ratio not in case["ratios"]:
                raise Problem("lost", f"{lora.name} is of an earlier round")
        entries = Archive(self._base / "data").history.list()
        if len(entries) != self._merges or any(entry.status == "broken" for entry in entries):
            raise Problem("lost", f"{self._merges} merges and {len(entries)} entries of the history")
        left = [path.name for path in loras.iterdir() if path.name.startswith(".") and path.is_file()]
        if left:
            raise Problem("other", f"left beside the LoRAs: {left}")


# ------------------------------------------------------------------------------------------------ processes


def _apart(work: Callable[[], None]) -> tuple[int, int]:
    """Do something in a process of its own; return its number, and where it says what went wrong."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    said = ""
    try:
        with Overheard() as overheard:
            work()
        said = "".join(f"{type(one).__name__}: {one}\n" for one in overheard.heard)
    except BaseException as error:
        said = str(error) if isinstance(error, Problem) else "".join(traceback.format_exception(error)[-3:])
    os.write(writing, said.encode("utf-8", "replace")[:30_000])
    os._exit(0)


def _end(child: tuple[int, int]) -> str:
    with os.fdopen(child[1], "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(child[0], 0)
    return said or (f"a process ended with {status}" if status else "")


def _merge(base: Path, name: str, ratio: float, ready: int) -> None:
    desk = desk_at(base)
    os.read(ready, 1)
    done = merged(desk, name=name, ratios=(ratio, 0.5))
    if not done["entry"]:
        raise Problem("lost", f"no entry in the history: {done['warnings']}")


class _Stop(Exception):
    pass


def _read_until(stop: int, base: Path) -> None:
    """Read everything that others write, again and again, until this process is asked to end."""
    asked: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    os.close(stop)
    while not asked:
        for path in walk(base / "loras"):
            problem = read_facts(path)["problem"]
            if problem and path.exists():
                raise Problem("partial", f"{path.name} is broken: {problem}")
            try:
                with open_tensors(path) as file:
                    file.read_many(list(file.tensors))
            except MergeError as error:
                raise Problem("partial", f"{path.name} is broken: {error}") from error
        for path in (base / "loras").glob("*.json"):
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except ValueError as error:
                raise Problem("partial", f"{path.name} is broken: {error}") from error
            if not isinstance(fields, dict) or metadata.WRITTEN_KEY not in fields:
                raise Problem("partial", f"{path.name} is broken: {str(fields)[:100]}")
        archive = Archive(base / "data")
        entries = archive.history.list()
        warnings = archive.take_warnings()
        if warnings or any(entry.status == "broken" for entry in entries):
            raise Problem("partial", f"the history is broken: {warnings}")
        time.sleep(0.001)
