r"""The source's own space on the embedded digits: one search, then its cell beside the published one and random ones.

    python benchmarks/paper.py --workers 2

Runs `python -m dcpnas_lite search --space paper --data digits --seed 0 --out runs/paper-digits`, which resumes where it was
stopped, puts what chapter 10 shows of it into dcpnas_lite/tables/paper-digits, and trains every cell with every seed by one
recipe at one size. A row is appended to dcpnas_lite/tables/paper-cells.csv as it comes; a row that is there is not repeated.
The first line of the table is the recipe; below it:

cell: found; perturbed, which the same supernet gives by selection by perturbation; published; random-K (K is the seed of its
generator); bits; test_accuracy, validation_accuracy: shares of the
images; size_in_bits: of the whole network; genotype: JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import time
from pathlib import Path

import numpy as np
import torch

from dcpnas_lite import __main__ as command_line
from dcpnas_lite import files
from dcpnas_lite.data import digits
from dcpnas_lite.engine import checkpoint, jobs
from dcpnas_lite.engine import search as loop
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.evaluation.table import append
from dcpnas_lite.evaluation.training import TrainConfig, train
from dcpnas_lite.method.selection import perturbation
from dcpnas_lite.network.genotype import PUBLISHED, Genotype, random_cell
from dcpnas_lite.network.supernet import PAPER, Supernet

TABLES = Path(__file__).resolve().parent.parent / "dcpnas_lite" / "tables"
COLUMNS = "cell seed bits test_accuracy validation_accuracy size_in_bits genotype".split()
RANDOM, SEEDS = range(3), range(3)


def ship(run: Path, target: Path) -> None:
    """Copy config and genotype, and the history in float16 (final α, from which the cell follows, in full)."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "genotype.json"):
        files.write(target / name, (run / name).read_bytes())
    path, what = run / "history.npz", "the history of a search"
    history = files.arrays_from_bytes(path.read_bytes(), path, what, sealed=False)
    for name, values in history.items():
        if not name.startswith("final/"):
            history[name] = values.astype(np.float16 if values.ndim > 1 else np.float32)
    files.write(target / "history.npz", files.arrays_to_bytes(history, compress=True))


def perturbed(run: Path) -> Genotype:
    """The cell that selection by perturbation reads off the searched Child; takes minutes, and is kept in the search's folder."""
    path = run / "perturbation.json"
    if not path.exists():
        data, state = digits(), checkpoint.load(run / "checkpoint.npz")
        config = SearchConfig.from_json(state["identity"]["configuration"])
        child = Supernet(PAPER, config.channels, config.layers, len(data.classes), data.channels, binary=True)
        child.load_state_dict(state["networks"]["child"])
        files.write(path, perturbation(child, *data.validation[slice(loop.SELECTION_IMAGES)]).to_json() + "\n")
    return command_line.read_genotype(path)


def row(task: tuple[str, int, str, TrainConfig]) -> list:
    """The row of one training."""
    name, bits, genotype, config = task
    torch.set_num_threads(1)
    result = train(Genotype.from_json(genotype), digits(), bits, config)
    accuracies = (f"{value:.4f}" for value in (result.test_accuracy, result.validation_accuracy))
    return [name, config.seed, bits, *accuracies, result.bits, genotype]


def key(row: list[str]) -> tuple[str, ...]:
    """What determines a training, besides the recipe: cell, seed, bits, genotype."""
    return *row[:3], row[-1]


def table(first: str, rows: list[list]) -> str:
    """CSV text below a first line."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return (first and first + "\n") + out.getvalue()


def read(path: Path, recipe: str) -> list[list[str]]:
    """The rows of a table, without one that was cut off; SystemExit where they were made by another recipe."""
    if not path.exists():
        return []
    first, *lines = path.read_text(encoding="utf8").splitlines(keepends=True)
    if first.strip() != recipe:
        raise SystemExit(f"{path}: expected rows of the recipe {recipe[2:]}; delete the file to begin again")
    return [row for row in csv.reader(line for line in lines[1:] if line.endswith("\n")) if len(row) == len(COLUMNS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, each on one thread (default: 1)")
    parser.add_argument("--run", type=Path, default=Path("runs/paper-digits"), help="folder of the search")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="a few minutes in all, to try the script")
    options = parser.parse_args()
    search = ["search", "--space", "paper", "--data", "digits", "--seed", "0", "--out", str(options.run)]
    config = {"channels": 16, "layers": 3, "epochs": 12, "batch": 64}  # that of the micro table
    if options.tiny:
        search += ["--set", "rounds=2", "--set", "steps=4", "--set", "channels=4"]
        config |= {"channels": 4, "epochs": 2}
    path = options.tables / "paper-cells.csv"
    recipe = "# " + json.dumps({"data": "digits"} | dataclasses.asdict(TrainConfig(**config)) | {"seed": "column"})
    rows = read(path, recipe)
    if command_line.main(search):
        raise SystemExit(1)
    ship(options.run, options.tables / "paper-digits")

    found = command_line.read_genotype(options.run / "genotype.json")
    cells = {"found": found, "perturbed": perturbed(options.run), "published": PUBLISHED}
    cells |= {f"random-{k}": random_cell(PAPER, k) for k in RANDOM}
    texts = {name: json.dumps(json.loads(cell.to_json())) for name, cell in cells.items()}
    trainings = {(name, str(seed), "1", texts[name]): TrainConfig(seed=seed, **config) for seed in SEEDS for name in cells}
    rows = [old for old in rows if key(old) in trainings]  # the others belong to a search that is not the one in the tables
    tasks = [(name, int(bits), text, trainings[name, seed, bits, text])
             for name, seed, bits, text in trainings.keys() - set(map(key, rows))]  # fmt: skip
    tasks.sort(key=lambda task: (task[3].seed, list(cells).index(task[0])))
    started = time.perf_counter()
    with files.lock(path), contextlib.closing(jobs.run(tasks, row, options.workers)) as trained:
        files.write(path, table(recipe, [COLUMNS, *rows]))
        made = {}
        for n, (task, new) in enumerate(trained, 1):
            made[task] = new
            append(path, table("", [new]))
            print(f"{n} of {len(tasks)} trainings, {time.perf_counter() - started:.0f} s", flush=True)
        files.write(path, table(recipe, [COLUMNS, *rows, *(made[task] for task in tasks)]))


if __name__ == "__main__":
    main()
