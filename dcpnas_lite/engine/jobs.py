"""Long jobs in several processes, of this machine or of a Dask cluster: results as they come, nothing that hangs or outlives
its parent. Owns no equation."""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from .interrupts import interrupts

CONNECT = 5  # seconds within which a scheduler answers
Results = Generator[tuple, None, None]  # (job, its result)
GONE = "the scheduler is gone; what is finished is kept"

_here = threading.local()  # in a worker: `run`, the number of the run whose job is under way; `wanted`, see `_call_on_cluster`
_stopped: set[str] = set()  # in a worker: runs that are to end
_prepared: dict[str, Any] = {}  # in a worker: run → what its `prepare` made
_preparing = threading.Lock()


def stopping() -> bool:
    """In a job: whether it should save what it has and return, because the run was interrupted or its parent is gone."""
    return getattr(_here, "run", None) in _stopped or not getattr(_here, "wanted", lambda: True)()


def check(workers: int, scheduler: str | None = None) -> None:
    """ValueError for a number of processes that makes no sense on this machine; ImportError without dask, ConnectionError
    where no Dask scheduler with a worker answers at the address `scheduler`."""
    if scheduler is not None:
        _check_cluster(scheduler)
        return
    most = 4 * (os.cpu_count() or 1)
    if not 1 <= workers <= most:
        raise ValueError(f"workers: expected 1 … {most} processes on this machine, got {workers}")


def run(
    jobs: Iterable,
    work: Callable,
    workers: int,
    prepare: Callable | None = None,
    grace: float = 0.0,
    scheduler: str | None = None,
) -> Results:
    """(job, work(job)) of every job as they come, from `workers` new processes.

    prepare: called once in each process; work(job, made) then gets what it made. scheduler: the address of a Dask scheduler,
    as `tcp://HOST:8786`; its workers do the jobs, one a thread, and `workers` says nothing. Where one of them dies, another does
    its job.

    When a job fails or a process of this machine dies, no further one begins; what is finished is still yielded, then the job's
    own exception or a RuntimeError is raised. After Ctrl-C a KeyboardInterrupt; the jobs under way then have `grace` seconds
    to return, if they ask `stopping()`. No process outlives the loop or the calling process. Raises as `check`.
    """
    check(workers, scheduler)
    number = secrets.token_hex(8)
    pool = _processes(number, workers) if scheduler is None else _cluster(number, scheduler)
    return _run(iter(jobs), work, prepare, grace, number, pool)


@dataclass
class _Pool:
    """An executor, how many jobs it does at a time, what makes `stopping()` true in them, and what ends them at once."""

    submit: Callable[..., Future]
    slots: Callable[[], int]
    stop: Callable[[], object]
    end: Callable[[], object]
    shutdown: Callable[[], object]


def _run(jobs: Iterator, work: Callable, prepare: Callable | None, grace: float, number: str, opened) -> Results:
    running: dict[Future, Any] = {}
    failure: BaseException | None = None
    deadline = math.inf
    with interrupts() as interrupted, opened as pool:
        while True:
            if interrupted and deadline == math.inf:
                deadline = time.monotonic() + grace
                if grace:
                    pool.stop()
            if late := time.monotonic() >= deadline:
                pool.end()
            slots = pool.slots()
            while not interrupted and failure is None and len(running) < slots:
                try:
                    job = next(jobs)
                    running[pool.submit(number, work, prepare, job)] = job
                except StopIteration:
                    break
                except BrokenProcessPool as broken:
                    failure = broken
            if not running:
                break
            for future in wait(running, 0.2, FIRST_COMPLETED).done:
                job = running.pop(future)
                if future.cancelled():
                    failure = failure or ConnectionError(GONE)
                elif error := future.exception():
                    failure = failure or error
                else:
                    yield job, future.result()
            if late:  # a cluster's future that ended while it was cancelled stays pending
                break
        if not interrupted and failure is None:
            pool.shutdown()  # the workers leave in peace
    if interrupted:
        raise KeyboardInterrupt("what is finished is kept")
    if isinstance(failure, BrokenProcessPool) or type(failure).__name__ == "KilledWorker":  # distributed's, after four of them
        raise RuntimeError("a worker process died (killed, or out of memory?); what is finished is kept") from None
    if failure is not None:
        raise failure


def _call(number: str, work: Callable, prepare: Callable | None, job):
    """A job, in a worker."""
    _here.run = number
    if prepare is None:
        return work(job)
    with _preparing:
        if number not in _prepared:
            _prepared.clear()  # those of earlier runs
            _prepared[number] = prepare()
        made = _prepared[number]
    return work(job, made)


# -- processes of this machine ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _processes(number: str, workers: int) -> Iterator[_Pool]:
    asked, ask = multiprocessing.Pipe(duplex=False)
    ended, end = multiprocessing.Pipe(duplex=False)  # both are closed by our death, too
    executor = ProcessPoolExecutor(workers, _context(), _watch, (number, dict(os.environ), asked, ended))
    begun = 0

    def submit(*call) -> Future:
        nonlocal begun
        with _blocked():
            future = executor.submit(_call, *call)
            if (begun := begun + 1) <= workers:  # the pool looks after a new worker from the next call on
                executor.submit(int).cancel()
        return future

    with contextlib.closing(asked), contextlib.closing(ended), executor, contextlib.closing(ask), contextlib.closing(end):
        yield _Pool(submit, lambda: workers, ask.close, end.close, executor.shutdown)


def _context():
    """New processes: of a server that has imported torch once for all of them, where that is safe, else from nothing. The package
    itself they import anew: it may have been modified."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo"])  # the second by the first optimizer of a process
    return context


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Processes started here get no Ctrl-C, which the terminal sends to all: their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _watch(number: str, environment: dict[str, str], asked, ended) -> None:
    """What a process does first: take its parent's environment (the server has an older one) and look after the parent."""
    os.environ.clear()
    os.environ.update(environment)

    def leave():
        if ended not in multiprocessing.connection.wait([asked, ended]):
            _stopped.add(number)
            multiprocessing.connection.wait([ended])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, of which a killed worker leaves a warning behind
    threading.Thread(target=leave, daemon=True).start()


# -- workers of a Dask cluster ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _cluster(number: str, address: str) -> Iterator[_Pool]:
    from distributed import Client

    with Client(address, timeout=CONNECT, set_as_default=False) as client:
        executor = client.get_executor(pure=False)

        def submit(*call) -> Future:
            return executor.submit(_call_on_cluster, *call)

        def slots() -> int:
            try:
                return max(1, sum(client.nthreads().values()))  # a worker that died comes back
            except OSError:
                raise ConnectionError(GONE) from None

        def stop() -> None:
            client.run(_stop, number)

        def end() -> None:
            executor.shutdown(wait=False)

        with contextlib.ExitStack() as stack:
            stack.callback(end)
            yield _Pool(submit, slots, stop, end, executor.shutdown)


def _check_cluster(address: str) -> None:
    """ImportError without dask, ConnectionError where no scheduler answers at that address or it has no worker."""
    try:
        from distributed.core import rpc
    except ImportError:
        raise ImportError("scheduler: it needs dask: pip install 'dcpnas-lite[cluster]'") from None

    async def workers() -> int:
        async with rpc(address, timeout=CONNECT) as scheduler:
            return len((await asyncio.wait_for(scheduler.identity(), CONNECT))["workers"])

    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has a loop already
            found = thread.submit(lambda: asyncio.run(workers())).result()
    except Exception as error:  # OSError, ValueError, MemoryError: it depends on what the address looks like and who answers
        why = str(error) or type(error).__name__
        raise ConnectionError(f"scheduler: expected the address of a Dask scheduler, got {address!r} ({why})") from None
    if found == 0:
        raise ConnectionError(f"scheduler: expected one with workers at {address}, it has none")


def _stop(number: str) -> None:
    _stopped.add(number)


def _call_on_cluster(*call):
    """A job in a thread of a Dask worker, which goes on when nobody wants its result any more: `stopping()` says so."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    _here.wanted = lambda: (task := worker.state.tasks.get(key)) is not None and task.state != "cancelled"
    return _call(*call)
