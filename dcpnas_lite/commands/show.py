"""python -m dcpnas_lite show: the report of a finished search and its pictures."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from .. import files
from ..report import plots
from ..report.history import FinishedSearch
from .folder import draw


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of `python -m dcpnas_lite show`."""
    p.description = "Print the result of a search and draw its course."
    p.add_argument("run", type=Path, help="folder of a search")


def main(args: argparse.Namespace) -> None:
    """Run `python -m dcpnas_lite show` with parsed arguments."""
    course = FinishedSearch.load(args.run)
    history, space, genotype = course.history, course.space, course.genotype
    text = course.report()
    print(text, end="")
    files.write(args.run / "report.txt", text)
    last = {t: history[f"final/{t}"] for t in space.cell_types}
    figures = {"cell.png": partial(plots.cell, genotype), "mix.png": partial(plots.mix, last, space, genotype)}
    if course.steps:
        figures |= {"losses.png": partial(plots.losses, history), "collapse.png": partial(plots.collapse, history, space)}
        for t in space.cell_types:
            figures[f"trajectories-{t}.png"] = partial(plots.trajectories, history, space, t)
            for network in map(str.lower, course.networks if f"psi/{t}" in history else ()):
                figures[f"psi-{network}-{t}.png"] = partial(plots.psi, history, space, t, network)
    print(f"written to {args.run}: {', '.join(['report.txt', *draw(figures, args.run)])}")
