"""Searches beside the ground truth: where their cells stand, differences on the same seed, a figure of both. Owns no equation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..evaluation import microbench
from ..evaluation.microbench import MicroBench
from .plots import CHILD, PARENT, Figure, canvas, plain_style

Interval = tuple[float, float, float]
SHOWN = 20  # dots of a row at most


def readings(name: str) -> dict[tuple[str, str], dict[int, int]]:
    """(method, reading) → seed → cell of a shipped table of searches, each of whose rows is read in one way.

    The readings are "strength", "perturbation" and, where finalists were trained, "final". Raises as `searches_found`.
    """
    table = microbench.searches_found(name).fillna({"selection": "strength"})
    how = table["selection"]
    if "finalists" in table:
        how = how.where(table["finalists"].isna(), "final")
    groups = table.groupby(["method", how.rename("reading")], sort=False)
    return {key: dict(zip(group["seed"], group["cell"], strict=True)) for key, group in groups}


def percentiles(bench: MicroBench, searches: Mapping[str, Iterable[int]]) -> dict[str, list[float]]:
    """The 1-bit percentile of every cell of every row."""
    return {name: [bench.percentile(cell) for cell in cells] for name, cells in searches.items()}


def ahead(bench: MicroBench, searches: Mapping[str, Mapping[int, int]], than: Mapping[int, int]) -> dict[str, list[float]]:
    """Points of 1-bit accuracy by which each row's cell is better than the one that `than` found with the same seed."""
    return {
        name: [100 * (bench.accuracy(cell) - bench.accuracy(than[seed])) for seed, cell in cells.items()]
        for name, cells in searches.items()
    }


def intervals(values: Mapping[str, Sequence[float]], statistic=np.median) -> dict[str, Interval]:
    """(statistic, low, high) of every row, with its 95 % bootstrap interval."""
    return {name: microbench.interval(row, statistic) for name, row in values.items()}


def text(interval: Interval, form: str = ".1f") -> str:
    """ "value [low, high]"."""
    return "{:{f}} [{:{f}}, {:{f}}]".format(*interval, f=form)


@plain_style
def rows(values: Mapping[str, Sequence[float]], shown: Mapping[str, Interval], xlabel: str, zero: bool = False) -> Figure:
    """A row for each name, which stands above it: small dots are the values, the large one and its bar are the interval.

    Of more than twenty values twenty quantiles are drawn. zero: a line at 0.
    """
    figure, ((axis,),) = canvas(1, 1, 5.2, 0.44 * len(values) + 0.8)
    if zero:
        axis.axvline(0, color="0.6", lw=1)
    for k, (name, row) in enumerate(values.items()):
        middle, low, high = shown[name]
        dots = np.quantile(row, (np.arange(SHOWN) + 0.5) / SHOWN) if len(row) > SHOWN else np.asarray(row)
        shift = 0.13 * np.resize([-1, 0, 1], len(dots))  # equal values do not hide each other
        axis.plot(dots, k + shift, "o", ms=3.2, alpha=0.6, color=PARENT, mec="none")
        error = np.maximum([[middle - low], [high - middle]], 0)  # they may be equal to rounding
        axis.errorbar(middle, k, xerr=error, fmt="D", ms=5.5, color=CHILD, capsize=3, lw=1.8, zorder=5)
        axis.text(0.005, k - 0.4, name, transform=axis.get_yaxis_transform(), fontsize=9, va="center")
    axis.set(ylim=(len(values) - 0.5, -0.75), yticks=[], xlabel=xlabel)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    return figure
