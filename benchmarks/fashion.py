"""The best cell that searches found on Fashion-MNIST, trained on all of its images: 1 bit with either block, and 32 bits.

    python benchmarks/fashion.py dcpnas_lite/tables/full-fashion_mnist.csv

Of the cells found by DCP-NAS in the default setting (`tables/default-fashion_mnist.csv`) it takes the one that is best by the
validation images of the micro table. Validation keeps ten of the 60,000 images, since `Data` asks for some. A row is appended
when a network is trained; one that the file holds is not trained again. Appendix C reads the table.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from dcpnas_lite import data
from dcpnas_lite.engine import jobs as pool
from dcpnas_lite.engine.training import TrainConfig, statistics
from dcpnas_lite.evaluation import table
from dcpnas_lite.evaluation.build import count_operations
from dcpnas_lite.evaluation.cells import genotype
from dcpnas_lite.evaluation.microbench import MicroBench
from dcpnas_lite.evaluation.training import train
from dcpnas_lite.report import evidence

COLUMNS = "cell,block,bits,channels,seed,epochs,test_accuracy,size,binary_operations,float_operations,seconds"
FORMS = (("shortcut", 1), ("plain", 1), ("plain", 32))
CHANNELS = (16, 32)
Job = tuple[int, str, int, int, int, int]  # the first columns


def best_found() -> int:
    """The cell to train."""
    found = evidence.readings("default-fashion_mnist")["dcp-nas", "perturbation"].values()
    validation = MicroBench.load("fashion_mnist").mean[1, "validation"]
    return max(found, key=lambda cell: validation[cell])


def prepare() -> data.Data:
    torch.set_num_threads(1)
    return data.load("fashion_mnist", validation=10)


def row(job: Job, images: data.Data) -> str:
    """The line of a job, once trained."""
    cell, block, bits, channels, seed, epochs = job
    config = TrainConfig(channels, 3, epochs, 64, seed=seed, block=block, statistics=statistics(block))
    result = train(genotype(cell), images, bits, config)
    operations = count_operations(result.network, images.test.x[0])
    return ",".join(map(str, (*job, result.test_accuracy, result.bits, *operations, round(result.seconds)))) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = p.parse_args()
    if not args.out.exists():
        table.append(args.out, COLUMNS + "\n")
    names = COLUMNS.split(",")[:6]
    done = set(pd.read_csv(args.out)[names].itertuples(index=False, name=None))
    order = itertools.product(range(args.seeds), CHANNELS, FORMS)
    jobs = [(best_found(), *form, channels, seed, args.epochs) for seed, channels, form in order]
    jobs = [job for job in jobs if job not in done]
    with contextlib.closing(pool.run(jobs, row, args.workers, prepare)) as rows:
        for _, line in tqdm(rows, total=len(jobs)):
            table.append(args.out, line)


if __name__ == "__main__":
    main()
