"""Merging beside a WebUI: waiting for its turn, a full GPU, cancelling, progress."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import torch

from lib_merge.engine.threads import Job, in_order
from lib_merge.errors import Cancelled
from lib_merge.ui import jobs as running
from lib_merge.ui.jobs import Jobs, Task
from tests.factories import dense_of, relative
from tests.test_tab_server import PAIR, _state, _wait, desk, host  # noqa: F401 - fixtures


def _until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# -------------------------------------------------------------------------------------------- the WebUI's turn


def test_a_merge_waits_for_the_generation_and_says_so(desk, host):  # noqa: F811
    lock = threading.Lock()
    host.busy_lock = lambda: lock
    with lock:
        job = desk.handle_dict({"op": "merge", "state": _state(*PAIR)})["job"]
        _until(lambda: desk.handle_dict({"op": "job", "job": job})["stage"] == "queue")
        assert desk.handle_dict({"op": "job", "job": job})["state"] == "running"
        assert not list(host.folder.rglob("out*"))
    assert _wait(desk, desk.handle_dict({"op": "job", "job": job}))["state"] == "done"
    assert (host.folder / "out.safetensors").is_file()
    assert lock.acquire(timeout=5), "the lock was not given back"


def test_waiting_is_cancelled_at_once_and_the_lock_stays_with_its_owner(desk, host):  # noqa: F811
    lock = threading.Lock()
    host.busy_lock = lambda: lock
    with lock:
        job = desk.handle_dict({"op": "merge", "state": _state(*PAIR)})["job"]
        _until(lambda: desk.handle_dict({"op": "job", "job": job})["stage"] == "queue")
        begun = time.monotonic()
        desk.handle_dict({"op": "cancel", "job": job})
        assert _wait(desk, desk.handle_dict({"op": "job", "job": job}))["state"] == "cancelled"
        assert time.monotonic() - begun < 1
        assert lock.locked()
    assert not list(host.folder.rglob("out*"))
    _until(lambda: lock.acquire(blocking=False))


def test_the_lock_is_given_back_when_the_work_fails():
    lock = threading.Lock()
    with contextlib.suppress(ZeroDivisionError), running.in_turn(lock, Task(1, "merge")):
        assert lock.locked()
        raise ZeroDivisionError
    assert not lock.locked()


def test_a_lock_that_cannot_be_taken_is_an_error_not_a_hang():
    class Broken(contextlib.AbstractContextManager):
        def __enter__(self):
            message = "no lock"
            raise OSError(message)

        def __exit__(self, *_):
            return False

    with pytest.raises(OSError, match="no lock"), running.in_turn(Broken(), Task(1, "merge")):
        pass


# -------------------------------------------------------------------------------------------- a full GPU


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("Could not allocate tensor. There is not enough GPU video memory available!"),
    ],
)
def test_a_full_gpu_falls_back_to_the_cpu_and_says_so(desk, host, monkeypatch, error):  # noqa: F811
    from lib_merge.ui import merging

    real, devices, freed = merging.api.run_recipe, [], []

    def full(recipe, target, *, job):
        devices.append(torch.device(job.device).type)
        if devices[-1] != "cpu":
            raise error
        return real(recipe, target, job=job)

    monkeypatch.setattr(merging.api, "run_recipe", full)
    monkeypatch.setattr(running, "give_back", lambda device: freed.append(device.type))
    host.device = lambda: torch.device("cuda")
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))
    assert done["state"] == "done", done
    assert devices == ["cuda", "cpu"]
    assert freed == ["cuda"]
    assert running.ON_CPU in done["result"]["warnings"]
    a, b = dense_of(host.folder / "a.safetensors"), dense_of(host.folder / "sub" / "b.safetensors")
    assert (
        relative(dense_of(host.folder / "out.safetensors"), {n: 0.6 * a[n] + 0.4 * b[n] for n in a}) <= 1e-3
    )


def test_other_errors_of_a_device_are_not_tried_again(desk, host, monkeypatch):  # noqa: F811
    from lib_merge.ui import merging

    tried = []

    def broken(recipe, target, *, job):
        tried.append(job.device)
        message = "an illegal memory access was encountered"
        raise RuntimeError(message)

    monkeypatch.setattr(merging.api, "run_recipe", broken)
    host.device = lambda: torch.device("cuda")
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": _state(*PAIR)}))
    assert done["state"] == "failed"
    assert "illegal memory access" in done["error"]
    assert len(tried) == 1


def test_memory_is_given_back_to_the_device(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("cuda"))
    running.give_back(torch.device("cpu"))
    assert asked == []
    running.give_back(torch.device("cuda"))
    assert asked == ["cuda"]
    running.give_back(torch.device("meta"))  # a device without a cache


# -------------------------------------------------------------------------------------------- progress and cancel


def test_progress_is_one_whole_and_never_goes_back():
    task = Task(1, "merge")
    task.progress("queue", 0, 0)
    assert task.left() is None
    seen = []
    for stage in ("survey", "merge", "verify"):
        for done in range(11):
            task.progress(stage, done, 10)
            seen.append(task.share)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert seen[10] < seen[20] < 1


def test_the_time_left_follows_the_speed():
    task = Task(1, "verify")
    task.progress("verify", 25, 100)
    task.working = time.monotonic() - 10
    assert task.left() == pytest.approx(30, rel=0.05)
    task.ended = time.monotonic()
    assert task.left() is None
    assert task.reply().left is None


def test_a_batch_of_slow_modules_stops_between_two_of_them():
    stop, worked = threading.Event(), []

    def slow(item):
        worked.append(item)
        stop.set()
        time.sleep(0.05)
        return item

    begun = time.monotonic()
    with pytest.raises(Cancelled):
        list(in_order(slow, list(range(64)), torch.device("cpu"), stop.is_set, 1))
    assert time.monotonic() - begun < 1
    assert len(worked) <= 2


@pytest.mark.slow
def test_a_dense_merge_of_real_size_is_cancelled_within_a_second(samples, tmp_path):
    from lib_merge.api import merge

    stop, asked = threading.Event(), []

    def progress(stage, done, total):
        if stage == "merge" and done >= 20 and not asked:
            asked.append(time.monotonic())
            stop.set()

    with pytest.raises(Cancelled):
        merge(
            samples[:2],
            save_to=tmp_path / "x.safetensors",
            method="ties",
            job=Job(progress=progress, cancelled=stop.is_set),
        )
    assert time.monotonic() - asked[0] < 1.5  # two cores may be shared with others; alone it is a third of it
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_waits_is_cancelled_at_once():
    jobs, gate = Jobs(), threading.Event()
    first = jobs.start("merge", lambda task: {"waited": gate.wait(20)})
    second = jobs.start("merge", lambda task: {})
    jobs.cancel(second.id)
    _until(lambda: second.ended)
    assert second.state == "cancelled"
    assert not first.ended
    gate.set()
    _until(lambda: first.ended)


def test_a_report_lets_every_other_job_go_first():
    jobs, gate, order = Jobs(), threading.Event(), []
    first = jobs.start("merge", lambda task: {"waited": gate.wait(20)})
    _until(lambda: first.state == "running")
    report = jobs.start("report", lambda task: order.append("report") or {})
    merges = [jobs.start("merge", lambda task: order.append("merge") or {}) for _ in range(3)]
    gate.set()
    _until(lambda: report.ended and all(merge.ended for merge in merges))
    assert order == ["merge"] * 3 + ["report"]


def test_a_stopped_job_before_its_turn_never_starts():
    jobs, gate, ran = Jobs(), threading.Event(), []
    first = jobs.start("merge", lambda task: {"waited": gate.wait(5)})
    second = jobs.start("merge", lambda task: ran.append(1) or {})
    jobs.cancel(second.id)
    gate.set()
    _until(lambda: first.ended and second.ended)
    assert second.state == "cancelled"
    assert not ran
