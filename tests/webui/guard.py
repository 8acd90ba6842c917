"""Running a program no longer than the process that asked for it lives.

A WebUI that outlives its driver keeps gigabytes and its port. A driver that is killed does nothing at its end, so
this process stands between them: the system closes the pipe at its stdin when the driver is gone, however it ended.

    python guard.py COMMAND ...
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

PATIENCE = 30


def start(command, **options) -> subprocess.Popen:
    """Start a program that `stop` ends, and that ends by itself once this process is gone."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *command], stdin=subprocess.PIPE, **_apart(), **options
    )


def stop(guard: subprocess.Popen) -> None:
    """End the program with all that it started, and wait for that."""
    guard.stdin.close()
    try:
        guard.wait(2 * PATIENCE)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait(PATIENCE)


def _apart() -> dict:
    """Let what a terminal sends to the driver reach the driver alone."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _send(process, number) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _end(process) -> None:
    if os.name == "nt":
        tree = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(tree, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return
    _send(process, signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _send(process, signal.SIGKILL)


def _until_closed(process) -> None:
    while os.read(0, 1024):  # sys.stdin's lock, held here, would end the interpreter in a fault
        pass
    _end(process)


def main(command) -> int:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **_apart())
    threading.Thread(target=_until_closed, args=(process,), daemon=True).start()
    code = process.wait()
    if os.name != "nt":
        _send(process, signal.SIGKILL)  # what it started and left
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
