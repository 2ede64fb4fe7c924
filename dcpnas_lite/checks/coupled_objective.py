"""Chapter 3: what is searched and what it is scored by (4.20, 4.21, 4.24–4.28, 4.32, 4.42)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from ..derivation import responses, toys
from ..method import objectives
from ..network import binarize, supernet
from .problems import along, deviation, distributions, normal
from .table import Chapter

chapter = Chapter("03-coupled-objective")


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
    "corrected",
    r"\max_{w, \alpha} f(w, \alpha), \qquad \alpha \in \mathcal{A} \subset \mathbb{R}^{M \times E}",
    derived=r"\max_{w, \alpha} f(w, \alpha), \qquad \alpha \in \mathcal{A} \subset \mathbb{R}^{E \times M}",
    reason="The orientation of α changes between 4.20 and 4.42. A convention, not a slip, but only one can be used: with one "
    "weight per operation, α multiplies w when it has one row per edge, as 4.42 says.",
)
def check_4_20():
    """With one weight per operation, α w has one number per edge for α of shape E×M and is undefined for M×E."""
    alpha, w = normal(3, 4), normal(4, seed=1)
    by_hand = torch.stack([sum(alpha[e, m] * w[m] for m in range(4)) for e in range(3)])
    try:
        return deviation(alpha @ w, by_hand), deviation(alpha.T @ w, by_hand)
    except RuntimeError:
        return deviation(alpha @ w, by_hand), float("inf")


@chapter.row(
    "4.21",
    "Loss of the search",
    "definition",
    "holds",
    r"L_{\mathrm{NAS}} = -\tilde f(w, \alpha) = -\sum_{n=1}^{N} p_n(X) \log p_n(w, \alpha)",
    functions=(objectives.nas_loss,),
)
def check_4_21():
    """The loss equals the sum over classes written out, for a distribution p(X) and for labels."""
    logits, target = normal(5, 3), normal(5, 3, seed=1).softmax(1)
    log_p = (logits.exp() / logits.exp().sum(1, keepdim=True)).log()
    labels = torch.tensor([0, 2, 1, 1, 0])
    picked = torch.stack([log_p[s, n] for s, n in enumerate(labels)])
    return max(
        deviation(objectives.nas_loss(logits, target), -sum(target[:, n] * log_p[:, n] for n in range(3)).mean()),
        deviation(objectives.nas_loss(logits, labels), -picked.mean()),
    )


chapter.exercise(
    "4.21",
    "logits (N, C), target (N, C) -> ()",
    "L_NAS of softmax(logits) against a distribution over C classes, mean over N images",
    lambda *a: objectives.nas_loss(*a),
    {
        "roles exchanged": lambda s, t: -(s.softmax(1) * t.log()).sum(1).mean(),
        "sum over the images": lambda s, t: -(t * s.log_softmax(1)).sum(),
        "mean over the classes": lambda s, t: -(t * s.log_softmax(1)).mean(),
        "softmax over the images": lambda s, t: -(t * s.log_softmax(0)).sum(1).mean(),
    },
    distributions,
)


@chapter.row(
    "4.24",
    "Search of a 1-bit network",
    "definition",
    "holds",
    r"\max_{\hat w, \hat\alpha, \beta} f_b(\hat w, \hat\alpha, \beta), \qquad b^{\hat w} = \operatorname{sign}(\hat w)",
    functions=(binarize.BinaryConv2d.binary_weight,),
)
def check_4_24():
    """With β held fixed, a 1-bit convolution answers to the signs of ŵ alone: other magnitudes, the same output."""
    conv, x = binarize.BinaryConv2d(2, 3, 3, learned_scale=True), normal(2, 2, 5, 5)
    signs = 2.0 * (normal(3, 2, 3, 3, seed=1) >= 0) - 1
    conv.weight.data = (signs * (0.1 + normal(3, 2, 3, 3, seed=2).abs())).double()
    beta = conv.beta().detach().double().view(1, 3, 1, 1)
    with torch.no_grad():
        x = 2.0 * (x >= 0).double() - 1
        return max(deviation(conv.binary_weight(), signs.double()), deviation(conv(x), beta * F.conv2d(x, signs.double())))


@chapter.row(
    "4.25",
    "Objective of direct binary search",
    "definition",
    "corrected",
    r"\tilde f_b(\hat w, \hat\alpha, \beta) = \sum_n \hat p_n(\hat w, \hat\alpha, \beta) \log \hat p_n(X)",
    derived=r"\tilde f_b(\hat w, \hat\alpha, \beta) = \sum_n p_n(X) \log \hat p_n(\hat w, \hat\alpha, \beta)",
    reason="The two distributions have changed places against 4.21: the logarithm must be taken of the prediction. With "
    "labels, where p(X) has zeros, the printed sum is −∞ for every network.",
    functions=(objectives.nas_loss,),
)
def check_4_25():
    """On soft targets the derived sum is −L_NAS of the Child; the printed one is another number, and −∞ on labels."""
    logits, target = normal(5, 3), normal(5, 3, seed=1).softmax(1)
    p, labels = logits.softmax(1), F.one_hot(torch.tensor([0, 2, 1, 1, 0]), 3).double()
    if (p * labels.log()).sum() != -float("inf"):
        return float("inf"), 0.0
    objective = -objectives.nas_loss(logits, target)
    return deviation(objective, (target * p.log()).sum(1).mean()), deviation(objective, (p * target.log()).sum(1).mean())


@chapter.row(
    "4.26",
    "Child learns from Parent",
    "definition",
    "reconstructed",
    r"L_{\mathrm{CP\text{-}NAS}} = -G(\hat w, \hat\alpha, \beta) + \mu L_R(\hat w, \beta)",
    functions=(objectives.cp_nas_loss,),
)
def check_4_26():
    """The loss is 4.32 without the tangent term."""
    gain, distance, reconstruction = torch.tensor(-0.7), torch.tensor(0.3), torch.tensor(1.9)
    return max(
        deviation(objectives.cp_nas_loss(gain, reconstruction, 0.2), 0.7 + 0.2 * reconstruction),
        deviation(
            objectives.cp_nas_loss(gain, reconstruction, 0.2),
            objectives.dcp_nas_loss(gain, distance, reconstruction, lam=0.0, mu=0.2),
        ),
    )


@chapter.row(
    "4.27",
    "A node sums its incoming edges",
    "definition",
    "holds",
    r"a^{(j)} = \sum_{i<j} o^{(i,j)}(a^{(i)}), \qquad o^{(i,j)}(a^{(i)}) = w^{(i,j)} \otimes a^{(i)}",
    functions=(supernet.MixedCell,),
)
def check_4_27():
    """With one operation per edge, a cell equals the sum over incoming edges written out node by node."""
    cell, x = supernet.MixedCell(supernet.MICRO, "normal", 2, binary=False).double(), normal(2, 2, 6, 6)
    chosen = F.one_hot(torch.tensor([2, 6, 1]), 8).double()
    with torch.no_grad():
        return deviation(torch.stack(cell([x], chosen)), torch.stack(_node_by_node(cell, x, chosen)))


@chapter.row(
    "4.28",
    "An edge mixes its operations",
    "definition",
    "holds",
    r"\hat o_m^{(i,j)} = \operatorname{softmax}_m(\alpha^{(i,j)}) \cdot o_m^{(i,j)}",
    functions=(supernet.Supernet,),
)
def check_4_28():
    """A supernet with any α equals the same network mixed with e^α / Σ_m e^α, node by node."""
    network = supernet.Supernet(supernet.MICRO, channels=2, layers=1, classes=3).double()
    alpha, x = normal(3, 8, seed=1), normal(2, 1, 6, 6)
    mix = torch.stack([row.exp() / row.exp().sum() for row in alpha])
    with torch.no_grad():
        prepared = network.preprocess[0][0](network.stem(x))
        nodes = torch.cat(_node_by_node(network.cells[0], prepared, mix), 1)
        return deviation(network(x, [alpha]), network.classifier(nodes.mean((2, 3))))


chapter.exercise(
    "4.28",
    "alpha (E, M), outputs (E, M, K) -> (E, K)",
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
    "4.32",
    "Loss of DCP-NAS",
    "definition",
    "holds",
    r"L_{\mathrm{DCP\text{-}NAS}} = -G(\hat w, \hat\alpha, \beta) + \lambda D(\hat\alpha) + \mu L_R(\hat w, \beta)",
    functions=(objectives.dcp_nas_loss,),
)
def check_4_32():
    """The loss is the three terms with their weights."""
    gain, distance, reconstruction = (torch.tensor(v, dtype=torch.float64) for v in (-0.7, 0.3, 1.9))
    loss = objectives.dcp_nas_loss(gain, distance, reconstruction, lam=0.5, mu=0.2)
    return deviation(loss, torch.tensor(0.7 + 0.15 + 0.38, dtype=torch.float64))


@chapter.row(
    "4.42",
    "The coupled objective",
    "definition",
    "holds",
    r"\operatorname*{arg\,min}_{\alpha, w} \mathcal{L}(w, \alpha) = L + \operatorname{reg}(w), \qquad "
    r"\alpha \in \mathbb{R}^{E \times M},\; w \in \mathbb{R}^{M \times 1}",
    functions=(responses.Implicit,),
)
def check_4_42():
    """The inner minimum w*(α) exists, is stationary and lies below its surroundings; it moves when α does."""
    toy = toys.LinearMixture.random(3, 4, 0)
    w, jacobian = responses.Implicit(toy.regularized)(toy.alpha, toy.w)
    stationary = (toy.dL_dw(toy.alpha, w) + w).norm().item()
    least = toy.regularized(toy.alpha, w)
    below = all(toy.regularized(toy.alpha, w + 0.1 * normal(4, seed=s)) > least for s in range(20))
    direction = normal(3, 4, seed=30)
    moves = along(lambda alpha: responses.Implicit(toy.regularized)(alpha, toy.w).w, toy.alpha, direction)
    return max(stationary, deviation(einsum("kem,em->k", jacobian, direction), moves)) if below else float("inf")
