"""Chapter 2: what is searched, the mixed edge, and the coupled objective (4.20, 4.27, 4.28, 4.42)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from ..derivation import responses, toys
from ..network import supernet
from .problems import Case, along, deviation
from .table import Chapter

chapter = Chapter("02-coupled-objective")


def _node_by_node(cell: supernet.MixedCell, x: Tensor, mix: Tensor) -> list[Tensor]:
    nodes = [x]
    for j in range(1, 3):
        edges = [e for e, (_, target) in enumerate(cell.space.edges) if target == j]
        sources = [cell.space.edges[e][0] for e in edges]
        outputs = [
            sum(mix[e, m] * op(nodes[i]) for m, op in enumerate(cell.edges[e].values()))
            for e, i in zip(edges, sources, strict=True)
        ]
        nodes.append(sum(outputs))
    return nodes[1:]


def _node(alpha: Tensor, outputs: Tensor) -> Tensor:
    return einsum("em,emk->ek", alpha.softmax(1), outputs)


@chapter.row(
    "4.20",
    "Architecture search as a maximisation",
    "definition",
    "written out",
    "holds",
    r"\max_{w, \alpha} f(w, \alpha), \qquad \alpha \in \mathcal{A} \subset \mathbb{R}^{M \times E}",
    functions=(toys.Bilinear.products,),
)
def check_4_20(case: Case):
    """α w for α ∈ R^{E×M}, as in 4.42, and w^T α for α ∈ R^{M×E}, as printed here, are the same numbers: one per edge."""
    toy = case.toy(toys.Bilinear)
    by_hand = torch.stack([sum(toy.alpha[e, m] * toy.w[m] for m in range(case.M)) for e in range(case.E)])
    return max(deviation(toy.products(toy.alpha, toy.w), by_hand), deviation(toy.w @ toy.alpha.T, by_hand))


@chapter.row(
    "4.27",
    "A node sums its incoming edges",
    "definition",
    "written out",
    "holds",
    r"a^{(j)} = \sum_{i<j} o^{(i,j)}(a^{(i)}), \qquad o^{(i,j)}(a^{(i)}) = w^{(i,j)} \otimes a^{(i)}",
    functions=(supernet.MixedCell,),
)
def check_4_27(case: Case):
    """With one operation per edge, a cell equals the sum over incoming edges written out node by node."""
    cell, x = supernet.MixedCell(supernet.MICRO, "normal", 2, binary=False).double(), case.normal(2, 2, 6, 6)
    chosen = F.one_hot(case.labels(3, 8), 8).double()
    with torch.no_grad():
        return deviation(torch.stack(cell([x], chosen)), torch.stack(_node_by_node(cell, x, chosen)))


@chapter.row(
    "4.28",
    "An edge mixes its operations",
    "definition",
    "written out",
    "holds",
    r"\hat o_m^{(i,j)} = \operatorname{softmax}_m(\alpha^{(i,j)}) \cdot o_m^{(i,j)}",
    functions=(supernet.Supernet,),
)
def check_4_28(case: Case):
    """A supernet with any α equals the same network mixed with e^α / Σ_m e^α, node by node."""
    network = supernet.Supernet(supernet.MICRO, channels=2, layers=1, classes=3).double()
    alpha, x = case.normal(3, 8), case.normal(2, 1, 6, 6)
    mix = torch.stack([row.exp() / row.exp().sum() for row in alpha])
    with torch.no_grad():
        prepared = network.preprocess[0][0](network.stem(x))
        nodes = torch.cat(_node_by_node(network.cells[0], prepared, mix), 1)
        return deviation(network(x, [alpha]), network.classifier(nodes.mean((2, 3))))


chapter.exercise(
    "4.28",
    "alpha (E, M), outputs (E, M, entries) -> (E, entries)",
    "each edge's mixture Σ_m softmax_m(α) o_m",
    _node,
    {
        "softmax missing": lambda a, o: einsum("em,emk->ek", a, o),
        "softmax over the edges": lambda a, o: einsum("em,emk->ek", a.softmax(0), o),
        "softmax over both": lambda a, o: einsum("em,emk->ek", a.flatten().softmax(0).view_as(a), o),
        "mean over the operations": lambda a, o: o.mean(1),
    },
)


@chapter.row(
    "4.42",
    "The coupled objective",
    "definition",
    "differences",
    "holds",
    r"\operatorname*{arg\,min}_{\alpha, w} \mathcal{L}(w, \alpha) = L + \operatorname{reg}(w), \qquad "
    r"\alpha \in \mathbb{R}^{E \times M},\; w \in \mathbb{R}^{M \times 1}",
    functions=(responses.Implicit,),
)
def check_4_42(case: Case):
    """The inner minimum w*(α) exists, is stationary and lies below its surroundings; it moves when α does."""
    toy = case.toy()
    w, jacobian = responses.Implicit(toy.regularized)(toy.alpha, toy.w)
    stationary = (toy.dL_dw(toy.alpha, w) + w).norm().item()
    least = toy.regularized(toy.alpha, w)
    below = all(toy.regularized(toy.alpha, w + 0.1 * case.normal(case.M)) > least for _ in range(20))
    direction = case.normal(case.E, case.M)
    moves = along(lambda alpha: responses.Implicit(toy.regularized)(alpha, toy.w).w, toy.alpha, direction)
    return max(stationary, deviation(einsum("kem,em->k", jacobian, direction), moves)) if below else float("inf")
