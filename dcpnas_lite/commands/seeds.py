"""search --seeds: one search per seed, each in a process of its own and a folder of its own, and a table of all."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from pathlib import Path

from .. import data, files
from ..engine.resume import fingerprint
from .folder import finished, read_summary
from .search import block_sigint, main, settings
from .shared import guarded, set_threads, sigint

MOST_SEEDS = 10_000


def run_seeds(args: argparse.Namespace) -> int:
    """One search per seed, each in a process of its own; SIGINT and SIGKILL end them all, and the same command goes on."""
    if args.workers < 1:
        raise ValueError(f"--workers: expected at least 1, got {args.workers}")
    set_threads(args.threads)
    wanted, waiting, done = parse_seeds(args.seeds), [], []
    images = fingerprint(data.load(args.data, args.root))  # where data are missing, one line says so, not one for each seed
    for seed in sorted(seed_folders(args.out).keys() | set(wanted)):  # those in the table all have the same settings
        job = argparse.Namespace(**vars(args) | {"seed": seed, "seeds": None, "quiet": True, "out": args.out / f"seed-{seed}"})
        if not finished(job.out, settings(job, images)[1]):
            waiting += [job] if seed in wanted else []
        elif seed in wanted:
            done.append(job)
    args.out.mkdir(parents=True, exist_ok=True)
    with files.lock(args.out):
        for job in done:
            print_seed(job.out)
        write_table(args.out)
        return run_jobs(args, waiting)


def parse_seeds(text: str) -> list[int]:
    """0-2,7 as [0, 1, 2, 7]."""
    seeds = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else True)) or (dash and int(low) > int(high)):
            raise ValueError(f"--seeds: expected numbers and ranges as in 0-9 or 0,3,5, got {text!r}")
        if int(high or low) - int(low) + len(seeds) >= MOST_SEEDS:
            raise ValueError(f"--seeds: expected at most {MOST_SEEDS:,} seeds, got {text!r}")
        seeds |= set(range(int(low), int(high or low) + 1))
    return sorted(seeds)


def seed_folders(out: Path) -> dict[int, Path]:
    """Seed → folder; a copy under another name is none of them."""
    names = {int(path.name[5:]): path for path in out.glob("seed-*") if path.name[5:].isdecimal() and path.is_dir()}
    return {seed: path for seed, path in names.items() if path.name == f"seed-{seed}"}


def run_jobs(args: argparse.Namespace, waiting: list[argparse.Namespace]) -> int:
    """The searches that are left, `args.workers` at a time."""
    running, stop, left, failed = {}, [], [], []
    context = multiprocessing.get_context("spawn")
    with sigint(lambda *_: stop.append(True)):
        while running or (waiting and not stop):
            while waiting and len(running) < args.workers and not stop:
                process = context.Process(target=search_in_worker, args=(waiting[0],))
                block_sigint(True)  # the worker inherits it: see search_into
                process.start()
                block_sigint(False)
                running[process] = waiting.pop(0)
            multiprocessing.connection.wait([process.sentinel for process in running], timeout=0.2)
            for process, job in list(running.items()):
                if process.exitcode is None:
                    if stop:
                        os.kill(process.pid, signal.SIGINT)
                    continue
                del running[process]
                if process.exitcode == 0:
                    write_table(args.out)
                    print_seed(job.out)
                else:
                    (left if process.exitcode in (130, -signal.SIGINT) else failed).append(job.seed)
    if failed:
        raise RuntimeError(f"failed: seeds {', '.join(map(str, failed))}; the same command tries them again")
    if left or waiting:
        print("stopped; the same command goes on from here")
        return 130
    print(f"written to {args.out}: searches.csv, and for every seed a folder seed-K")
    return 0


def search_in_worker(args: argparse.Namespace) -> None:
    """What a worker process of run_seeds does."""

    def leave_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)  # it was killed; as after any kill, the checkpoint stays

    threading.Thread(target=leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, lambda *_: None)  # run_one's own handler stands while there is something to save
    with contextlib.redirect_stdout(io.StringIO()):
        status = guarded(main, args, f"dcpnas_lite: seed {args.seed}")
    sys.exit(status)


def print_seed(folder: Path) -> None:
    row = read_summary(folder)
    print(f"seed {row['seed']}: {row['cell']} ({row['seconds']:.0f} s)", flush=True)


def write_table(out: Path) -> None:
    """searches.csv: the summaries of all finished searches in the folder, by seed."""
    rows = [read_summary(path) for _, path in sorted(seed_folders(out).items()) if (path / "genotype.json").exists()]
    buffer = io.StringIO()
    if rows:
        table = csv.DictWriter(buffer, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    files.write(out / "searches.csv", buffer.getvalue())
