r"""How well the learned ψ̃ follows the exact one-step coupling along a search, over rules and seeds.

    python benchmarks/coupling.py coupling.csv --processes 16
    python benchmarks/coupling.py coupling-128.csv --processes 16 --batch 128 --size 8 \
        --rules printed signed signed-fast refreshed

Runs the MICRO search on the embedded digits with every rule and seed and appends the rows of a run when it ends; a run
that the file holds already is not repeated. The first line is the default search, twice as long; the second has the coupling
measured on four times as many, smaller images. The results ship in dcpnas_lite/tables and are read by chapters 8 and 9.

rule, seed, network; step: architecture steps this network has made before; loss: L_NAS of the Parent, −G of the Child, before
the step; distance: D; cosine: of the correction with −C; direct: of C with ∂L/∂α; ratio: ‖C‖ / ‖∂L/∂α‖; scalar, operation,
edge: share of ‖C‖² that a ψ of this shape can carry; trust: cosine of −F v with H_G v, Child only.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import time
from pathlib import Path

import numpy as np
import torch

from dcpnas_lite import files
from dcpnas_lite.data import digits
from dcpnas_lite.engine import jobs
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.search import search
from dcpnas_lite.evaluation.table import append
from dcpnas_lite.method.backtracking import Learned, Refreshed
from dcpnas_lite.method.coupling import cosine

RULES = {
    "printed": lambda: Learned(),
    "signed": lambda: Learned(absolute=False),
    "printed-fast": lambda: Learned(eta_psi=100.0),
    "signed-fast": lambda: Learned(absolute=False, eta_psi=100.0),
    "refreshed": lambda: Refreshed(every=5),
}
CONFIG = SearchConfig(rounds=6, steps=12, measure_every=8)
COLUMNS = "rule seed network step loss distance cosine direct ratio scalar operation edge trust".split()


class Watched:
    """A rule that also keeps the gradient of every architecture step."""

    def __init__(self, rule):
        self.rule, self.gradients, self.indices = rule, [], []

    def __call__(self, step):
        self.gradients.append(step.gradient.clone())
        self.indices.append(step.index)
        return self.rule(step)


def rows(task: tuple[str, int, SearchConfig, int]) -> list[list[str]]:
    """The rows of one search."""
    rule, seed, config, size = task
    torch.set_num_threads(1)
    watched = Watched(RULES[rule]())
    history = search(digits(size=size), dataclasses.replace(config, seed=seed), watched).history
    out = []
    for i, step in enumerate(history["measured"].astype(int)):
        values = {
            "loss": history["alpha_loss"][step],
            "distance": history["distance"][step],
            "cosine": history["coupling_cosine/normal"][i],
            "direct": cosine([torch.from_numpy(history["coupling/normal"][i])], [watched.gradients[step]]),
            "ratio": history["gradient_ratio"][i],
            **dict(zip(("scalar", "operation", "edge"), history["captured/normal"][i], strict=False)),
            "trust": history["trust"][i],
        }
        network = "child" if history["network"][step] else "parent"
        text = ["" if np.isnan(v) else f"{v:.3g}" for v in values.values()]
        out.append([rule, str(seed), network, str(watched.indices[step]), *text])
    return out


def finished(path: Path, expected: int) -> tuple[list[list[str]], set[tuple[str, int]]]:
    """The rows of complete runs in the file, and which runs these are."""
    if not path.exists():
        return [], set()
    with path.open(newline="", encoding="utf8") as file:
        old = [row for row in csv.reader(file) if len(row) == len(COLUMNS) and row[1].isdigit()]
    runs = [(row[0], int(row[1])) for row in old]
    complete = {run for run in runs if runs.count(run) == expected}
    return [row for row, run in zip(old, runs, strict=True) if run in complete], complete


def text(rows: list[list[str]]) -> str:
    """The rows as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--size", type=int, default=16, help="pixels, height and width")
    parser.add_argument("--tiny", action="store_true", help="a few seconds a run, to try the script")
    options = parser.parse_args()
    config = dataclasses.replace(CONFIG, batch=options.batch)
    if options.tiny:
        config = dataclasses.replace(config, rounds=2, steps=4, channels=2, measure_every=2)
    alpha_steps = (config.rounds - config.warmup) * config.steps
    started = time.perf_counter()
    with files.lock(options.csv):
        old, done = finished(options.csv, 2 * -(-alpha_steps // config.measure_every))
        todo = [(rule, seed, config, options.size) for seed in range(options.seeds) for rule in options.rules]
        tasks = [task for task in todo if task[:2] not in done]
        files.write(options.csv, text([COLUMNS, *old]))
        with contextlib.closing(jobs.run(tasks, rows, options.processes)) as results:
            for n, (_, result) in enumerate(results, 1):
                append(options.csv, text(result))
                print(f"{n} of {len(tasks)} runs, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
