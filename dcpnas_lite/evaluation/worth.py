"""What a found cell is worth where every cell of its space has been trained. Owns no equation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..network.genotype import Genotype
from .cells import CELLS
from .microbench import MicroBench, random_search
from .table import RECIPES

MOST = 256  # random cells

@dataclass(frozen=True)
class Worth:
    """Of a 1-bit cell of the MICRO space, by the mean test accuracies of a table.

    percentile: share of the other cells that are worse, in per cent. regret: points that the best cell is ahead.
    random_cells: of how many random cells one has to train, and take the best by validation, to do as well in the median; None
    where MOST do not suffice.
    """

    percentile: float
    regret: float
    random_cells: int | None

    def __str__(self) -> str:
        n = self.random_cells
        best_of = f"better than the best of {MOST}" if n is None else f"as good as the best of {n}"
        return (f"better than {self.percentile:.1f} % of the other cells, {self.regret:.1f} points below the best one; "
                f"{best_of} trained random cells")  # fmt: skip


def worth(cell: Genotype, space: str, data: str, block: str = "plain") -> Worth | None:
    """What the cell of a search is worth; None where there is no table of its space, data set and 1-bit block."""
    name = data if block == "plain" else f"{data}-{block}"
    if space != "micro" or name not in RECIPES:
        return None
    bench, medians = _table(name)
    percentile = bench.percentile(cell)
    enough = np.flatnonzero(medians >= percentile)
    return Worth(round(percentile, 1), round(100 * bench.regret(cell)[0], 1), int(enough[0]) + 1 if len(enough) else None)


@lru_cache
def _table(name: str) -> tuple[MicroBench, np.ndarray]:
    """A table, and the median percentile of the best of 1 … MOST random cells; where chance lowers it, that of fewer."""
    bench = MicroBench.load(name)
    places = np.array([bench.percentile(cell) for cell in range(CELLS)])
    medians = [np.median(places[random_search(bench, n, 201)]) for n in range(1, MOST + 1)]
    return bench, np.maximum.accumulate(medians)
