"""The searches of chapter 12 and the wide networks that made its tables: each member is what it is alone."""

from __future__ import annotations

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
from dcpnas_lite.evaluation import microbench as mb
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import discretize

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import search_methods  # noqa: E402
import wide  # noqa: E402
from tables_gpu import Wide  # noqa: E402


@pytest.mark.parametrize(("name", "seeds"), [("digits", 20), ("fashion_mnist", 5)])
def test_the_shipped_searches_are_of_all_methods_and_of_cells_without_none(name, seeds):
    found = mb.cells_found(f"methods-{name}")
    assert set(found) == set(search_methods.METHODS)
    for cells in found.values():
        assert sorted(cells) == list(range(seeds))
        assert not any("none" in mb.operations(c) for c in cells.values())


@pytest.mark.parametrize(("name", "methods", "seeds"), [("digits", 4, 20), ("fashion_mnist", 2, 5)])
def test_the_shipped_selections_read_every_search_twice(name, methods, seeds):
    readings = mb.searches_found(f"selection-{name}").fillna({"selection": "strength"}).groupby(["method", "selection"])
    assert len(readings) == 2 * methods
    for _, mine in readings:
        assert sorted(mine["seed"]) == list(range(seeds))
        assert not any("none" in mb.operations(cell) for cell in mine["cell"])


@pytest.mark.parametrize(("name", "seeds", "given"), [("digits", 20, {}), ("fashion_mnist", 2, {"finalists": 5})])
def test_the_shipped_default_is_the_default(name, seeds, given):
    """By the configuration of the command line and by the command in the script's text; each supernet read in every way."""
    written = json.loads("{" + re.search(r"DEFAULT='(.*)'", search_methods.__doc__)[1] + "}") | given
    assert SearchConfig(**written) == SearchConfig.defaults("micro", name)
    rows = pd.read_csv(mb.TABLES / f"default-{name}.csv")
    readings = {changes: mine for changes, mine in rows.groupby("changes")}
    expected = [search_methods.read_as(("", written, 0), r)[1] for r in ("strength", "perturbation", "final")[: 2 + len(given)]]
    assert sorted(readings) == sorted(map(json.dumps, expected))
    for mine in readings.values():
        assert sorted(mine["seed"]) == list(range(seeds)) and set(mine["method"]) == {"dcp-nas"}


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


@pytest.mark.parametrize("changes", [{"lam": 3.0}, {"backtracking": "refreshed", "refresh": 1}, {"networks": "parent"},
    {"lam": 3.0, "eq_4_41": "printed", "eq_4_52": "printed"}])  # fmt: skip
def test_a_wide_search_is_its_members(changes, monkeypatch):
    monkeypatch.setattr(torch, "multinomial", lambda p, n, generator=None: p.argmax(-1, keepdim=True))
    data = digits(size=8)
    base = {"channels": 2, "layers": 1, "rounds": 2, "steps": 1, "batch": 16, "mu": 1e-3}
    configs = [SearchConfig(seed=s, **(base | changes)) for s in (3, 8)]
    found = wide.searches(data, configs, "cpu", progress=False)
    for alpha, config in zip(found, configs, strict=True):
        torch.testing.assert_close(alpha, search(data, config).alphas["normal"], rtol=0, atol=2e-4)


def test_only_searches_of_one_shape_run_many():
    changes = {"channels": 2, "layers": 1, "rounds": 1, "steps": 1, "batch": 16}
    jobs = [(method, changes, seed) for method in ("dcp-nas", "psi edge", "darts", "bnas") for seed in range(3)]
    groups = list(search_methods.groups(jobs, 4))
    assert [len(group) for group in groups] == [4, 2, 3, 3] and sum(groups, []) == jobs
    mixed = [search_methods.configured(*job) for job in (jobs[0], jobs[-1])]
    others = [[search_methods.configured("dcp-nas", changes | c, 0)] for c in ({"curvature": "hessian"}, {"eq_4_29": "printed"})]
    for configs in (mixed, *others):
        with pytest.raises(ValueError, match="expected sampled curvature, 4.29 derived, and no difference but in seed"):
            wide.searches(None, configs, "cpu")


def test_a_wide_selection_is_its_members(tmp_path):
    data = digits(size=8)
    changes = {"channels": 2, "layers": 1, "rounds": 1, "steps": 2, "batch": 16, "selection": "perturbation"}
    jobs = [("cp-nas", changes, seed) for seed in (0, 1)]
    search_methods.run(data, jobs, tmp_path / "a.jsonl", "cpu")
    expected = []
    for *_, seed in jobs:
        result = search(data, search_methods.configured("cp-nas", changes, seed))
        expected.append((mb.index(discretize(mb.MICRO, result.alphas)), mb.index(result.genotype)))
    rows = search_methods.finished(tmp_path / "a.jsonl")
    cells = {(seed, "selection" in c): cell for _, c, seed, cell in rows}
    assert [(cells[seed, False], cells[seed, True]) for seed in (0, 1)] == expected
    assert len({pair[1] for pair in expected}) > 1


def test_plain_searches_are_scored_once_and_collected(tmp_path, monkeypatch):
    data, changes = digits(size=8), {"channels": 2, "layers": 1, "rounds": 2, "steps": 1, "batch": 16, "lam": 30.0}
    seen = []
    monkeypatch.setattr(search_methods, "search", lambda *a: seen.append(search(*a)) or seen[-1])
    rows = [search_methods.search_one((method, changes, 3), data) for method in ("psi edge", "as printed")]
    derived, printed = seen  # the same but for the sign: one climbs where the other descends
    config = SearchConfig(**changes, seed=3, psi_shape="edge")
    assert torch.equal(derived.alphas["normal"], search(data, config).alphas["normal"]) and len(seen) == 2
    courses = [r.history["alpha/normal"] for r in seen]
    assert np.array_equal(courses[0][0], courses[1][0])  # the Parent's step
    assert not np.array_equal(courses[0][-1], courses[1][-1])
    path = tmp_path / "a.jsonl"
    alpha = torch.eye(8)[[6, 5, 4]]
    for method, seed, round_ in (("psi edge", 1003, 2), ("darts", 3, 1)):
        rows.append(search_methods.line((method, changes, seed), round_, alpha, 1.0))
    path.write_text("".join(rows) + '["darts", {')  # the beginning of a row, as a kill leaves it
    search_methods.whole(path)
    cells = [mb.index(r.genotype) for r in seen]
    assert search_methods.finished(path) == [
        ("psi edge", changes, 3, cells[0]), ("as printed", changes, 3, cells[1]),
        ("psi edge", changes, 1003, mb.index(["sep_conv_3x3", "avg_pool_3x3", "max_pool_3x3"])),
    ]  # fmt: skip
    search_methods.collect(path, tmp_path / "a.csv", tuning=False)  # neither tuning seeds nor searches that are still under way
    assert mb.cells_found(tmp_path / "a.csv") == {"as printed": {3: cells[1]}, "psi edge": {3: cells[0]}}
