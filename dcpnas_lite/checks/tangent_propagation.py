"""Chapter 9: the tangent direction, the distance and its curvature (4.29–4.31, 4.33, 4.36–4.41)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, einsum
from torch.autograd.functional import hessian, jacobian

from ..method import objectives, tangent
from .problems import Case, along, deviation, distributions, symmetric
from .table import EXACT, Chapter

chapter = Chapter("09-tangent")


class _Classifier:
    """A small smooth p(X; α): N inputs, M classes, α (2, 3); derivatives of functions of the flattened α by autograd."""

    def __init__(self, case: Case):
        self.N, self.classes = case.E, case.M
        self.inputs, self.out = case.normal(self.N, 4, 6), case.normal(4, self.classes)
        self.alpha = case.normal(2, 3)
        self.data = case.distribution(self.N, self.classes)

    def logits(self, alpha: Tensor) -> Tensor:
        return torch.tanh(self.inputs @ alpha.flatten()) @ self.out

    def p(self, alpha: Tensor) -> Tensor:
        return self.logits(alpha).softmax(1)

    def log_p(self, alpha: Tensor) -> Tensor:
        """(N, M): minus the loss of 4.21, image by image, for each class as the label."""
        rows = [[-objectives.nas_loss(x[None], torch.tensor([n])) for n in range(self.classes)] for x in self.logits(alpha)]
        return torch.stack([torch.stack(row) for row in rows])

    def first(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradients (N, M, 6) of p or log_p."""
        return jacobian(function, self.alpha.flatten())

    def second(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Hessians (N, M, 6, 6) of p or log_p."""
        return jacobian(lambda a: jacobian(function, a, create_graph=True, vectorize=True), self.alpha.flatten(), vectorize=True)

    def fisher(self) -> Tensor:
        """(6, 6), built from tangent.fisher_product column by column."""
        columns = []
        for unit in torch.eye(6, dtype=torch.float64):
            alpha = self.alpha.clone().requires_grad_()
            (column,) = tangent.fisher_product(lambda alphas: self.logits(alphas[0]), [alpha], [unit.view(2, 3)])
            columns.append(column.flatten())
        return torch.stack(columns, 1)

    def mean(self, weights: Tensor, second: Tensor) -> Tensor:
        """E_X Σ_n weights_n second_n, (6, 6)."""
        return einsum("sn,snij->ij", weights, second) / self.N


def _loss_gradient(gradient: Tensor, direction: Tensor, hessian: Tensor, lam: float) -> Tensor:
    return tangent.loss_gradient([gradient], [2 * hessian @ (gradient - direction)], lam)[0]


@chapter.row(
    "4.29",
    "Tangent direction of the Parent",
    "definition",
    "autograd",
    "corrected",
    r"\frac{\partial \tilde f^C(w, \alpha)}{\partial \alpha} = \sum_n \frac{\partial p_n(w, \alpha)}{\partial "
    r"\alpha}",
    derived=r"\frac{\partial \tilde f^P(w, \alpha)}{\partial \alpha} = \sum_n \frac{p_n(X)}{p_n(w, \alpha)} \frac{\partial "
    r"p_n(w, \alpha)}{\partial \alpha}",
    reason="The p_n sum to 1 whatever α is, so the printed sum is identically zero: no direction at all. The derivative "
    "of 4.21 weighs each term by p_n(X)/p_n. If p are the logits, as the text once says, the sum is not zero, but "
    "it never sees p(X) and is not the derivative of f̃ either. The superscript must be P: this is the Parent's "
    "direction.",
    functions=(tangent.tangent_direction,),
)
def check_4_29(case: Case):
    """The weighted sum of ∂p_n/∂α, class by class, is the tangent direction; the unweighted sum is 0. With p read as the
    logits, as the text around 4.36 calls it, the sum is not 0 and still another direction: it never sees p(X)."""
    model = _Classifier(case)
    alpha = model.alpha.clone().requires_grad_()
    (direction,) = tangent.tangent_direction(model.logits(alpha), model.data, [alpha])
    slope = model.first(model.p)
    weighted = einsum("sn,sni->i", model.data / model.p(model.alpha), slope) / model.N
    printed, logits = slope.sum((0, 1)) / model.N, model.first(model.logits).sum((0, 1)) / model.N
    if printed.norm() > EXACT * slope.norm():
        return float("inf"), 0.0
    return deviation(direction, weighted.view(2, 3)), min(deviation(printed, weighted), deviation(logits, weighted))


chapter.exercise(
    "4.29 derived",
    "target (N, classes), p (N, classes), slopes (N, classes, entries) -> (entries)",
    "tangent direction Σ_n (p_n(X)/p_n) ∂p_n/∂α, mean over N images; slopes[s, n] = ∂p_n/∂α of image s",
    lambda t, p, s: einsum("sn,snk->k", t / p, s) / len(p),
    {
        "as printed": lambda t, p, s: s.sum(1).mean(0),
        "1/p missing": lambda t, p, s: einsum("sn,snk->k", t, s) / len(p),
        "ratio upside down": lambda t, p, s: einsum("sn,snk->k", p / t, s) / len(p),
        "sum over the images": lambda t, p, s: einsum("sn,snk->k", t / p, s),
        "p(X) missing": lambda t, p, s: einsum("sn,snk->k", 1 / p, s) / len(p),
    },
    distributions,
)


@chapter.row(
    "4.30",
    "Gain of the Child over the Parent",
    "definition",
    "written out",
    "reconstructed",
    r"G(\hat w, \hat\alpha, \beta) = \sum_n p_n(w, \alpha) \log \frac{\hat p_n(\hat w, \hat\alpha, \beta)}{p_n(w, \alpha)}",
    functions=(objectives.kl_gain,),
)
def check_4_30(case: Case):
    """G equals the sum over classes, entropy minus cross-entropy, and is 0 where both outputs agree."""
    child, parent = case.normal(case.E, case.M), case.normal(case.E, case.M)
    p, q = parent.softmax(1), child.softmax(1)
    cross = sum(p[:, n] * q[:, n].log() for n in range(case.M)).mean()
    by_hand = cross + torch.distributions.Categorical(p).entropy().mean()
    return max(deviation(objectives.kl_gain(child, parent), by_hand), abs(objectives.kl_gain(parent, parent).item()))


chapter.exercise(
    "4.30",
    "child_logits (N, classes), parent_logits (N, classes) -> ()",
    "gain G = Σ_n p_n log(p̂_n/p_n), mean over N images; p of the Parent, p̂ of the Child",
    lambda *a: objectives.kl_gain(*a),
    {
        "roles exchanged": lambda c, p: objectives.kl_gain(p, c),
        "cross-entropy": lambda c, p: (p.softmax(1) * c.log_softmax(1)).sum(1).mean(),
        "sum over the images": lambda c, p: objectives.kl_gain(c, p) * len(c),
        "mean over the classes": lambda c, p: objectives.kl_gain(c, p) / c.shape[1],
    },
)


@chapter.row(
    "4.31",
    "Tangent distance",
    "definition",
    "written out",
    "reconstructed",
    r"D(\hat\alpha) = \Bigl\lVert \frac{\partial \tilde f^P(w, \alpha)}{\partial \alpha} "
    r"- \frac{\partial G(\hat w, \hat\alpha, \beta)}{\partial \hat\alpha} \Bigr\rVert^2",
    functions=(tangent.distance,),
)
def check_4_31(case: Case):
    """Each of the three distances (F-norm, L1, cosine) equals its sum over entries."""
    child, parent = ([case.normal(case.E, case.M), case.normal(2, 5)] for _ in range(2))
    pairs = [(a, b) for c, p in zip(child, parent, strict=True) for a, b in zip(c.flatten(), p.flatten(), strict=True)]
    inner, aa, bb = (sum(x * y for x, y in z) for z in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs]))
    return max(
        deviation(tangent.distance(child, parent, "F"), sum((a - b) ** 2 for a, b in pairs)),
        deviation(tangent.distance(child, parent, "L1"), sum(abs(a - b) for a, b in pairs)),
        deviation(tangent.distance(child, parent, "cosine"), 1 - inner / (aa * bb).sqrt()),
    )


chapter.exercise(
    "4.31",
    "child (E, M), parent (E, M) -> ()",
    "tangent distance ‖∂f̃/∂α − ∂G/∂α̂‖² (F-norm)",
    lambda c, p: tangent.distance([c], [p]),
    {
        "square missing": lambda c, p: (c - p).norm(),
        "L1": lambda c, p: (c - p).abs().sum(),
        "mean instead of sum": lambda c, p: (c - p).square().mean(),
        "difference of the norms": lambda c, p: (c.norm() - p.norm()).square(),
        "plus": lambda c, p: (c + p).square().sum(),
    },
)


@chapter.row(
    "4.33",
    "Gradient of the loss with respect to α̂",
    "identity",
    "differences",
    "holds",
    r"\nabla_{\hat\alpha} L_{\mathrm{DCP\text{-}NAS}} = -\frac{\partial G}{\partial \hat\alpha} + 2\lambda \Bigl("
    r"\frac{\partial G}{\partial \hat\alpha} - \frac{\partial \tilde f^P}{\partial \alpha}\Bigr) H_G(\hat\alpha)",
    functions=(tangent.loss_gradient, tangent.distance_slope, tangent.curvature_product, tangent.hessian_product),
)
def check_4_33(case: Case):
    """With the exact Hessian the formula equals the derivative of −G + λ D by central differences."""
    model, lam = _Classifier(case), 0.3
    parent_logits, direction = case.normal(model.N, model.classes), case.normal(2, 3)

    def gradient_of_gain(alpha: Tensor) -> Tensor:
        alpha = alpha.detach().requires_grad_()
        return torch.autograd.grad(objectives.kl_gain(model.logits(alpha), parent_logits), alpha)[0]

    def loss(alpha: Tensor) -> Tensor:
        distance = (gradient_of_gain(alpha) - direction).square().sum()
        return -objectives.kl_gain(model.logits(alpha), parent_logits) + lam * distance

    _, gradient, slope = tangent.tangent_gradient(
        lambda alphas: model.logits(alphas[0]),
        lambda logits: objectives.kl_gain(logits, parent_logits),
        [model.alpha.clone().requires_grad_()],
        [direction],
        curvature="hessian",
    )
    units = torch.eye(6, dtype=torch.float64).view(6, 2, 3)
    by_difference = torch.stack([along(loss, model.alpha, unit) for unit in units]).view(2, 3)
    return deviation(tangent.loss_gradient(gradient, slope, lam)[0], by_difference)


chapter.exercise(
    "4.33",
    "gradient (entries), direction (entries), hessian (entries, entries), lam -> (entries)",
    "∇(−G + λ D) with gradient = ∂G/∂α̂, direction = ∂f̃/∂α, hessian = H_G",
    _loss_gradient,
    {
        "factor 2 missing": lambda g, f, H, lam: -g + lam * H @ (g - f),
        "λ missing": lambda g, f, H, lam: -g + 2 * H @ (g - f),
        "H_G missing": lambda g, f, H, lam: -g + 2 * lam * (g - f),
        "difference the other way": lambda g, f, H, lam: -g + 2 * lam * H @ (f - g),
        "factor 2 missing, and the difference the other way": lambda g, f, H, lam: -g + lam * H @ (f - g),
        "gain's sign": lambda g, f, H, lam: g + 2 * lam * H @ (g - f),
        "gain missing": lambda g, f, H, lam: 2 * lam * H @ (g - f),
        "rank one": lambda g, f, H, lam: -g - 2 * lam * g * (g @ (g - f)),
    },
    symmetric,
)


@chapter.row(
    "4.36",
    "Fisher information",
    "definition",
    "autograd",
    "holds",
    r"I_{ij} = \mathbb{E}_X [\partial_i \log p_n(X; \hat\alpha) \, \partial_j \log p_n(X; \hat\alpha)]",
    functions=(tangent.fisher_product,),
)
def check_4_36(case: Case):
    """F v for every unit vector equals the expectation over classes and inputs of the outer products of scores."""
    model = _Classifier(case)
    score = model.first(lambda alpha: model.p(alpha).log())
    return deviation(model.fisher(), model.mean(model.p(model.alpha), einsum("sni,snj->snij", score, score)))


chapter.exercise(
    "4.36",
    "p (N, classes), scores (N, classes, entries) -> (entries, entries)",
    "Fisher information E[∂ log p ∂ log pᵀ], classes weighted by p, mean over N images; scores[s, n] = ∂ log p_n",
    lambda p, s: einsum("sn,sni,snj->ij", p, s, s) / len(p),
    {
        "classes not weighted": lambda p, s: einsum("sni,snj->ij", s, s) / len(p),
        "1/p dropped, as in 4.41": lambda p, s: einsum("sn,sni,snj->ij", p**3, s, s) / len(p),
        "sum over the images": lambda p, s: einsum("sn,sni,snj->ij", p, s, s),
        "outer product of the mean": lambda p, s: einsum("sn,sni,tm,tmj->ij", p, s, p, s) / len(p) ** 2,
        "diagonal only": lambda p, s: torch.diag(einsum("sn,sni,sni->i", p, s, s) / len(p)),
    },
    distributions,
)


@chapter.row(
    "4.37",
    "Fisher information by second derivatives",
    "identity",
    "autograd",
    "under an assumption",
    r"I_{ij} = -\mathbb{E}_X [\partial_i \partial_j \log p_n(X; \hat\alpha)]",
    derived=r"I_{ij} = -\mathbb{E}_X \mathbb{E}_{n \sim \hat p(X)} [\partial_i \partial_j \log \hat p_n(X; \hat\alpha)]",
    reason="It holds when the classes are drawn from the model's own distribution. Under the labels of the data it fails as long "
    "as the model does not reproduce them.",
    functions=(tangent.fisher_product,),
)
def check_4_37(case: Case):
    """Exact under the model's own distribution over the classes; under another distribution the two differ."""
    model = _Classifier(case)
    fisher, second = model.fisher(), model.second(lambda alpha: model.p(alpha).log())
    own, other = (-model.mean(weights, second) for weights in (model.p(model.alpha), model.data))
    return deviation(own, fisher), deviation(other, fisher)


@chapter.row(
    "4.38",
    "First derivative of the log-likelihood",
    "identity",
    "autograd",
    "holds",
    r"\partial_i \log p_n = \frac{\partial_i p_n}{p_n}",
    functions=(objectives.nas_loss,),
)
def check_4_38(case: Case):
    """∂_i log p, the logarithm being minus the loss of 4.21 with n as the label, equals ∂_i p / p."""
    model = _Classifier(case)
    return deviation(model.first(model.log_p), model.first(model.p) / model.p(model.alpha).unsqueeze(-1))


@chapter.row(
    "4.39",
    "Second derivative of the log-likelihood",
    "identity",
    "autograd",
    "holds",
    r"\partial_i \partial_j \log p_n = \frac{\partial_i \partial_j p_n}{p_n} - \frac{\partial_i p_n}{p_n} "
    r"\frac{\partial_j p_n}{p_n}",
    functions=(objectives.nas_loss,),
)
def check_4_39(case: Case):
    """The Hessian of log p, minus the loss of 4.21, equals H p / p minus the outer product of the scores."""
    model = _Classifier(case)
    p, score = model.p(model.alpha), model.first(model.p) / model.p(model.alpha).unsqueeze(-1)
    by_hand = model.second(model.p) / p[..., None, None] - einsum("sni,snj->snij", score, score)
    return deviation(model.second(model.log_p), by_hand)


@chapter.row(
    "4.40",
    "The term that vanishes in expectation",
    "identity",
    "autograd",
    "under an assumption",
    r"\mathbb{E}_X \Bigl[ \frac{H_{ij}\, p_n}{p_n} \Bigr] = \int \frac{H_{ij}\, p_n}{p_n}\, p_n \, dX = H_{ij} \int "
    r"p_n \, dX = 0",
    derived=r"\mathbb{E}_X \mathbb{E}_{n \sim \hat p(X)} \Bigl[ \frac{H_{ij}\, \hat p_n}{\hat p_n} \Bigr] = \mathbb{E}_X "
    r"\Bigl[ H_{ij} \sum_n \hat p_n \Bigr] = 0",
    reason="The line states its distribution, p_n, but integrates over X, and p_n is no density of X: for one class, ∫ "
    "p_n dX changes with α̂. What is 1 is Σ_n p_n, for every X; read as this sum, under the model's own "
    "distribution, it holds.",
    functions=(objectives.nas_loss,),
)
def check_4_40(case: Case):
    """H p / p, as second derivative of log p plus outer product of the scores, has expectation 0 under the model's own
    distribution over the classes. It has not under another one, nor has any single class summed over the inputs."""
    model = _Classifier(case)
    score, p = model.first(model.log_p), model.p(model.alpha)
    ratio = model.second(model.log_p) + einsum("sni,snj->snij", score, score)
    size = model.mean(p, ratio.abs()).norm()
    own, other = (model.mean(weights, ratio).norm() / size for weights in (p, model.data))
    over_inputs = [(p[:, n, None, None] * ratio[:, n]).mean(0).norm() / size for n in range(model.classes)]
    return own.item(), min(other, *over_inputs).item()


@chapter.row(
    "4.41",
    "Hessian replaced by the covariance of gradients",
    "surrogate",
    "autograd",
    "corrected",
    r"\mathbb{E}_X[H_{ij} \log p_n] = -\mathbb{E}_X \Bigl\{ \frac{\partial_i p_n}{p_n} \frac{\partial_j p_n}{p_n} "
    r"\Bigr\} = -\mathbb{E}_X \{ \partial_i p_n \, \partial_j p_n \}",
    derived=r"\mathbb{E}_X[H_{ij} \log \hat p_n] = -\mathbb{E}_X \{ \partial_i \log \hat p_n \, \partial_j \log \hat p_n \} "
    r"= -I_{ij}, \qquad H_G \approx -I",
    reason="The second equality drops both factors 1/p. And since G is minus a divergence, what replaces H_G in 4.33 is "
    "−I, a negative matrix: both sides of the printed line have the minus, the sentence after it has none, and "
    "read literally it makes the step climb D. The text puts the substitute for H_f̃ “in Eq. 4.32”; 4.32 has no "
    "second derivative, it is H_G in 4.33.",
    functions=(tangent.fisher_product,),
)
def check_4_41(case: Case):
    """The first equality holds, the second does not; −I is the Hessian of G where Child and Parent agree."""
    model = _Classifier(case)
    p, first, fisher, parent = model.p(model.alpha), model.first(model.p), model.fisher(), model.logits(model.alpha)
    gain = hessian(lambda alpha: objectives.kl_gain(model.logits(alpha), parent), model.alpha.flatten())
    expectation = model.mean(p, model.second(lambda alpha: model.p(alpha).log()))
    printed = -model.mean(p, einsum("sni,snj->snij", first, first))
    return max(deviation(-fisher, expectation), deviation(-fisher, gain)), deviation(printed, expectation)
