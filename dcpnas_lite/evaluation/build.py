"""Building a micro table: every cell trained by the table's recipe, in processes, resumably. Owns no equation."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from .. import files
from ..data import Data
from ..engine import jobs
from ..network.binarize import BinaryConv2d
from . import table
from .cells import CELLS, Cell, genotype, index
from .table import BITS, RECIPES, Recipe
from .training import TrainResult, train


def count_operations(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """(binary, real-valued) multiply-accumulates of the convolutions and the classifier for one image (C, H, W).

    A convolution whose input is all zero for lack of edges counts like any other.
    """
    counts = [0, 0]

    def count(module, inputs, out):
        counts[not isinstance(module, BinaryConv2d)] += out[0].numel() * module.weight[0].numel()

    hooks = [
        m.register_forward_hook(count) for m in network.modules() if isinstance(m, BinaryConv2d | nn.Conv2d | nn.Linear)
    ]
    network.eval()
    with torch.no_grad():
        network(image[None])
    for hook in hooks:
        hook.remove()
    return counts[0], counts[1]


def row(cell: int, bits: int, seed: int, result: TrainResult, image: torch.Tensor) -> str:
    """The line of a plain table for one training; `image` (C, H, W) is what the operations are counted for."""
    binary, real = count_operations(result.network, image)
    values = (
        cell,
        bits,
        seed,
        round(result.test_accuracy, 6),
        round(result.validation_accuracy, 6),
        result.one_bit,
        result.real,
        result.bits,
        binary,
        real,
        round(result.seconds, 2),
    )
    return table.sealed(",".join(map(str, values)))


def train_cell(cell: int, bits: int, seed: int, recipe: Recipe, data: Data, device: str = "cpu") -> TrainResult:
    """Train a cell by a table's recipe."""
    return train(genotype(cell), data, bits, dataclasses.replace(recipe.config, seed=seed), device=device)


def _prepare(recipe: Recipe, root: str | os.PathLike | None, device: str) -> tuple[Recipe, Data, str]:
    """What a worker process keeps between its trainings."""
    torch.set_num_threads(1)
    return recipe, recipe.load(root), device


def _row(job: tuple[int, int, int], kept: tuple[Recipe, Data, str]) -> str:
    recipe, data, device = kept
    return row(*job, train_cell(*job, recipe, data, device), data.test.x[0].to(device))


def build(
    data: str | Recipe = "digits",
    seeds: int | Iterable[int] = 3,
    workers: int = 2,
    out: str | os.PathLike | None = None,
    cells: Iterable[Cell] = range(CELLS),
    root: str | os.PathLike | None = None,
    device: str = "cpu",
    progress: bool = True,
    scheduler: str | None = None,
) -> Path:
    """Train `cells` × {1, 32} bits × seeds in `workers` processes of one thread each; returns the path of the table.

    data: a name of `RECIPES` or a `Recipe`; where its 1-bit convolutions have shortcuts, bits is 1 alone, as the real-valued
    network is that of the plain table. seeds: how many, or which. out: default runs/microbench-NAME.csv; rows that are there
    already are not trained again. root: where the files of the data are. scheduler: of a Dask cluster, as of `jobs.run`; its
    workers see the same `root`. Seed by seed, so a build that was cut off holds whole tables of the first seeds. However it
    ends, the rows it has written stay, and the same call goes on.
    Raises ValueError where `out` is damaged or was made by another recipe, or for a name without one, BlockingIOError where
    another process builds into it, RuntimeError where a worker died; ImportError and ConnectionError as `jobs.check`.
    """
    if isinstance(data, str) and data not in RECIPES:
        raise ValueError(f"data: expected one of {', '.join(RECIPES)}, got {data!r}")
    recipe = RECIPES[data] if isinstance(data, str) else data
    path = Path(out or f"runs/microbench-{data if isinstance(data, str) else recipe.data}.csv")
    numbers = [index(cell) for cell in cells]
    seeds = list(seeds if isinstance(seeds, Iterable) else range(operator.index(seeds)))
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds: expected at least one, none below 0, got {seeds}")
    kinds = BITS if recipe.config.block == "plain" else (1,)
    wanted = list(dict.fromkeys((cell, bits, operator.index(seed)) for seed in seeds for cell in numbers for bits in kinds))
    jobs.check(workers, scheduler)
    root = None if root is None else Path(root).expanduser().absolute()
    recipe.load(root)  # where it is missing, this says so, not every worker
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(path):
        done = table.opened(path, recipe)
        left = [job for job in wanted if job not in done]
        results = jobs.run(left, _row, workers, partial(_prepare, recipe, root, device), scheduler=scheduler)
        bar = tqdm(total=len(wanted), initial=len(wanted) - len(left), disable=not progress, unit="training", smoothing=0.05)
        with bar, contextlib.closing(results):
            for _, line in results:
                table.append(path, line)
                bar.update()
    return path
