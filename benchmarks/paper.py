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
import dataclasses
import io
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dcpnas_lite import files
from dcpnas_lite.__main__ import main as run_command
from dcpnas_lite.commands.folder import read_genotype
from dcpnas_lite.data import digits
from dcpnas_lite.engine import checkpoint, jobs
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.fast import accelerate
from dcpnas_lite.evaluation.table import append
from dcpnas_lite.evaluation.training import TrainConfig, train
from dcpnas_lite.method.selection import read_cell
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
        child = accelerate(Supernet(PAPER, config.channels, config.layers, len(data.classes), data.channels, binary=True))
        child.load_state_dict(state["networks"]["child"])
        files.write(path, read_cell(child, data.validation, "perturbation").to_json() + "\n")
    return read_genotype(path)


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
    if run_command(search):
        raise SystemExit(1)
    ship(options.run, options.tables / "paper-digits")

    found = read_genotype(options.run / "genotype.json")
    cells = {"found": found, "perturbed": perturbed(options.run), "published": PUBLISHED}
    cells |= {f"random-{k}": random_cell(PAPER, k) for k in RANDOM}
    texts = {name: json.dumps(json.loads(cell.to_json())) for name, cell in cells.items()}
    wanted = [(name, str(seed), "1", texts[name]) for seed in SEEDS for name in cells]
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
