"""Inputs led by coverage (atheris, libFuzzer): headers, pickles, recipes and the tab's set-up.

Runs in an environment of its own, made from `.ci/requirements/atheris.txt` when it is first asked for, and only where it
is asked for by name. What was found becomes a seed of the next run; seeds lie in `test-artefacts/campaigns/atheris/`.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import shutil
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.campaigns.harness import (
    ARTEFACTS,
    Campaign,
    Finding,
    Inputs,
    NotHere,
    Overheard,
    Place,
    Problem,
    Teller,
    finding,
    scratch,
    sentence,
)
from tests.campaigns.small_files import seeds, unpack

TARGETS = ("header", "pickle", "recipe", "state")
# seconds for one target before the next has its turn, in a process of its own
TURN = 60
# bytes of an input
MOST = 1 << 16
WORDS = (
    *("__metadata__", "dtype", "shape", "data_offsets", "F16", "BF16", "F8_E4M3", "lora_up.weight", "lora_down.weight", "alpha", "lora_A", "hada_w1_a", "lokr_w1"),
    *("format", "version", "sources", "ratio", "blocks", "elements", "te_ratio", "method", "knobs", "rank", "energy:0.9", "budget:1MB", "recipe", "weighted_sum", "ties"),
    *("key", "on", "group", "groups", "mode", "value", "output", "template", "preview", "1e999", "NaN", "Infinity", "null", "true", "-0", "\\\\ud800"),
    *("torch._utils", "_rebuild_tensor_v2", "FloatStorage", "collections", "OrderedDict", "storage", "cpu"),
)  # fmt: skip


class Atheris(Campaign):
    """See the module."""

    name = "atheris"
    world = "atheris"

    @classmethod
    def work(cls, seed: int, numbers: Iterator[int], place: Place, path: Path) -> None:
        """Try inputs of one target until its turn is over; see `harness.work`."""
        first = next(iter(numbers))
        turn_file = ARTEFACTS / cls.name / "turn"
        turn_file.parent.mkdir(parents=True, exist_ok=True)
        turn = int(turn_file.read_text()) if turn_file.exists() else 0
        turn_file.write_text(str(turn + 1))
        Guided(seed, first, place, path, TARGETS[turn % len(TARGETS)]).run()

    @classmethod
    def recovered(cls, path: Path) -> Inputs | None:
        """Return the input at which a process was ended, from where it was noted."""
        beside = path.with_name("input")
        data = beside.read_bytes() if beside.exists() else b""
        return {"input": data[8 : 8 + struct.unpack("<Q", data[:8])[0]]} if data else {}


class Guided:
    """One process under libFuzzer."""

    def __init__(self, seed: int, first: int, place: Place, path: Path, target: str):
        self._seed, self._number, self._place, self._target = seed, first, place, target
        beside = path.with_name("input")
        beside.write_bytes(bytes(8 + MOST))
        with beside.open("r+b") as file:
            self._last = mmap.mmap(file.fileno(), 8 + MOST)

    def run(self) -> None:
        """Let libFuzzer make inputs; does not return."""
        try:
            import atheris
        except ImportError as error:
            raise NotHere("atheris is not in this environment") from error
        self._teller = Teller(Atheris, self._seed)
        with scratch() as folder, Overheard() as self._overheard:
            with atheris.instrument_imports(include=["lib_merge"], enable_loader_override=False):
                self._attempt = _target(self._target, folder)
            corpus = ARTEFACTS / Atheris.name / "corpus" / self._target
            corpus.mkdir(parents=True, exist_ok=True)
            for number, data in enumerate(_seeds(self._target)):
                (corpus / f"seed-{number}").write_bytes(data)
            words = folder / "words"
            words.write_text("".join(f'"{word}"\n' for word in WORDS))
            self._corpus, self._folder, self._until = corpus, folder, time.monotonic() + TURN
            self._teller.say(ready=True, aim=0)
            given = [
                sys.argv[0],
                str(corpus),
                f"-dict={words}",
                f"-max_len={MOST}",
                f"-seed={self._seed + self._number + 1}",
                "-timeout=0",
                "-rss_limit_mb=0",
                # a process that dies says where in Python, instead of libFuzzer's exit 77 and a native stack
                *(f"-handle_{signal}=0" for signal in ("segv", "bus", "abrt", "ill", "fpe")),
            ]
            faulthandler.enable()
            atheris.Setup(
                [*given, f"-artifact_prefix={corpus}/", "-verbosity=0", "-print_final_stats=0"], self._whole
            )
            atheris.Fuzz()

    def _whole(self, data: bytes) -> None:
        """Try an input; a fault of the campaign's own ends it with its traceback: libFuzzer would say 77 alone."""
        try:
            self._one(data)
        except BaseException:
            sys.stderr.write(traceback.format_exc())
            sys.stderr.flush()
            os._exit(1)

    def _one(self, data: bytes) -> None:
        going_on = self._place.set(self._number)
        if not going_on or time.monotonic() > self._until:
            self._teller.flush(**({} if going_on else {"done": True}))
            shutil.rmtree(self._folder, ignore_errors=True)
            os._exit(0)
        self._last[: 8 + len(data)] = struct.pack("<Q", len(data)) + data
        outcome, found = self._tried(data)
        if found is not None:
            (self._corpus / f"found-{abs(hash(found.signature)) % 10**8}").write_bytes(data)
        self._teller.tell(f"{self._target} {outcome}", found, {"input": data})
        self._number += 1

    def _tried(self, data: bytes) -> tuple[str, Finding | None]:
        self._overheard.heard.clear()
        try:
            outcome = self._attempt(data)
        except Problem as problem:
            return problem.kind, finding(self._number, problem.kind, problem)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return "traceback", finding(self._number, "traceback", error)
        heard = self._overheard.heard
        return outcome, finding(self._number, "traceback", heard[0]) if heard else None


def _target(name: str, folder: Path) -> Callable[[bytes], str]:
    """Return what is tried; imported here, so that libFuzzer sees what it does."""
    from lib_merge.adapters import open_lora
    from lib_merge.errors import MergeError
    from lib_merge.files.pickles import read_pickle
    from lib_merge.recipe import loads
    from lib_merge.ui.state import tab_state, to_recipe

    path = folder / ("x.pt" if name == "pickle" else "x.safetensors")

    def header(data: bytes) -> None:
        path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(4096))
        open_lora(path).close()
        if len(data) > 16:
            path.write_bytes(data)
            open_lora(path).close()

    def pickle(data: bytes) -> None:
        path.write_bytes(data)
        read_pickle(path)

    def recipe(data: bytes) -> None:
        made = loads(data.decode("utf-8", "replace"), "x.json")
        made.check()
        loads(made.dumps())

    def state(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        to_recipe(tab_state(value), lambda key: path)

    path.write_bytes(b"")
    work = {"header": header, "pickle": pickle, "recipe": recipe, "state": state}[name]

    def attempt(data: bytes) -> str:
        try:
            work(data)
        except MergeError as error:
            sentence(error)
            return "refused"
        return "read"

    return attempt


def _seeds(name: str) -> list[bytes]:
    if name == "header":
        return [unpack(raw)[0] for raw in seeds()[:25]]
    if name == "pickle":
        from tests.campaigns.pickled import _saved

        return [data for data in _saved() if len(data) < MOST]
    from tests.campaigns import documents

    if name == "recipe":
        return [json.dumps(one).encode() for one in documents.recipes()]
    asked = documents.requests("000001-0123abcd")
    return [json.dumps(one["state"]).encode() for one in asked if "state" in one]
