"""The cell by perturbation: against the same choice written out with α alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from dcpnas_lite.data import Split, digits
from dcpnas_lite.engine.config import SPACES, SearchConfig
from dcpnas_lite.engine.search import search
from dcpnas_lite.method import selection
from dcpnas_lite.method.selection import perturbation
from dcpnas_lite.network.genotype import Genotype
from dcpnas_lite.network.supernet import Space, Supernet

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
