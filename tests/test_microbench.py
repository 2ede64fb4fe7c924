"""The micro table: cells and their numbers, isomorphic cells, building, reading."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import hashlib
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dcpnas_lite import files
from dcpnas_lite.__main__ import main
from dcpnas_lite.commands import microbench as command
from dcpnas_lite.evaluation import build as building
from dcpnas_lite.evaluation import microbench as mb
from dcpnas_lite.evaluation import table as tables
from dcpnas_lite.evaluation.training import TrainConfig
from dcpnas_lite.evaluation.worth import Worth, worth
from dcpnas_lite.network import genotype as genotypes
from dcpnas_lite.network import operations as registry
from dcpnas_lite.network import supernet
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import Genotype

SHIPPED = ("digits", "fashion_mnist")
TINY = mb.Recipe("digits", {"size": 8}, TrainConfig(channels=2, layers=1, epochs=1, batch=512))
BUILD = """
import argparse
import dcpnas_lite.evaluation.microbench as mb
from dcpnas_lite.commands.shared import guarded
from dcpnas_lite.evaluation.training import TrainConfig
def build(args):
    recipe = mb.Recipe("digits", {{"size": 8}}, TrainConfig(channels=2, layers=1, epochs=1, batch=512))
    mb.build(recipe, 2, {workers}, {out!r}, cells=range(100, 100 + {cells}), progress=False)
if __name__ == "__main__":
    raise SystemExit(guarded(build, argparse.Namespace()))
"""


# -- cells


def test_a_cell_has_one_number():
    for number in (0, 1, 8, 64, 511, 285):
        assert mb.index(mb.operations(number)) == mb.index(mb.genotype(number)) == mb.index(np.int64(number)) == number
    assert mb.operations(0o123) == ("skip_connect", "dil_conv_3x3", "dil_conv_5x5")


def test_a_cell_is_a_set_of_edges():
    a, b, c = ("sep_conv_3x3", 0), ("skip_connect", 0), ("max_pool_3x3", 1)
    assert mb.index(Genotype(1, ((a,), (b, c)))) == mb.index(Genotype(1, ((a,), (c, b)))) == mb.index([a[0], b[0], c[0]])
    assert mb.index(np.array([a[0], b[0], c[0]])) == mb.index([a[0], b[0], c[0]])


ONE = ("none", 0)
NO_CELLS = [
    *(-1, 512, 1.0, 1.5, math.nan, np.float64(3), None, True, np.True_, 10**30, "none", b"abc", [], [[], [1]], {"none": 1}),
    *(("none",) * 2, ("none", "none", "conv"), ("none", "none", ["none"]), {"none", "skip_connect", "sep_conv_3x3"}),
    *(np.array([1.0]), np.array(["none"] * 4), object()),
    *(Genotype(1, nodes) for nodes in (((ONE,), (ONE,)), ((ONE,), (ONE, ONE)), ((ONE,), (ONE, ONE, ("none", 1))), ((ONE,),))),
    Genotype(1, ((ONE,), (ONE, ("none", 1)), (ONE,))),
    Genotype(1, ((ONE,), (ONE, ("none", 1))), ((ONE,), (ONE, ("none", 1)))),
]


@pytest.mark.parametrize("cell", NO_CELLS, ids=range(len(NO_CELLS)))
def test_no_cell_is_refused(cell):
    with pytest.raises(ValueError, match="^cell: expected .*, got .*$"):
        mb.index(cell)


def same_function(a: int, b: int, binary: bool) -> bool:
    """Whether a network of cell b, given the weights of cell a's network node by node, computes the same up to the swap of nodes.

    One layer, so the classifier sees the nodes: its columns are swapped along.
    """
    torch.manual_seed(1)
    first, second = (DiscreteNetwork(mb.genotype(c), 4, 1, 10, 1, binary).double() for c in (a, b))
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    expected, w = first(x), first.classifier.weight
    names, own = mb.operations(b), second.cells[0].operations
    found = False
    for order, swap in itertools.product(itertools.permutations(range(3)), (False, True)):
        if any(n not in ("none", "skip_connect") and n != mb.operations(a)[k] for n, k in zip(names, order, strict=True)):
            continue
        second.stem, second.preprocess = first.stem, first.preprocess
        second.cells[0].operations = torch.nn.ModuleList(
            mine if n in ("none", "skip_connect") else first.cells[0].operations[k]
            for n, k, mine in zip(names, order, own, strict=True)
        )
        second.classifier.weight = torch.nn.Parameter(torch.cat([w[:, 4:], w[:, :4]], 1) if swap else w)
        second.classifier.bias = first.classifier.bias
        found |= torch.allclose(second(x), expected, rtol=0, atol=1e-12)
    return found


@pytest.mark.parametrize("binary", [True, False])
def test_isomorphic_cells_compute_the_same_and_others_do_not(binary):
    ops = [mb.MICRO.operations.index(n) for n in ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")]
    classes = mb.classes()
    chosen = {k: v for k, v in classes.items() if all(i in ops for c in v for i in (c // 64, c // 8 % 8, c % 8))}
    assert len(chosen) > 5
    for first, cells in chosen.items():
        for cell in cells:
            assert same_function(first, cell, binary), (mb.operations(first), mb.operations(cell))
    conv, skip, none = "sep_conv_3x3", "skip_connect", "none"
    for a, b in [((conv, none, none), (conv, none, skip)), ((conv, skip, none), (conv, none, skip))]:
        assert mb.canonical(a) != mb.canonical(b)
        assert not same_function(mb.index(a), mb.index(b), binary)


def test_classes_partition_the_cells():
    canonical = [mb.canonical(c) for c in range(mb.CELLS)]
    assert all(canonical[k] == k and k <= c for c, k in enumerate(canonical))
    assert len(set(canonical)) == 448
    assert sum(len(v) - 1 for v in mb.classes().values()) == mb.CELLS - 448


# -- building


def rows(path) -> list[list[str]]:
    return sorted(r[:-2] for r in csv.reader(Path(path).read_text().splitlines()[2:]))  # without seconds and checksum


class Build:
    """A build of `cells` cells, 1-bit and real-valued, with two seeds, in processes of its own."""

    def __init__(self, folder: Path, cells: int):
        self.out, self.script = folder / "t.csv", folder / "build.py"
        self.script.write_text(BUILD.format(out=str(self.out), workers=1, cells=cells))

    def rows(self) -> int:
        return self.out.read_text().count("\n") - 2 if self.out.exists() else 0

    def start(self, rows: int) -> tuple[subprocess.Popen, int]:
        """The build and the server that makes its workers, once it has written `rows` more rows."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mb.__file__).parents[2])}
        options = dict(env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        before, process, deadline = self.rows(), subprocess.Popen([sys.executable, self.script], **options), time.time() + 200
        while self.rows() < before + rows:
            assert process.poll() is None and time.time() < deadline, process.communicate()
            time.sleep(0.02)
        (server,) = (pid for pid in children(process.pid) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return process, server


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def gone(pids: list[int], seconds: float = 20) -> bool:
    def alive(pid: int) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    deadline = time.time() + seconds
    while any(map(alive, pids)) and time.time() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_build_survives_what_it_meets_and_goes_on_to_the_same_table(tmp_path, capfd):
    build = Build(tmp_path, 8)
    faults = {
        "dead worker": lambda process, workers: os.kill(workers[0], signal.SIGKILL),
        "Ctrl-C": lambda process, workers: os.killpg(process.pid, signal.SIGINT),  # as a terminal sends it, to all
        "dead parent": lambda process, workers: process.kill(),
    }
    statuses = {"dead worker": 2, "Ctrl-C": 130, "dead parent": -signal.SIGKILL}
    for name, fault in faults.items():
        process, server = build.start(rows=2)
        workers = children(server)
        assert len(workers) == 1  # with two: test_jobs
        fault(process, workers)
        _, message = process.communicate(timeout=60)
        assert process.returncode == statuses[name]
        assert "Traceback" not in message
        if name != "dead parent":  # of which multiprocessing's own tracker may tell that it is gone
            assert message.count("\n") == 1 and "what is finished is kept" in message, message
        assert gone([*workers, server])
        before = build.out.read_text()
        assert before.endswith("\n") and 2 <= build.rows() < 32
        with open(build.out, "a") as file:
            file.write("102,32,1,0.0")  # the beginning of a row, as a crash of the machine can leave it
    mb.build(TINY, 2, 1, build.out, cells=range(100, 108), progress=False)
    assert capfd.readouterr().err == "" and build.out.read_text().startswith(before)
    found = rows(build.out)
    assert [r[:3] for r in found] == sorted([str(c), str(b), str(s)] for c in range(100, 108) for b in (1, 32) for s in (0, 1))
    data = TINY.load()
    result = mb.train_cell(101, 1, 1, TINY, data)
    assert building.row(101, 1, 1, result, data.test.x[0]).split(",")[:-2] in found
    whole = build.out.read_bytes()
    mb.build(TINY, 2, 1, build.out, cells=range(100, 108), progress=False)  # nothing is left to do
    assert build.out.read_bytes() == whole


def test_a_table_has_one_builder(tmp_path):
    out = tmp_path / "t.csv"
    with files.lock(out), pytest.raises(BlockingIOError, match="in use by process"):
        mb.build(TINY, 1, 1, out, cells=[0], progress=False)


def test_a_row_that_does_not_fit_leaves_no_piece(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x" * 90 + "\n")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))  # as a full disk: the beginning of the row is written
    try:
        with pytest.raises(OSError, match="the rows before stay.*t.csv"):
            tables.append(path, "y" * 60 + "\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_text() == "x" * 90 + "\n"
    tables.append(path, "y\n")
    assert path.read_text() == "x" * 90 + "\ny\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "mnist"}, "data: expected one of digits"),
        ({"workers": 0}, "workers: expected 1 …"),
        ({"seeds": 0}, "seeds: expected"),
        ({"seeds": [-1]}, "seeds: expected"),
        ({"cells": [512]}, "cell: expected"),
    ],
)
def test_a_senseless_build_is_refused_and_leaves_nothing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        mb.build(**{"data": TINY, "out": tmp_path / "new" / "t.csv", "progress": False} | options)
    assert not list(tmp_path.rglob("*.csv"))


def test_a_build_trains_nothing_twice(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(building.jobs, "run", lambda jobs, *_, **__: asked.extend(jobs) or (row for row in ()))
    mb.build(TINY, np.int64(2), 1, tmp_path / "t.csv", cells=iter([5, mb.genotype(5), np.int64(5), 4]), progress=False)
    assert asked == [(cell, bits, seed) for seed in (0, 1) for cell in (5, 4) for bits in (1, 32)]


def test_another_recipe_is_refused(tmp_path):
    out = tmp_path / "t.csv"
    tables.opened(out, TINY)
    with pytest.raises(ValueError, match=f"expected a table of recipe {mb.RECIPES['digits'].hash}, got one of {TINY.hash}"):
        tables.opened(out, mb.RECIPES["digits"])


def test_operations_are_counted():
    net = DiscreteNetwork(mb.genotype(("sep_conv_3x3", "none", "none")), 4, 1, 10, 1, binary=True)
    binary, real = building.count_operations(net, torch.zeros(1, 8, 8))
    assert binary == 64 * (4 * 4 + 2 * (4 * 9 + 4 * 4))  # preprocessing; twice depthwise and pointwise
    assert real == 64 * 4 * 9 + 8 * 10  # stem and classifier


# -- reading


SMALL = [(5, 1, 0.7, 10), (5, 0, 0.5, 10), (6, 0, 0.9, 20), (6, 1, 0.9, 20), (7, 0, 0.8, 30)]


@pytest.fixture
def table(tmp_path):
    """A table as `build` leaves it: three 1-bit cells, 5 twice, 6 twice, 7 once."""
    path = tmp_path / "t.csv"
    tables.opened(path, TINY)
    tables.append(path, "".join(tables.sealed(f"{cell},1,{seed},{a},{a},1,2,{size},3,4,0.5") for cell, seed, a, size in SMALL))
    return path


@pytest.fixture
def small(table):
    tables.pack(table, table.with_suffix(".csv.gz"))
    return mb.MicroBench.load(table.with_suffix(".csv.gz"))


def test_means_errors_ranks(small):
    assert small.accuracy(5) == pytest.approx(0.6)
    assert small.standard_error(5) == pytest.approx(0.1)
    assert small.standard_error(6) == 0
    assert small.standard_error(7) == pytest.approx(0.1)  # one seed: pooled variance (0.02 + 0) / 2
    assert [small.percentile(c) for c in (5, 7, 6)] == [0, 50, 100]
    assert small.top(2) == [6, 7]
    assert small.regret(5) == (pytest.approx(0.3), pytest.approx(0.1))
    assert small.regret(6) == (0, 0)
    assert small.pareto() == [5, 6]
    assert len(small.missing(1)) == 2 * mb.CELLS - 3
    assert small.frame()["test_accuracy"].shape == (5,)
    for of in (small.accuracy, small.standard_error, small.percentile, small.regret, small.size):
        with pytest.raises(KeyError, match="cell 8 with 1 bits"):
            of(8)
        with pytest.raises(ValueError, match="expected bits 1 or 32"):
            of(5, 2)
    assert small.top(10) == [6, 7, 5] and small.top(10, 32) == []


def test_a_packed_table_is_the_plain_one_sorted(table, small):
    text = gzip.decompress(table.with_suffix(".csv.gz").read_bytes()).decode()
    assert [line[:5] for line in text.splitlines()[2:]] == ["5,1,0", "6,1,0", "7,1,0", "5,1,1", "6,1,1"]
    plain = mb.MicroBench.load(table)
    assert plain.recipe == small.recipe == json.loads(TINY.to_json()) and mb.Recipe.of(small.recipe) == TINY
    assert plain.mean.keys() == small.mean.keys()
    assert all(np.array_equal(plain.mean[k], small.mean[k], equal_nan=True) for k in plain.mean)
    for name, column in plain.rows.items():
        assert column.dtype == small.rows[name].dtype and np.array_equal(np.sort(column), np.sort(small.rows[name]))


def test_numbers_and_tables_are_of_the_eight_operations_and_no_others(table):
    names = "none skip_connect dil_conv_3x3 dil_conv_5x5 max_pool_3x3 avg_pool_3x3 sep_conv_3x3 sep_conv_5x5".split()
    edges = [[0, 1], [0, 2], [1, 2]]
    assert [mb.operations(64 * m)[0] for m in range(8)] == names
    for name in SHIPPED:
        first = gzip.decompress((mb.TABLES / f"microbench-{name}.csv.gz").read_bytes()).decode().split("\n")[0]
        assert json.loads(first[2:])["space"] == {"operations": names, "edges": edges}
    text = table.read_text()
    others = {
        "registered": (json.dumps(names), json.dumps([*names, "conv_3x3"])),
        "reordered": (json.dumps(names), json.dumps(sorted(names))),
        "another edge": (json.dumps(edges), json.dumps([*edges, [0, 3]])),
        "none named": (text[text.index('"space"') : text.index('"recipe"')], ""),
    }
    for other, change in others.items():
        table.write_text(text.replace(*change))
        for read in (mb.MicroBench.load, lambda path: tables.opened(path, TINY), lambda path: tables.pack(path, "nowhere")):
            with pytest.raises(ValueError, match=rf"^{table}: expected cells of the space .*sep_conv_5x5.*, got .*$") as caught:
                read(table)
        assert "none named" in str(caught.value) or other != "none named"


def test_an_operation_that_is_registered_changes_no_number_and_no_table(monkeypatch):
    bench, cell = mb.MicroBench.load(), mb.operations(100)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    for module in (genotypes, supernet):
        monkeypatch.setattr(module, "REGISTRY", registry.REGISTRY)
    registry.register("conv_3x3", registry.REGISTRY["sep_conv_3x3"].build)
    assert mb.operations(100) == cell and mb.index(cell) == 100 and len(mb.MICRO.operations) == 8
    assert mb.MicroBench.load().accuracy(100) == bench.accuracy(cell)
    own = dataclasses.replace(mb.MICRO, operations=("conv_3x3", *mb.MICRO.operations))
    with pytest.raises(ValueError, match="^cell: expected 0 … 511, 3 of none, .*, got Genotype.*conv_3x3"):
        bench.accuracy(Genotype.from_operations(own, ["conv_3x3", *cell[1:]]))


def test_packing_a_shipped_table_again_changes_nothing(tmp_path):
    for name in SHIPPED:
        shipped = mb.TABLES / f"microbench-{name}.csv.gz"
        tables.pack(shipped, tmp_path / "t")
        assert gzip.decompress((tmp_path / "t").read_bytes()) == gzip.decompress(shipped.read_bytes())


def test_a_table_without_checksums_is_read_and_gone_on_with(table, small):
    before = mb.MicroBench.load(table).rows
    sealed = table.read_bytes()
    table.write_text("".join(line.rpartition(",")[0] + "\n" if i else line for i, line in enumerate(open(table))))
    assert ",check" not in table.read_text()
    after = mb.MicroBench.load(table).rows
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert tables.opened(table, TINY) == {(cell, 1, seed) for cell, seed, *_ in SMALL}
    assert table.read_bytes() == sealed


def test_no_file_at_all():
    with pytest.raises(FileNotFoundError, match="expected one of digits, digits-shortcut, fashion_mnist or a file"):
        mb.MicroBench.load("mnist")


HEAD = tables.head(TINY.to_json(), checked=False).encode()
ROW = b"5,1,0,0.5,0.5,1,2,3,3,4,0.5\n"
BAD = {
    "empty": b"", "foreign": b"cell,bits\n1,2\n", "no gzip": b"\x1f\x8b damaged", "other columns": b'# {"recipe": {}}\ncell\nx\n',
    "gzip cut off": gzip.compress(HEAD + ROW)[:-9], "bomb": gzip.compress(bytes(1 << 28), 1), "nul": bytes(1000),
    "recipe": HEAD.replace(b'"channels": 2', b'"channels": 3') + ROW, "no recipe": tables.head("{}", False).encode() + ROW,
    "deep": b"# " + b"[" * 100_000, "long field": HEAD + b'"' + b"x" * 200_000 + b"\n" + ROW,
    "cut off": HEAD + ROW + ROW[:9], "twice": HEAD + ROW + ROW, "two in one": HEAD + ROW[:-1] + ROW,
    "cell": HEAD + ROW.replace(b"5,1", b"512,1", 1), "bits": HEAD + ROW.replace(b",1,", b",2,", 1),
    "seed": HEAD + ROW.replace(b",0,", b",-1,", 1), "accuracy": HEAD + ROW.replace(b",0.5", b",1.1", 1),
    "negative": HEAD + ROW.replace(b",0.5", b",-.1", 1), "nan": HEAD + ROW.replace(b",0.5", b",nan", 1),
    "fraction": HEAD + ROW.replace(b",3,4", b",3.5,4", 1), "huge": HEAD + ROW.replace(b",4,", b",1" + b"0" * 30 + b",", 1),
    "space": HEAD + ROW.replace(b"5,1", b"5 ,1", 1), "digits of another script": HEAD + ROW.replace(b"5,1", "٥,1".encode(), 1),
    "blank line": HEAD + b"\n" + ROW, "not text": HEAD + b"\xff" + ROW,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_tables_are_refused_in_one_line(tmp_path, kind, capsys):
    path = tmp_path / "t.csv"
    path.write_bytes(BAD[kind])
    for read in (mb.MicroBench.load, lambda p: tables.pack(p, tmp_path / "packed")):
        with pytest.raises(ValueError, match=f"^{path}[:,].*$"):
            read(path)
    assert not (tmp_path / "packed").exists()
    if kind not in ("empty", "cut off"):  # what a kill leaves
        with pytest.raises(ValueError, match=f"^{path}[:,].*$"):
            tables.opened(path, TINY)
    assert path.read_bytes() == BAD[kind]


def test_a_damaged_row_is_named_by_its_line(table):
    lines = table.read_text().splitlines(keepends=True)
    for number in range(3, len(lines) + 1):
        for at in range(len(lines[number - 1]) - 1):
            text, other = lines[number - 1], "7" if lines[number - 1][at] != "7" else "8"
            table.write_text("".join([*lines[: number - 1], text[:at] + other + text[at + 1 :], *lines[number:]]))
            with pytest.raises(ValueError, match=rf"t\.csv, line {number}: .*delete this line"):
                mb.MicroBench.load(table)


@pytest.mark.parametrize("row", [b"x,1", b"x,1,512,{}", b"x,1,5,{", b"x,1,5,3", b"x,y,5,{}", b"\xff,1,5,{}", b'"x'])
def test_bad_tables_of_searches_are_refused(tmp_path, row):
    path, head = tmp_path / "m.csv", b"method,seed,cell,changes\n"
    path.write_bytes(head + b'x,1,5,"{""lam"": 2.0}"\n')
    assert mb.cells_found(path) == {"x": {1: 5}} and mb.searches_found(path)["lam"].tolist() == [2.0]
    for content in (head + row, gzip.compress(head + row)[:-1], head.replace(b"cell", b"sell") + b"x,1,5,{}\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{path}: expected a table of searches.*$"):
            mb.cells_found(path)


# -- command line


def test_a_table_built_elsewhere_can_be_packed_shown_and_checked(tmp_path, table, capsys):
    packed = tmp_path / "packed.csv.gz"
    assert main(["microbench", "pack", "--table", str(table), "--out", str(packed)]) == 0
    assert np.array_equal(np.sort(mb.MicroBench.load(packed).rows["cell"]), [5, 5, 6, 6, 7])
    assert main(["microbench", "show", "--table", str(packed)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["6", "7", "5"] and "real –" in shown[0]
    assert main(["microbench", "check", "--table", str(table), "--count", "2"]) in (0, 1)
    assert capsys.readouterr().out.count("retrained") == 2


@pytest.mark.parametrize("away, status", [(0.0, 0), (0.04, 1), (-0.04, 1)])
def test_a_few_wild_cells_do_not_hide_four_points(monkeypatch, capsys, away, status):
    """Three cells of this table scatter by 38 to 54 points, any other by less than eight."""
    bench = mb.MicroBench.load("digits-shortcut")
    monkeypatch.setattr(command, "train_cell", lambda cell, *_: SimpleNamespace(test_accuracy=bench.accuracy(cell) + away))
    assert main(["microbench", "check", "--table", "digits-shortcut", "--count", "40"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40 and sum("DIFFERS" in line for line in lines) >= 35 * status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--table", "x"], "--table: expected with pack, show or check"),
        (["build", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["show", "--count", "0"], "--count: expected at least 1, got 0"),
        (["show", "--table", "nowhere"], "one of digits, digits-shortcut, fashion_mnist or a file, got 'nowhere'"),
        (["pack", "--table", "nowhere"], "No such file or directory: 'nowhere'"),
        (["check", "--count", "600"], "digits: expected a table with at least 600 cells"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["microbench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_table_with_shortcuts_is_whole_with_one_bit():
    shipped = mb.MicroBench.load("digits-shortcut")
    assert shipped.recipe == json.loads(mb.RECIPES["digits-shortcut"].to_json())
    frame = shipped.frame()
    wanted = itertools.product(range(mb.CELLS), (1,), range(3))
    assert sorted(frame[["cell", "bits", "seed"]].itertuples(index=False, name=None)) == list(wanted)
    rows = gzip.decompress((mb.TABLES / "microbench-digits-shortcut.csv.gz").read_bytes()).partition(b"\n")[2]
    assert hashlib.sha256(rows).hexdigest().startswith("4d58f20f7fce")


@pytest.mark.parametrize(("name", "seeds", "digest"), [("digits", 3, "47309a501d56"), ("fashion_mnist", 1, "e9c16b00c681")])
def test_the_shipped_tables_are_whole_and_of_their_recipe(name, seeds, digest):
    bench = mb.MicroBench.load(name)
    assert not bench.missing(seeds)
    assert bench.recipe == json.loads(mb.RECIPES[name].to_json())
    frame = bench.frame()
    assert not frame.duplicated(["cell", "bits", "seed"]).any() and list(frame) == list(mb.COLUMNS)
    assert sum(p.stat().st_size for p in mb.TABLES.glob("microbench-*")) < 400_000
    rows = gzip.decompress((mb.TABLES / f"microbench-{name}.csv.gz").read_bytes()).partition(b"\n")[2]
    assert hashlib.sha256(rows).hexdigest().startswith(digest)  # as they were trained, whatever the head says


def test_the_fashion_table_has_three_seeds_for_its_top_and_for_random_cells():
    bench = mb.MicroBench.load("fashion_mnist")
    first = (bench.rows["bits"] == 1) & (bench.rows["seed"] == 0)
    top = bench.rows["cell"][first][np.argsort(-bench.rows["validation_accuracy"][first], kind="stable")[:26]]
    drawn = np.random.default_rng(0).choice(mb.CELLS, 51, replace=False)
    assert all((bench.runs[bits][[*top, *drawn]] >= 3).all() for bits in mb.BITS)


def test_a_shipped_row_can_be_counted_again():
    bench, config = mb.MicroBench.load("digits"), mb.RECIPES["digits"].config
    for cell, bits in ((316, 1), (77, 32), (219, 1)):
        net = DiscreteNetwork(mb.genotype(cell), config.channels, config.layers, 10, 1, bits == 1)
        at = np.flatnonzero((bench.rows["cell"] == cell) & (bench.rows["bits"] == bits))[0]
        found = [bench.rows[c][at] for c in ("one_bit", "real", "size", "binary_operations", "float_operations")]
        assert found == [*net.size().values(), *building.count_operations(net, torch.zeros(1, 16, 16))]


def test_random_search_keeps_the_best_of_its_draws():
    bench = mb.MicroBench.load("digits")
    one, many = (mb.random_search(bench, n, repeats=300) for n in (1, 64))
    assert mb.random_search(bench, 4, 5, seed=3) == mb.random_search(bench, 4, 5, seed=3)
    assert len(set(one)) > 150
    first = (bench.rows["bits"] == 1) & (bench.rows["seed"] == 0)
    validation = dict(zip(bench.rows["cell"][first].tolist(), bench.rows["validation_accuracy"][first].tolist(), strict=True))
    assert np.quantile([validation[c] for c in many], 0.1) > np.quantile(list(validation.values()), 0.9)


def test_a_bootstrap_interval_covers():
    generator = np.random.default_rng(0)
    covered = [low <= 0 <= high for _, low, high in (mb.interval(generator.normal(size=40), np.mean, 500) for _ in range(200))]
    assert 0.88 < np.mean(covered) < 0.99
    values = generator.normal(size=20)
    assert mb.interval(values)[0] == np.median(values)
    first, again, other = (mb.interval(values, np.mean, seed=seed) for seed in (0, 0, 1))
    assert first == again and first[0] == other[0] and first[1:] != other[1:]
    drawn = np.random.default_rng(0).choice(values, (10_000, 20))  # by hand
    assert first[1:] == pytest.approx(np.quantile(drawn.mean(1), [0.025, 0.975]), abs=1e-12)


# -- what a cell is worth


def test_the_worth_of_a_cell():
    bench = mb.MicroBench.load("digits")
    best, poor = bench.top(1)[0], int(np.argsort(bench.mean[1, "test"])[150])
    for cell in (best, poor, 285):
        found = worth(mb.genotype(cell), "micro", "digits")
        assert found.percentile == round(bench.percentile(cell), 1) and found.regret == round(100 * bench.regret(cell)[0], 1)
    assert worth(mb.genotype(best), "micro", "digits").random_cells is None
    assert worth(mb.genotype(poor), "micro", "digits").random_cells == 1
    n = worth(mb.genotype(285), "micro", "digits").random_cells
    medians = [np.median([bench.percentile(c) for c in mb.random_search(bench, k, 201)]) for k in range(1, n + 1)]
    assert medians[-1] >= bench.percentile(285) > max(medians[:-1])
    shortcut = mb.MicroBench.load("digits-shortcut")
    assert worth(mb.genotype(285), "micro", "digits", "shortcut").percentile == round(shortcut.percentile(285), 1)
    assert worth(mb.genotype(285), "micro", "fashion_mnist", "shortcut") is None
    assert worth(mb.genotype(285), "micro", "cifar10") is worth(mb.genotype(285), "paper", "digits") is None
    place = "better than 97.6 % of the other cells, 0.8 points below the best one"
    assert str(Worth(97.6, 0.8, 12)) == f"{place}; as good as the best of 12 trained random cells"
    assert "better than the best of 256 trained" in str(Worth(100.0, 0.0, None))
