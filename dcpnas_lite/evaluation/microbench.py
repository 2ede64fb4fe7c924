"""Ground truth: all 8³ = 512 cells of the MICRO space, trained real-valued and 1-bit, in one table per data set.

`MicroBench.load` reads a table that ships with the package. Beside this module: `cells` numbers the cells, `table` is the form
of the file, `build` what made it; a table can be built for any other recipe. Owns no equation.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import files
from .build import build, train_cell
from .cells import CELLS, MICRO, Cell, canonical, classes, genotype, index, operations
from .table import BITS, COLUMNS, LIMIT, RECIPES, TABLES, Recipe, read

if TYPE_CHECKING:
    import pandas as pd

__all__ = [  # what chapters use, from the modules beside this one, too
    "BITS", "CELLS", "COLUMNS", "MICRO", "RECIPES", "TABLES", "Recipe", "build", "canonical", "classes", "genotype", "index",
    "operations", "train_cell", "MicroBench", "cells_found", "interval", "random_search",
    "searches_found",
]  # fmt: skip


class MicroBench:
    """A table: what every cell reached. Accuracies are shares between 0 and 1, means over the seeds."""

    def __init__(self, recipe: dict, rows: dict[str, np.ndarray]):
        self.recipe, self.rows = recipe, rows
        self.mean, self.error, self.runs = {}, {}, {}
        for bits in BITS:
            of_bits = rows["bits"] == bits
            cells = rows["cell"][of_bits]
            self.runs[bits] = runs = np.bincount(cells, minlength=CELLS)
            for split in ("test", "validation"):
                values = rows[f"{split}_accuracy"][of_bits]
                with np.errstate(invalid="ignore", divide="ignore"):
                    mean = np.bincount(cells, values, CELLS) / runs
                    squares = np.bincount(cells, (values - mean[cells]) ** 2, CELLS)
                    deviation = np.sqrt(squares / (runs - 1))
                    several = runs > 1
                    pooled = math.sqrt(squares[several].sum() / (runs[several] - 1).sum()) if several.any() else math.nan
                    self.error[bits, split] = np.where(several, deviation, pooled) / np.sqrt(np.where(runs, runs, math.nan))
                self.mean[bits, split] = mean

    @classmethod
    def load(cls, name: str | os.PathLike = "digits") -> MicroBench:
        """Read the shipped table `name` (digits, digits-shortcut with 1 bit alone, fashion_mnist) or the file at that path.

        Raises FileNotFoundError where there is neither, ValueError for a file that is no table or a damaged one.
        """
        path = TABLES / f"microbench-{name}.csv.gz"
        if not path.is_file():
            path = Path(name)
        if not path.is_file():
            names = sorted(p.name.removeprefix("microbench-").removesuffix(".csv.gz") for p in TABLES.glob("microbench-*.csv.gz"))
            raise FileNotFoundError(f"table: expected one of {', '.join(names)} or a file, got {str(name)!r}")
        recipe, rows = read(path)
        columns = zip(*(row.split(",") for row in rows.values()), strict=True) if rows else [()] * len(COLUMNS)
        values = zip(COLUMNS.items(), columns, strict=True)
        return cls(recipe, {name: np.array(list(map(kind, column)), kind) for (name, kind), column in values})

    def frame(self) -> pd.DataFrame:
        """The table, one row per training; the columns are those of `COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def accuracy(self, cell: Cell, bits: int = 1, split: str = "test") -> float:
        """Mean accuracy over the seeds. Raises KeyError where the table does not hold the cell."""
        return float(self._of(self.mean, bits, split)[self._held(cell, bits)])

    def standard_error(self, cell: Cell, bits: int = 1, split: str = "test") -> float:
        """Standard error of that mean; for a cell with one seed from the standard deviation pooled over those with more."""
        return float(self._of(self.error, bits, split)[self._held(cell, bits)])

    def percentile(self, cell: Cell, bits: int = 1, split: str = "test") -> float:
        """Share of the other cells that are worse, in per cent, ties counted half: 100 is the best cell, 0 the worst."""
        mean = self._of(self.mean, bits, split)
        number = self._held(cell, bits)
        mine, others = mean[number], np.delete(mean, number)
        others = others[~np.isnan(others)]
        return float(100 * ((others < mine) + 0.5 * (others == mine)).mean())

    def regret(self, cell: Cell, bits: int = 1, split: str = "test") -> tuple[float, float]:
        """(regret, its standard error): how much the best mean accuracy of the table exceeds the cell's."""
        best = self.top(1, bits, split)[0]
        value = self.accuracy(best, bits, split) - self.accuracy(cell, bits, split)
        if best == index(cell):
            return 0.0, 0.0
        return value, math.hypot(self.standard_error(best, bits, split), self.standard_error(cell, bits, split))

    def top(self, n: int = 10, bits: int = 1, split: str = "test") -> list[int]:
        """The n best cells, best first; ties go to the smaller number."""
        order = np.argsort(-self._of(self.mean, bits, split), kind="stable")  # cells without a training come last
        return order[: min(n, np.count_nonzero(self.runs[bits]))].tolist()

    def size(self, cell: Cell, bits: int = 1) -> int:
        """Bits of the cell's network."""
        row = np.flatnonzero((self.rows["cell"] == self._held(cell, bits)) & (self.rows["bits"] == bits))[0]
        return int(self.rows["size"][row])

    def pareto(self, bits: int = 1) -> list[int]:
        """The cells that no other one beats in accuracy at the same size or less, smallest first."""
        mean = self._of(self.mean, bits, "test")
        front, best = [], -1.0
        for cell in sorted(np.flatnonzero(self.runs[bits]).tolist(), key=lambda c: (self.size(c, bits), -mean[c])):
            if mean[cell] > best:
                front.append(cell)
                best = mean[cell]
        return front

    def missing(self, seeds: int) -> list[tuple[int, int]]:
        """The (cell, bits) with fewer than `seeds` trainings."""
        return [(cell, bits) for cell in range(CELLS) for bits in BITS if self.runs[bits][cell] < seeds]

    def _held(self, cell: Cell, bits: int) -> int:
        """The number of a cell that has a training."""
        number = index(cell)
        if not self._of(self.mean, bits, "test")[number] >= 0:
            raise KeyError(f"cell {number} with {bits} bits is not in this table")
        return number

    @staticmethod
    def _of(table: dict, bits: int, split: str) -> np.ndarray:
        if (bits, split) not in table:
            raise ValueError(f"expected bits 1 or 32 and split test or validation, got {bits!r} and {split!r}")
        return table[bits, split]


def searches_found(name: str | os.PathLike) -> pd.DataFrame:
    """A row for every search of a shipped table (methods-digits, default-digits, …) or of a file of that form.

    Columns: method, seed, cell (its number), and every change to the configuration. `benchmarks/search_methods.py` writes such
    tables. Raises FileNotFoundError where there is none, ValueError for a damaged or foreign one.
    """
    import pandas as pd

    shipped = (TABLES / f"{name}.csv", TABLES / f"{name}.csv.gz")
    path = next(filter(Path.is_file, shipped), Path(name))
    content = files.read(path, "a table of searches", LIMIT)
    try:
        text = (files.gunzip(content, LIMIT, path) if content[:2] == b"\x1f\x8b" else content).decode()
        rows = [
            {"method": row["method"], "seed": int(row["seed"]), "cell": index(int(row["cell"])), **json.loads(row["changes"])}
            for row in csv.DictReader(text.splitlines(), strict=True)
        ]
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path}: expected a table of searches, got something else or a damaged one ({error})") from None
    return pd.DataFrame(rows)


def cells_found(name: str | os.PathLike) -> dict[str, dict[int, int]]:
    """Method → seed → the cell that its search found, of a table in which every method has one configuration.

    Raises as `searches_found`.
    """
    cells: dict[str, dict[int, int]] = {}
    for method, seed, cell in searches_found(name)[["method", "seed", "cell"]].itertuples(index=False):
        cells.setdefault(method, {})[seed] = cell
    return cells


def random_search(bench: MicroBench, n: int, repeats: int = 1000, seed: int = 0) -> list[int]:
    """Of `n` random cells the one with the best validation accuracy in its first 1-bit training; `repeats` such cells."""
    rows = bench.rows
    first = np.flatnonzero((rows["bits"] == 1) & (rows["seed"] == 0))
    drawn = np.random.default_rng(seed).choice(first, (repeats, n))
    best = rows["validation_accuracy"][drawn].argmax(1)
    return rows["cell"][drawn[np.arange(repeats), best]].tolist()


def interval(values: Sequence[float], statistic=np.median, repeats: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """(statistic, lower and upper end of its 95 % percentile bootstrap interval) of two or more independent values."""
    from scipy.stats import bootstrap

    sample, generator = np.asarray(values, dtype=float), np.random.default_rng(seed)
    drawn = bootstrap((sample,), statistic, n_resamples=repeats, method="percentile", random_state=generator)
    low, high = drawn.confidence_interval
    return float(statistic(sample)), float(low), float(high)
