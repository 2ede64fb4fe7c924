"""python -m dcpnas_lite microbench: build, pack, show and check a micro table, the accuracies of all 512 micro cells."""

from __future__ import annotations

import argparse
import math

import numpy as np

from ..evaluation.build import build, train_cell
from ..evaluation.cells import operations
from ..evaluation.microbench import MicroBench
from ..evaluation.table import RECIPES, Recipe, pack
from .shared import add_scheduler, torch_device


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of `python -m dcpnas_lite microbench`."""
    p.add_argument("action", choices=("build", "pack", "show", "check"))
    p.add_argument("--data", default="digits", choices=tuple(RECIPES))
    p.add_argument("--seeds", type=int, default=3, help="build: trainings of each cell")
    p.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    add_scheduler(p)
    p.add_argument("--out", help="build: the table, default runs/microbench-DATA.csv; pack: its compressed form")
    p.add_argument("--table", metavar="FILE", help="pack, show, check: a table that was built, not that of DATA")
    p.add_argument("--root", help="folder with the files of the data set")
    p.add_argument("--device", default="cpu")
    p.add_argument("--count", type=int, default=8, help="show: how many of the best; check: how many random cells")
    p.add_argument("--seed", type=int, default=0, help="check: draws the cells")


def main(args: argparse.Namespace) -> int:
    """Run `python -m dcpnas_lite microbench` with parsed arguments."""
    torch_device(args.device)
    for name in ("seeds", "count"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(args, name)}")
    if args.action == "build":
        if args.table:
            raise ValueError("--table: expected with pack, show or check; build writes to --out")
        where = dict(root=args.root, device=args.device, scheduler=args.scheduler)
        print(build(args.data, args.seeds, args.workers, args.out, **where))
    elif args.action == "pack":
        pack(args.table or f"runs/microbench-{args.data}.csv", args.out or f"microbench-{args.data}.csv.gz")
    elif args.action == "show":
        bench = MicroBench.load(args.table or args.data)
        for cell in bench.top(args.count):
            real = f"{bench.accuracy(cell, 32):.4f}" if bench.runs[32][cell] else "–"
            print(
                f"{cell:3d}  {' '.join(operations(cell)):42s} 1-bit {bench.accuracy(cell):.4f} ± {bench.standard_error(cell):.4f}"
                f"  real {real}  {bench.size(cell) / 8192:.2f} KiB"
            )
    else:
        return check(args.table or args.data, args.count, args.seed, args.root, args.device)
    return 0


def check(name: str, count: int, seed: int, root: str | None = None, device: str = "cpu") -> int:
    """Retrain `count` random cells, 1-bit, with a seed the table does not hold, and print them beside the table.

    name: as of `MicroBench.load`. Returns 1 where a difference exceeds three standard errors, else 0. The standard error is that
    of a difference between one training and the cell's mean; two or three seeds say little about a cell's own deviation, so it
    is at least that of the median cell. ValueError for a table with fewer cells, or with no cell that was trained twice.
    """
    from scipy.stats import chi2

    bench = MicroBench.load(name)
    recipe, failed = Recipe.of(bench.recipe), 0
    runs, error = bench.runs[1], bench.error[1, "test"]
    several = runs > 1
    if count > np.count_nonzero(runs) or not several.any():
        got = f"{np.count_nonzero(runs)} cells, {np.count_nonzero(several)} trained twice"
        raise ValueError(f"{name}: expected a table with at least {count} cells, some trained twice, got {got}")
    data = recipe.load(root)
    variance, freedom = error[several] ** 2 * runs[several], runs[several] - 1
    typical = math.sqrt(np.median(variance * freedom / chi2.median(freedom)))  # a few wild cells would rule a mean
    for cell in np.random.default_rng(seed).choice(np.flatnonzero(runs), count, replace=False).tolist():
        accuracy = train_cell(cell, 1, 1000 + seed, recipe, data, device).test_accuracy
        spread = max(typical, error[cell] * math.sqrt(runs[cell])) * math.sqrt(1 + 1 / runs[cell])
        wrong = abs(accuracy - bench.accuracy(cell)) > 3 * spread
        failed += wrong
        print(
            f"{cell:3d}  table {bench.accuracy(cell):.4f}, retrained {accuracy:.4f}, "
            f"standard error of the difference {spread:.4f}  {'DIFFERS' if wrong else 'agrees'}",
            flush=True,
        )
    return int(failed > 0)
