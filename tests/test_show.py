"""The course of a search: its measures against closed forms, its files read back, its report and its pictures."""

from __future__ import annotations

import csv
import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dcpnas_lite
from dcpnas_lite import files
from dcpnas_lite.__main__ import main
from dcpnas_lite.commands.folder import SETTINGS
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import PUBLISHED, Genotype, discretize, random_cell
from dcpnas_lite.network.operations import OPERATIONS
from dcpnas_lite.network.supernet import MICRO, PAPER, Space
from dcpnas_lite.report import plots
from dcpnas_lite.report.history import FinishedSearch, entropy, kept_edges, shares, skip_edges, skip_share

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import paper  # noqa: E402

TABLES = Path(dcpnas_lite.__file__).parent / "tables"
SKIP = OPERATIONS.index("skip_connect")
WITHOUT_SKIP = Space("plain", 1, 2, ("normal",), operations=("none", "max_pool_3x3", "sep_conv_3x3"))


# Measures against closed forms


def test_shares_are_the_softmax():
    alpha = torch.randn(5, 14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(shares(alpha.numpy()), alpha.softmax(-1).numpy(), rtol=1e-14)


@pytest.mark.parametrize("m", [2, 3, 8])
def test_entropy_of_k_equal_operations_is_ln_k(m):
    for k in range(1, m + 1):
        alpha = np.full((2, 3, m), -1e4)
        alpha[..., :k] = 7.0
        np.testing.assert_allclose(entropy(alpha), math.log(k), atol=1e-14)
        assert entropy(alpha).shape == (2, 3)


def test_entropy_of_known_shares():
    """Shares 1/2, 1/4, 1/8, 1/8: Σ p log2 1/p = 1.75 bits."""
    np.testing.assert_allclose(entropy(np.log([[1 / 2, 1 / 4, 1 / 8, 1 / 8]])), 1.75 * math.log(2))
    np.testing.assert_allclose(entropy(np.log([[1 / 2, 1 / 4, 1 / 8, 1 / 8]]) - 1000), 1.75 * math.log(2))


def test_entropy_is_torchs_for_any_alpha():
    alpha = 3 * torch.randn(4, 14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = torch.distributions.Categorical(logits=alpha).entropy()
    np.testing.assert_allclose(entropy(alpha.numpy()), wanted.numpy(), rtol=1e-12)


def test_half_precision_is_no_loss_of_more_than_its_rounding():
    alpha = np.array([[0.1, -0.2, 0.3]], np.float16)
    np.testing.assert_array_equal(entropy(alpha), entropy(alpha.astype(float)))


def test_skip_share_of_a_known_alpha():
    """e^α of skip is s, of the M − 1 others 1: its share is s / (s + M − 1)."""
    alpha = np.zeros((2, 14, 8))
    s = np.arange(1, 29).reshape(2, 14)
    alpha[..., SKIP] = np.log(s)
    np.testing.assert_allclose(skip_share(alpha, PAPER), s / (s + 7))


def test_a_space_without_skip_has_no_share_of_it():
    assert np.array_equal(skip_share(np.zeros((4, 3, 3)), WITHOUT_SKIP), np.zeros((4, 3)))
    history = {"alpha/normal": np.zeros((4, 3, 3), np.float32)}
    assert np.array_equal(skip_edges(history, WITHOUT_SKIP)["normal"], np.zeros(4))


@pytest.mark.parametrize(("space", "edges"), [(MICRO, 3), (PAPER, 8), (Space("one", 1, 4, ("normal",), keep=1), 4)])
def test_kept_edges_are_those_of_a_discretized_cell(space, edges):
    cell = discretize(space, {t: torch.zeros(len(space.edges), len(space.operations)) for t in space.cell_types})
    assert kept_edges(space) == edges == sum(map(len, cell.normal))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_skip_edges_counts_the_discretized_cell(kind):
    """Skip is made the strongest on the edges into node 4, of which two are kept; before that on none, then on all."""
    into = np.array([j == 4 for _, j in PAPER.edges])
    alpha = np.zeros((3, 14, 8), kind)
    alpha[..., 7] = 1
    alpha[1, into, SKIP] = 2
    alpha[2, :, SKIP] = 2
    reduce = np.zeros((3, 14, 8), kind)
    reduce[..., 0] = 3  # none is strongest and never counts
    reduce[..., 7] = 2
    reduce[2, 0, SKIP] = 2.5
    counts = skip_edges({"alpha/normal": alpha, "alpha/reduce": reduce}, PAPER)
    assert counts["normal"].tolist() == [0, 2, 8] and counts["reduce"].tolist() == [0, 0, 1]


def test_shares_that_half_precision_cannot_tell_apart_are_told_apart():
    """The last skip is one unit of float16 above an operation that stands before it, or below."""
    other = len(OPERATIONS) - 1 if SKIP == 1 else 1
    alpha = np.full((2, 3, 8), 0.1, np.float16)
    alpha[:, :, [SKIP, other]] = 0.2
    strong = (alpha[0, 0, SKIP], np.nextafter(alpha[0, 0, SKIP], np.float16(1)))
    alpha[0, :, [SKIP, other]] = np.array(strong[::-1])[:, None]
    alpha[1, :, [SKIP, other]] = np.array(strong)[:, None]
    assert skip_edges({"alpha/normal": alpha}, MICRO)["normal"].tolist() == [3, 0]


# The folder of a search


def write_run(folder, space, networks=(0, 0, 1, 1), psi=True, seed=0):
    """A folder as `search` leaves it, with a random course."""
    rng, shape = np.random.default_rng(seed), (len(space.edges), len(space.operations))
    network = np.array(networks, float)
    history = {}
    if len(network):
        history = {"network": network, "weight_loss": rng.random(len(network)), "alpha_loss": rng.random(len(network))}
        history["distance"] = np.where(network == 1, rng.random(len(network)), np.nan)
        for t in space.cell_types:
            history[f"alpha/{t}"] = rng.normal(size=(len(network), *shape)).astype(np.float32)
            if psi:
                history[f"psi/{t}"] = rng.normal(size=(len(network), *shape)).astype(np.float32)
    finals = {t: history[f"alpha/{t}"][-1] if history else np.zeros(shape, np.float32) for t in space.cell_types}
    genotype = discretize(space, {t: torch.from_numpy(a) for t, a in finals.items()})
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "history.npz", **history, **{f"final/{t}": a for t, a in finals.items()})
    settings = {"data": "digits", "root": None, "search": {"space": space.name, "seed": 3, "layers": 2, "rounds": 7}}
    files.write(folder / "config.json", files.seal(settings, SETTINGS))
    (folder / "genotype.json").write_text(genotype.to_json())
    return history, genotype


def numbers(report: str, title: str) -> list[float]:
    (line,) = (line for line in report.splitlines() if line.startswith(title))
    return [float(x) for x in line.removeprefix(title).split()]


def test_the_report_says_what_the_history_holds(tmp_path):
    history, genotype = write_run(tmp_path / "a", PAPER, [0, 0, 0, 1, 1])
    report = FinishedSearch.load(tmp_path / "a").report()
    assert str(genotype) in report
    assert "space paper, data digits, seed 3" in report and "defaults: space=paper, seed=3, rounds=7\n" in report
    assert "architecture steps: 5 (3 by the Parent, 2 by the Child)" in report
    mine = {"Parent": slice(0, 3), "Child": slice(3, 5)}
    for network, part in mine.items():
        for key, name in (("weight_loss", "weight loss"), ("alpha_loss", "architecture loss")):
            x = history[key][part]
            assert numbers(report, f"{network}: {name}") == pytest.approx([x[0], x[-1], x.min(), x.max()], rel=1e-4)
    d = history["distance"][3:]
    assert numbers(report, "Child: tangent distance D") == pytest.approx([d[0], d[-1], d.min(), d.max()], rel=1e-4)
    assert "Parent: tangent" not in report
    for t in PAPER.cell_types:
        p = torch.from_numpy(history[f"alpha/{t}"]).double().softmax(-1)
        h = -(p * p.log()).sum(-1).mean(-1).numpy()
        skip, most = p[..., SKIP].mean(-1).numpy(), p[..., SKIP].amax(-1).numpy()
        for title, x in (
            ("entropy of softmax(α), mean of the edges", h),
            ("share of skip_connect, mean of the edges", skip),
            ("share of skip_connect, largest of the edges", most),
        ):
            assert numbers(report, f"{t} cell: {title}") == pytest.approx([x[0], x[-1], x.min(), x.max()], rel=1e-4)
        for network, part in mine.items():
            psi = history[f"psi/{t}"][part]
            low, high = psi.min((1, 2)), psi.max((1, 2))
            assert numbers(report, f"{t} cell: smallest ψ̃ of the {network}")[2] == pytest.approx(low.min(), rel=1e-4)
            assert numbers(report, f"{t} cell: largest ψ̃ of the {network}")[3] == pytest.approx(high.max(), rel=1e-4)
        assert numbers(report, f"{t} cell: edges with skip_connect, of 8")[1] == str(genotype.cells[t]).count("skip_connect")
        table = report.split(f"{t} cell, final softmax(α)")[1].splitlines()[2:16]
        assert [line[:5] for line in table] == [f"{i} → {j}" for i, j in PAPER.edges]
        for line, q in zip(table, p[-1], strict=True):
            words = line[8:].split()
            assert words[0] == OPERATIONS[q.argmax()] and words[1] == f"{q.max():.3f}" and words[2] == f"{q[SKIP]:.3f}"
        inside = [(line[:5], line[8:].split()[4]) for line in table if len(line[8:].split()) == 5]
        cell = [(f"{source} → {target}", name) for target, edges in enumerate(genotype.cells[t], 2) for name, source in edges]
        assert inside == cell


CASES = {
    "dcp-nas": ([0, 0, 1, 1], True, True),
    "cp-nas": ([0, 1], False, False),
    "darts": ([0, 0], False, False),
    "bnas": ([1, 1], False, False),
    "one step": ([0], False, False),
    "warm-up alone": ([], False, False),
}


@pytest.mark.parametrize(("space", "case"), [*((MICRO, case) for case in CASES), (PAPER, "dcp-nas"), (PAPER, "darts")])
def test_show_works_for_every_method_and_length(tmp_path, capsys, space, case):
    networks, psi, with_distance = CASES[case]
    history, genotype = write_run(tmp_path, space, networks, psi)
    if history and not with_distance:
        with np.load(tmp_path / "history.npz") as file:
            np.savez(tmp_path / "history.npz", **{**file, "distance": np.full(len(networks), np.nan)})
    assert main(["show", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    report = (tmp_path / "report.txt").read_text(encoding="utf8")
    assert printed.startswith(report) and str(genotype) in report
    assert ("tangent distance" in report) == with_distance
    wanted = {"cell.png", "mix.png"}
    if networks:
        wanted |= {"losses.png", "collapse.png"} | {f"trajectories-{t}.png" for t in space.cell_types}
    if psi:
        wanted |= {f"psi-{network}-{t}.png" for network in ("parent", "child") for t in space.cell_types}
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == wanted and all(name in printed for name in wanted)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in wanted)
    assert not list(tmp_path.glob("*.part"))


BAD = {
    "config.json": [b"", b"{", b"[]", b"{}", b'{"search": {"space": "mars"}}', b"\xff\xfe"],
    "genotype.json": [b"", b"{}", PUBLISHED.to_json().encode(), Genotype(1, ((("none", 0),),)).to_json().encode()],
    "history.npz": [b"", b"PK\x03\x04 cut", b"no archive", b"\x93NUMPY\x01\x00"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in BAD.items() for content in contents])
def test_a_foreign_file_is_named_in_one_line(tmp_path, capsys, name, content):
    write_run(tmp_path, MICRO)
    (tmp_path / name).write_bytes(content)
    assert main(["show", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and name in error and "expected" in error
    assert not list(tmp_path.glob("*.png")) and not (tmp_path / "report.txt").exists()


@pytest.mark.parametrize("name", BAD)
def test_a_missing_file_is_named_in_one_line(tmp_path, capsys, name):
    write_run(tmp_path, MICRO)
    (tmp_path / name).unlink()
    assert main(["show", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err


def test_a_truncated_history_is_named_in_one_line(tmp_path, capsys):
    write_run(tmp_path, MICRO)
    path = tmp_path / "history.npz"
    path.write_bytes(path.read_bytes()[:-200])
    assert main(["show", str(tmp_path)]) == 2
    assert "history.npz: expected the history of a search" in capsys.readouterr().err


def test_a_damaged_history_is_refused_or_read(tmp_path):
    write_run(tmp_path, MICRO)
    path, rng = tmp_path / "history.npz", np.random.default_rng(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            FinishedSearch.load(tmp_path)
        except ValueError as error:
            assert "history.npz" in str(error)
            refused += 1
    assert refused > 200  # the rest of the archive is padding, dates and the like


@pytest.mark.parametrize("name", ["weight_loss", "distance", "alpha/normal", "psi/normal", "final/normal"])
def test_arrays_of_another_shape_are_named(tmp_path, name):
    write_run(tmp_path, MICRO)
    with np.load(tmp_path / "history.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "history.npz", **arrays | {name: arrays[name][:-1]})
    with pytest.raises(ValueError, match=f"{name}: expected an array of shape"):
        FinishedSearch.load(tmp_path)
    del arrays[name]
    np.savez(tmp_path / "history.npz", **arrays)
    if name == "psi/normal":  # not every search learns ψ̃
        assert "ψ̃" not in FinishedSearch.load(tmp_path).report()
    else:
        with pytest.raises(ValueError, match=f"{name}: expected an array of shape .*, got nothing"):
            FinishedSearch.load(tmp_path)


# Pictures, read back artist by artist


@pytest.mark.parametrize("space", [MICRO, PAPER], ids=lambda space: space.name)
def test_collapse_shows_entropy_skip_share_and_skip_edges(tmp_path, space):
    write_run(tmp_path, space, [0, 0, 1, 1, 0])
    history = FinishedSearch.load(tmp_path).history
    figure = plots.collapse(history, space)
    top, middle, bottom = figure.axes
    kept, skips = kept_edges(space), skip_edges(history, space)
    for axis, equal in ((top, math.log(8)), (middle, 1 / 8), (bottom, kept / 7)):
        np.testing.assert_allclose(axis.lines[0].get_ydata(), equal)
        assert [(q.get_x(), q.get_x() + q.get_width()) for q in axis.patches] == [(1.5, 3.5)]
        assert axis.get_ylabel() and axis.get_title() and len(axis.lines) == 1 + len(space.cell_types)
    for number, t in enumerate(space.cell_types):
        p = torch.from_numpy(history[f"alpha/{t}"]).double().softmax(-1)
        for axis, values in ((top, -(p * p.log()).sum(-1)), (middle, p[..., SKIP])):
            np.testing.assert_allclose(axis.lines[number + 1].get_ydata(), values.mean(1))
            band = axis.collections[number].get_paths()[0].vertices
            for step in range(len(values)):
                heights = band[band[:, 0] == step, 1]
                np.testing.assert_allclose([heights.min(), heights.max()], [values[step].min(), values[step].max()])
        np.testing.assert_array_equal(bottom.lines[number + 1].get_ydata(), skips[t])
    assert bottom.get_xlabel() == "architecture step" and not top.get_xlabel()


def test_chance_line_is_the_mean_over_random_cells():
    alpha = np.random.default_rng(0).normal(size=(1500, 14, 8)).astype(np.float32)
    counts = skip_edges({"alpha/normal": alpha, "alpha/reduce": alpha}, PAPER)["normal"]
    assert abs(counts.mean() - float(Fraction(8, 7))) < 4 * counts.std() / math.sqrt(len(counts))


def test_mix_shows_every_share_and_frames_the_cell(tmp_path):
    write_run(tmp_path, PAPER)
    run = FinishedSearch.load(tmp_path)
    finals = {t: run.history[f"final/{t}"] for t in PAPER.cell_types}
    for axis, t in zip(plots.mix(finals, PAPER, run.genotype).axes, PAPER.cell_types, strict=False):
        p = 100 * torch.from_numpy(finals[t]).double().softmax(-1).numpy()
        np.testing.assert_allclose(axis.images[0].get_array(), p)
        assert [text.get_text() for text in axis.texts] == [f"{value:.1f}" for value in p.flat]
        low, high = axis.images[0].get_clim()
        assert (low + high) / 2 == pytest.approx(12.5) and low <= p.min() and p.max() <= high
        framed = {(PAPER.edges[int(r.get_y() + 0.5)], OPERATIONS[int(r.get_x() + 0.5)]) for r in axis.patches}
        assert framed == {((i, j), name) for j, edges in enumerate(run.genotype.cells[t], 2) for name, i in edges}
        assert len(axis.patches) == 8
    assert [x.get_text() for x in axis.get_xticklabels()][:3] == ["none", "skip", "dil 3×3"]  # the panels share them


def test_mix_of_equal_shares_is_drawn():
    figure = plots.mix({"normal": np.zeros((3, 8))}, MICRO)
    assert {text.get_text() for text in figure.axes[0].texts} == {"12.5"} and not figure.axes[0].patches
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_one_step_is_a_visible_point(tmp_path):
    history, _ = write_run(tmp_path, MICRO, [0])
    figures = plots.trajectories(history, MICRO), plots.collapse(history, MICRO), plots.psi(history, MICRO, network="parent")
    for figure in figures:
        assert all(line.get_marker() == "." for axis in figure.axes for line in axis.lines if len(line.get_ydata()) == 1)
    many, _ = write_run(tmp_path, MICRO, [0, 1])
    assert plots.trajectories(many, MICRO).axes[0].lines[0].get_marker() == ""


@pytest.mark.parametrize("network", [[0, 1], [0], [1]], ids=str)
def test_no_step_is_labelled_by_a_fraction(tmp_path, network):
    history, _ = write_run(tmp_path, MICRO, network)
    for figure in (plots.trajectories(history, MICRO), plots.collapse(history, MICRO), plots.losses(history)):
        figure.canvas.draw()
        for axis in figure.axes:
            if axis.lines:
                ticks = axis.get_xticks()
                assert len(ticks) and np.array_equal(ticks, np.round(ticks)), axis.get_title()


# The search that ships, and the script that makes it


def test_the_shipped_search_is_small_and_holds_together():
    folder = TABLES / "paper-digits"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "genotype.json", "history.npz"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 150_000
    run = FinishedSearch.load(folder)
    assert run.space is PAPER and run.settings["data"] == "digits" and run.settings["search"]["seed"] == 0
    assert set(run.networks) == {"Parent", "Child"} and len(set(map(len, run.networks.values()))) == 1
    finals = {t: run.history[f"final/{t}"] for t in PAPER.cell_types}
    assert discretize(PAPER, {t: torch.from_numpy(a) for t, a in finals.items()}) == run.genotype
    for t in PAPER.cell_types:  # the Child had the last step; the history is rounded
        np.testing.assert_allclose(run.history[f"alpha/{t}"][-1], finals[t], rtol=1e-3, atol=1e-6)


def test_the_trained_cells_are_the_shipped_ones():
    with (TABLES / "paper-cells.csv").open(newline="") as file:
        recipe, rows = json.loads(file.readline().removeprefix("#")), list(csv.DictReader(file))
    cells = {"strength-0": FinishedSearch.load(TABLES / "paper-digits").genotype, "published": PUBLISHED}
    cells |= {f"random-{k}": random_cell(PAPER, k) for k in paper.RANDOM}
    found = [f"found-{k}" for k in paper.SEARCHES]
    cells |= {name: Genotype.from_json(next(row["genotype"] for row in rows if row["cell"] == name)) for name in found}
    seeds = {name: [int(row["seed"]) for row in rows if row["cell"] == name] for name in cells}
    assert sum(map(len, seeds.values())) == len(rows) and all(mine == list(range(len(mine))) for mine in seeds.values())
    assert all(len(seeds[name]) == 3 for name in ("strength-0", "published", *found)) and all(seeds.values())
    for row in rows:
        assert Genotype.from_json(row["genotype"]) == cells[row["cell"]] and row["bits"] == "1"
        network = DiscreteNetwork(cells[row["cell"]], recipe["channels"], recipe["layers"])
        assert int(row["size_in_bits"]) == network.size()["bits"]
        for share in ("test_accuracy", "validation_accuracy"):
            images = float(row[share]) * 360
            assert 0 <= images <= 360 and abs(images - round(images)) <= 360 * 5e-5 + 1e-9


def test_a_shipped_history_is_rounded_but_for_the_final_alpha(tmp_path):
    history, _ = write_run(tmp_path / "run", PAPER)
    paper.ship(tmp_path / "run", tmp_path / "tables" / "x")
    full, rounded = FinishedSearch.load(tmp_path / "run"), FinishedSearch.load(tmp_path / "tables" / "x")
    by_strength = full.settings["search"] | {"selection": "strength", "finalists": 0}
    assert rounded.genotype == full.genotype and rounded.settings == full.settings | {"search": by_strength}
    assert {v.dtype.itemsize for k, v in rounded.history.items() if k.startswith(("alpha/", "psi/"))} == {2}
    for name, values in full.history.items():
        exact = name.startswith("final/")
        np.testing.assert_allclose(rounded.history[name], values, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-6)


def test_a_table_of_cells_is_read_back_without_a_row_that_was_cut_off(tmp_path):
    path, recipe = tmp_path / "cells.csv", '# {"epochs": 1}'
    rows = [["found", str(k), "1", "0.5", "0.25", "99", PUBLISHED.to_json().replace("\n", "")] for k in range(3)]
    whole = paper.text(recipe, pd.DataFrame(rows, columns=paper.COLUMNS))
    assert paper.read(path, recipe).empty
    path.write_text(whole)
    assert paper.read(path, recipe).values.tolist() == rows
    assert paper.keys(paper.read(path, recipe))[1] == ("found", "1", "1", rows[1][-1])
    for cut in range(1, 60):
        path.write_text(whole[:-cut])
        assert paper.read(path, recipe).values.tolist() == rows[:2]
    with pytest.raises(SystemExit, match="expected rows of the recipe"):
        paper.read(path, '# {"epochs": 2}')
