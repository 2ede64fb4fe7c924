"""Chapter 2: what is searched and what it is scored by (4.20, 4.21, 4.24–4.28, 4.32, 4.42)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from ..derivation import responses, toys
from ..method import objectives
from ..network import binarize, supernet
from .problems import Case, along, deviation, distributions
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
    "4.21",
    "Loss of the search",
    "definition",
    "written out",
    "holds",
    r"L_{\mathrm{NAS}} = -\tilde f(w, \alpha) = -\sum_{n=1}^{N} p_n(X) \log p_n(w, \alpha)",
    functions=(objectives.nas_loss,),
)
def check_4_21(case: Case):
    """The loss equals the sum over classes written out, for a distribution p(X) and for labels."""
    images, classes = case.E, case.M
    logits, target, labels = case.normal(images, classes), case.distribution(images, classes), case.labels(images, classes)
    log_p = (logits.exp() / logits.exp().sum(1, keepdim=True)).log()
    picked = torch.stack([log_p[s, n] for s, n in enumerate(labels)])
    return max(
        deviation(objectives.nas_loss(logits, target), -sum(target[:, n] * log_p[:, n] for n in range(classes)).mean()),
        deviation(objectives.nas_loss(logits, labels), -picked.mean()),
    )


chapter.exercise(
    "4.21",
    "logits (N, classes), target (N, classes) -> ()",
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
    "written out",
    "holds",
    r"\max_{\hat w, \hat\alpha, \beta} f_b(\hat w, \hat\alpha, \beta), \qquad b^{\hat w} = \operatorname{sign}(\hat w)",
    functions=(binarize.BinaryConv2d.binary_weight,),
)
def check_4_24(case: Case):
    """With β held fixed, a 1-bit convolution answers to the signs of ŵ alone: other magnitudes, the same output."""
    conv, x = binarize.BinaryConv2d(case.M, case.E, 3, learned_scale=True), case.normal(2, case.M, 5, 5)
    signs = 2.0 * (case.normal(*conv.weight.shape) >= 0) - 1
    conv.weight.data = (signs * (0.1 + case.normal(*signs.shape).abs())).double()
    beta = conv.beta().detach().double().view(1, -1, 1, 1)
    with torch.no_grad():
        x = 2.0 * (x >= 0).double() - 1
        return max(deviation(conv.binary_weight(), signs.double()), deviation(conv(x), beta * F.conv2d(x, signs.double())))


@chapter.row(
    "4.25",
    "Objective of direct binary search",
    "definition",
    "written out",
    "corrected",
    r"\tilde f_b(\hat w, \hat\alpha, \beta) = \sum_n \hat p_n(\hat w, \hat\alpha, \beta) \log \hat p_n(X)",
    derived=r"\tilde f_b(\hat w, \hat\alpha, \beta) = \sum_n p_n(X) \log \hat p_n(\hat w, \hat\alpha, \beta)",
    reason="The two distributions have changed places against 4.21: the logarithm must be taken of the prediction. With "
    "labels, where p(X) has zeros, the printed sum is −∞ for every network.",
    functions=(objectives.nas_loss,),
)
def check_4_25(case: Case):
    """On soft targets, image by image, the derived sum is −L_NAS of the Child; the printed one is another, and −∞ on labels."""
    logits, target = case.normal(20, case.M), case.distribution(20, case.M)
    p, labels = logits.softmax(1), F.one_hot(case.labels(20, case.M), case.M).double()
    if (p * labels.log()).sum() != -float("inf"):
        return float("inf"), 0.0
    objective = torch.stack([-objectives.nas_loss(x[None], t[None]) for x, t in zip(logits, target, strict=True)])
    return deviation(objective, (target * p.log()).sum(1)), deviation(objective, (p * target.log()).sum(1))


@chapter.row(
    "4.26",
    "Child learns from Parent",
    "definition",
    "written out",
    "reconstructed",
    r"L_{\mathrm{CP\text{-}NAS}} = -G(\hat w, \hat\alpha, \beta) + \mu L_R(\hat w, \beta)",
    functions=(objectives.cp_nas_loss,),
)
def check_4_26(case: Case):
    """The loss is 4.32 without the tangent term."""
    gain, distance, reconstruction = case.normal(3)
    return max(
        deviation(objectives.cp_nas_loss(gain, reconstruction, 0.2), -gain + 0.2 * reconstruction),
        deviation(
            objectives.cp_nas_loss(gain, reconstruction, 0.2),
            objectives.dcp_nas_loss(gain, distance, reconstruction, lam=0.0, mu=0.2),
        ),
    )


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
    "4.32",
    "Loss of DCP-NAS",
    "definition",
    "written out",
    "holds",
    r"L_{\mathrm{DCP\text{-}NAS}} = -G(\hat w, \hat\alpha, \beta) + \lambda D(\hat\alpha) + \mu L_R(\hat w, \beta)",
    functions=(objectives.dcp_nas_loss,),
)
def check_4_32(case: Case):
    """The loss is the three terms with their weights."""
    gain, distance, reconstruction = terms = case.normal(3)
    loss = objectives.dcp_nas_loss(gain, distance, reconstruction, lam=0.5, mu=0.2)
    return deviation(loss, terms @ torch.tensor([-1, 0.5, 0.2], dtype=torch.float64))


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
