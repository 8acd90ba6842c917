"""The watch over a worker: starts it, counts what it tells, ends it when an input takes too much, and starts it anew."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.campaigns.harness import (
    KINDS,
    MOST_CPU,
    MOST_MEMORY,
    ROOT,
    SCRATCH,
    Campaign,
    Finding,
    NotHere,
    Place,
    drawn,
    keep_input,
    scratch,
)

# seconds on the clock after which an input hangs though it takes no processor, as one that waits for a lock
MOST_WAIT = 900.0
# environments that are made when a campaign asks for them
MADE = ("atheris",)
# seconds for a worker to begin, and for its last input and its end
PATIENCE = 900.0


@dataclass
class Tally:
    """What a campaign has come to; this is what `--resume` keeps."""

    next: int = 0
    aim: int = 0
    cpu: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    signatures: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_run: str = ""

    @property
    def inputs(self) -> int:
        """How many were tried."""
        return sum(self.outcomes.values())

    def add(self, found: Finding) -> None:
        """Note a finding."""
        self.findings[found.kind] += 1
        like = self.signatures.setdefault(
            found.signature,
            {"kind": found.kind, "number": found.number, "text": found.text.splitlines()[0], "count": 0},
        )
        like["count"] += 1

    def to_json(self) -> dict[str, Any]:
        """Return it for a file."""
        return vars(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        """Return what `to_json` gave."""
        return cls(**{**data, "outcomes": Counter(data["outcomes"]), "findings": Counter(data["findings"])})


def interpreter(world: str) -> str:
    """Return the Python of a test environment.

    Raises:
        NotHere: it was not made yet.
    """
    own = Path(sys.prefix)
    if own.name == world:
        return sys.executable
    python = own.parent / world / "bin" / "python"
    if not python.exists():
        python = ROOT / ".venvs" / world / "bin" / "python"
    if not python.exists() and world in MADE:
        python = _made(world)
    if not python.exists():
        raise NotHere(f"the environment .venvs/{world} is not there")
    return str(python)


def _made(world: str) -> Path:
    """Make an environment that no test needs; `.ci/environments.py` knows how."""
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        import environments
    finally:
        sys.path.pop(0)
    try:
        return environments.thin(ROOT / ".venvs" / world, f"{world}.txt")
    except environments.Failure as error:
        raise NotHere(str(error)) from error


def _as_here(kind: type[Campaign]) -> bool:
    """Tell whether a campaign's worker needs nothing that this process has not."""
    usual = kind.environment is Campaign.environment
    return usual and hasattr(os, "fork") and Path(interpreter(kind.world)) == Path(sys.executable)


class Forked:
    """A worker that is a copy of this process, and so begins with everything imported; like a Popen otherwise."""

    def __init__(self, work: Callable[[], None], err: IO[bytes], more: Mapping[str, str]):
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(writing, 1)
            os.dup2(err.fileno(), 2)
            os.environ.update(more)
            _work_and_end(work)
        os.close(writing)
        self.stdout = os.fdopen(reading, "rb", buffering=0)
        self.returncode: int | None = None

    def kill(self) -> None:
        """End it, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        until = time.monotonic() + timeout
        while self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
                self.stdout.close()
            elif time.monotonic() > until:
                raise subprocess.TimeoutExpired("a worker", timeout)
            else:
                time.sleep(0.01)


def _work_and_end(work: Callable[[], None]) -> typing.NoReturn:
    code = 1
    try:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)
        work()
        code = 0
    except BaseException:
        sys.stderr.write(traceback.format_exc())
        sys.stderr.flush()
    os._exit(code)


class Watch:
    """Runs one campaign for a time."""

    def __init__(
        self, kind: type[Campaign], seed: int, tally: Tally, save: Callable[[], None], inputs: int = 0
    ):
        """Take up a campaign where its tally ends; `inputs` more at most, 0 = as many as it aims at."""
        self.kind, self.seed, self.tally, self.save = kind, seed, tally, save
        self.stopped = False
        self._most = tally.next + inputs if inputs else 0

    def run(self, seconds: float) -> None:
        """Try inputs for so long, or until there are as many as the campaign aims at."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopped and not self._enough():
            if not self._one_worker(until):
                break
            self.save()
        self.save()

    def _enough(self) -> bool:
        return self.tally.next >= self._last()

    def _last(self) -> int:
        return self._most or self.tally.aim or 1 << 60

    def _one_worker(self, until: float) -> bool:
        """Run one process until it ends; False where another would not come further."""
        with tempfile.TemporaryDirectory(prefix="campaign-watch-") as folder, scratch() as memory:
            place = Place(Path(folder) / "place")
            errors = Path(folder) / "errors"
            more = {**self.kind.environment(Path(folder)), SCRATCH: str(memory)}
            with errors.open("wb") as err:
                process = self._start(Path(folder) / "place", err, more)
            begun, before = self.tally.next, self.tally.inputs
            ended = self._attend(process, place, until)
            number = place.get()[0]
            self.tally.next = max(self.tally.next, number + 1)
            if ended == "done":
                return False if number < begun and not self._enough() else not self._over(until)
            if number < begun:  # not even the first input
                text = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise NotHere(text[-1] if text else f"the worker ended with {process.returncode}")
            untold = number - begun - (self.tally.inputs - before) + (not ended)
            if untold > 0:
                self.tally.outcomes["ended well, no more is known"] += untold
            if ended:
                self._count_lost(number, ended, errors, Path(folder) / "place")
        return True

    def _over(self, until: float) -> bool:
        return self.stopped or time.monotonic() >= until or self._enough()

    def _start(self, place: Path, err: Any, more: dict[str, str]) -> subprocess.Popen[bytes] | Forked:
        if _as_here(self.kind):
            numbers = iter(range(self.tally.next, self._last()))
            return Forked(lambda: self.kind.work(self.seed, numbers, Place(place), place), err, more)
        return subprocess.Popen(
            [
                *(interpreter(self.kind.world), "-m", "tests.campaigns", "--worker", self.kind.name),
                *(
                    "--seed",
                    str(self.seed),
                    "--from",
                    str(self.tally.next),
                    "--to",
                    str(self._last()),
                    "--place",
                    str(place),
                ),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=err,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **more},
        )

    def _attend(self, process: subprocess.Popen[bytes] | Forked, place: Place, until: float) -> str:
        """Read what a worker tells until it ends; return "done", "" where it ended to be renewed, or why it was ended."""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        began, rest, why, saved = time.monotonic(), b"", "", time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(0.25):
                    data = process.stdout.read()
                    if data == b"":
                        break
                    rest = self._hear(rest + (data or b""))
                if time.monotonic() - saved > 10:
                    self.tally.next = max(self.tally.next, place.get()[0])
                    self.save()
                    saved = time.monotonic()
                if time.monotonic() > until or self.stopped or place.get()[0] + 1 >= self._last():
                    place.stop()
                why = why or self._too_much(process, place, began)
                if why:
                    process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        self._hear(rest)
        if why:
            return why
        if self._finished:
            return "done"
        return "" if process.returncode == 0 else f"the process ended with {process.returncode}"

    _finished = False

    def _hear(self, data: bytes) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                self.tally.aim, self._finished = message["aim"], False
            if "finding" in message:
                self.tally.add(Finding(**message["finding"]))
            self.tally.outcomes.update(message.get("outcomes", {}))
            self._finished = self._finished or "done" in message
        return rest

    def _too_much(self, process: subprocess.Popen[bytes] | Forked, place: Place, began: float) -> str:
        number, cpu, clock = place.get()
        now = time.monotonic()
        used, memory = _usage(process.pid)
        self.tally.cpu = max(self.tally.cpu, used)
        if number < 0:
            return "it did not begin" if now - began > PATIENCE else ""
        most = self.kind.__dict__.get("most_cpu", MOST_CPU)
        if used - cpu > most:
            return f"hang: more than {most:g} s of processor"
        if now - clock > max(MOST_WAIT, 4 * most):
            return f"hang: more than {max(MOST_WAIT, 4 * most):g} s on the clock"
        return "memory: more than 4 GB" if memory > 4 * MOST_MEMORY else ""

    def _count_lost(self, number: int, why: str, errors: Path, place: Path) -> None:
        """Note the input at which a worker was ended or died, and keep it."""
        kind = why.partition(":")[0] if why.partition(":")[0] in KINDS else "traceback"
        tail = errors.read_text(encoding="utf-8", errors="replace")[-2000:]
        found = Finding(number, kind, f"{kind} {why}", f"{why}\n{tail}")
        self.tally.outcomes[kind] += 1
        self.tally.add(found)
        inputs = self.kind.recovered(place)
        if inputs is None:
            with scratch() as folder:
                inputs = self.kind(folder).make(number, drawn(self.kind, self.seed, number))
        keep_input(self.kind, self.seed, found, inputs)


def _usage(process: int) -> tuple[float, int]:
    """Return the seconds of processor and the bytes of memory of a process, as Linux tells them."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    tick = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / tick, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def table(tallies: dict[str, Tally]) -> str:
    """Return what came out, in Markdown."""
    lines = [
        "| campaign | inputs | tracebacks | hangs > 10 CPU s | > 1 GB | partial outputs | lost | other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        if tally.not_run:
            lines.append(f"| {name} | not run: {tally.not_run} | | | | | | |")
            continue
        counts = " | ".join(str(tally.findings[kind]) for kind in KINDS)
        lines.append(f"| {name} | {tally.inputs:,} | {counts} |")
    return "\n".join(lines)


def details(tallies: dict[str, Tally]) -> str:
    """Return what came of the inputs, and every kind of finding once."""
    lines = []
    for name, tally in tallies.items():
        came = ", ".join(f"{count:,} {outcome}" for outcome, count in tally.outcomes.most_common(12))
        lines.append(f"{name}: {came or tally.not_run}")
        for like in sorted(tally.signatures.values(), key=lambda like: -like["count"])[:40]:
            lines.append(
                f"    {like['count']} × {like['kind']}: {like['text'][:200]}  (first: {like['number']})"
            )
    return "\n".join(lines)


def interruptible(watch: Callable[[], Watch | None]) -> None:
    """Let Ctrl+C and a request to end finish the input at hand and show the table."""

    def stop(number: int, frame: object) -> None:
        current = watch()
        if current is not None:
            current.stopped = True

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
