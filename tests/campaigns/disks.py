"""The disk at its worst, in the middle of everything that writes: the process is killed at any call that reaches the
disk or at any moment; or the disk is full at any such call, once or from then on.

Afterwards every LoRA is the old or the new one and whole, notes describe the file that they lie beside, the history can
be read, nothing that a person has is lost, nothing is listed that is not on the disk, and what was begun is swept.

The calls are counted and refused by a small library that stands before the C library's (`SHIM`), so that SQLite's
count, too; it is built when a campaign begins, which needs a C compiler.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib_merge import Job, metadata
from lib_merge.api import merge as merge_files
from lib_merge.blocks.store import PresetStore
from lib_merge.errors import MergeError
from lib_merge.files import store
from lib_merge.files.reader import open_tensors
from lib_merge.kept.archive import Archive
from lib_merge.library.recipes import RecipeBook
from lib_merge.recipe import loads
from lib_merge.ui.desk import Desk
from tests.campaigns.desks import desk_at, ended, furnish, merged, state
from tests.campaigns.harness import Campaign, Inputs, NotHere, Overheard, Problem, sentence
from tests.factories import write_lora

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
/* mode: 0 = kill, 1 = full once, 2 = full from then on, 3 = full only when it is asked to be sure */
static volatile long left = -1; static volatile int mode;
void arm(long at, int how) { mode = how; left = at; }
long armed(void) { return left; }
static int hit(int sure) {
    if (left < 0 || (sure ? mode == 1 || mode == 2 : mode == 3)) return 0;
    if (left > 0) { left--; return 0; }
    if (mode == 0) kill(getpid(), SIGKILL);
    if (mode != 2) left = -1;
    errno = ENOSPC;
    return 1;
}
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MADE(name, at, ...) \
    mode_t m = 0; if (flags & O_CREAT) { va_list a; va_start(a, flags); m = va_arg(a, mode_t); va_end(a); if (hit(0)) return -1; } \
    return REAL(name)(__VA_ARGS__, flags, m)
int open(const char *p, int flags, ...) { MADE(open, p, p); }
int open64(const char *p, int flags, ...) { MADE(open64, p, p); }
int openat(int d, const char *p, int flags, ...) { MADE(openat, p, d, p); }
ssize_t write(int f, const void *b, size_t n) { return hit(0) ? -1 : REAL(write)(f, b, n); }
ssize_t pwrite(int f, const void *b, size_t n, off_t o) { return hit(0) ? -1 : REAL(pwrite)(f, b, n, o); }
ssize_t pwrite64(int f, const void *b, size_t n, off64_t o) { return hit(0) ? -1 : REAL(pwrite64)(f, b, n, o); }
int mkdir(const char *p, mode_t m) { return hit(0) ? -1 : REAL(mkdir)(p, m); }
int rename(const char *a, const char *b) { return hit(0) ? -1 : REAL(rename)(a, b); }
int link(const char *a, const char *b) { return hit(0) ? -1 : REAL(link)(a, b); }
int fsync(int f) { return hit(1) ? -1 : REAL(fsync)(f); }
int fdatasync(int f) { return hit(1) ? -1 : REAL(fdatasync)(f); }
int unlink(const char *p) { if (mode == 0) hit(0); return REAL(unlink)(p); }
int ftruncate(int f, off_t n) { if (mode == 0) hit(0); return REAL(ftruncate)(f, n); }
int ftruncate64(int f, off64_t n) { if (mode == 0) hit(0); return REAL(ftruncate64)(f, n); }
"""
KILL, ONCE, FROM_THEN_ON, WHEN_SURE = 0, 1, 2, 3
_MANY = 1 << 40


def built(folder: Path) -> dict[str, str]:
    """Build the library and return the environment that has it loaded.

    Raises:
        NotHere: there is no compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None or not Path("/proc/self").exists():
        raise NotHere("it needs Linux and a C compiler")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    given = [compiler, "-O1", "-w", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(given, check=True, capture_output=True)
    return {"LD_PRELOAD": str(library)}


class Shim:
    """The library, in a process that has it loaded."""

    def __init__(self):
        self._library = ctypes.CDLL(None)
        try:
            self._library.armed.restype = ctypes.c_long
        except AttributeError as error:
            raise NotHere("the process was started without the library before the C library's") from error

    def arm(self, at: int, how: int) -> None:
        """Let the call of that number kill this process, or find the disk full."""
        self._library.arm(ctypes.c_long(at), how)

    def disarm(self) -> int:
        """Let all calls pass; return how many there were to come still, −1 where the one was reached."""
        left = int(self._library.armed())
        self._library.arm(ctypes.c_long(-1), 0)
        return left


# ------------------------------------------------------------------------------------------------ operations


def _merge(name: str, **fields: Any) -> Callable[[Desk], dict[str, Any]]:
    def work(desk: Desk) -> dict[str, Any]:
        reply = desk.handle_dict({"op": "merge", "state": state(name, (1.0, 2.0), **fields)})
        done = ended(desk, reply) if reply["ok"] else reply
        return {**done, "ok": done.get("state") == "done", "name": name}

    return work


def _plain_merge(desk: Desk) -> dict[str, Any]:
    loras = desk.host.lora_folders()[0]
    report = merge_files(
        [loras / "a.safetensors", loras / "sub" / "b.safetensors"],
        ratios=[1.0, 2.0],
        save_to=loras / "own.safetensors",
        job=Job(overwrite=True),
    )
    return {"ok": True, "result": {"warnings": report.warnings}, "name": "own"}


def _ask(op: str, **fields: Any) -> Callable[[Desk], dict[str, Any]]:
    def work(desk: Desk) -> dict[str, Any]:
        given = {name: value(desk) if callable(value) else value for name, value in fields.items()}
        return desk.handle_dict({"op": op, **given})

    return work


def _entry(name: str) -> Callable[[Desk], str]:
    return lambda desk: next(entry.id for entry in desk.history.list() if entry.name == name)


OPERATIONS: dict[str, Callable[[Desk], dict[str, Any]]] = {
    "merge into a new name": _merge("new", output={"notes": "why"}),
    "merge over an earlier merge": _merge("own"),
    "merge over a LoRA with notes": _merge("foreign"),
    "merge without the tab": _plain_merge,
    "rename": _ask("rename", entry=_entry("kept"), to="renamed"),
    "remove": _ask("remove", entry=_entry("kept")),
    "update the history": _ask("history_update", entry=_entry("kept"), notes="z" * 9000),
    "save a preset": _ask("preset_save", name="second", family="SD1", weights={"OUT03": 0.5}),
    "save a recipe": _ask("recipe_save", name="second", state=state()),
    "save over a recipe": _ask("recipe_save", name="mix", state=state(ratios=(0.1, 0.2)), overwrite=True),
    "remove a recipe": _ask("recipe_remove", name="mix"),
}  # fmt: skip
# what an operation may replace for good: what it made itself before, which its recipe makes again
REPLACED = {
    "merge over an earlier merge": {"own.safetensors", "own.json"},
    "merge without the tab": {"own.safetensors", "own.json"},
}


class Bench:
    """A folder that has everything, as often as it is wanted, and what each operation makes of it."""

    def __init__(self, folder: Path):
        self.template, self.base = folder / "template", folder / "base"
        self.shim = Shim()
        furnish(self.template)
        loras = self.template / "loras"
        write_lora(loras / "foreign.safetensors", seed=9)
        (loras / "foreign.json").write_text(
            json.dumps({"notes": "by a person", "activation text": "old words"})
        )
        (loras / "foreign.preview.png").write_bytes(b"\x89PNG a picture")
        desk = desk_at(self.template)
        for name in ("own", "kept"):
            merged(desk, name=name)
        (loras / "own.preview.png").write_bytes(b"\x89PNG of an earlier merge")
        for op in (
            {"op": "preset_save", "name": "first", "family": "SD1", "weights": {"IN04": 0.5}},
            {"op": "recipe_save", "name": "mix", "state": state()},
        ):
            assert desk.handle_dict(op)["ok"]
        self.reset()
        self.desk = desk_at(self.base)
        self.desk.history.list()
        self.before = everything(self.base)
        self.entries = {entry.id for entry in self.desk.history.list()}

    def reset(self) -> None:
        """Make the folder as it was at first."""
        shutil.rmtree(self.base, ignore_errors=True)
        shutil.copytree(self.template, self.base)

    def run(self, name: str, at: int, how: int, delay: float | None = None) -> dict[str, Any] | None:
        """Carry out an operation in a process of its own; return what it told, None where it was killed."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._child(name, at, how, writing)
        os.close(writing)
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return None
        return json.loads(told)

    def _child(self, name: str, at: int, how: int, writing: int) -> None:
        told: dict[str, Any] = {"ok": False}
        left = 0
        try:
            with Overheard() as overheard:
                self.shim.arm(at, how)
                try:
                    told = OPERATIONS[name](self.desk)
                except MergeError as error:
                    told = {"ok": False, "error": str(error)}
                left = self.shim.disarm()
                told = {key: told[key] for key in ("ok", "error", "result", "name") if key in told}
                told["heard"] = [f"{type(one).__name__}: {one}" for one in overheard.heard]
                told["listed"] = listed(self.desk)
        except BaseException as error:
            left = self.shim.disarm()
            told = {"ok": False, "heard": [f"{type(error).__name__}: {error}"]}
        told["left"] = left
        os.write(writing, json.dumps(told, default=str).encode())
        os._exit(0)

    def steps(self, name: str, how: int) -> tuple[int, float]:
        """Return how many calls an operation makes that can go wrong, and the seconds it takes."""
        self.reset()
        begun = time.monotonic()
        told = self.run(name, _MANY, how)
        assert told is not None
        assert told["ok"], (name, told)
        return _MANY - told["left"], time.monotonic() - begun

    # ---------------------------------------------------------------- what is there afterwards

    def check(self, name: str) -> None:
        """Hold what lies in the folder against what was there."""
        after = everything(self.base)
        self._whole(after)
        self._notes()
        replaced = REPLACED.get(name, set())
        kept = {
            data
            for path, data in self.before.items()
            if Path(path).name not in replaced and not _changes(path)
        }
        lost = [
            path for path, data in self.before.items() if data in kept and data not in set(after.values())
        ]
        if lost:
            raise Problem("lost", f"{name}: {', '.join(lost)}")
        self._kept(name, after)

    def _whole(self, after: dict[str, bytes]) -> None:
        for path, data in after.items():
            if path.endswith(".safetensors"):
                try:
                    with open_tensors(self.base / path) as file:
                        file.read_many(list(file.tensors))
                except MergeError as error:
                    raise Problem("partial", f"{path}: {error}") from error
            if path.startswith("loras") and path.endswith(".json"):
                try:
                    fields = json.loads(data)
                except ValueError as error:
                    raise Problem("partial", f"{path} is no JSON") from error
                if not isinstance(fields, dict):
                    raise Problem("partial", f"{path} holds no fields")

    def _notes(self) -> None:
        """Notes that a merge wrote describe the file beside them."""
        for path in (self.base / "loras").glob("*.json"):
            side = metadata.read_side_car(path)
            lora = path.with_suffix(".safetensors")
            if metadata.WRITTEN_KEY not in side:
                continue
            if not lora.exists():
                raise Problem("other", f"{path.name} describes a merge that is not there")
            with open_tensors(lora) as file:
                text = metadata.recipe_of(file.metadata)
            described = metadata.describe_recipe(loads(text)) if text else "a LoRA that is no merge"
            if side["description"] != described:
                raise Problem("other", f"{path.name} describes another merge than the one beside it")

    def _kept(self, name: str, after: dict[str, bytes]) -> None:
        archive = Archive(self.base / "data")
        entries = {entry.id: entry for entry in archive.history.list()}
        broken = [entry.id for entry in entries.values() if entry.status == "broken"]
        warnings = archive.take_warnings()
        if broken or warnings:
            raise Problem("lost", f"the history: {warnings or broken}")
        gone = self.entries - set(entries)
        thrown = any(path.startswith("data/trash") and path.endswith((".json", ".kept")) for path in after)
        if gone and not (name == "remove" and thrown):
            raise Problem("lost", f"{len(gone)} entries of the history")
        if PresetStore(self.base / "data" / "presets.json").get("first", "SD1") is None:
            raise Problem("lost", "a preset")
        recipe = RecipeBook(self.base / "data" / "recipes").get("mix")
        if recipe is None and name != "remove a recipe":
            raise Problem("lost", "a recipe")

    def sweep(self) -> None:
        """Let what was left behind grow old, and hold what the next sweep leaves."""
        folders = {path.parent for path in self.base.rglob("*")} | {self.base}
        for folder in folders:
            for path in folder.glob(".*"):
                os.utime(path, (0, 0))
            store.sweep(folder)
        left = [str(path.relative_to(self.base)) for path in self.base.rglob("*.merging")]
        if left:
            raise Problem("other", f"not swept: {', '.join(left)}")


def _changes(path: str) -> bool:
    """Tell whether a file changes in the course of things: stores, and recipes that are saved over."""
    return (
        path.startswith("data/") and path.endswith((".sqlite3", "presets.json", "recipes/mix.json"))
    ) or path.endswith("-journal")


def everything(base: Path) -> dict[str, bytes]:
    """Return path -> bytes of every file, locks and temporaries left out."""
    files = (path for path in sorted(base.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in files}


def listed(desk: Desk) -> dict[str, Any]:
    """Return what the tab lists."""
    desk.library.refresh(wait=True)
    return {
        "library": sorted(item.key for item in desk.library.items()),
        "history": sorted((entry.id, entry.name, entry.key, entry.notes) for entry in desk.history.list()),
        "presets": sorted(preset.name for preset in desk.presets.list()),
        "recipes": desk.book.names(),
    }


# ------------------------------------------------------------------------------------------------ campaigns


class Kills(Campaign):
    """A process is killed in the middle of an operation."""

    name = "kills"
    aim = 1000
    share = 1.5
    environment = staticmethod(built)

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._bench = Bench(folder)
        self._steps = {name: self._bench.steps(name, KILL) for name in OPERATIONS}
        self._count = 0

    def make(self, number: int, rng: random.Random) -> Inputs:
        names = list(OPERATIONS)
        name = names[number % len(names)] if rng.random() < 0.6 else rng.choice(names[:4])
        where = {"part": rng.random(), "by": "delay" if rng.random() < 0.25 else "step"}
        return {"kill.json": json.dumps({"operation": name, **where}).encode()}

    def attempt(self, inputs: Inputs) -> str:
        self._count += 1
        case = json.loads(inputs["kill.json"])
        steps, seconds = self._steps[case["operation"]]
        self._bench.reset()
        if case["by"] == "delay":
            told = self._bench.run(case["operation"], -1, KILL, delay=case["part"] * seconds)
        else:
            told = self._bench.run(case["operation"], int(case["part"] * (steps + 1)), KILL)
        self._bench.check(case["operation"])
        self._bench.sweep()
        if self._count % 20 == 0:
            again = self._bench.run("merge over an earlier merge", -1, KILL)
            if not again or not again["ok"]:
                raise Problem("other", f"after a kill no merge succeeds: {again}")
            left = [
                path.name
                for path in (self._bench.base / "loras").glob(".*")
                if path.name.startswith((".own", ".new")) and path.is_file()
            ]
            left += [path.name for path in (self._bench.base / "loras").glob("own.json*.bak")]
            if left:
                raise Problem("other", f"left beside the LoRAs: {left}")
        return f"{case['operation']}: {'killed' if told is None else 'ended before'}"


class FullDisk(Campaign):
    """The disk is full in the middle of an operation: every call of every operation, in three ways."""

    name = "full-disk"
    share = 1.0
    environment = staticmethod(built)

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._bench = Bench(folder)
        self._cases = [
            (name, how, at)
            for how in (ONCE, FROM_THEN_ON, WHEN_SURE)
            for name in OPERATIONS
            for at in range(self._bench.steps(name, how)[0])
        ]
        random.Random(1).shuffle(self._cases)
        self.aim = len(self._cases)

    def make(self, number: int, rng: random.Random) -> Inputs:
        name, how, at = self._cases[number % len(self._cases)]
        return {"full.json": json.dumps({"operation": name, "how": how, "at": at}).encode()}

    def attempt(self, inputs: Inputs) -> str:
        case = json.loads(inputs["full.json"])
        name = case["operation"]
        self._bench.reset()
        told = self._bench.run(name, case["at"], case["how"])
        if told is None:
            raise Problem("traceback", "the process died")
        if told.get("heard"):
            raise Problem("traceback", f"{name}: {told['heard'][0]}")
        self._bench.check(name)
        self._bench.sweep()
        there = listed(desk_at(self._bench.base))
        ahead = [
            what
            for what in there
            if there[what] != told["listed"][what]
            and json.loads(json.dumps(there[what])) != told["listed"][what]
        ]
        if ahead:
            raise Problem("other", f"{name}: the tab lists {ahead} that are not on the disk")
        if told["ok"]:
            if case["how"] == WHEN_SURE and told["left"] < 0 and not told.get("result", {}).get("warnings"):
                return f"{name}: done, the disk's word at the end unheard"
            return f"{name}: done all the same"
        error = str(told.get("error"))
        sentence(MergeError(error))
        # SQLite does not say why it could not make its journal
        return f"{name}: refused{'' if 'space' in error else ', for another reason'}"
