r"""The source's own space on the embedded digits: searches, then their cells beside the published one and random ones.

    python benchmarks/paper.py --workers 2

Runs `python -m dcpnas_lite search --space paper --data digits --seeds 0-2 --out runs/paper-digits`, which resumes where it was
stopped, puts what appendix B shows of seed 0 into dcpnas_lite/tables/paper-digits, and trains every cell by one recipe at one
size: first all with seed 0, then the others. A row is appended to dcpnas_lite/tables/paper-cells.csv as it comes; a row that is
there is not repeated, so that the same command goes on from where it was stopped. The first line of the table is the recipe;
below it:

cell: found-K, what the search of seed K returns; strength-0, what the strength of α says after the search of seed 0; published;
random-K (K is the seed of its generator). bits; test_accuracy, validation_accuracy: shares of the images; size_in_bits: of the
whole network; genotype: JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dcpnas_lite import files
from dcpnas_lite.__main__ import main as run_command
from dcpnas_lite.commands.folder import SETTINGS
from dcpnas_lite.data import digits
from dcpnas_lite.engine import jobs
from dcpnas_lite.evaluation.table import append
from dcpnas_lite.evaluation.training import TrainConfig, train
from dcpnas_lite.network.genotype import PUBLISHED, Genotype, discretize, random_cell
from dcpnas_lite.network.supernet import PAPER
from dcpnas_lite.report.history import FinishedSearch

TABLES = Path(__file__).resolve().parent.parent / "dcpnas_lite" / "tables"
COLUMNS = "cell seed bits test_accuracy validation_accuracy size_in_bits genotype".split()
SEARCHES, RANDOM, SEEDS = range(3), range(20), range(3)


def ship(run: Path, target: Path) -> None:
    """The search as the source reads it, by strength: config, cell, and the history in float16 (final α in full)."""
    target.mkdir(parents=True, exist_ok=True)
    made = FinishedSearch.load(run)
    made.settings["search"] |= {"selection": "strength", "finalists": 0}
    files.write(target / "config.json", files.seal(made.settings, SETTINGS))
    alphas = {t: torch.from_numpy(made.history[f"final/{t}"]) for t in made.space.cell_types}
    files.write(target / "genotype.json", discretize(made.space, alphas).to_json() + "\n")
    path, what = run / "history.npz", "the history of a search"
    history = files.arrays_from_bytes(path.read_bytes(), path, what, sealed=False)
    for name, values in history.items():
        if not name.startswith("final/"):
            history[name] = values.astype(np.float16 if values.ndim > 1 else np.float32)
    files.write(target / "history.npz", files.arrays_to_bytes(history, compress=True))


def cells(runs: Path) -> dict[str, Genotype]:
    """The cells to be trained, by name."""
    first = FinishedSearch.load(runs / "seed-0")
    alphas = {t: torch.from_numpy(first.history[f"final/{t}"]) for t in PAPER.cell_types}
    found = {f"found-{k}": FinishedSearch.load(runs / f"seed-{k}").genotype for k in SEARCHES}
    drawn = {f"random-{k}": random_cell(PAPER, k) for k in RANDOM}
    return found | {"strength-0": discretize(PAPER, alphas), "published": PUBLISHED} | drawn


def row(task: tuple[str, str, str, str, dict]) -> str:
    """The row of one training."""
    name, seed, bits, genotype, config = task
    torch.set_num_threads(1)
    result = train(Genotype.from_json(genotype), digits(), int(bits), TrainConfig(seed=int(seed), **config))
    values = name, seed, bits, result.test_accuracy, result.validation_accuracy, result.bits, genotype
    return pd.DataFrame([values]).to_csv(index=False, header=False, float_format="%.4f", lineterminator="\n")


def text(recipe: str, rows: pd.DataFrame) -> str:
    """A table with its recipe in the first line."""
    return recipe + "\n" + rows.to_csv(index=False, lineterminator="\n")


def read(path: Path, recipe: str) -> pd.DataFrame:
    """The rows of a table, as text, without one that was cut off; SystemExit where they were made by another recipe."""
    content = path.read_text(encoding="utf8") if path.exists() else text(recipe, pd.DataFrame(columns=COLUMNS))
    first, _, rows = content[: content.rfind("\n") + 1].partition("\n")
    if first != recipe:
        raise SystemExit(f"{path}: expected rows of the recipe {recipe[2:]}; delete the file to begin again")
    return pd.read_csv(io.StringIO(rows), dtype=str)


def keys(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """What determines each training, besides the recipe."""
    return list(rows[["cell", "seed", "bits", "genotype"]].itertuples(index=False, name=None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="searches or trainings at a time, each on one thread (default: 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper-digits"), help="folder of the searches")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="a few minutes in all, to try the script")
    options = parser.parse_args()
    search = ["search", "--space", "paper", "--data", "digits", "--seeds", f"0-{SEARCHES[-1]}", "--workers", str(options.workers)]
    search += ["--out", str(options.runs)]
    config = {"channels": 16, "layers": 3, "epochs": 12, "batch": 64}  # that of the micro table
    if options.tiny:
        search += ["--set", "rounds=2", "--set", "steps=4", "--set", "channels=4"]
        config |= {"channels": 4, "epochs": 2}
    path = options.tables / "paper-cells.csv"
    recipe = "# " + json.dumps({"data": "digits"} | config | {"lr": TrainConfig.lr, "seed": "column"})
    rows = read(path, recipe)
    if run_command(search):
        raise SystemExit(1)
    ship(options.runs / "seed-0", options.tables / "paper-digits")

    texts = {name: json.dumps(json.loads(cell.to_json())) for name, cell in cells(options.runs).items()}
    wanted = [(name, str(seed), "1", texts[name]) for seed in SEEDS for name in texts]
    rows = rows.iloc[[k for k, key in enumerate(keys(rows)) if key in wanted]]  # the others belong to another search
    tasks = [(*key, config) for key in wanted if key not in keys(rows)]
    started = time.perf_counter()
    with files.lock(path), contextlib.closing(jobs.run(tasks, row, options.workers)) as trained:
        files.write(path, text(recipe, rows))
        for n, (_, new) in enumerate(trained, 1):
            append(path, new)
            print(f"{n} of {len(tasks)} trainings, {time.perf_counter() - started:.0f} s", flush=True)
        rows = read(path, recipe)
        order = sorted(range(len(rows)), key=lambda k: wanted.index(keys(rows)[k]))
        files.write(path, text(recipe, rows.iloc[order]))


if __name__ == "__main__":
    main()
