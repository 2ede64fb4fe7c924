r"""What the search multiplies with in the place of H_G, along short searches.

    python benchmarks/curvature.py curvature.csv --processes 4

Runs the search of SearchConfig() on the embedded digits with every seed and writes one row for each measured architecture step of
the Child. The result ships in dcpnas_lite/tables and is read by chapter 9 and appendix D.

seed, step: architecture steps the Child has made before; and the cosine and the ratio of lengths of two products with the same
v: sampled_fisher_* of what `sampled` gives with −F v, sampled_hessian_* with H_G v, fisher_hessian_* of −F v with H_G v.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dcpnas_lite import files
from dcpnas_lite.data import digits
from dcpnas_lite.engine import jobs
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.search import search
from dcpnas_lite.method.coupling import cosine

PAIRS = [("curvature", "fisher", "sampled_fisher"), ("curvature", "hessian", "sampled_hessian"),
         ("fisher", "hessian", "fisher_hessian")]  # fmt: skip


def rows(config: SearchConfig) -> pd.DataFrame:
    """The rows of one search."""
    torch.set_num_threads(1)
    history = search(digits(), config).history
    products = {what: torch.from_numpy(history[f"{what}/normal"]) for what in ("curvature", "fisher", "hessian")}
    table = pd.DataFrame({"seed": config.seed, "step": config.measure_every * np.arange(len(products["fisher"]))})
    for a, b, name in PAIRS:
        table[f"{name}_cosine"] = [cosine([u], [v]) for u, v in zip(products[a], products[b], strict=True)]
        table[f"{name}_length"] = [(u.norm() / v.norm()).item() for u, v in zip(products[a], products[b], strict=True)]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--every", type=int, default=2, help="measure at every that many architecture steps")
    options = parser.parse_args()
    tasks = [SearchConfig(seed=seed, measure_every=options.every) for seed in range(options.seeds)]
    tables = [table for _, table in jobs.run(tasks, rows, options.processes)]
    whole = pd.concat(tables).sort_values(["seed", "step"])
    files.write(options.csv, whole.to_csv(index=False, float_format="%.3g", lineterminator="\n"))


if __name__ == "__main__":
    main()
