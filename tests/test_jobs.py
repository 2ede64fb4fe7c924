"""The pool of long jobs: every way in which one can end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dcpnas_lite.__main__ import main
from dcpnas_lite.engine import jobs
from dcpnas_lite.evaluation.build import build
from dcpnas_lite.evaluation.table import Recipe
from dcpnas_lite.evaluation.training import TrainConfig

_prepared: list = []


def prepare(value: int) -> list:
    _prepared.append(value)
    if value < 0:
        raise ValueError("prepare: expected a number of at least 0, got\none below")
    return _prepared


def work(job, prepared=()):
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
        Path(value).write_text(str(os.getpid()))
        while not jobs.stopping():
            time.sleep(0.01)
        Path(value).unlink()
        return "saved"
    if kind == "hold":
        name, gate = value
        with open(gate / name, "a") as file:
            file.write(f"{os.getpid()}\n")
        while not (gate / "open").exists():
            time.sleep(0.01)
    if kind == "sleep":
        time.sleep(value)
    if kind == "environment":
        return os.environ.get(value)
    return os.getpid(), prepared


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_job_has_its_result_and_the_workers_are_gone():
    wanted = [("square", k) for k in range(9)]
    found = dict(jobs.run(iter(wanted), work, 2, partial(prepare, 7)))
    assert set(found) == set(wanted)
    pids = {pid for pid, _ in found.values()}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids and not any(map(alive, pids))
    assert all(prepared == [7] for _, prepared in found.values())
    assert list(jobs.run([], work, 1)) == []


def test_a_worker_has_the_environment_of_its_run(monkeypatch):
    """Also where the server that makes the workers is older."""
    job = ("environment", "DCPNAS_DATA")
    for value in ("first", "second"):
        monkeypatch.setenv("DCPNAS_DATA", value)
        assert list(jobs.run([job], work, 1)) == [(job, value)]
    monkeypatch.delenv("DCPNAS_DATA")
    assert list(jobs.run([job], work, 1)) == [(job, None)]


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


def test_a_preparation_that_fails_says_why(capfd):
    with pytest.raises(ValueError, match="prepare: expected a number of at least 0"):
        list(jobs.run([("square", 0)] * 3, work, 1, partial(prepare, -1)))
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


# A Dask cluster


@contextlib.contextmanager
def cluster_of_two():
    """The address of a scheduler with two worker processes that nobody starts again."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, protocol="tcp", dashboard_address=":0") as cluster:
        command = [sys.executable, "-m", "dask", "worker", "--no-nanny", "--nthreads=1", "--no-dashboard"]
        places = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        command.append(cluster.scheduler_address)
        workers = [subprocess.Popen(command, env=places, stderr=subprocess.DEVNULL) for _ in range(2)]
        try:
            until(lambda: len(cluster.scheduler.workers) == 2)
            yield cluster.scheduler_address
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


@pytest.fixture(scope="module")
def scheduler():
    with cluster_of_two() as address:
        yield address


@pytest.fixture
def mortal():
    """As `scheduler`, for one test, which may kill a worker."""
    with cluster_of_two() as address:
        yield address


def until(condition) -> None:
    ends = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_cluster_prepares_once_in_each_worker_and_once_more_for_another_run(scheduler):
    wanted = [("square", k) for k in range(9)]
    for value in (7, 8):
        found = list(jobs.run(iter(wanted), work, 0, partial(prepare, value), scheduler=scheduler))
        assert sorted(job for job, _ in found) == wanted
        assert all(pid != os.getpid() and made.count(value) == 1 and made[-1] == value for _, (pid, made) in found)


def test_a_job_of_a_killed_worker_is_done_by_another_and_nothing_twice(mortal, tmp_path):
    def pids(name):
        return (tmp_path / name).read_text().split() if (tmp_path / name).exists() else []

    def kill():
        until(lambda: pids("a") and pids("b"))
        os.kill(int(pids("a")[0]), signal.SIGKILL)
        (tmp_path / "open").touch()

    wanted = [("square", 0), *(("hold", (name, tmp_path)) for name in "abcd")]
    thread = threading.Thread(target=kill)
    thread.start()
    found = list(jobs.run(wanted, work, 0, scheduler=mortal))
    thread.join()
    assert sorted(map(str, (job for job, _ in found))) == sorted(map(str, wanted))
    by = {job[1][0]: pid for job, (pid, _) in found if job[0] == "hold"}
    first, second = pids("a")
    assert str(by["a"]) == second != first
    assert [len(pids(name)) for name in "bcd"] == [1, 1, 1]


@pytest.mark.parametrize("grace", [0, 60])
def test_ctrl_c_and_a_caller_that_leaves_stop_the_jobs_of_a_cluster(scheduler, tmp_path, grace):
    path, found = tmp_path / "begun", []

    def interrupt():
        until(path.exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match="^what is finished is kept$"):
        found.extend(result for _, result in jobs.run([("save", str(path))], work, 0, grace=grace, scheduler=scheduler))
    assert found == (["saved"] if grace else [])
    until(lambda: not path.exists())
    results = jobs.run([("square", 0), ("save", str(path))], work, 0, scheduler=scheduler)
    next(results)
    until(path.exists)
    results.close()
    until(lambda: not path.exists())


def test_a_job_that_fails_on_a_cluster_raises_its_own_error(scheduler):
    found = []
    with pytest.raises(FloatingPointError, match="^the loss is not finite$"):
        found.extend(jobs.run([("square", 0), ("fail", 0)], work, 0, scheduler=scheduler))
    assert [job for job, _ in found] == [("square", 0)]


def test_searches_of_seeds_on_a_cluster_of_which_one_worker_is_killed(mortal, tmp_path):
    sizes = "rounds=2", "steps=6", "warmup=0", "channels=2", "layers=1", "batch=8", "selection=strength"
    tiny = ["--quiet", *(f"--set={size}" for size in sizes)]
    out, whole = tmp_path / "all", tmp_path / "whole"
    killed = []

    def kill():
        until((out / "seed-1" / "checkpoint.npz").exists)
        _, pid, *_ = (out / "seed-1" / ".folder.lock").read_text().split()
        os.kill(int(pid), signal.SIGKILL)
        killed.append(int(pid))

    thread = threading.Thread(target=kill)
    thread.start()
    assert main(["search", "--seeds", "0-1", "--out", str(out), "--scheduler", mortal, *tiny]) == 0
    thread.join()
    assert killed and os.getpid() not in killed
    assert main(["search", "--seed", "1", "--out", str(whole), *tiny]) == 0
    with np.load(out / "seed-1" / "history.npz") as a, np.load(whole / "history.npz") as b:
        assert set(a) == set(b) and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)
    rows = (out / "searches.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["seed", "0", "1"]


def test_a_table_built_on_a_cluster(scheduler, tmp_path):
    recipe = Recipe("digits", {"size": 8}, TrainConfig(channels=2, layers=1, epochs=1, batch=512))
    tables = [build(recipe, 1, 1, tmp_path / name, cells=[5, 7], progress=False, scheduler=where)
              for name, where in (("a.csv", scheduler), ("b.csv", None))]  # fmt: skip
    there, here = (sorted(line.split(",")[:-2] for line in path.read_text().splitlines()[1:]) for path in tables)
    assert there == here and len(there) == 1 + 4


@pytest.mark.parametrize("command", [["search", "--seeds", "0", "--out", "new"], ["microbench", "build", "--out", "new/t.csv"]])
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "CONNECT", 0.3)
    for address, words in (("tcp://127.0.0.1:9", "127.0.0.1:9"), ("nonsense", "expected the address of a Dask scheduler")):
        assert main([*command, "--scheduler", address]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and words in error, error
    monkeypatch.setitem(sys.modules, "distributed.core", None)  # as on a machine without it
    assert main([*command, "--scheduler", "tcp://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "pip install 'dcpnas-lite[cluster]'" in error, error
    assert not list(tmp_path.iterdir())


def test_a_scheduler_without_workers_is_refused(capsys):
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, protocol="tcp", dashboard_address=":0") as cluster:
        with pytest.raises(ConnectionError, match="^scheduler: expected one with workers at tcp://.*, it has none$"):
            jobs.check(1, cluster.scheduler_address)
