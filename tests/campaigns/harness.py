"""What every campaign shares: inputs by number, what counts as a finding, and the process in which they are tried.

The tried code runs in a worker, a process of its own; `watch.py` holds the watch over it. A worker writes one JSON
line for each finding and, twice a second, one with its counts; the number of the input at hand lies in a shared file,
so that the watch knows it even when the worker hangs or dies.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import re
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
ARTEFACTS = ROOT / "test-artefacts" / "campaigns"
# what one input may take
MOST_CPU, MOST_MEMORY = 10.0, 1 << 30
# where a worker's folders lie, as the watch takes them away when it has ended the worker
SCRATCH = "CAMPAIGN_SCRATCH"
KINDS = ("traceback", "hang", "memory", "partial", "lost", "other")
Inputs = Mapping[str, bytes]


class Problem(Exception):
    """A campaign saw what must not be; `kind` is one of `KINDS`."""

    def __init__(self, kind: str, says: str):
        super().__init__(says)
        self.kind = kind


class NotHere(Exception):
    """A campaign cannot run on this machine; the sentence says why."""


class Campaign:
    """One kind of attempt.

    name    how the command line calls it
    aim     inputs that count as enough; 0 = as many as there is time for
    share   of the time, beside the others
    world   the test environment it runs in
    """

    name = ""
    aim = 0
    share = 1.0
    world = "engine"

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self, number: int, rng: random.Random) -> Inputs:
        """Return an input as files, from nothing but the number and the random numbers."""
        raise NotImplementedError

    def attempt(self, inputs: Inputs) -> str:
        """Try an input and return in a word or two what came of it; raise `Problem`, or let an exception through."""
        raise NotImplementedError

    @classmethod
    def work(cls, seed: int, numbers: Iterator[int], place: Place, path: Path) -> None:
        """Try inputs in this process; see `work`."""
        del path
        work(cls, seed, numbers, place)

    @classmethod
    def recovered(cls, path: Path) -> Inputs | None:
        """Return the input at which a worker was ended, None where it can be made again; `path` is the place's."""
        return None

    @staticmethod
    def environment(folder: Path) -> dict[str, str]:
        """Return what the worker's environment must have besides; `folder` is there as long as the worker."""
        return {}

    def close(self) -> None:
        """Check what can only be seen at the end, and give back what was taken."""


def drawn(campaign: type[Campaign] | Campaign, seed: int, number: int) -> random.Random:
    """Return the random numbers of an input."""
    return random.Random(f"{campaign.name}:{seed}:{number}")


@dataclass(frozen=True)
class Finding:
    """What was found at an input; `signature` is equal for what is probably the same fault."""

    number: int
    kind: str
    signature: str
    text: str


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder that is gone afterwards; in memory where the system has such a place."""
    memory = Path(os.environ.get(SCRATCH, "/dev/shm"))
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="campaign-", dir=place) as folder:
        yield Path(folder)


# ------------------------------------------------------------------------------------------------ one input


class Overheard(logging.Handler):
    """Keeps exceptions that the program only logs, or that end one of its threads: they count like any other."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.heard: list[BaseException] = []
        self.deaf = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None and not self.deaf.is_set():
            self.heard.append(record.exc_info[1])

    def thread(self, args) -> None:
        self.heard.append(args.exc_value or args.exc_type())

    def __enter__(self):
        log = logging.getLogger("lib_merge")
        log.addHandler(self)
        self._before = log.propagate, threading.excepthook
        log.propagate, threading.excepthook = False, self.thread
        return self

    def __exit__(self, *error: object) -> None:
        log = logging.getLogger("lib_merge")
        log.removeHandler(self)
        log.propagate, threading.excepthook = self._before


def tried(
    campaign: Campaign, number: int, inputs: Inputs, overheard: Overheard
) -> tuple[str, Finding | None]:
    """Try one input; return what came of it, and what was found."""
    overheard.heard.clear()
    try:
        outcome = campaign.attempt(inputs)
    except Problem as problem:
        return problem.kind, finding(number, problem.kind, problem)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return "traceback", finding(number, "traceback", error)
    if overheard.heard:
        return "traceback", finding(number, "traceback", overheard.heard[0])
    return outcome, None


def finding(number: int, kind: str, error: BaseException) -> Finding:
    """Return what is noted of an exception: its last line, and the place in the program where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}lib_merge{os.sep}" in frame.filename]
    place = ours or frames
    where = f"{Path(place[-1].filename).name}:{place[-1].name}" if place else ""
    says = f"{type(error).__name__}: {error}" if not isinstance(error, Problem) else str(error)
    lines = [line for line in says.splitlines() if line.strip()]
    last = (lines[-1] if lines else says)[:300]
    signature = f"{kind} {where if kind == 'traceback' else ''} {_plain(last)}"
    text = "".join(traceback.format_exception(error)) if kind == "traceback" else says
    return Finding(number, kind, signature, f"{last}\n({where})\n\n{text[:20_000]}")


def _plain(text: str) -> str:
    """Return a message without what differs from input to input."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S*", "…", text)
    return re.sub(r"\d+", "#", text).encode("ascii", "backslashreplace").decode()[:120]


def sentence(error: BaseException, name: str = "") -> None:
    """Raise `Problem` unless an error of the program reads as one sentence.

    Args:
        error: a MergeError.
        name: what it must name.
    """
    said = str(error)
    if not said.strip():
        raise Problem("other", f"{type(error).__name__} says nothing")
    if any(not sign.isprintable() for sign in said):
        raise Problem("other", f"a message with control characters: {ascii(said)[:200]}")
    if len(said) > 5000:
        raise Problem("other", f"a message of more than 5,000 characters: {ascii(said)[:120]}")
    if name and name not in said:
        raise Problem("other", f"a message that does not name {name}: {ascii(said)[:200]}")


# ------------------------------------------------------------------------------------------------ a few, for the suite


def piece(kind: type[Campaign], folder: Path, numbers, seed: int = 1) -> tuple[Counter[str], list[Finding]]:
    """Try some inputs in this process; return what came of them and what was found."""
    outcomes: Counter[str] = Counter()
    found = []
    campaign = kind(folder)
    with Overheard() as overheard:
        try:
            for number in numbers:
                outcome, one = tried(
                    campaign, number, campaign.make(number, drawn(kind, seed, number)), overheard
                )
                outcomes[outcome] += 1
                found += [one] if one else []
        finally:
            campaign.close()
    return outcomes, found


# ------------------------------------------------------------------------------------------------ the worker


class Place:
    """The number of the input at hand, when it was begun, and whether to stop, in memory that two processes share."""

    # number, processor time, clock, and 1 where none is to begin any more: each written at once, and so never read by half
    FIELDS = 4

    def __init__(self, path: Path):
        if not path.exists():
            path.write_bytes(struct.pack("<4d", -1.0, 0.0, 0.0, 0.0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * self.FIELDS)
        self._fields = memoryview(self._map).cast("d")

    def set(self, number: int) -> bool:
        """Note that an input begins; False where none is to be begun any more."""
        self._fields[1], self._fields[2] = time.process_time(), time.monotonic()
        self._fields[0] = float(number)
        return not self._fields[3]

    def get(self) -> tuple[int, float, float]:
        """Return (number, the worker's processor time, the clock) when it began."""
        return int(self._fields[0]), self._fields[1], self._fields[2]

    def stop(self) -> None:
        """Let no other input begin."""
        self._fields[3] = 1.0


class Teller:
    """Writes a worker's lines, and keeps what was found."""

    def __init__(self, kind: type[Campaign], seed: int, keep: int = 3):
        self.kind, self.seed, self.keep = kind, seed, keep
        self.outcomes: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._told = time.monotonic()
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what the tried code prints does not go between our lines

    def say(self, **message: object) -> None:
        """Write a line."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def tell(self, outcome: str, found: Finding | None, inputs: Inputs) -> None:
        """Count what came of an input, and write it down now and then."""
        self.outcomes[outcome] += 1
        if found is not None:
            self._seen[found.signature] += 1
            if self._seen[found.signature] <= self.keep:
                keep_input(self.kind, self.seed, found, inputs)
            self.say(finding=vars(found))
        if time.monotonic() - self._told > 0.5 or (found is not None and found.kind == "memory"):
            self.flush()

    def flush(self, **more: object) -> None:
        """Write the counts since the last time."""
        self.say(outcomes=self.outcomes, **more)
        self.outcomes = Counter()
        self._told = time.monotonic()


def work(kind: type[Campaign], seed: int, numbers: Iterator[int], place: Place) -> None:
    """Try inputs until they end or the watch wants no more; stdout tells what came of them.

    Args:
        kind: the campaign.
        seed: of all random numbers.
        numbers: of the inputs.
        place: where the number at hand is noted.
    """
    warnings.simplefilter("ignore")
    teller = Teller(kind, seed)
    with scratch() as folder, Overheard() as overheard:
        campaign = kind(folder)
        teller.say(ready=True, aim=campaign.aim)
        before = peak = peak_memory()
        for number in numbers:
            if not place.set(number):
                break
            inputs = campaign.make(number, drawn(kind, seed, number))
            outcome, found = tried(campaign, number, inputs, overheard)
            if (now := peak_memory()) - max(before, peak - MOST_MEMORY // 2) > MOST_MEMORY:
                grown = f"it took {(now - before) / 1e9:.1f} GB, and came to: {outcome}"
                found = found or Finding(number, "memory", f"memory {outcome}", grown)
            teller.tell(outcome, found, inputs)
            if found is not None and found.kind == "memory":
                return  # the mark of the most memory does not go back: a fresh process goes on
            if number % 64 == 0:
                before = memory_now()
            peak = now
        try:
            campaign.close()
        except Exception as error:
            kind_of = error.kind if isinstance(error, Problem) else "traceback"
            teller.tell(kind_of, finding(place.get()[0], kind_of, error), {})
        teller.flush(done=True)


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had."""
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def memory_now() -> int:
    """Return the bytes of memory that this process has now."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else peak_memory()


def keep_input(kind: type[Campaign], seed: int, found: Finding, inputs: Inputs) -> Path:
    """Write an input, and what was found at it, where people look for it."""
    folder = ARTEFACTS / kind.name / f"{seed}-{found.number}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in inputs.items():
        (folder / name).write_bytes(data)
    (folder / "finding.txt").write_text(
        f"{found.kind}: {found.text}\n", encoding="utf-8", errors="backslashreplace"
    )
    return folder
