"""Long jobs in several processes: results as they come, nothing that hangs or outlives its parent. Owns no equation."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

_stopping = threading.Event()  # in a worker: whether the run is to end
_failed: list[Exception] = []  # in a worker: why its initializer failed


def stopping() -> bool:
    """In a job: whether it should save what it has and return, because the run was interrupted or its parent is gone."""
    return _stopping.is_set()


def check(workers: int) -> None:
    """ValueError for a number of processes that makes no sense on this machine."""
    most = 4 * (os.cpu_count() or 1)
    if not 1 <= workers <= most:
        raise ValueError(f"workers: expected 1 … {most} processes on this machine, got {workers}")


def run(
    jobs: Iterable,
    work: Callable,
    workers: int,
    initializer: Callable | None = None,
    initargs: tuple = (),
    grace: float = 0.0,
) -> Iterator[tuple]:
    """(job, work(job)) of every job as they come, from `workers` new processes that call initializer(*initargs) first.

    When a job fails or a worker dies, no further one begins; what is finished is still yielded, then the job's own exception or
    a RuntimeError is raised. After Ctrl-C a KeyboardInterrupt; the jobs under way then have `grace` seconds to return, if
    they ask `stopping()`. No worker outlives the loop or the calling process. ValueError as `check`.
    """
    check(workers)
    return _run(iter(jobs), work, workers, initializer, initargs, grace)


def _run(jobs, work, workers, initializer, initargs, grace) -> Iterator[tuple]:
    end, lifeline = multiprocessing.Pipe(duplex=False)  # closed here, by us or by our death, it ends the workers
    start = (end, grace, initializer, initargs)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, start)
    running, failure, begun = {}, None, 0
    with _interrupts() as interrupted, contextlib.closing(end), pool, contextlib.closing(lifeline):
        while True:
            if interrupted:
                lifeline.close()
            while not interrupted and failure is None and len(running) < workers:
                try:
                    job = next(jobs)
                    with _blocked():
                        running[pool.submit(_call, work, job)] = job
                        if (begun := begun + 1) <= workers:  # the pool looks after a new worker from the next call on
                            pool.submit(int).cancel()
                except StopIteration:
                    break
                except BrokenProcessPool as error:
                    failure = error
            if not running:
                break
            for future in wait(running, 0.2, FIRST_COMPLETED).done:
                job = running.pop(future)
                if error := future.exception():
                    failure = failure or error
                else:
                    yield job, future.result()
        if not interrupted and failure is None:
            pool.shutdown()  # before the lifeline is closed: the workers leave in peace
    if interrupted:
        raise KeyboardInterrupt("what is finished is kept")
    if isinstance(failure, BrokenProcessPool):
        raise RuntimeError("a worker process died (killed, or out of memory?); what is finished is kept") from None
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _interrupts() -> Iterator[list]:
    """A list that Ctrl-C makes true, instead of an exception in the middle of something."""
    found: list = []
    if threading.current_thread() is not threading.main_thread():  # never gets a signal
        yield found
        return
    old = signal.signal(signal.SIGINT, lambda *_: found.append(True))
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, old)


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


def _start(end, grace: float, initializer: Callable | None, initargs: tuple) -> None:
    """What a worker does first. A failure is kept for the first job to raise: the pool would print it and lose it."""

    def leave():
        multiprocessing.connection.wait([end, multiprocessing.parent_process().sentinel])
        _stopping.set()
        time.sleep(grace)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, of which a killed worker leaves a warning behind
    threading.Thread(target=leave, daemon=True).start()
    try:
        if initializer is not None:
            initializer(*initargs)
    except Exception as error:
        _failed.append(error)


def _call(work: Callable, job):
    if _failed:
        raise _failed[0]
    return work(job)
