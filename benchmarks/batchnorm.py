"""What exact BatchNorm statistics are worth in 1-bit cells, beside running ones, plain and with shortcuts.

    python benchmarks/batchnorm.py dcpnas_lite/tables/batchnorm-digits.csv

Trains random micro cells by the recipe of the digits' tables with either block (seed 0) and evaluates each network twice: with
the running statistics of its training, then with those of the training images (`train`'s "exact"). A row per network is
appended when it is trained; one that the file holds is not trained again. Chapter 12 reads the table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from dcpnas_lite.data import Data
from dcpnas_lite.engine import jobs as pool
from dcpnas_lite.engine.training import STATISTICS_IMAGES, fit
from dcpnas_lite.evaluation import table
from dcpnas_lite.evaluation.cells import CELLS, genotype
from dcpnas_lite.evaluation.training import accuracy

RECIPE = table.RECIPES["digits"]


def prepare() -> Data:
    torch.set_num_threads(1)
    return RECIPE.load()


def both(job: tuple[int, str], data: Data) -> str:
    """The row of a cell with a block: test accuracies with running and with exact statistics."""
    cell, block = job
    network, _ = fit(genotype(cell), data, 1, dataclasses.replace(RECIPE.config, block=block))
    running = accuracy(network, data.test)
    update_bn(data.train.x.chunk(-(-len(data.train) // STATISTICS_IMAGES)), network)
    return f"{cell},{block},{running:.6f},{accuracy(network.eval(), data.test):.6f}\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--cells", type=int, default=48)
    p.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = p.parse_args()
    if not args.out.exists():
        table.append(args.out, "cell,block,running,exact\n")
    done = pd.read_csv(args.out)
    cells = np.random.default_rng(0).choice(CELLS, args.cells, replace=False).tolist()
    jobs = [(cell, block) for cell in cells for block in ("plain", "shortcut")]
    jobs = [job for job in jobs if job not in set(zip(done["cell"], done["block"], strict=True))]
    with contextlib.closing(pool.run(jobs, both, args.workers, prepare)) as rows:
        for _, row in tqdm(rows, total=len(jobs)):
            table.append(args.out, row)


if __name__ == "__main__":
    main()
