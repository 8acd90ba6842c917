"""The suite itself: lanes that share their files, and processes that are begun for a test."""

from __future__ import annotations

import functools
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest


def _session(folder, monkeypatch):
    """A process of pytest, which has a memory of its own; say of a file whether it runs there."""
    begun = functools.cache(conftest._begun_here.__wrapped__)

    def runs(name):
        monkeypatch.setattr(conftest, "_begun_here", begun)
        config = SimpleNamespace(getoption={"--share": folder}.get)
        return conftest.pytest_runtest_protocol(SimpleNamespace(config=config, path=Path(name))) is None

    return runs


def test_a_file_is_run_by_the_lane_that_comes_to_it_first_and_to_its_end(tmp_path, monkeypatch):
    one, other = _session(tmp_path, monkeypatch), _session(tmp_path, monkeypatch)
    assert [one("a.py"), other("a.py"), other("b.py"), one("b.py")] == [True, False, True, False]
    assert [one("a.py"), other("a.py"), other("b.py"), one("b.py")] == [True, False, True, False]
    alone = _session(None, monkeypatch)
    assert alone("a.py")
    assert alone("b.py")


@pytest.mark.slow
def test_processes_tell_how_they_ended(forked):
    assert forked("os._exit(arguments[0])", [[0], [3]]) == [0, 3]
    with pytest.raises(pytest.fail.Exception, match="KeyError: 'nowhere'"):
        forked("{}[arguments[0]]", [["nowhere"]])
    if sys.platform != "win32":
        assert forked("os.kill(os.getpid(), signal.SIGKILL)", [[]]) == [-signal.SIGKILL]
