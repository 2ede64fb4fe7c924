"""Ground truth: all 8³ = 512 cells of the MICRO space, trained real-valued and 1-bit, in one table per data set.

A cell is a number 0 … 511, its three operation names in the order of `MICRO.edges`, or a `Genotype`. `MicroBench.load` reads
a table that ships with the package; `build` is what made it, and a table can be built for any other recipe.

A table is a CSV file: one line `# {json}` with the recipe and its hash, a line of column names, one row per training. Building
appends to a plain file, so it can be stopped at any moment and goes on where it was; there every row ends in its CRC-32. Packing
sorts the rows, leaves that out and compresses, as gzip has a checksum of its own.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import hashlib
import json
import math
import operator
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .. import data as datasets
from .. import files
from ..data import Data
from ..engine import jobs
from ..network.binarize import BinaryConv2d
from ..network.genotype import Genotype
from ..network.supernet import MICRO
from .training import TrainConfig, TrainResult, train

TABLES = Path(__file__).parent.parent / "tables"
CELLS = len(MICRO.operations) ** len(MICRO.edges)
BITS = (1, 32)
COLUMNS = {
    "cell": int,
    "bits": int,
    "seed": int,
    "test_accuracy": float,  # share of the test images, 0 … 1
    "validation_accuracy": float,
    "one_bit": int,  # parameters stored as one bit
    "real": int,  # parameters stored as 32-bit floats
    "size": int,  # bits of all parameters
    "binary_operations": int,  # multiply-accumulates of ±1 with ±1, for one image
    "float_operations": int,  # multiply-accumulates of the other convolutions and the classifier
    "seconds": float,
}
WHAT = "a table of micro cells"
LIMIT = 1 << 26  # bytes; a row takes 60, and there are 1024 for a seed
ROW = re.compile(",".join({int: r"(\d{1,18})", float: r"(\d+(?:\.\d+)?(?:e-\d+)?)"}[kind] for kind in COLUMNS.values()), re.ASCII)
Cell = int | Sequence[str] | Genotype


@dataclass(frozen=True)
class Recipe:
    """How the trainings of a table are made: the data set with its reader's options, and the training without its seed."""

    data: str
    options: dict
    config: TrainConfig

    def load(self, root: str | os.PathLike | None = None) -> Data:
        """Read the data; `root` is the folder of its files. The split is the same for all seeds of a table."""
        return datasets.load(self.data, root, **self.options)

    def to_json(self) -> str:
        """One line that determines every training of the table but for its cell, bits and seed."""
        config = dataclasses.asdict(self.config)
        del config["seed"]
        return json.dumps({"data": self.data, "options": self.options, "train": config})

    @classmethod
    def of(cls, bench: MicroBench) -> Recipe:
        """The recipe of a table."""
        return cls(bench.recipe["data"], bench.recipe["options"], TrainConfig(**bench.recipe["train"]))

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of `to_json`."""
        return _hash(self.to_json())


RECIPES = {
    "digits": Recipe("digits", {}, TrainConfig(channels=16, layers=3, epochs=12, batch=64)),
    "fashion_mnist": Recipe(
        "fashion_mnist", {"train": 3000, "validation": 3000}, TrainConfig(channels=16, layers=3, epochs=8, batch=64)
    ),
}


# -- cells ------------------------------------------------------------------------------------------------------------


def index(cell: Cell) -> int:
    """The number of a cell. Raises ValueError for anything that is no cell of the MICRO space."""
    number, names = _number(cell), ", ".join(MICRO.operations)
    if number is None:
        raise ValueError(f"cell: expected 0 … {CELLS - 1}, {len(MICRO.edges)} of {names}, or such a Genotype, got {cell!r:.200}")
    return number


def _number(cell: Cell) -> int | None:
    """The number of a cell, None for anything that is none."""
    if isinstance(cell, Genotype):  # a set of edges: their order says nothing
        edges = {(source, node): name for node, incoming in enumerate(cell.normal, 1) for name, source in incoming}
        twice = sum(map(len, cell.normal)) > len(edges)
        if cell.inputs != 1 or cell.reduce is not None or twice or set(edges) != set(MICRO.edges):
            return None
        cell = [edges[edge] for edge in MICRO.edges]
    if isinstance(cell, np.ndarray) and cell.ndim:
        cell = cell.tolist()
    if isinstance(cell, list | tuple):
        if len(cell) != len(MICRO.edges) or not all(isinstance(name, str) and name in MICRO.operations for name in cell):
            return None
        number = 0
        for name in cell:
            number = number * len(MICRO.operations) + MICRO.operations.index(name)
        return number
    try:
        number = operator.index(cell)
    except TypeError:
        return None
    return number if 0 <= number < CELLS and not isinstance(cell, bool) else None


def operations(cell: Cell) -> tuple[str, ...]:
    """The operation names of a cell, in the order of `MICRO.edges`."""
    number, base = index(cell), len(MICRO.operations)
    return tuple(MICRO.operations[number // base**e % base] for e in reversed(range(len(MICRO.edges))))


def genotype(cell: Cell) -> Genotype:
    """The genotype of a cell."""
    return Genotype.from_operations(MICRO, operations(cell))


def canonical(cell: Cell) -> int:
    """The smallest number among the cells that are the same function of the same weights, up to a swap of the two nodes.

    The cell computes node 1 = a(x) and node 2 = b(x) + c(node 1), and returns both. Three identities:
    c = skip_connect is c = none where a = none (either adds zero); with c = none the nodes swap, (a, b) ~ (b, a);
    with a = skip_connect node 1 is x, so node 2 = b(x) + c(x) and (b, c) ~ (c, b). A pooling or convolution that reads a
    `none` is not among them: it still adds its BatchNorm's learned constant and, 1-bit, the pattern of its border.
    """
    a, b, c = operations(cell)
    if a == "none" and c == "skip_connect":
        c = "none"
    same = {(a, b, c)}
    for _ in range(2):  # a swap can make another one possible
        for a, b, c in tuple(same):
            if c == "none":
                same.add((b, a, c))
            if a == "skip_connect":
                same.add((a, c, b))
            if a == "none" and c in ("none", "skip_connect"):
                same |= {(a, b, "none"), (a, b, "skip_connect")}
    return min(map(index, same))


# -- building ---------------------------------------------------------------------------------------------------------


def count_operations(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """(binary, real-valued) multiply-accumulates of the convolutions and the classifier for one image (C, H, W).

    A convolution whose input is all zero for lack of edges counts like any other.
    """
    counts = [0, 0]

    def count(module, inputs, out):
        counts[not isinstance(module, BinaryConv2d)] += out[0].numel() * module.weight[0].numel()

    hooks = [
        m.register_forward_hook(count) for m in network.modules() if isinstance(m, BinaryConv2d | nn.Conv2d | nn.Linear)
    ]
    network.eval()
    with torch.no_grad():
        network(image[None])
    for hook in hooks:
        hook.remove()
    return tuple(counts)


def row(cell: int, bits: int, seed: int, result: TrainResult, image: torch.Tensor) -> str:
    """The line of a plain table for one training; `image` (C, H, W) is what the operations are counted for."""
    binary, real = count_operations(result.network, image)
    values = (
        cell,
        bits,
        seed,
        round(result.test_accuracy, 6),
        round(result.validation_accuracy, 6),
        result.one_bit,
        result.real,
        result.bits,
        binary,
        real,
        round(result.seconds, 2),
    )
    return _sealed(",".join(map(str, values)))


def train_cell(cell: int, bits: int, seed: int, recipe: Recipe, data: Data, device: str = "cpu") -> TrainResult:
    """Train a cell by a table's recipe."""
    return train(genotype(cell), data, bits, dataclasses.replace(recipe.config, seed=seed), device=device)


_worker: dict = {}  # what a worker process keeps between its trainings


def _start_worker(recipe: Recipe, root: str | os.PathLike | None, device: str) -> None:
    torch.set_num_threads(1)
    _worker.update(recipe=recipe, data=recipe.load(root), device=device)


def _row(job: tuple[int, int, int]) -> str:
    result = train_cell(*job, **_worker)
    return row(*job, result, _worker["data"].test.x[0].to(_worker["device"]))


def build(
    data: str | Recipe = "digits",
    seeds: int | Iterable[int] = 3,
    workers: int = 2,
    out: str | os.PathLike | None = None,
    cells: Iterable[Cell] = range(CELLS),
    root: str | os.PathLike | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Train `cells` × {1, 32} bits × seeds in `workers` processes of one thread each; returns the path of the table.

    data: a name of `RECIPES` or a `Recipe`. seeds: how many, or which. out: default runs/microbench-NAME.csv; rows that are there
    already are not trained again. root: where the files of the data are. Seed by seed, so a build that was cut off holds whole
    tables of the first seeds. However it ends, the rows it has written stay, and the same call goes on.
    Raises ValueError where `out` is damaged or was made by another recipe, or for a name without one, BlockingIOError where
    another process builds into it, RuntimeError where a worker died.
    """
    if isinstance(data, str) and data not in RECIPES:
        raise ValueError(f"data: expected one of {', '.join(RECIPES)}, got {data!r}")
    recipe = RECIPES[data] if isinstance(data, str) else data
    path = Path(out or f"runs/microbench-{recipe.data}.csv")
    numbers = [index(cell) for cell in cells]
    seeds = list(seeds if isinstance(seeds, Iterable) else range(operator.index(seeds)))
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds: expected at least one, none below 0, got {seeds}")
    wanted = list(dict.fromkeys((cell, bits, operator.index(seed)) for seed in seeds for cell in numbers for bits in BITS))
    jobs.check(workers)
    recipe.load(root)  # where it is missing, this says so, not every worker
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(path):
        done = opened(path, recipe)
        left = [job for job in wanted if job not in done]
        results = jobs.run(left, _row, workers, _start_worker, (recipe, root, device))
        bar = tqdm(total=len(wanted), initial=len(wanted) - len(left), disable=not progress, unit="training", smoothing=0.05)
        with bar, contextlib.closing(results):
            for _, line in results:
                append(path, line)
                bar.update()
    return path


def opened(path: Path, recipe: Recipe) -> set[tuple[int, int, int]]:
    """Make `path` ready to be appended to; returns the (cell, bits, seed) it holds. ValueError as `build`."""
    head = _head(recipe.to_json(), checked=True)
    content = files.read(path, WHAT, LIMIT) if path.exists() else b""
    rows = {}
    if not head.encode().startswith(content):  # else it was not begun or cut off in its head
        if not content.startswith(head.split("\n")[0].encode()):
            raise ValueError(f"{path}: expected a table of recipe {recipe.hash}, got one that begins with {content[:100]!r}")
        rows = _parse(content[: content.rfind(b"\n") + 1], path)[1]  # a kill can leave the beginning of a row behind
    whole = head + "".join(map(_sealed, rows.values()))
    if whole.encode() != content:
        files.write(path, whole)
    return set(rows)


def append(path: Path, rows: str) -> None:
    """Add whole rows to a file: all of them or, where that fails, none. OSError names the file."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(rows.encode())
    except OSError as error:
        os.truncate(path, size)
        raise OSError(error.errno, f"{error.strerror}; the rows before stay, the same command goes on", str(path)) from None


def pack(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Write the table `source` gzipped and sorted by seed, cell and bits, so that equal tables differ in the times alone.

    Raises FileNotFoundError where there is no source, ValueError for one that `MicroBench.load` refuses.
    """
    recipe, rows = _read(Path(source))
    order = sorted(rows, key=lambda row: (row[2], *row[:2]))
    text = _head(json.dumps(recipe), checked=False) + "".join(rows[key] + "\n" for key in order)
    files.write(target, gzip.compress(text.encode(), mtime=0))


# -- the form of a table ----------------------------------------------------------------------------------------------


def _hash(recipe: str) -> str:
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _head(recipe: str, checked: bool) -> str:
    """The first two lines of a table, for its recipe in JSON; `checked`: the rows have a checksum."""
    return f'# {{"hash": "{_hash(recipe)}", "recipe": {recipe}}}\n{",".join([*COLUMNS, *["check"] * checked])}\n'


def _sealed(row: str) -> str:
    """A row as a line with its CRC-32."""
    return f"{row},{zlib.crc32(row.encode()):08x}\n"


def _read(path: Path) -> tuple[dict, dict[tuple[int, int, int], str]]:
    """`_parse` of a file, plain or gzipped."""
    content = files.read(path, WHAT, LIMIT)
    return _parse(files.gunzip(content, LIMIT, path) if content[:2] == b"\x1f\x8b" else content, path)


def _parse(content: bytes, path: Path) -> tuple[dict, dict[tuple[int, int, int], str]]:
    """(recipe, (cell, bits, seed) → row) of a table. ValueError for anything else, with the number of the damaged line."""
    try:
        first, columns, *lines = content.decode().split("\n")
        recipe = json.loads(first.removeprefix("# "))["recipe"]
        checked = columns.endswith(",check")
        whole = f"{first}\n{columns}\n" == _head(json.dumps(recipe), checked) and {"data", "options", "train"} == set(recipe)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: expected {WHAT}, got something else or a damaged one (its first two lines are wrong)")
    if lines.pop():
        raise ValueError(f"{path}, line {len(lines) + 3}: expected a whole row, got one that is cut off; build again to go on")
    rows: dict[tuple[int, int, int], str] = {}
    for number, line in enumerate(lines, 3):
        row = line.rpartition(",")[0] if checked else line
        found = ROW.fullmatch(row)
        if checked and line + "\n" != _sealed(row) or not found or not _possible(*found.groups()):
            raise ValueError(f"{path}, line {number}: expected a training, got {line[:100]!r}; delete this line and build again")
        key = tuple(map(int, found.groups()[:3]))
        if key in rows:
            raise ValueError(f"{path}, line {number}: cell {key[0]}, {key[1]} bits, seed {key[2]} again; delete one of the rows")
        rows[key] = row
    return recipe, rows


def _possible(cell: str, bits: str, seed: str, test: str, validation: str, *_) -> bool:
    return int(cell) < CELLS and int(bits) in BITS and float(test) <= 1 and float(validation) <= 1


# -- reading ----------------------------------------------------------------------------------------------------------


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
        """Read the shipped table `name` (digits, fashion_mnist) or the file at that path.

        Raises FileNotFoundError where there is neither, ValueError for a file that is no table or a damaged one.
        """
        path = TABLES / f"microbench-{name}.csv.gz"
        if not path.is_file():
            path = Path(name)
        if not path.is_file():
            names = sorted(p.name.removeprefix("microbench-").removesuffix(".csv.gz") for p in TABLES.glob("microbench-*.csv.gz"))
            raise FileNotFoundError(f"table: expected one of {', '.join(names)} or a file, got {str(name)!r}")
        recipe, rows = _read(path)
        columns = zip(*(row.split(",") for row in rows.values()), strict=True) if rows else [()] * len(COLUMNS)
        values = zip(COLUMNS.items(), columns, strict=True)
        return cls(recipe, {name: np.array(list(map(kind, column)), kind) for (name, kind), column in values})

    def frame(self) -> dict[str, np.ndarray]:
        """The columns of the table, one entry per training."""
        return dict(self.rows)

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


def classes() -> dict[int, list[int]]:
    """Canonical cell → all its isomorphic cells, for every class of more than one."""
    found: dict[int, list[int]] = {}
    for cell in range(CELLS):
        found.setdefault(canonical(cell), []).append(cell)
    return {first: cells for first, cells in found.items() if len(cells) > 1}


# -- search methods scored on a table ---------------------------------------------------------------------------------


def found(name: str | os.PathLike = "digits") -> dict[str, dict[int, int]]:
    """Method → seed → the cell that its search found: the shipped table `methods-NAME.csv`, or a file of that form.

    The rows are those that `benchmarks/methods.py` wrote. Raises FileNotFoundError where there is no such table, ValueError for
    a damaged or foreign one.
    """
    path = TABLES / f"methods-{name}.csv"
    path = path if path.is_file() else Path(name)
    content = files.read(path, "a table of searches", LIMIT)
    cells: dict[str, dict[int, int]] = {}
    try:
        for row in csv.DictReader(content.decode().splitlines(), strict=True):
            cells.setdefault(row["method"], {})[int(row["seed"])] = index(int(row["cell"]))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a table of searches, got something else or a damaged one ({error})") from None
    return cells


def random_search(bench: MicroBench, n: int, repeats: int = 1000, seed: int = 0) -> list[int]:
    """Of `n` random cells the one with the best validation accuracy in its first 1-bit training; `repeats` such cells."""
    rows = bench.rows
    first = np.flatnonzero((rows["bits"] == 1) & (rows["seed"] == 0))
    drawn = np.random.default_rng(seed).choice(first, (repeats, n))
    best = rows["validation_accuracy"][drawn].argmax(1)
    return rows["cell"][drawn[np.arange(repeats), best]].tolist()


def interval(values: Sequence[float], statistic=np.median, repeats: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """(statistic, lower and upper end of its 95 % bootstrap interval) of independent values."""
    values = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(seed).choice(values, (repeats, len(values)))
    return (float(statistic(values)), *np.quantile(statistic(drawn, axis=1), [0.025, 0.975]).tolist())


# -- command line -----------------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """The arguments of `python -m dcpnas_lite microbench`."""
    parser.add_argument("action", choices=("build", "pack", "show", "check"))
    parser.add_argument("--data", default="digits", choices=tuple(RECIPES))
    parser.add_argument("--seeds", type=int, default=3, help="build: trainings of each cell")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", help="build: the table, default runs/microbench-DATA.csv; pack: its compressed form")
    parser.add_argument("--table", metavar="FILE", help="pack, show, check: a table that was built, not that of DATA")
    parser.add_argument("--root", help="folder with the files of the data set")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=8, help="show: how many of the best; check: how many random cells")
    parser.add_argument("--seed", type=int, default=0, help="check: draws the cells")


def main(args) -> int:
    """Run `python -m dcpnas_lite microbench` with parsed arguments."""
    for name in ("seeds", "count"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(args, name)}")
    if args.action == "build":
        if args.table:
            raise ValueError("--table: expected with pack, show or check; build writes to --out")
        print(build(args.data, args.seeds, args.workers, args.out, root=args.root, device=args.device))
    elif args.action == "pack":
        pack(args.table or f"runs/microbench-{args.data}.csv", args.out or f"microbench-{args.data}.csv.gz")
    elif args.action == "show":
        bench = MicroBench.load(args.table or args.data)
        for cell in bench.top(args.count):
            real = f"{bench.accuracy(cell, 32):.4f}" if bench.runs[32][cell] else "–"
            print(
                f"{cell:3d}  {' '.join(operations(cell)):42s} 1-bit {bench.accuracy(cell):.4f} ± {bench.standard_error(cell):.4f}"
                f"  real {real}  {bench.size(cell) / 8192:.2f} KiB"
            )
    else:
        return check(args.table or args.data, args.count, args.seed, args.root, args.device)
    return 0


def check(name: str, count: int, seed: int, root: str | None = None, device: str = "cpu") -> int:
    """Retrain `count` random cells, 1-bit, with a seed the table does not hold, and print them beside the table.

    name: as of `MicroBench.load`. Returns 1 where a difference exceeds three standard errors, else 0. The standard error is that
    of a difference between one training and the cell's mean; two or three seeds say little about a cell's own deviation, so it
    is at least the pooled one. ValueError for a table with fewer cells, or with no cell that was trained twice.
    """
    bench = MicroBench.load(name)
    recipe, failed = Recipe.of(bench), 0
    runs, error = bench.runs[1], bench.error[1, "test"]
    several = runs > 1
    if count > np.count_nonzero(runs) or not several.any():
        got = f"{np.count_nonzero(runs)} cells, {np.count_nonzero(several)} trained twice"
        raise ValueError(f"{name}: expected a table with at least {count} cells, some trained twice, got {got}")
    data = recipe.load(root)
    pooled = math.sqrt((error[several] ** 2 * runs[several]).mean())
    for cell in np.random.default_rng(seed).choice(np.flatnonzero(runs), count, replace=False).tolist():
        accuracy = train_cell(cell, 1, 1000 + seed, recipe, data, device).test_accuracy
        spread = max(pooled, error[cell] * math.sqrt(runs[cell])) * math.sqrt(1 + 1 / runs[cell])
        wrong = abs(accuracy - bench.accuracy(cell)) > 3 * spread
        failed += wrong
        print(
            f"{cell:3d}  table {bench.accuracy(cell):.4f}, retrained {accuracy:.4f}, "
            f"standard error of the difference {spread:.4f}  {'DIFFERS' if wrong else 'agrees'}",
            flush=True,
        )
    return int(failed > 0)
