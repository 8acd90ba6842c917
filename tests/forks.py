"""Processes for tests of what processes do to each other: forked from one that has everything imported.

Importing torch takes a process seconds and its work here milliseconds. Forked ones also begin together, where
others trickle in as their imports end. Where none can be forked, each is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_IMPORTS = """
import json, os, signal, sys, tempfile, traceback
from pathlib import Path
from lib_merge import Job, merge, metadata
from lib_merge.blocks import Preset, PresetStore
from lib_merge.files import store
from lib_merge.files.store import Temporary
from lib_merge.kept import database as databases
from lib_merge.kept.archive import Archive
"""
# {"code", "each": arguments of each child} comes in; the children of a task begin together; answered is, of each, its
# exit code and what it wrote to standard error
_FORKS = f"""
{_IMPORTS}
from tests.factories import NAMES, write_lora
a, b = (write_lora(f"{{sys.argv[1]}}/{{name}}.safetensors", names=NAMES[:2], conv=False) for name in "ab")
merge([a, b], save_to=f"{{sys.argv[1]}}/warm.safetensors", job=Job(side_car=False))
print("ready", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    reading, writing = os.pipe()
    children = []
    for arguments in task["each"]:
        said = tempfile.TemporaryFile(dir=sys.argv[1])
        child = os.fork()
        if child == 0:
            try:
                os.dup2(said.fileno(), 2)
                os.read(reading, 1)
                exec(task["code"], {{**globals(), "arguments": arguments}})
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append((child, said))
    os.write(writing, bytes(len(children)))
    ends = []
    for child, said in children:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with said:
            said.seek(0)
            ends.append((code, said.read().decode("utf-8", "replace")))
    os.close(reading)
    os.close(writing)
    print(json.dumps(ends), flush=True)
"""
Run = Callable[[str, Sequence[Sequence[Any]]], list[int]]


@contextmanager
def processes(folder: Path) -> Iterator[Run]:
    """Run a piece of code, given once, in a process for each list of `arguments`; give their exit codes.

    Args:
        folder: an empty one, for what the first process needs.
    """
    if not hasattr(os, "fork"):
        yield lambda code, each: _quiet(_begun_anew(textwrap.dedent(code), _plain(each)))
        return
    with subprocess.Popen(
        [sys.executable, "-c", _FORKS, str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as parent:  # fmt: skip

        def run(code: str, each: Sequence[Sequence[Any]]) -> list[int]:
            parent.stdin.write(json.dumps({"code": textwrap.dedent(code), "each": _plain(each)}) + "\n")
            parent.stdin.flush()
            return _quiet(json.loads(parent.stdout.readline()))

        assert parent.stdout.readline() == "ready\n"
        yield run
        parent.stdin.close()


def _plain(each: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [[str(one) if isinstance(one, Path) else one for one in arguments] for arguments in each]


def _begun_anew(code: str, each: Sequence[Sequence[Any]]) -> list[tuple[int, str]]:
    code = f"{_IMPORTS}\narguments = json.loads(sys.argv[1])\n{code}"
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for arguments in each
    ]
    return [(process.returncode, said) for process in begun for said in [process.communicate()[1]]]


def _quiet(ends: Sequence[tuple[int, str]]) -> list[int]:
    """Hold that nobody complained."""
    said = [text for _, text in ends if text]
    if said:
        pytest.fail("\n".join(said), pytrace=False)
    return [code for code, _ in ends]
