"""Chapter 8: the objectives of Parent and Child (4.21, 4.24–4.26, 4.32)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method import objectives
from ..network import binarize
from .problems import Case, deviation, distributions
from .table import Chapter

chapter = Chapter("08-objectives")


def _child_loss(child_logits: Tensor, parent_logits: Tensor, w_hat: Tensor, beta: Tensor, mu: float) -> Tensor:
    gain = objectives.kl_gain(child_logits, parent_logits)
    return objectives.cp_nas_loss(gain, binarize.reconstruction_error(w_hat, beta), mu)


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


chapter.exercise(
    "4.26",
    "child_logits (N, classes), parent_logits (N, classes), w_hat (C_out, entries), beta (C_out), mu -> ()",
    "L_CP-NAS = −G + μ L_R of one layer: G a mean over N images, L_R = ‖ŵ − β ∘ sign(ŵ)‖²",
    _child_loss,
    {
        "gain's sign": lambda c, p, w, b, mu: _child_loss(c, p, w, b, mu) + 2 * objectives.kl_gain(c, p),
        "roles of Parent and Child exchanged": lambda c, p, w, b, mu: _child_loss(p, c, w, b, mu),
        "gain missing": lambda c, p, w, b, mu: mu * binarize.reconstruction_error(w, b),
        "L_R missing": lambda c, p, w, b, mu: -objectives.kl_gain(c, p),
        "μ missing": lambda c, p, w, b, mu: _child_loss(c, p, w, b, 1.0),
        "β missing": lambda c, p, w, b, mu: _child_loss(c, p, w, torch.ones_like(b), mu),
        "L_R a mean": lambda c, p, w, b, mu: _child_loss(c, p, w, b, mu / w.numel()),
        "L_R not squared": lambda c, p, w, b, mu: mu * binarize.reconstruction_error(w, b).sqrt() - objectives.kl_gain(c, p),
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
