"""The file of a micro table: its recipe, its form, and how rows are added to it. Owns no equation.

A table is a CSV file: one line `# {json}` with the recipe, its hash and the space whose cells are numbered, a line of column
names, one row per training. Building appends to a plain file, so it can be stopped at any moment and goes on where it was;
there every row ends in its CRC-32. Packing sorts the rows, leaves that out and compresses, as gzip has a checksum of its own.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from .. import data as datasets
from .. import files
from ..data import Data
from ..network.supernet import MICRO
from .cells import CELLS
from .training import TrainConfig

TABLES = Path(__file__).parent.parent / "tables"
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
SPACE = json.dumps({"operations": MICRO.operations, "edges": MICRO.edges})  # what the number of a cell means
ROW = re.compile(",".join({int: r"(\d{1,18})", float: r"(\d+(?:\.\d+)?(?:e-\d+)?)"}[kind] for kind in COLUMNS.values()), re.ASCII)


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
        for name in ("block", "statistics"):  # these came later: as before where they are as before, as a hash depends on it
            if config[name] == getattr(TrainConfig, name):
                del config[name]
        return json.dumps({"data": self.data, "options": self.options, "train": config})

    @classmethod
    def of(cls, values: dict) -> Recipe:
        """The recipe whose `to_json` holds these values."""
        return cls(values["data"], values["options"], TrainConfig(**values["train"]))

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of `to_json`."""
        return _hash(self.to_json())


RECIPES = {
    "digits": Recipe("digits", {}, TrainConfig(channels=16, layers=3, epochs=12, batch=64)),
    "digits-shortcut": Recipe(
        "digits", {}, TrainConfig(channels=16, layers=3, epochs=12, batch=64, block="shortcut", statistics="exact")
    ),
    "fashion_mnist": Recipe(
        "fashion_mnist", {"train": 3000, "validation": 3000}, TrainConfig(channels=16, layers=3, epochs=8, batch=64)
    ),
}


def opened(path: Path, recipe: Recipe) -> set[tuple[int, int, int]]:
    """Make `path` ready to be appended to; returns the (cell, bits, seed) it holds.

    ValueError where it is damaged, or a table of another recipe or of other operations.
    """
    start = head(recipe.to_json(), checked=True)
    content = files.read(path, WHAT, LIMIT) if path.exists() else b""
    rows: dict[tuple[int, int, int], str] = {}
    if not start.encode().startswith(content):  # else it was not begun or cut off in its head
        made_by, rows = _parse(content[: content.rfind(b"\n") + 1], path)  # a kill can leave the beginning of a row behind
        if made_by != json.loads(recipe.to_json()):
            got = f"one of {_hash(json.dumps(made_by))}, {json.dumps(made_by):.200}"
            raise ValueError(f"{path}: expected a table of recipe {recipe.hash}, got {got}")
    whole = start + "".join(map(sealed, rows.values()))
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
    recipe, rows = read(Path(source))
    order = sorted(rows, key=lambda row: (row[2], *row[:2]))
    text = head(json.dumps(recipe), checked=False) + "".join(rows[key] + "\n" for key in order)
    files.write(target, gzip.compress(text.encode(), mtime=0))


def _hash(recipe: str) -> str:
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def head(recipe: str, checked: bool) -> str:
    """The first two lines of a table, for its recipe in JSON; `checked`: the rows have a checksum."""
    columns = ",".join([*COLUMNS, *["check"] * checked])
    return f'# {{"hash": "{_hash(recipe)}", "space": {SPACE}, "recipe": {recipe}}}\n{columns}\n'


def sealed(row: str) -> str:
    """A row as a line with its CRC-32."""
    return f"{row},{zlib.crc32(row.encode()):08x}\n"


def read(path: Path) -> tuple[dict, dict[tuple[int, int, int], str]]:
    """(recipe, (cell, bits, seed) → row) of a file, plain or gzipped.

    FileNotFoundError where there is none. ValueError for a damaged or foreign one, with the number of the damaged line, and for
    one whose cells are of other operations or edges than those of MICRO.
    """
    content = files.read(path, WHAT, LIMIT)
    return _parse(files.gunzip(content, LIMIT, path) if content[:2] == b"\x1f\x8b" else content, path)


def _parse(content: bytes, path: Path) -> tuple[dict, dict[tuple[int, int, int], str]]:
    """`read` of the content of a plain file."""
    try:
        first, columns, *lines = content.decode().split("\n")
        values = json.loads(first.removeprefix("# "))
        recipe, space = values["recipe"], json.dumps(values.get("space", "none named"))
        checked = columns.endswith(",check")
        same = space != SPACE or f"{first}\n{columns}\n" == head(json.dumps(recipe), checked)
        whole = same and {"data", "options", "train"} == set(recipe)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: expected {WHAT}, got something else or a damaged one (its first two lines are wrong)")
    if space != SPACE:
        raise ValueError(f"{path}: expected cells of the space {SPACE}, got {space:.300}")
    if lines.pop():
        raise ValueError(f"{path}, line {len(lines) + 3}: expected a whole row, got one that is cut off; build again to go on")
    rows: dict[tuple[int, int, int], str] = {}
    for number, line in enumerate(lines, 3):
        row = line.rpartition(",")[0] if checked else line
        found = ROW.fullmatch(row)
        if checked and line + "\n" != sealed(row) or not found or not _possible(*found.groups()):
            raise ValueError(f"{path}, line {number}: expected a training, got {line[:100]!r}; delete this line and build again")
        key = int(found[1]), int(found[2]), int(found[3])
        if key in rows:
            raise ValueError(f"{path}, line {number}: cell {key[0]}, {key[1]} bits, seed {key[2]} again; delete one of the rows")
        rows[key] = row
    return recipe, rows


def _possible(cell: str, bits: str, seed: str, test: str, validation: str, *_) -> bool:
    return int(cell) < CELLS and int(bits) in BITS and float(test) <= 1 and float(validation) <= 1
