"""The searches of chapter 12, and the wide networks that made its ground truth: each member is what it is alone."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dcpnas_lite.data import digits
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.search import search
from dcpnas_lite.engine.training import TrainConfig
from dcpnas_lite.evaluation import microbench as mb
from dcpnas_lite.evaluation.build import count_operations
from dcpnas_lite.evaluation.training import train
from dcpnas_lite.network.discrete import DiscreteNetwork

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import batchnorm  # noqa: E402
import fashion  # noqa: E402
import search_methods  # noqa: E402
from tables_gpu import Wide  # noqa: E402


def test_the_shipped_searches_are_of_all_methods_and_of_cells_without_none():
    found = mb.cells_found("methods-digits")
    assert set(found) == set(search_methods.METHODS)
    for cells in found.values():
        assert sorted(cells) == list(range(20))
        assert not any("none" in mb.operations(c) for c in cells.values())


@pytest.mark.parametrize(
    ("table", "setting", "given", "seeds"),
    [
        ("default-digits", "DEFAULT", {}, dict.fromkeys(("dcp-nas", "cp-nas", "bnas", "darts"), range(20))),
        ("fresh-digits", "DEFAULT", {}, {"dcp-nas": range(20, 40)}),
        ("again-digits", "DEFAULT", {}, {"dcp-nas": range(20)}),
        ("default-fashion_mnist", "DEFAULT", {}, {"dcp-nas": range(10), "darts": range(5)}),
        ("final-fashion_mnist", "SHORT", {"finalists": 5}, {"dcp-nas": range(2)}),
        ("shortcut-digits", "SHORT", {"block": "shortcut"}, dict.fromkeys(("dcp-nas", "cp-nas", "bnas"), range(20))),
    ],
)
def test_a_shipped_table_is_of_the_command_in_the_scripts_text(table, setting, given, seeds):
    """Every search of the setting, its supernet read in every way, one row each; and DEFAULT is the default."""
    written = json.loads("{" + re.search(f"{setting}='(.*)'", search_methods.__doc__)[1] + "}") | given
    if setting == "DEFAULT":
        assert SearchConfig(**written) == SearchConfig.defaults("micro", table.partition("-")[2])
    rows = pd.read_csv(mb.TABLES / f"{table}.csv")
    rows["changes"] = [json.dumps(json.loads(text), sort_keys=True) for text in rows["changes"]]
    found = {key: sorted(group["seed"]) for key, group in rows.groupby(["method", "changes"])}
    ways = ("strength", "perturbation", "final")[: 3 if "finalists" in given else 2]
    changes = [json.dumps(search_methods.read_as(("", written, 0), way)[1], sort_keys=True) for way in ways]
    assert found == {(method, change): list(numbers) for method, numbers in seeds.items() for change in changes}
    assert not any("none" in mb.operations(cell) for cell in rows["cell"])


@pytest.mark.parametrize("binary", [True, False])
def test_a_wide_network_is_its_members(binary):
    torch.manual_seed(2)
    nets = [DiscreteNetwork(mb.genotype(64 * 3 + i), 2, 2, 10, 1, binary).double() for i in range(64)]
    many, x = Wide(nets, [3]), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    out, expected = many(x), torch.stack([net(x) for net in nets])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(many.stem[0].weight.grad, torch.cat([n.stem[0].weight.grad for n in nets]), rtol=0, atol=1e-10)


def test_plain_searches_are_scored_once_and_collected(tmp_path, monkeypatch):
    data, changes = digits(size=8), {"channels": 2, "layers": 1, "rounds": 2, "steps": 1, "batch": 16, "lam": 30.0}
    changes |= {"eta": 20.0, "selection": "perturbation"}
    seen = []
    monkeypatch.setattr(search_methods, "search", lambda *a: seen.append(search(*a)) or seen[-1])
    methods = ["psi edge", "as printed", "refreshed", *search_methods.RULES]
    rows = [search_methods.search_one((method, changes, 3), data) for method in methods]
    courses = [r.history["alpha/normal"] for r in seen]
    config = SearchConfig(**changes, seed=3, psi_shape="edge")
    assert np.array_equal(courses[0], search(data, config).history["alpha/normal"]) and len(seen) == len(methods)
    for k, mine in enumerate(courses):  # as many methods, as many ways to correct α
        assert not any(np.array_equal(mine, other) for other in courses[:k]), methods[k]
    cells = [mb.index(r.readings["perturbation"]) for r in seen]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(rows) + json.dumps(["psi edge", changes, 1003, 5, 1.0]) + '\n["darts", {')  # as a kill leaves it
    search_methods.whole(path)
    found = search_methods.finished(path)
    assert len(found) == 2 * len(methods) + 1
    by_strength = {name: value for name, value in changes.items() if name != "selection"}
    assert found[:2] == [
        ("psi edge", by_strength, 3, mb.index(seen[0].readings["strength"])), ("psi edge", changes, 3, cells[0]),
    ]  # fmt: skip
    search_methods.collect(path, tmp_path / "a.csv", tuning=False)
    collected = mb.searches_found(tmp_path / "a.csv").dropna(subset="selection")
    assert dict(collected[["method", "cell"]].to_numpy()) == dict(zip(methods, cells, strict=True))
    assert set(collected["seed"]) == {3}
    search_methods.collect(path, tmp_path / "b.csv.gz", tuning=True)
    assert mb.searches_found(tmp_path / "b.csv.gz")[["seed", "cell"]].to_numpy().tolist() == [[1003, 5]]


@pytest.mark.parametrize("block", ["plain", "shortcut"])
def test_a_network_is_judged_by_both_statistics_as_after_a_training_with_either(block, monkeypatch):
    config = dataclasses.replace(batchnorm.RECIPE.config, channels=2, layers=1, epochs=1)
    monkeypatch.setattr(batchnorm, "RECIPE", dataclasses.replace(batchnorm.RECIPE, config=config))
    data, ways = digits(size=8), ("running", "exact")
    configs = [dataclasses.replace(config, block=block, statistics=how) for how in ways]
    running, exact = (train(mb.genotype(228), data, 1, c).test_accuracy for c in configs)
    assert batchnorm.both((228, block), data) == f"228,{block},{running:.6f},{exact:.6f}\n" and running != exact
    shipped = pd.read_csv(mb.TABLES / "batchnorm-digits.csv")
    assert (shipped.groupby("cell")["block"].agg(sorted).map(tuple) == ("plain", "shortcut")).all() and len(shipped) == 96


@pytest.mark.parametrize("job", [(285, "shortcut", 1, 2, 0, 1), (285, "plain", 32, 2, 1, 1)])
def test_a_row_of_the_full_data_is_a_training(job):
    cell, block, bits, channels, seed, epochs = job
    how = "exact" if block == "shortcut" else "running"
    config = TrainConfig(channels=channels, layers=3, epochs=epochs, batch=64, seed=seed, block=block, statistics=how)
    expected = train(mb.genotype(cell), data := digits(size=8), bits, config)
    names, values = fashion.COLUMNS.split(","), fashion.row(job, data).rstrip("\n").split(",")
    got = dict(zip(names, values, strict=True))
    assert tuple(got[name] for name in names[:6]) == tuple(map(str, job))
    assert (float(got["test_accuracy"]), int(got["size"])) == (expected.test_accuracy, expected.bits)


def test_the_shipped_rows_of_the_full_data_are_those_of_the_script():
    rows = pd.read_csv(mb.TABLES / "full-fashion_mnist.csv")
    assert ",".join(rows) == fashion.COLUMNS
    jobs = {(fashion.best_found(), *form, channels, 0, 10) for form in fashion.FORMS for channels in fashion.CHANNELS}
    assert len(rows) == len(jobs) and set(rows.iloc[:, :6].itertuples(index=False, name=None)) == jobs
    for row in rows.itertuples():
        network = DiscreteNetwork(mb.genotype(row.cell), row.channels, 3, 10, 1, binary=row.bits == 1 and row.block)
        counted = network.size()["bits"], *count_operations(network, torch.zeros(1, 28, 28))
        assert (row.size, row.binary_operations, row.float_operations) == counted


def test_the_cell_for_the_full_data_is_the_best_of_those_found_by_validation_images():
    searches = mb.searches_found("default-fashion_mnist").query("method == 'dcp-nas' and selection == 'perturbation'")
    rows = mb.MicroBench.load("fashion_mnist").frame().query("bits == 1")
    validation = rows[rows["cell"].isin(searches["cell"])].groupby("cell")["validation_accuracy"].mean()
    assert len(validation) == 5 and fashion.best_found() == validation.idxmax() == 285
