"""search --seeds: one search per seed, each a job in a folder of its own, and a table of all."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import sys
from pathlib import Path

from .. import data, files
from ..engine import jobs
from ..engine.resume import fingerprint
from .folder import finished, read_summary
from .search import run_one, settings
from .shared import set_threads, torch_device, what_is_wrong

MOST_SEEDS = 10_000
GRACE = 60  # seconds after Ctrl-C within which a search has made its step and is saved


def run_seeds(args: argparse.Namespace) -> int:
    """One search per seed, each in a process of its own; SIGINT and SIGKILL end them all, and the same command goes on."""
    jobs.check(args.workers, args.scheduler)
    set_threads(args.threads)
    if args.scheduler is not None:  # its workers were started in other folders
        args.out, args.root = args.out.absolute(), args.root and str(Path(args.root).expanduser().absolute())
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
    seeds: set[int] = set()
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
    """The searches that are left."""
    failed = []
    searches = jobs.run(waiting, search_seed, args.workers, grace=GRACE, scheduler=args.scheduler)
    try:
        with contextlib.closing(searches):
            for job, (status, text) in searches:
                if status == 0:
                    write_table(args.out)
                    print_seed(job.out)
                elif status == 2:
                    failed.append(job.seed)
                    print(f"dcpnas_lite: seed {job.seed}: {text}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        return 130
    if failed:
        raise RuntimeError(f"failed: seeds {', '.join(map(str, sorted(failed)))}; the same command tries them again")
    print(f"written to {args.out}: searches.csv, and for every seed a folder seed-K")
    return 0


def search_seed(args: argparse.Namespace) -> tuple[int, str]:
    """What a worker does: one search, as `run_one`; (2, what is wrong) where it fails, so that the others go on."""
    try:
        set_threads(args.threads)
        return run_one(args, torch_device(args.device), stopping=jobs.stopping)
    except Exception as error:
        return 2, what_is_wrong(error)


def print_seed(folder: Path) -> None:
    row = read_summary(folder)
    place = "" if row.get("percentile") is None else f"; better than {row['percentile']:.1f} % of the other cells"
    print(f"seed {row['seed']}: {row['cell']}{place} ({row['seconds']:.0f} s)", flush=True)


def write_table(out: Path) -> None:
    """searches.csv: the summaries of all finished searches in the folder, by seed."""
    rows = [read_summary(path) for _, path in sorted(seed_folders(out).items()) if (path / "genotype.json").exists()]
    buffer = io.StringIO()
    if rows:  # an earlier search has fewer columns
        table = csv.DictWriter(buffer, max(rows, key=len), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    files.write(out / "searches.csv", buffer.getvalue())
