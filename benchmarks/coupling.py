r"""How well the learned ψ̃ follows the exact one-step coupling along a search, over rules and seeds.

    python benchmarks/coupling.py coupling.csv --processes 16
    python benchmarks/coupling.py coupling-128.csv --processes 16 --batch 128 --size 8 \
        --rules printed signed signed-fast refreshed

Runs the MICRO search on the embedded digits with every rule and seed and appends the rows of a run when it ends; a run
that the file holds already is not repeated. The first line is a bare `SearchConfig()`, twice as long; the second has the coupling
measured on four times as many, smaller images. The results ship in tables/ and are read by chapters 9 and 10 and appendix D.

rule, seed, network; step: architecture steps this network has made before; loss: L_NAS of the Parent, −G of the Child, before
the step; distance: D; cosine: of the correction with −C; direct: of C with ∂L/∂α; ratio: ‖C‖ / ‖∂L/∂α‖; scalar, operation,
edge: share of ‖C‖² that a ψ of this shape can carry; trust: cosine of −F v with H_G v, Child only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import time
from pathlib import Path

import numpy as np
import pandas as pd
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


def rows(task: tuple[str, int, SearchConfig, int]) -> str:
    """The rows of one search."""
    rule, seed, config, size = task
    torch.set_num_threads(1)
    watched = Watched(RULES[rule]())
    history = search(digits(size=size), dataclasses.replace(config, seed=seed), watched).history
    steps, couplings = history["measured"].astype(int), history["coupling/normal"]
    trust = np.full(len(steps), np.nan)
    products = (torch.from_numpy(history[f"{what}/normal"]) for what in ("fisher", "hessian"))
    trust[history["network"][steps] == 1] = [cosine([f], [h]) for f, h in zip(*products, strict=True)]
    table = pd.DataFrame({
        "rule": rule,
        "seed": seed,
        "network": np.where(history["network"][steps] == 1, "child", "parent"),
        "step": [watched.indices[k] for k in steps],
        "loss": history["alpha_loss"][steps],
        "distance": history["distance"][steps],
        "cosine": history["coupling_cosine/normal"],
        "direct": [cosine([torch.from_numpy(c)], [watched.gradients[k]]) for c, k in zip(couplings, steps, strict=True)],
        "ratio": history["gradient_ratio"],
        **dict(zip(("scalar", "operation", "edge"), history["captured/normal"].T, strict=False)),
        "trust": trust,
    })  # fmt: skip
    return table[COLUMNS].to_csv(index=False, header=False, float_format="%.3g", lineterminator="\n")


def finished(path: Path, expected: int) -> pd.DataFrame:
    """The rows of complete runs in the file, as text."""
    text = path.read_text(encoding="utf8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1] or ",".join(COLUMNS)
    table = pd.read_csv(io.StringIO(whole), dtype=str, keep_default_na=False)
    return table[table.groupby(["rule", "seed"])["rule"].transform("size") == expected]


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
        old = finished(options.csv, 2 * -(-alpha_steps // config.measure_every))
        done = set(zip(old["rule"], old["seed"].astype(int), strict=True))
        todo = [(rule, seed, config, options.size) for seed in range(options.seeds) for rule in options.rules]
        tasks = [task for task in todo if task[:2] not in done]
        files.write(options.csv, old.to_csv(index=False, lineterminator="\n"))
        with contextlib.closing(jobs.run(tasks, rows, options.processes)) as results:
            for n, (_, result) in enumerate(results, 1):
                append(options.csv, result)
                print(f"{n} of {len(tasks)} runs, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
