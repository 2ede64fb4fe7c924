"""The cell by perturbation: against the same choice written out with α alone."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from dcpnas_lite.data import Split, digits
from dcpnas_lite.engine.config import SPACES, SearchConfig
from dcpnas_lite.engine.search import search
from dcpnas_lite.method import selection
from dcpnas_lite.method.selection import neighbours, one_hot_loss, perturbation, short_list
from dcpnas_lite.network.genotype import Genotype, random_cell
from dcpnas_lite.network.supernet import MICRO, PAPER, Space, Supernet

NAMES = ("skip_connect", "none", "max_pool_3x3", "sep_conv_3x3")  # none is not the first
CHAIN = Space("chain", 2, 2, ("normal",), NAMES)  # node 3 has three incoming edges and keeps two
ONE = Space("one", 1, 3, ("normal", "reduce"), NAMES, keep=1)


def written_out(net: Supernet, x, y) -> Genotype:
    """The same with large and small α instead of shares: 30 apart, nothing of the smaller is left in float64's softmax."""
    space, none = net.space, net.space.operations.index("none")
    alphas = [a.detach().clone() for a in net.alphas()]

    def loss():
        return F.cross_entropy(net(x, alphas), y).item()

    cells = {}
    for cell_type, alpha in zip(net.alpha, alphas, strict=True):
        for edge in range(len(space.edges)):
            losses = {}
            for m in range(len(space.operations)):
                if m != none:
                    kept, alpha[edge, m] = alpha[edge, m].item(), -800.0
                    losses[m] = loss()
                    alpha[edge, m] = kept
            alpha[edge] = -800.0
            alpha[edge, max(losses, key=losses.get)] = 0.0
        nodes = []
        for node in range(space.inputs, space.inputs + space.nodes):
            into = {e: alpha[e].argmax().item() for e, (_, j) in enumerate(space.edges) if j == node}
            while len(into) > space.keep:
                losses = {}
                for e in into:
                    row = alpha[e].clone()
                    alpha[e] = -800.0
                    alpha[e, none] = 0.0
                    losses[e] = loss()
                    alpha[e] = row
                weakest = min(losses, key=losses.get)
                alpha[weakest] = -800.0
                alpha[weakest, none] = 0.0
                del into[weakest]
            nodes.append(tuple((space.operations[m], space.edges[e][0]) for e, m in into.items()))
        cells[cell_type] = tuple(nodes)
    return Genotype(space.inputs, **cells)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("space", [CHAIN, ONE], ids=lambda s: s.name)
def test_the_cell_is_the_one_written_out(space, binary):
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        net = Supernet(space, 2, 2, binary=binary).double()
        with torch.no_grad():
            for a in net.alphas():
                a.normal_()
        x, y = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.arange(6)
        before = [a.detach().clone() for a in net.alphas()]
        found.append(perturbation(net, x, y))
        assert found[-1] == written_out(net, x, y)
        assert all(torch.equal(a, b) for a, b in zip(net.alphas(), before, strict=True))
        assert "none" not in str(found[-1]) and all(len(n) <= space.keep for c in found[-1].cells.values() for n in c)
    assert len(set(map(str, found))) > 1


def test_a_search_reads_its_cell_by_perturbation(monkeypatch, tmp_path):
    monkeypatch.setitem(SPACES, "chain", CHAIN)
    whole = digits(size=8)
    train, validation = (Split(s.x[:n], s.y[:n]) for s, n in ((whole.train, 24), (whole.validation, 20)))
    data = dataclasses.replace(whole, train=train, validation=validation)
    config = SearchConfig(
        space="chain", channels=4, layers=1, rounds=1, steps=2, warmup=0, batch=8, tau=3, selection="perturbation"
    )
    seen = []

    def spy(net, x, y):
        seen.append((net.binary, len(x), {t: a.detach().clone() for t, a in net.alpha.items()}))
        return perturbation(net, x, y)

    monkeypatch.setattr(selection, "perturbation", spy)
    monkeypatch.setattr(selection, "SELECTION_IMAGES", 16)
    first = search(data, config, checkpoint=tmp_path / "a.pt")
    again = search(data, config, checkpoint=tmp_path / "a.pt")  # finished: only the cell is chosen once more
    assert first.genotype == again.genotype and len(seen) == 2
    assert all(binary and n == 16 and torch.equal(a["normal"], first.alphas["normal"]) for binary, n, a in seen)
    strength = search(data, dataclasses.replace(config, selection="strength"))
    assert torch.equal(strength.alphas["normal"], first.alphas["normal"]) and len(seen) == 2


def test_neighbours_differ_in_one_edge():
    """In MICRO by counting: all cells without `none` at Hamming distance 1. In PAPER a relation that holds both ways."""
    names = MICRO.operations[1:]
    for cell in (("skip_connect", "max_pool_3x3", "sep_conv_5x5"), ("avg_pool_3x3",) * 3):
        near = [c for c in itertools.product(names, repeat=3) if sum(a != b for a, b in zip(c, cell, strict=True)) == 1]
        expected = {Genotype.from_operations(MICRO, c) for c in near}
        found = neighbours(MICRO, Genotype.from_operations(MICRO, cell))
        assert set(found) == expected and len(found) == len(expected) == 18
    cell = random_cell(PAPER, 0)
    found = neighbours(PAPER, cell)
    # 16 edges with 6 other operations; nodes 3, 4, 5 keep 2 of 3, 4, 5 edges, each of which can leave 1, 2, 3 other nodes
    assert len(set(found)) == len(found) == 16 * 6 + 2 * 2 * (1 + 2 + 3) and cell not in found and "none" not in str(found)
    for other in found[::7]:
        assert cell in neighbours(PAPER, other) and all(len(edges) == 2 for t in other.cells.values() for edges in t)


@pytest.mark.parametrize("space", [CHAIN, ONE], ids=lambda s: s.name)
def test_a_short_list_is_by_one_hot_loss(space):
    """The loss against α with one large entry an edge; `none` where the cell has no edge, which adds nothing."""
    torch.manual_seed(1)
    net = Supernet(space, 2, 2, binary=True)
    split = Split(torch.randn(9, 1, 8, 8), torch.arange(9))
    cell = random_cell(space, 3)

    def written_out(cell: Genotype) -> float:
        alphas = {t: torch.full_like(a, -800.0) for t, a in net.alpha.items()}
        for e, (source, target) in enumerate(space.edges):
            for t, nodes in cell.cells.items():
                name = {i: n for n, i in nodes[target - space.inputs]}.get(source, "none")
                alphas[t][e, space.operations.index(name)] = 0.0
        return F.cross_entropy(net(split.x, list(alphas.values())), split.y).item()

    losses = {other: written_out(other) for other in neighbours(space, cell)}
    for other, loss in losses.items():
        assert one_hot_loss(net, other, split.x, split.y) == pytest.approx(loss, rel=1e-5)
    found = short_list(net, cell, split, 4)
    assert found[0] == cell and [losses[c] for c in found[1:]] == pytest.approx(sorted(losses.values())[:3], rel=1e-5)
    assert len(short_list(net, cell, split, 1000)) == 1 + len(losses)
