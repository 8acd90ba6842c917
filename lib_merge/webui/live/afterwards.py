"""Removing a folder when this process has ended, however it ends.

The WebUIs end on Ctrl+C by `os._exit` and on SIGTERM by the system's default, and Windows ends a process
without telling it: nothing that is registered inside runs then, and a handler of ours would take the place of
theirs. So a small process waits outside until this one is gone.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

log = logging.getLogger("lib_merge")
# it is told the folder; the pipe at its stdin is closed by the system when the other process is gone
_WAIT = """
import os, shutil, signal, sys, time
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
sys.stdin.buffer.read()
for _ in range(50):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.1)
try:
    os.rmdir(os.path.dirname(sys.argv[1]))
except OSError:
    pass
"""


class Afterwards:
    """A process that removes a folder once this one is gone, and its parent if that is empty then."""

    def __init__(self, folder: Path) -> None:
        """Start it; where that is not possible the folder stays until the next start sweeps it."""
        folder = folder.resolve()  # it is not looked for from where this process stands
        self._process: subprocess.Popen[bytes] | None = None
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WAIT, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder.anchor,
                **options,
            )
        except (OSError, ValueError) as error:
            log.info("%s will stay until the next start: %s", folder, error)

    def now(self) -> None:
        """Let it end now."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired) as error:
            log.info("the process that sweeps live merges did not end: %s", error)
        self._process = None
