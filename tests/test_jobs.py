"""The pool of long jobs: every way in which one can end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from dcpnas_lite.engine import jobs

_started: list = []


def start(value: int) -> None:
    _started.append(value)
    if value < 0:
        raise ValueError("start: expected a number of at least 0, got\none below")


def work(job):
    """What the tests ask of a worker."""
    kind, value = job
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fail":
        raise FloatingPointError("the loss is not finite")
    if kind == "touch":
        Path(value).touch()
        time.sleep(60)
    if kind == "save":
        Path(value).touch()
        while not jobs.stopping():
            time.sleep(0.01)
        return "saved"
    if kind == "sleep":
        time.sleep(value)
    return os.getpid(), _started


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_job_has_its_result_and_the_workers_are_gone():
    wanted = [("square", k) for k in range(9)]
    found = dict(jobs.run(iter(wanted), work, 2, start, (7,)))
    assert set(found) == set(wanted)
    pids = {pid for pid, _ in found.values()}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids and not any(map(alive, pids))
    assert all(started == [7] for _, started in found.values())
    assert list(jobs.run([], work, 1)) == []


@pytest.mark.parametrize("workers", [0, -1, 100_000])
def test_a_senseless_number_of_workers_is_refused_at_once(workers):
    with pytest.raises(ValueError, match=f"^workers: expected 1 … .*, got {workers}$"):
        jobs.run([("square", 1)], work, workers)


def test_a_dead_worker_ends_the_run_after_what_was_finished():
    found, waiting = [], iter([("square", 0), ("square", 1), ("die", 0), ("square", 2)])
    with pytest.raises(RuntimeError, match="^a worker process died .*kept$"):
        found.extend(job for job, _ in jobs.run(waiting, work, 1))
    assert found == [("square", 0), ("square", 1)] and list(waiting) == [("square", 2)]
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="^a worker process died"):
        list(jobs.run([("sleep", 60), ("die", 0)], work, 2))
    assert time.monotonic() - began < 40


def test_a_job_that_fails_raises_its_own_error_after_those_under_way():
    found, waiting = [], iter([("fail", 0), ("square", 0)])
    with pytest.raises(FloatingPointError, match="^the loss is not finite$"):
        list(jobs.run(waiting, work, 1))
    assert list(waiting) == [("square", 0)]
    with pytest.raises(FloatingPointError, match="^the loss is not finite$"):
        found.extend(job for job, _ in jobs.run([("sleep", 1), ("fail", 0)], work, 2))
    assert found == [("sleep", 1)]


def test_an_initializer_that_fails_says_why(capfd):
    with pytest.raises(ValueError, match="start: expected a number of at least 0"):
        list(jobs.run([("square", 0)] * 3, work, 1, start, (-1,)))
    assert capfd.readouterr().err == ""


def test_leaving_the_loop_ends_the_workers():
    results = jobs.run([("square", 0), ("sleep", 60), ("sleep", 61)], work, 2)
    _, (pid, _) = next(results)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 20 and not alive(pid)


@pytest.mark.parametrize(("kind", "grace", "expected"), [("touch", 0, []), ("save", 30, ["saved"])])
def test_ctrl_c_stops_between_two_results(tmp_path, kind, grace, expected):
    path, found, caught = tmp_path / "begun", [], signal.getsignal(signal.SIGINT)

    def interrupt():
        while not path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="^what is finished is kept$"):
        found.extend(result for _, result in jobs.run([(kind, str(path))] * 5, work, 1, grace=grace))
    assert found == expected and time.monotonic() - began < 25 and signal.getsignal(signal.SIGINT) is caught
