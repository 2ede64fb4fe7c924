r"""Search methods scored on the micro tables: the tables of chapter 12, each by one command that goes on where it was stopped.

    MAKE="python benchmarks/search_methods.py --out"
    DEFAULT='"channels": 16, "layers": 3, "rounds": 6, "steps": 16, "weight_lr": 0.02, "selection": "perturbation"'
    SHORT='"channels": 16, "layers": 3, "rounds": 4, "steps": 16, "weight_lr": 0.02, "selection": "perturbation"'
    SMALL='"channels": 4, "batch": 16, "rounds": 4, "steps": 9, "alpha_lr": 0.06'
    $MAKE runs/default-digits.jsonl --changes "{$DEFAULT}" --methods dcp-nas cp-nas bnas darts
    $MAKE runs/fresh-digits.jsonl --changes "{$DEFAULT}" --methods dcp-nas --seeds 20 40
    $MAKE runs/again-digits.jsonl --changes "{$DEFAULT}" --methods dcp-nas
    $MAKE runs/default-fashion_mnist.jsonl --changes "{$DEFAULT}" --methods dcp-nas --data fashion_mnist --seeds 0 10
    $MAKE runs/default-fashion_mnist.jsonl --changes "{$DEFAULT}" --methods darts --data fashion_mnist --seeds 0 5
    $MAKE runs/final-fashion_mnist.jsonl --changes "{$SHORT, \"finalists\": 5}" --methods dcp-nas \
        --data fashion_mnist --seeds 0 2
    $MAKE runs/shortcut-digits.jsonl --changes "{$SHORT, \"block\": \"shortcut\"}" --methods dcp-nas cp-nas bnas
    $MAKE runs/methods-digits.jsonl --changes "{$SMALL}"

A second call with the same `--out` (and `--data`) and `--collect dcpnas_lite/tables/TABLE`, the table of the same name, writes
the finished searches; their rows name all changes. Every search has a row for each reading of its supernet: a row without
"selection" is what the strength of α says, one without "finalists" what perturbation says before a final. A search of the
default takes one or two minutes of one core, a small one a sixth of that; `--scheduler` spreads them over a cluster.

The size of the default's supernets is chosen on the validation accuracy of the tables with the seeds of TUNING, and everything
else runs with other seeds; tuning-digits.csv.gz has those searches, made by an earlier form of this script on a GPU. The rate and
the six rounds were chosen when seeds 0-19 had been seen: fresh-digits has further ones. again-digits has those of default-digits
once more, by a later engine that sums in another order. A row per search and reading is appended: the cell it returns. A search
that has its row is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import itertools
import json
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from dcpnas_lite import files
from dcpnas_lite.data import Data
from dcpnas_lite.engine import jobs as pool
from dcpnas_lite.engine.config import AS_PRINTED, SearchConfig
from dcpnas_lite.engine.config import METHODS as NAMED
from dcpnas_lite.engine.search import search
from dcpnas_lite.evaluation import cells, table
from dcpnas_lite.method.backtracking import Refreshed

TUNING = range(1000, 1020)

#: What each method changes: those of the command line, and DCP-NAS with one part changed.
METHODS = NAMED | {
    "without backtracking": {"backtracking": "none"},
    "without tangent": {"lam": 0.0},
    "without L_R": {"mu": 0.0},
    "as printed": {name: value for name, value in AS_PRINTED.items() if name not in ("selection", "finalists")},
    "distance L1": {"distance": "L1"},
    "distance cosine": {"distance": "cosine"},
    "psi scalar": {"psi_shape": "scalar"},
    "psi operation": {"psi_shape": "operation"},
    "psi edge": {"psi_shape": "edge"},
    "without |.|": {"absolute": False},
    "refreshed": {"backtracking": "refreshed"},
    "every step": {},
    "every step, Adam's": {},
    "every step, Child": {},
}
#: Methods with a rule of their own: the exact one-step coupling at every step.
RULES = {
    "every step": Refreshed(1),
    "every step, Adam's": Refreshed(1, by="optimizer"),
    "every step, Child": Refreshed(1, networks=["child"]),
}

Job = tuple[str, dict, int]  # method, changes, seed


def configured(method: str, changes: dict, seed: int) -> SearchConfig:
    """The configuration of a search. One network alone takes as many steps as the two do."""
    config = SearchConfig(seed=seed, **(changes | METHODS[method]))
    return config if config.networks == "both" else dataclasses.replace(config, rounds=2 * config.rounds)


def read_as(job: Job, reading: str) -> Job:
    """The job whose row says what an earlier reading of the same supernet names: "strength" or "perturbation"."""
    method, changes, seed = job
    later = {"strength": ("selection", "finalists", "final_epochs"), "perturbation": ("finalists", "final_epochs"), "final": ()}
    return method, {name: value for name, value in changes.items() if name not in later[reading]}, seed


def prepare(name: str, root: str | None) -> Data:
    torch.set_num_threads(1)
    return table.RECIPES[name].load(root)


def search_one(job: Job, data: Data) -> str:
    """One plain search; a row for every reading of its supernet."""
    config = configured(*job)
    result = search(data, config, RULES.get(job[0]))
    cell = {reading: (cells.index(found), round(result.seconds, 1)) for reading, found in result.readings.items()}
    return "".join(json.dumps([*read_as(job, reading), *row]) + "\n" for reading, row in cell.items())


def finished(path: Path) -> list[tuple[str, dict, int, int]]:
    """(method, changes, seed, cell) of the searches of `path`."""
    rows = [json.loads(text) for text in path.read_text(encoding="utf8").splitlines()] if path.exists() else []
    return [(m, c, s, cell) for m, c, s, cell, _ in rows]


def whole(path: Path) -> None:
    """Remove the beginning of a row that a kill left at the end of the file."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        files.write(path, content[: content.rfind(b"\n") + 1])


def collect(path: Path, out: Path, tuning: bool) -> None:
    """Write the finished searches of `path`, those with seeds of TUNING or the others, as a table; gzipped if its name says so.

    `microbench.cells_found` reads a table in which every method has one configuration.
    """
    rows = [(m, seed, cell, json.dumps(changes)) for m, changes, seed, cell in finished(path) if (seed in TUNING) == tuning]
    rows.sort(key=lambda row: (list(METHODS).index(row[0]), row[3], row[1]))
    content = pd.DataFrame(rows, columns=["method", "seed", "cell", "changes"]).to_csv(index=False, lineterminator="\n").encode()
    files.write(out, gzip.compress(content, mtime=0) if out.suffix == ".gz" else content)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default="digits", choices=tuple(table.RECIPES))
    p.add_argument("--methods", nargs="+", default=list(METHODS), choices=tuple(METHODS))
    p.add_argument("--changes", type=json.loads, nargs="+", default=[{}], help="JSON objects: changes to all methods")
    p.add_argument("--seeds", type=int, nargs=2, default=(0, 20), metavar=("FIRST", "END"))
    p.add_argument("--root")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    p.add_argument("--scheduler", metavar="tcp://HOST:8786", help="of a Dask cluster that searches")
    p.add_argument("--collect", type=Path, metavar="TABLE", help="run nothing; write the finished searches of OUT to this table")
    p.add_argument("--tuning", action="store_true", help="collect: the searches with tuning seeds, and no others")
    args = p.parse_args()
    if args.collect:
        return collect(args.out, args.collect, args.tuning)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(args.out):
        whole(args.out)
        search_all(args)


def search_all(args: argparse.Namespace) -> None:
    """Run the searches that `args.out` lacks."""
    done = [row[:3] for row in finished(args.out)]
    jobs = [(m, c, s) for s, m, c in itertools.product(range(*args.seeds), args.methods, args.changes) if (m, c, s) not in done]
    found = pool.run(jobs, search_one, args.workers, partial(prepare, args.data, args.root), scheduler=args.scheduler)
    with contextlib.closing(found) as rows:
        for _, row in tqdm(rows, total=len(jobs), mininterval=5):
            table.append(args.out, row)


if __name__ == "__main__":
    main()
