"""`python -m tests.walks`: how far a person must walk through the code to follow one thing that it does.

Each thing is done in a process of its own, and every call of a function of lib_merge is noted:

    merge          two LoRAs are merged from the command line
    slider         a ratio is moved in the tab, which asks what would come out; the second time
    analysis       the analysis of those two, nothing measured yet
    in the tab     the same, asked for by the tab and fetched part by part
    after a move   the same, after a ratio was moved: what was measured is known

files   in which a function began. What runs while a module is imported, and a class's body, does not count
hops    distinct ordered pairs (file, file entered next) along the calls of each thread, as one turns the pages
        who follows it; the first file of a thread is a hop from outside. Version 0.1 (commit 74da6da) had 49
        files and 174 hops in a merge, 32 and 87 for a slider, 62 and 271 in an analysis. One or two hops are
        chance: which thread takes which module, and the order of sets (fixed here)
arrows  distinct ordered pairs (file, other file) in which a function of the one called one of the other
opened  how often a .safetensors file was opened, and so its header read, meanwhile
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from lib_merge.samples import write_samples

ROOT = Path(__file__).parents[1]
OWN = str(ROOT / "lib_merge") + os.sep

# ---------------------------------------------------------------- what is walked: all that differs by version

NAMES = ("sample-ink-style", "sample-mira-character")


def merge(folder):
    """Return a merge from the command line, as a function."""
    from lib_merge.cli import main

    files = [str(path) for path in write_samples(folder)][: len(NAMES)]
    typed = [
        "merge",
        "--models",
        *files,
        "--ratios",
        "0.6",
        "0.4",
        "--save_to",
        str(folder / "out.safetensors"),
    ]
    return lambda: _check(main(typed) == 0)


def slider(folder):
    """Return what the browser asks when a slider has moved, asked before for another place of it."""
    ask = _tab(folder)
    _check(ask({"op": "plan", "state": _state(0.5)})["ok"])
    return lambda: _check(ask({"op": "plan", "state": _state(0.6)})["ok"])


def analysis(folder):
    """Return the whole analysis without the tab."""
    from lib_merge.analysis import analyze_steps
    from lib_merge.engine.threads import Job
    from lib_merge.recipe import Recipe, Source

    files = write_samples(folder)
    sources = (Source(path=path, name=path.name, ratio=ratio) for path, ratio in zip(files, (0.6, 0.4)))
    recipe = Recipe(tuple(sources))
    return lambda: _check([*analyze_steps(recipe, job=Job(drop_unsupported=True))])


def in_the_tab(folder):
    """Return the analysis as the browser asks for it."""
    ask = _tab(folder)
    return lambda: _analysed(ask, 0.6)


def after_a_move(folder):
    """Return the analysis as the browser asks for it when a slider has moved."""
    ask = _tab(folder)
    _analysed(ask, 0.5)
    return lambda: _analysed(ask, 0.6)


def _tab(folder):
    """Return the tab's server side over a folder of LoRAs, its list read, as a function request -> reply."""
    from lib_merge.ui.operations import open_desk
    from tests.test_tab_server import Host

    host = Host(folder)
    write_samples(host.folder)
    desk = open_desk(host)
    desk.library.refresh(wait=True)
    return lambda request: json.loads(desk.handle(json.dumps({**request, "token": desk.token})))


def _state(ratio):
    rows = [{"key": f"0/{name}.safetensors", "ratio": x, "on": True} for name, x in zip(NAMES, (ratio, 0.4))]
    return {"sources": rows, "method": "weighted_sum", "output": {"template": "out"}}


def _analysed(ask, ratio):
    """Start the analysis and fetch what has grown, as the browser does, until all of it is there."""
    reply = ask({"op": "analyze", "state": _state(ratio)})
    job, have = reply["job"], ""
    while reply["ok"] and reply["state"] in ("waiting", "running"):
        time.sleep(0.02)
        reply = ask({"op": "analysis", "job": job, "have": have})
        have = reply.get("report", {}).get("stage", have)
    _check(reply["ok"] and reply["state"] == "done")


WALKS = {
    "merge": merge,
    "slider": slider,
    "analysis": analysis,
    "in the tab": in_the_tab,
    "after a move": after_a_move,
}

# ---------------------------------------------------------------- noting it


class Walk:
    """Notes calls, in this thread and in all that start later, while it is entered."""

    def __init__(self):
        self.on, self.opened = False, 0
        self.files, self.hops, self.arrows = set(), set(), set()
        self.last = {}
        sys.addaudithook(self._audit)
        threading.setprofile(self._call)
        sys.setprofile(self._call)

    def _call(self, frame, event, _):
        if event != "call" or not self.on or not _is_ours(frame.f_code):
            return
        file, thread = frame.f_code.co_filename, threading.get_ident()
        self.files.add(file)
        if self.last.get(thread, "") != file:
            self.hops.add((self.last.get(thread, ""), file))
            self.last[thread] = file
        caller = frame.f_back.f_code.co_filename if frame.f_back is not None else ""
        if caller.startswith(OWN) and caller != file:
            self.arrows.add((caller, file))

    def _audit(self, event, arguments):
        if self.on and event == "open" and str(arguments[0]).endswith(".safetensors"):
            self.opened += 1

    def __enter__(self):
        self.on = True
        return self

    def __exit__(self, *_):
        self.on = False


def _is_ours(code):
    """A function of lib_merge; the body of a module or a class is none."""
    return code.co_filename.startswith(OWN) and bool(code.co_flags & inspect.CO_OPTIMIZED)


def _check(fine):
    if not fine:
        sys.exit("what was to be walked went wrong")


def walk(name, folder):
    noted = Walk()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work = WALKS[name](folder)
        with noted:
            work()
    return noted


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="also the files, and where each one's calls lead")
    parser.add_argument("--one", choices=WALKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_measured(given.one)))
        return
    print("| walk | files | hops | arrows | opened |\n|---|---|---|---|---|")
    for name in WALKS:
        command = [sys.executable, "-m", "tests.walks", "--one", name]
        fixed = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, cwd=ROOT, env=fixed, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        figures = (len(found["files"]), found["hops"], len(found["arrows"]), found["opened"])
        print(f"| {name} | {' | '.join(map(str, figures))} |", flush=True)
        for file in found["files"] if given.list else ():
            print(f"    {file} → {', '.join(there for here, there in found['arrows'] if here == file)}")


def _measured(name):
    with tempfile.TemporaryDirectory() as folder:
        noted = walk(name, Path(folder))
    arrows = sorted([Path(file).relative_to(OWN).as_posix() for file in pair] for pair in noted.arrows)
    files = sorted(Path(file).relative_to(OWN).as_posix() for file in noted.files)
    return {"files": files, "hops": len(noted.hops), "arrows": arrows, "opened": noted.opened}


if __name__ == "__main__":
    main()
