"""Damaged files of every format that the package reads: each is refused with one clear line, or read as what it was.

    python tools/faults.py [--inputs 200] [--seed 0]

Makes one small file of every format, damages each in `--inputs` ways (flipped bits, changed bytes, cut off, pieces inserted,
removed, repeated and zeroed), puts foreign files in its place (empty, text, JSON of anything else, pickles, archives, bombs,
other versions, files of the other formats), and gives them to the package's own readers. A table tells how many were

refused    with a ValueError or FileNotFoundError of one line that names the file or its folder
unchanged  and read as what the file held: the damage was to something that says nothing, as the time in a gzip header; of a plain
           micro table, whose rows come one by one, any of its rows
other      and read as another valid file, of a kind that people write by hand or that comes without a checksum
BAD        anything else: another exception, a warning, a changed content, memory beyond bounds, code run from a pickle

Exit status 1 where anything is BAD.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import dataclasses
import gzip
import hashlib
import io
import json
import pickle
import random
import re
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcpnas_lite import data, readers
from dcpnas_lite.__main__ import main as run_command
from dcpnas_lite.commands import folder as search_folder
from dcpnas_lite.engine import checkpoint
from dcpnas_lite.evaluation import microbench
from dcpnas_lite.evaluation import table as table_form
from dcpnas_lite.evaluation.training import TrainConfig
from dcpnas_lite.report.history import FinishedSearch

SEARCH = ["rounds=1", "steps=2", "warmup=0", "channels=2", "layers=1", "batch=8"]
MEMORY = 1 << 27  # bytes that reading one of the small files may take; a bomb has 1 << 28
RECORDS = 10  # images in each file of CIFAR-10


def same(a, b) -> bool:
    """Whether two results of a reader are equal, bit by bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and same(a.numpy(), b.numpy())
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a and b != b)  # NaN


def subset(a: microbench.MicroBench, b: microbench.MicroBench) -> bool:
    """Whether all rows of table b are in a."""
    rows_a, rows_b = (set(zip(*(column.tolist() for column in t.rows.values()), strict=True)) for t in (a, b))
    return a.recipe == b.recipe and rows_b <= rows_a


@dataclass
class Format:
    """A file, what reads it, and when the result of a reading is that of the undamaged file."""

    name: str
    path: Path
    read: Callable
    equal: Callable = same
    checksum: bool = True


def formats(folder: Path) -> list[Format]:
    """One small file of each format."""
    run = folder / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        if run_command(["search", "--quiet", "--out", str(run), *(f"--set={change}" for change in SEARCH)]):
            raise SystemExit(1)
    made_by = search_folder.read_run(run)

    table = folder / "table.csv"
    recipe = microbench.Recipe("digits", {"size": 8}, TrainConfig(channels=2, layers=1, epochs=1, batch=512))
    packed = table.with_suffix(".csv.gz")
    with gzip.open(microbench.TABLES / "microbench-digits.csv.gz", "rt", encoding="utf8") as file:
        rows = file.read().splitlines()[2::150]
    table.write_text("\n".join([*table_form.head(recipe.to_json(), checked=False).splitlines(), *rows, ""]), encoding="utf8")
    table_form.opened(table, recipe)  # adds the checksums
    table_form.pack(table, packed)

    idx = {}
    for name, count in zip(readers.FASHION_MNIST_SHA256, (30, 30, 10, 10), strict=True):
        if "labels" in name:
            array = np.arange(count, dtype=np.uint8) % 10
        else:
            array = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        idx[name] = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in idx.items()}
    for name, content in idx.items():
        for place, suffix, bytes_ in (("plain", "", content), ("packed", ".gz", gzip.compress(content, mtime=1))):
            (folder / place).mkdir(exist_ok=True)
            (folder / place / f"{name}{suffix}").write_bytes(bytes_)

    def fashion(place: str) -> data.Data:
        return data.fashion_mnist(folder / place, validation=10, sha256=digests, base_url="http://127.0.0.1:9/")

    bins, archive = folder / "bins", folder / "cifar-10-binary.tar.gz"
    bins.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for k, name in enumerate(readers.CIFAR10_FILES):
            records = np.random.default_rng(k).integers(0, 256, (RECORDS, 3073), np.uint8)
            records[:, 0] = np.arange(RECORDS) % 10
            (bins / name).write_bytes(records.tobytes())
            tar.add(bins / name, f"cifar-10-batches-bin/{name}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()

    images, labels, *_ = digests
    return [
        Format("checkpoint.npz", run / "checkpoint.npz", lambda: checkpoint.load(run / "checkpoint.npz")),
        Format("config.json", run / "config.json", lambda: search_folder.finished(run, made_by)),
        Format("genotype.json", run / "genotype.json", lambda: search_folder.finished(run, made_by)),
        Format("summary.json", run / "summary.json", lambda: search_folder.read_summary(run)),
        Format("history.npz", run / "history.npz", lambda: FinishedSearch.load(run)),
        Format("config.json, shown", run / "config.json", lambda: FinishedSearch.load(run)),
        Format("genotype.json, shown", run / "genotype.json", lambda: FinishedSearch.load(run), checksum=False),
        Format("genotype.json, alone", run / "genotype.json", lambda: search_folder.read_genotype(run / "genotype.json"),
               checksum=False),
        Format("micro table", table, lambda: microbench.MicroBench.load(table), subset),
        Format("micro table, packed", packed, lambda: vars(microbench.MicroBench.load(packed))),
        Format("IDX images", folder / "plain" / images, lambda: fashion("plain")),
        Format("IDX labels", folder / "plain" / labels, lambda: fashion("plain")),
        Format("IDX images, gzip", folder / "packed" / f"{images}.gz", lambda: fashion("packed")),
        Format("IDX labels, gzip", folder / "packed" / f"{labels}.gz", lambda: fashion("packed")),
        Format("CIFAR-10 archive", archive, lambda: data.cifar10(archive, validation=10, sha256=digest)),
        Format("CIFAR-10 .bin", bins / readers.CIFAR10_FILES[0], lambda: data.cifar10(bins, validation=10), checksum=False),
    ]


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(kind, damaged content)."""
    kind = rng.choice(("bit", "bytes", "cut off", "inserted", "removed", "repeated", "zeroed"))
    # half of the time near an end of the file, where what says most stands
    at = rng.randrange(len(content)) if rng.random() < 0.5 else rng.choice((1, -1)) * rng.randrange(min(len(content), 80))
    at %= len(content)
    length = min(rng.choice((1, 2, 8, 64, 512)), len(content) - at)
    before, piece, after = content[:at], content[at : at + length], content[at + length :]
    if kind == "bit":
        piece = bytes([piece[0] ^ 1 << rng.randrange(8)]) + piece[1:]
    elif kind == "bytes":
        piece = b"".join(bytes([rng.choice((rng.randrange(256), rng.choice(b"0123456789,.\n\"{}[]:")))]) for _ in piece)
    elif kind == "cut off":
        piece = after = b""
    elif kind == "inserted":
        piece = rng.randbytes(length) + piece
    elif kind == "removed":
        piece = b""
    elif kind == "repeated":
        piece *= 2
    else:
        piece = bytes(length)
    return kind, before + piece + after


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def foreign(all_: list[Format], folder: Path) -> Iterator[tuple[str, bytes]]:
    """(kind, content) of files that are of another kind altogether."""
    for f in all_:
        yield f.name, f.path.read_bytes()
    texts = {
        "empty": "", "a line": "\n", "text": "hello\n" * 100, "NUL": "\0" * 1000, "HTML": "<!DOCTYPE html><html></html>",
        "list": "[]", "null": "null", "string": '"x"', "number": "3", "object": "{}", "infinite": "1e999", "NaN": "NaN",
        "huge number": "9" * 5000, "nested": "[" * 100_000, "nested objects": '{"search":' * 100_000, "surrogate": r'"\ud800"',
        "sealed": '{"sha256": null}', "byte order": "\ufeff{}",
        "numbers": json.dumps({"inputs": 1, "normal": 3}), "no text": json.dumps({"data": 3, "search": []}),
    }  # fmt: skip
    yield from ((name, text.encode()) for name, text in texts.items())
    yield "Latin-1", "é".encode("latin1")
    objects = np.array([Payload(folder / "mark")], object)
    yield "pickle", pickle.dumps(objects)
    for name, arrays in {"archive of a pickle": {"state": objects, "final/normal": objects}, "other archive": {"x": np.zeros(3)},
                         "text arrays": {"network": np.array(["a"]), "final/normal": np.array(["b"])}}.items():  # fmt: skip
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        yield name, buffer.getvalue()
    for name, value in {"torch's file": {"state": torch.zeros(3)}, "torch's pickle": Payload(folder / "mark")}.items():
        buffer = io.BytesIO()
        torch.save(value, buffer)
        yield name, buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    yield "one array", buffer.getvalue()
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb") as file:
        for _ in range(1 << 8):
            file.write(bytes(1 << 20))
    yield "gzip bomb", buffer.getvalue()
    yield "zip bomb", zip_bomb()
    version = checkpoint.VERSION
    for checkpoint.VERSION in (version - 1, version + 1, "3", None):
        yield f"version {checkpoint.VERSION!r}", checkpoint.to_bytes({"done": 1})
    checkpoint.VERSION = version


def zip_bomb() -> bytes:
    """Four hundred entries of 4 MiB that are all the same few kilobytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        array = io.BytesIO()
        np.save(array, np.zeros(1 << 19))
        file.writestr("x0.npy", array.getvalue())
        for k in range(1, 400):
            entry = copy.copy(file.filelist[0])
            entry.filename = f"x{k}.npy"
            file.filelist.append(entry)
    return buffer.getvalue()


def largest(forget: bool = False) -> int:
    """Bytes of memory that this process has had at most, since it was last told to `forget`; 0 where Linux does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def verdict(f: Format, original, mark: Path) -> tuple[str, str]:
    """(refused, unchanged, other or BAD; what was wrong) for the file as it is now."""
    before = largest(forget=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = f.read()
        outcome = "unchanged" if f.equal(original, value) else "BAD" if f.checksum else "other"
        said = "" if outcome != "BAD" else "accepted with another content"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        named = isinstance(error, ValueError | FileNotFoundError) and str(f.path.parent) in said
        outcome = "refused" if named and "\n" not in said and len(said) < 1000 else "BAD"
    if mark.exists():
        mark.unlink()
        return "BAD", "ran the code of a pickle"
    if (more := largest() - before) > MEMORY:
        return "BAD", f"took {more:,} bytes"
    return outcome, said


def run(inputs: int, seed: int, progress: bool = True) -> tuple[dict[str, collections.Counter], list[str]]:
    """(format → how many were refused, unchanged, other, BAD; a line for each that is BAD)."""
    counts, bad = {}, []
    records, readers.CIFAR10_RECORDS = readers.CIFAR10_RECORDS, RECORDS
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            mark, all_ = folder / "mark", formats(folder)
            others = list(foreign(all_, folder))
            for f in all_:
                content, rng = f.path.read_bytes(), random.Random(f"{seed} {f.name}")
                original, count = f.read(), collections.Counter()
                tries = [damaged(content, rng) for _ in range(inputs)] + others
                for kind, bytes_ in tries:
                    f.path.write_bytes(bytes_)
                    outcome, said = verdict(f, original, mark)
                    count[outcome] += 1
                    if outcome == "BAD":
                        bad.append(f"{f.name}, {kind}: {said[:300]!r}")
                f.path.write_bytes(content)
                counts[f.name] = count
                if progress:
                    print(line(f.name, count), flush=True)
    finally:
        readers.CIFAR10_RECORDS = records
    return counts, bad


KINDS = ("refused", "unchanged", "other", "BAD")


def line(name: str, count: collections.Counter) -> str:
    return f"{name:22}{count.total():8,}" + "".join(f"{count[kind]:11,}" for kind in KINDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200, help="damaged files of each format, besides the foreign ones")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    print(f"{'format':22}{'inputs':>8}" + "".join(f"{kind:>11}" for kind in KINDS))
    counts, bad = run(args.inputs, args.seed)
    print(line("all", sum(counts.values(), collections.Counter())))
    print(*bad[:50], f"{time.perf_counter() - started:.0f} s", sep="\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
