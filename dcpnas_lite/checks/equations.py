r"""The closed table of the equations 4.20–4.53: what each one is, whether it holds, and a check that can fail.

`TABLE` has one `Equation` per number; `get("4.49").check()` runs its check. Where the printed line cannot stand, the check
runs both lines: the printed one must fail and the derived one must pass. All checks together take a few seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from ..derivation import responses, toys, trace
from ..method import backtracking, objectives, tangent
from ..network import binarize, supernet

KINDS = ("definition", "identity", "surrogate", "heuristic")
VERDICTS = ("holds", "corrected", "under an assumption", "reconstructed")
CHAPTERS = {
    "01-one-bit": "4.22 4.23 4.34 4.35",
    "03-coupled-objective": "4.20 4.21 4.24 4.25 4.26 4.27 4.28 4.32 4.42",
    "04-missing-derivative": "4.43",
    "05-dividing-by-a-matrix": "4.44 4.45",
    "06-trace": "4.46 4.47 4.48",
    "07-from-trace-to-update": "4.49 4.50",
    "08-learning-psi": "4.51 4.52 4.53",
    "09-tangent": "4.29 4.30 4.31 4.33 4.36 4.37 4.38 4.39 4.40 4.41",
}
EXACT = 1e-9  # largest relative error of a line that holds (float64)
WRONG = 1e-2  # smallest relative error of a line that fails


@dataclass(frozen=True)
class Check:
    """Outcome of a check.

    discrepancy: relative error of the printed line, or of the line where its assumption fails; inf where it is undefined.
    """

    passed: bool
    discrepancy: float
    text: str


@dataclass(frozen=True)
class Equation:
    """One numbered equation of the source.

    printed and derived are TeX; derived is "" where the printed line stands. reason: why the printed line cannot stand, or
    what it takes for granted. functions: dotted paths of what implements it. run returns the relative error of the line
    that must hold and, for the verdicts "corrected" and "under an assumption", that of the line (or case) that must fail.
    """

    number: str
    title: str
    kind: str
    verdict: str
    printed: str
    run: Callable[[], float | tuple[float, float]] = field(repr=False)
    derived: str = ""
    reason: str = ""
    functions: tuple[str, ...] = ()
    exact: float = EXACT

    @property
    def chapter(self) -> str:
        """File name stem of the chapter in which the equation carries its tag."""
        return next(stem for stem, numbers in CHAPTERS.items() if self.number in numbers.split())

    @property
    def anchor(self) -> str:
        return "eq-" + self.number.replace(".", "-")

    def check(self) -> Check:
        """Run the check on its fixed problem; an exception inside it is a failure."""
        text = " ".join((self.run.__doc__ or "").split())  # without docstrings, python -OO, there are no words
        try:
            with torch.random.fork_rng(devices=[]):  # modules draw their initial weights from the global generator
                torch.manual_seed(0)
                outcome = self.run()
        except Exception as problem:
            return Check(False, float("inf"), f"{text} The check raised {type(problem).__name__}: {problem}".strip())
        if self.verdict in ("corrected", "under an assumption"):
            error, discrepancy = outcome
            return Check(error <= self.exact and discrepancy >= WRONG, discrepancy, text)
        return Check(outcome <= self.exact, outcome, text)

    def figure(self, check: Check) -> str:
        """The discrepancy in words that do not change from machine to machine."""
        if check.discrepancy == float("inf"):
            return "undefined"
        return f"< {self.exact:.0e}".replace("e-0", "e-") if check.discrepancy <= self.exact else f"{check.discrepancy:.2f}"


_entries: list[Equation] = []


def get(number: str) -> Equation:
    """The entry of one equation; KeyError naming the range for any other number."""
    for equation in TABLE:
        if equation.number == number:
            return equation
    raise KeyError(f"expected a number from 4.20 to 4.53, got {number!r}")


def report() -> str:
    """The table with live results, as plain text."""
    lines, passed = [], 0
    for equation in TABLE:
        result = equation.check()
        passed += result.passed
        lines.append(
            f"{equation.number}  {'pass' if result.passed else 'FAIL'}  {equation.verdict:19}  "
            f"{equation.figure(result):>13}  {equation.title}" + ("" if result.passed else f"\n      {result.text}")
        )
    return "\n".join([*lines, f"{passed} of {len(TABLE)} equations have a verdict and a passing check"])


def markdown_index() -> str:
    """The equation index as a Markdown table, with live figures."""
    rows = ["| Eq. | Title | Kind | Verdict | Functions | Check |", "|" + "---|" * 6]
    for e in TABLE:
        result = e.check()
        functions = "<br>".join(f"`{path.removeprefix('dcpnas_lite.')}`" for path in e.functions) or "–"
        rows.append(
            f"| [({e.number})](#{e.anchor}) | {e.title} | {e.kind} | {e.verdict} | {functions} | "
            f"{'passes' if result.passed else '**fails**'}, {e.figure(result)} |"
        )
    return "\n".join(rows)


def markdown_errata() -> str:
    """The errata as Markdown, in the form of a report: place, as printed, why it cannot stand, proposed, measured."""
    parts = []
    for e in TABLE:
        if e.derived:
            result = e.check()
            wrong = e.verdict == "corrected"
            why, what = (
                ("Why it cannot stand", "the printed line")
                if wrong
                else ("What it takes for granted", "the line where the assumption fails")
            )
            parts.append(
                f"## {e.number} {e.title}\n\n**Place.** Section 4.4, Eq. [({e.number})](#{e.anchor}); discussed in chapter "
                f"{int(e.chapter[:2])}.\n\n**As printed**\n\n$$ {e.printed} $$\n\n**{why}.** {e.reason}\n\n"
                f"**{'As derived' if wrong else 'To be read as'}**\n\n$$ {e.derived} $$\n\n"
                f"**Measured** ({'passes' if result.passed else '**fails**'}). {result.text} "
                f"Relative error of {what}: {e.figure(result)}.\n"
            )
    return "\n".join(parts)


def _entry(number: str, title: str, kind: str, verdict: str, printed: str, **rest) -> Callable:
    """Enter the decorated check in the table; its docstring says what it checks."""

    def enter(run: Callable) -> Callable:
        _entries.append(Equation(number, title, kind, verdict, printed, run, **rest))
        return run

    return enter


# ---- problems and measures -----------------------------------------------------------------------------------------


def _error(got: Tensor, want: Tensor) -> float:
    """Relative error; inf where shapes differ or a number is not finite."""
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    if got.shape != want.shape or not (torch.isfinite(got).all() and torch.isfinite(want).all()):
        return float("inf")
    return ((got - want).norm() / want.norm().clamp(min=1e-300)).item()


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mixture(seed: int = 0, **options) -> tuple[toys.LinearMixture, Tensor, Tensor, Tensor, Tensor]:
    """A mixture toy answered explicitly: the toy, w, ∂w/∂α, L̃ and ∂L/∂w, with E = 3 and M = 4."""
    toy = toys.LinearMixture.random(3, 4, seed, **options)
    w, jacobian = responses.Explicit(toy.phi)(toy.alpha)
    return toy, w, jacobian, toy.delta(toy.alpha, w).T, toy.dL_dw(toy.alpha, w)


def _along(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float = 1e-3) -> Tensor:
    """Derivative of a function along a direction by central differences, extrapolated to step 0 (Richardson)."""
    near, far = ((function(x + h * direction) - function(x - h * direction)) / (2 * h) for h in (step, 2 * step))
    return (4 * near - far) / 3


class _Classifier:
    """A small smooth p(X; α): 5 inputs, 3 classes, α (2, 3); derivatives of functions of p by autograd."""

    def __init__(self):
        self.inputs, self.out = _normal(5, 4, 6, seed=1), _normal(4, 3, seed=2)
        self.alpha = _normal(2, 3, seed=3)

    def logits(self, alpha: Tensor) -> Tensor:
        return torch.tanh(self.inputs @ alpha.flatten()) @ self.out

    def p(self, alpha: Tensor) -> Tensor:
        return self.logits(alpha).softmax(1)

    def first(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient (5, 3, 6) of a function of p in the flattened α."""
        return torch.autograd.functional.jacobian(lambda a: function(self.p(a.view(2, 3))), self.alpha.flatten())

    def second(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Hessian (5, 3, 6, 6) of a function of p in the flattened α."""

        def of(a: Tensor, s: int, n: int) -> Tensor:
            return function(self.p(a.view(2, 3)))[s, n]

        rows = [
            torch.autograd.functional.hessian(lambda a, s=s, n=n: of(a, s, n), self.alpha.flatten())
            for s, n in itertools.product(range(5), range(3))
        ]
        return torch.stack(rows).view(5, 3, 6, 6)

    def fisher(self) -> Tensor:
        """(6, 6), built from tangent.fisher_product column by column."""
        columns = []
        for unit in torch.eye(6, dtype=torch.float64):
            alpha = self.alpha.clone().requires_grad_()
            (column,) = tangent.fisher_product(lambda alphas: self.logits(alphas[0]), [alpha], [unit.view(2, 3)])
            columns.append(column.flatten())
        return torch.stack(columns, 1)


# ---- the objective of the search (chapters 1, 3 and 9) -------------------------------------------------------------

_NETWORK, _OBJECTIVES = "dcpnas_lite.network.", "dcpnas_lite.method.objectives."
_TANGENT, _BACKTRACKING = "dcpnas_lite.method.tangent.", "dcpnas_lite.method.backtracking."
_TRACE, _RESPONSES = "dcpnas_lite.derivation.trace.", "dcpnas_lite.derivation.responses."


@_entry(
    "4.20",
    "Architecture search as a maximisation",
    "definition",
    "corrected",
    r"\max_{w, \alpha} f(w, \alpha), \qquad \alpha \in \mathcal{A} \subset \mathbb{R}^{M \times E}",
    derived=r"\max_{w, \alpha} f(w, \alpha), \qquad \alpha \in \mathcal{A} \subset \mathbb{R}^{E \times M}",
    reason="The orientation of α changes between 4.20 and 4.42. A convention, not a slip, but only one can be used: with one "
    "weight per operation, α multiplies w when it has one row per edge, as 4.42 says.",
)
def _():
    """With one weight per operation, α w has one number per edge for α of shape E×M and is undefined for M×E."""
    alpha, w = _normal(3, 4), _normal(4, seed=1)
    by_hand = torch.stack([sum(alpha[e, m] * w[m] for m in range(4)) for e in range(3)])
    try:
        return _error(alpha @ w, by_hand), _error(alpha.T @ w, by_hand)
    except RuntimeError:
        return _error(alpha @ w, by_hand), float("inf")


@_entry(
    "4.21",
    "Loss of the search",
    "definition",
    "holds",
    r"L_{\mathrm{NAS}} = -\tilde f(w, \alpha) = -\sum_{n=1}^{N} p_n(X) \log p_n(w, \alpha)",
    functions=(_OBJECTIVES + "nas_loss",),
)
def _():
    """The loss equals the sum over classes written out, for a distribution p(X) and for labels."""
    logits, target = _normal(5, 3), _normal(5, 3, seed=1).softmax(1)
    log_p = (logits.exp() / logits.exp().sum(1, keepdim=True)).log()
    labels = torch.tensor([0, 2, 1, 1, 0])
    picked = torch.stack([log_p[s, n] for s, n in enumerate(labels)])
    return max(
        _error(objectives.nas_loss(logits, target), -sum(target[:, n] * log_p[:, n] for n in range(3)).mean()),
        _error(objectives.nas_loss(logits, labels), -picked.mean()),
    )


@_entry(
    "4.22",
    "One-bit convolution",
    "definition",
    "holds",
    r"\hat a_{\mathrm{out}} = \beta \circ (b^{\hat a_{\mathrm{in}}} \odot b^{\hat w})",
    functions=(_NETWORK + "binarize.BinaryConv2d",),
)
def _():
    """The convolution equals XNOR and bit count on packed signs, scaled channel by channel."""
    conv, x = binarize.BinaryConv2d(2, 3, 3, stride=2, padding=1), _normal(2, 2, 7, 7)
    conv.weight.data = _normal(3, 2, 3, 3, seed=1)
    x[0, 0, 3, 3] = 0
    with torch.no_grad():
        out = conv(x)
        bits_x = F.unfold(F.pad((x >= 0).double(), (1,) * 4), 3, stride=2) > 0.5  # border: −1, the bit 0
        xnor = bits_x.unsqueeze(1) == (conv.weight >= 0).flatten(1)[None, :, :, None]
        beta = torch.stack([w.abs().sum() / w.numel() for w in conv.weight])
        return _error(out, beta.view(1, 3, 1, 1) * (2 * xnor.sum(2) - 18).view(out.shape))


@_entry(
    "4.23",
    "Reconstruction error",
    "definition",
    "holds",
    r"L_R(\hat w, \beta) = \lVert \hat w - \beta \circ b^{\hat w} \rVert^2",
    functions=(_NETWORK + "binarize.reconstruction_error", _NETWORK + "binarize.scale"),
)
def _():
    """The error equals its expanded square for any β, and β = mean |w| is the minimum of that parabola."""
    w, beta = _normal(3, 2, 3, 3), _normal(3, seed=1).abs()
    parabola = sum((w[c] ** 2).sum() - 2 * beta[c] * w[c].abs().sum() + 18 * beta[c] ** 2 for c in range(3))
    vertex = torch.stack([w[c].abs().sum() / 18 for c in range(3)])
    return max(_error(binarize.reconstruction_error(w, beta), parabola), _error(binarize.scale(w), vertex))


@_entry(
    "4.24",
    "Search of a 1-bit network",
    "definition",
    "holds",
    r"\max_{\hat w, \hat\alpha, \beta} f_b(\hat w, \hat\alpha, \beta), \qquad b^{\hat w} = \operatorname{sign}(\hat w)",
    functions=(_NETWORK + "binarize.BinaryConv2d.binary_weight",),
)
def _():
    """With β held fixed, a 1-bit convolution answers to the signs of ŵ alone: other magnitudes, the same output."""
    conv, x = binarize.BinaryConv2d(2, 3, 3, learned_scale=True), _normal(2, 2, 5, 5)
    signs = 2.0 * (_normal(3, 2, 3, 3, seed=1) >= 0) - 1
    conv.weight.data = (signs * (0.1 + _normal(3, 2, 3, 3, seed=2).abs())).double()
    beta = conv.beta().detach().double().view(1, 3, 1, 1)
    with torch.no_grad():
        x = 2.0 * (x >= 0).double() - 1
        return max(_error(conv.binary_weight(), signs.double()), _error(conv(x), beta * F.conv2d(x, signs.double())))


@_entry(
    "4.25",
    "Objective of direct binary search",
    "definition",
    "corrected",
    r"\tilde f_b(\hat w, \hat\alpha, \beta) = \sum_n \hat p_n(\hat w, \hat\alpha, \beta) \log \hat p_n(X)",
    derived=r"\tilde f_b(\hat w, \hat\alpha, \beta) = \sum_n p_n(X) \log \hat p_n(\hat w, \hat\alpha, \beta)",
    reason="The two distributions have changed places against 4.21: the logarithm must be taken of the prediction. With "
    "labels, where p(X) has zeros, the printed sum is −∞ for every network.",
    functions=(_OBJECTIVES + "nas_loss",),
)
def _():
    """On soft targets the derived sum is −L_NAS of the Child; the printed one is another number, and −∞ on labels."""
    logits, target = _normal(5, 3), _normal(5, 3, seed=1).softmax(1)
    p, labels = logits.softmax(1), F.one_hot(torch.tensor([0, 2, 1, 1, 0]), 3).double()
    if (p * labels.log()).sum() != -float("inf"):
        return float("inf"), 0.0
    objective = -objectives.nas_loss(logits, target)
    return _error(objective, (target * p.log()).sum(1).mean()), _error(objective, (p * target.log()).sum(1).mean())


@_entry(
    "4.26",
    "Child learns from Parent",
    "definition",
    "reconstructed",
    r"L_{\mathrm{CP\text{-}NAS}} = -G(\hat w, \hat\alpha, \beta) + \mu L_R(\hat w, \beta)",
    functions=(_OBJECTIVES + "cp_nas_loss",),
)
def _():
    """The loss is 4.32 without the tangent term."""
    gain, distance, reconstruction = torch.tensor(-0.7), torch.tensor(0.3), torch.tensor(1.9)
    return max(
        _error(objectives.cp_nas_loss(gain, reconstruction, 0.2), 0.7 + 0.2 * reconstruction),
        _error(
            objectives.cp_nas_loss(gain, reconstruction, 0.2),
            objectives.dcp_nas_loss(gain, distance, reconstruction, lam=0.0, mu=0.2),
        ),
    )


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


@_entry(
    "4.27",
    "A node sums its incoming edges",
    "definition",
    "holds",
    r"a^{(j)} = \sum_{i<j} o^{(i,j)}(a^{(i)}), \qquad o^{(i,j)}(a^{(i)}) = w^{(i,j)} \otimes a^{(i)}",
    functions=(_NETWORK + "supernet.MixedCell",),
)
def _():
    """With one operation per edge, a cell equals the sum over incoming edges written out node by node."""
    cell, x = supernet.MixedCell(supernet.MICRO, "normal", 2, binary=False).double(), _normal(2, 2, 6, 6)
    chosen = F.one_hot(torch.tensor([2, 6, 1]), 8).double()
    with torch.no_grad():
        return _error(torch.stack(cell([x], chosen)), torch.stack(_node_by_node(cell, x, chosen)))


@_entry(
    "4.28",
    "An edge mixes its operations",
    "definition",
    "holds",
    r"\hat o_m^{(i,j)} = \operatorname{softmax}_m(\alpha^{(i,j)}) \cdot o_m^{(i,j)}",
    functions=(_NETWORK + "supernet.Supernet",),
)
def _():
    """A supernet with any α equals the same network mixed with e^α / Σ_m e^α, node by node."""
    network = supernet.Supernet(supernet.MICRO, channels=2, layers=1, classes=3).double()
    alpha, x = _normal(3, 8, seed=1), _normal(2, 1, 6, 6)
    mix = torch.stack([row.exp() / row.exp().sum() for row in alpha])
    with torch.no_grad():
        prepared = network.preprocess[0][0](network.stem(x))
        nodes = torch.cat(_node_by_node(network.cells[0], prepared, mix), 1)
        return _error(network(x, [alpha]), network.classifier(nodes.mean((2, 3))))


# ---- tangent propagation (chapters 3 and 9) ------------------------------------------------------------------------


@_entry(
    "4.29",
    "Tangent direction of the Parent",
    "definition",
    "corrected",
    r"\frac{\partial \tilde f^C(w, \alpha)}{\partial \alpha} = \sum_n \frac{\partial p_n(w, \alpha)}{\partial \alpha}",
    derived=r"\frac{\partial \tilde f^P(w, \alpha)}{\partial \alpha} = "
    r"\sum_n \frac{p_n(X)}{p_n(w, \alpha)} \frac{\partial p_n(w, \alpha)}{\partial \alpha}",
    reason="The p_n sum to 1 whatever α is, so the printed sum is identically zero: no direction at all. The derivative of "
    "4.21 weighs each term by p_n(X)/p_n. The superscript must be P: this is the Parent's direction.",
    functions=(_TANGENT + "tangent_direction",),
)
def _():
    """The weighted sum of ∂p_n/∂α, class by class, is the tangent direction; the unweighted sum is 0."""
    model, target = _Classifier(), _normal(5, 3, seed=4).softmax(1)
    alpha = model.alpha.clone().requires_grad_()
    (direction,) = tangent.tangent_direction(model.logits(alpha), target, [alpha])
    p, slope = model.p(model.alpha), model.first(lambda p: p)
    weighted = einsum("sn,sni->i", target / p, slope) / 5
    return _error(direction, weighted.view(2, 3)), _error(slope.sum((0, 1)) / 5, weighted)


@_entry(
    "4.30",
    "Gain of the Child over the Parent",
    "definition",
    "reconstructed",
    r"G(\hat w, \hat\alpha, \beta) = \sum_n p_n(w, \alpha) \log \frac{\hat p_n(\hat w, \hat\alpha, \beta)}{p_n(w, \alpha)}",
    functions=(_OBJECTIVES + "kl_gain",),
)
def _():
    """G equals the sum over classes, entropy minus cross-entropy, and is 0 where both outputs agree."""
    child, parent = _normal(5, 3), _normal(5, 3, seed=1)
    p, q = parent.softmax(1), child.softmax(1)
    by_hand = sum(p[:, n] * q[:, n].log() for n in range(3)).mean() + torch.distributions.Categorical(p).entropy().mean()
    return max(_error(objectives.kl_gain(child, parent), by_hand), abs(objectives.kl_gain(parent, parent).item()))


@_entry(
    "4.31",
    "Tangent distance",
    "definition",
    "reconstructed",
    r"D(\hat\alpha) = \Bigl\lVert \frac{\partial \tilde f^P(w, \alpha)}{\partial \alpha} "
    r"- \frac{\partial G(\hat w, \hat\alpha, \beta)}{\partial \hat\alpha} \Bigr\rVert^2",
    functions=(_TANGENT + "distance",),
)
def _():
    """Each of the three distances (F-norm, L1, cosine) equals its sum over entries."""
    child, parent = [_normal(3, 4), _normal(2, 5)], [_normal(3, 4, seed=1), _normal(2, 5, seed=2)]
    pairs = [(a, b) for c, p in zip(child, parent, strict=True) for a, b in zip(c.flatten(), p.flatten(), strict=True)]
    inner, aa, bb = (sum(x * y for x, y in z) for z in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs]))
    return max(
        _error(tangent.distance(child, parent, "F"), sum((a - b) ** 2 for a, b in pairs)),
        _error(tangent.distance(child, parent, "L1"), sum(abs(a - b) for a, b in pairs)),
        _error(tangent.distance(child, parent, "cosine"), 1 - inner / (aa * bb).sqrt()),
    )


@_entry(
    "4.32",
    "Loss of DCP-NAS",
    "definition",
    "holds",
    r"L_{\mathrm{DCP\text{-}NAS}} = -G(\hat w, \hat\alpha, \beta) + \lambda D(\hat\alpha) + \mu L_R(\hat w, \beta)",
    functions=(_OBJECTIVES + "dcp_nas_loss",),
)
def _():
    """The loss is the three terms with their weights."""
    gain, distance, reconstruction = (torch.tensor(v, dtype=torch.float64) for v in (-0.7, 0.3, 1.9))
    loss = objectives.dcp_nas_loss(gain, distance, reconstruction, lam=0.5, mu=0.2)
    return _error(loss, torch.tensor(0.7 + 0.15 + 0.38, dtype=torch.float64))


@_entry(
    "4.33",
    "Gradient of the loss with respect to α̂",
    "identity",
    "holds",
    r"\nabla_{\hat\alpha} L_{\mathrm{DCP\text{-}NAS}} = -\frac{\partial G}{\partial \hat\alpha} + 2\lambda \Bigl("
    r"\frac{\partial G}{\partial \hat\alpha} - \frac{\partial \tilde f^P}{\partial \alpha}\Bigr) H_G(\hat\alpha)",
    functions=(_TANGENT + "tangent_gradient", _TANGENT + "hessian_product", _TANGENT + "distance_slope"),
)
def _():
    """With the exact Hessian the formula equals the derivative of −G + λ D by central differences."""
    model, parent_logits, direction, lam = _Classifier(), _normal(5, 3, seed=4), _normal(2, 3, seed=5), 0.3

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
    by_difference = torch.stack([_along(loss, model.alpha, unit) for unit in units]).view(2, 3)
    return _error(-gradient[0] + lam * slope[0], by_difference)


@_entry(
    "4.34",
    "Gradient of the loss with respect to ŵ",
    "identity",
    "corrected",
    r"\nabla_{\hat w} L_{\mathrm{DCP\text{-}NAS}} = -\frac{\partial G}{\partial b^{\hat w}} "
    r"\frac{\partial b^{\hat w}}{\partial \hat w}",
    derived=r"\nabla_{\hat w} (-G + \mu L_R) = -\frac{\partial G}{\partial b^{\hat w}} \frac{\partial b^{\hat "
    r"w}}{\partial \hat w} "
    r"- \frac{\partial G}{\partial \beta} \frac{\partial \beta}{\partial \hat w} + \mu \frac{\partial L_R}{\partial \hat w}",
    reason="4.32 contains μ L_R(ŵ, β), which depends on ŵ; its gradient is missing. With β = mean |ŵ| a second path is missing "
    "too (none if β is learned). The tangent term λ D acts on α̂ only, in the source and here.",
    functions=(_NETWORK + "binarize.BinaryConv2d", _OBJECTIVES + "reconstruction_loss"),
)
def _():
    """Autograd through the 1-bit convolution equals the derived closed form; the printed term alone does not."""
    conv, x, parent, mu = binarize.BinaryConv2d(2, 3, 2), _normal(4, 2, 2, 2), _normal(4, 3, seed=1), 0.2
    conv.weight.data = _normal(3, 2, 2, 2, seed=2)
    w, beta = conv.weight.detach(), conv.weight.detach().abs().mean((1, 2, 3)).view(3, 1, 1, 1)
    b, window = 2.0 * (w >= 0) - 1, (w.abs() <= 1).double()
    gain = objectives.kl_gain(conv(x).flatten(1), parent)
    loss = objectives.dcp_nas_loss(gain, torch.zeros(()), objectives.reconstruction_loss([(conv.weight, conv.beta())]), 0, mu)
    product = (beta * b).requires_grad_()
    logits = F.conv2d(2.0 * (x >= 0).double() - 1, product).flatten(1)
    (g,) = torch.autograd.grad(-objectives.kl_gain(logits, parent), product)
    printed = beta * g * window
    through_beta = (g * b).sum((1, 2, 3), keepdim=True) * w.sign() / 8
    derived = printed + through_beta + mu * 2 * (w - beta * b) * (1 - beta * window)
    (gradient,) = torch.autograd.grad(loss, conv.weight)
    return _error(gradient, derived), _error(printed, derived)


@_entry(
    "4.35",
    "Straight-through window",
    "surrogate",
    "holds",
    r"\frac{\partial b^{\hat w}}{\partial \hat w} = \mathbf{1}_{\lvert \hat w \rvert \le 1}",
    functions=(_NETWORK + "binarize.sign",),
)
def _():
    """Values and derivative of sign at, inside and outside the ends of the window."""
    w = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.7, 1.0, 1.1], dtype=torch.float64, requires_grad=True)
    b, up = binarize.sign(w), _normal(7)
    (slope,) = torch.autograd.grad(b, w, up)
    window = torch.tensor([0, 1, 1, 1, 1, 1, 0], dtype=torch.float64)
    signs = torch.tensor([-1, -1, -1, 1, 1, 1, 1], dtype=torch.float64)
    return max(_error(b.detach(), signs), _error(slope, up * window))


@_entry(
    "4.36",
    "Fisher information",
    "definition",
    "holds",
    r"I_{ij} = \mathbb{E}_X [\partial_i \log p_n(X; \hat\alpha) \, \partial_j \log p_n(X; \hat\alpha)]",
    functions=(_TANGENT + "fisher_product",),
)
def _():
    """F v for every unit vector equals the expectation over classes and inputs of the outer products of scores."""
    model = _Classifier()
    p, score = model.p(model.alpha), model.first(torch.log)
    return _error(model.fisher(), einsum("sn,sni,snj->ij", p, score, score) / 5)


@_entry(
    "4.37",
    "Fisher information by second derivatives",
    "identity",
    "under an assumption",
    r"I_{ij} = -\mathbb{E}_X [\partial_i \partial_j \log p_n(X; \hat\alpha)]",
    derived=r"I_{ij} = -\mathbb{E}_X \mathbb{E}_{n \sim \hat p(X)} [\partial_i \partial_j \log \hat p_n(X; \hat\alpha)]",
    reason="It holds when the classes are drawn from the model's own distribution. Under the labels of the data it fails as long "
    "as the model does not reproduce them.",
    functions=(_TANGENT + "fisher_product",),
)
def _():
    """Exact under the model's own distribution over the classes; under another distribution the two differ."""
    model, data = _Classifier(), _normal(5, 3, seed=4).softmax(1)
    p, fisher, second = model.p(model.alpha), model.fisher(), model.second(torch.log)
    return _error(-einsum("sn,snij->ij", p, second) / 5, fisher), _error(-einsum("sn,snij->ij", data, second) / 5, fisher)


@_entry(
    "4.38",
    "First derivative of the log-likelihood",
    "identity",
    "holds",
    r"\partial_i \log p_n = \frac{\partial_i p_n}{p_n}",
)
def _():
    """∂_i log p by autograd of the logarithm equals ∂_i p / p."""
    model = _Classifier()
    p, first = model.p(model.alpha), model.first(lambda p: p)
    return _error(model.first(torch.log), first / p.unsqueeze(-1))


@_entry(
    "4.39",
    "Second derivative of the log-likelihood",
    "identity",
    "holds",
    r"\partial_i \partial_j \log p_n = \frac{\partial_i \partial_j p_n}{p_n} - \frac{\partial_i p_n}{p_n} "
    r"\frac{\partial_j p_n}{p_n}",
)
def _():
    """The Hessian of log p by autograd equals H p / p minus the outer product of the scores."""
    model = _Classifier()
    p, first, second = model.p(model.alpha), model.first(lambda p: p), model.second(lambda p: p)
    score = first / p.unsqueeze(-1)
    by_hand = second / p[..., None, None] - einsum("sni,snj->snij", score, score)
    return _error(model.second(torch.log), by_hand)


@_entry(
    "4.40",
    "The term that vanishes in expectation",
    "identity",
    "under an assumption",
    r"\mathbb{E}_X \Bigl[ \frac{H_{ij}\, p_n}{p_n} \Bigr] = 0",
    derived=r"\mathbb{E}_X \mathbb{E}_{n \sim \hat p(X)} \Bigl[ \frac{H_{ij}\, \hat p_n}{\hat p_n} \Bigr] "
    r"= \mathbb{E}_X \Bigl[ H_{ij} \sum_n \hat p_n \Bigr] = 0",
    reason="As 4.37: the expectation must be under the model's own distribution, so that p cancels and what is "
    "differentiated is Σ_n p_n = 1.",
)
def _():
    """The expectation is 0 under the model's own distribution, not under another one."""
    model, data = _Classifier(), _normal(5, 3, seed=4).softmax(1)
    p, second = model.p(model.alpha), model.second(lambda p: p)
    size = second.norm()
    own = einsum("sn,snij->ij", p, second / p[..., None, None]) / size
    other = einsum("sn,snij->ij", data, second / p[..., None, None]) / size
    return own.norm().item(), other.norm().item()


@_entry(
    "4.41",
    "Hessian replaced by the covariance of gradients",
    "surrogate",
    "corrected",
    r"\mathbb{E}_X[H_{ij} \log p_n] = -\mathbb{E}_X \Bigl\{ \frac{\partial_i p_n}{p_n} \frac{\partial_j p_n}{p_n} \Bigr\} "
    r"= -\mathbb{E}_X \{ \partial_i p_n \, \partial_j p_n \}",
    derived=r"\mathbb{E}_X[H_{ij} \log \hat p_n] = -\mathbb{E}_X \{ \partial_i \log \hat p_n \, \partial_j \log "
    r"\hat p_n \} = -I_{ij}, "
    r"\qquad H_G \approx -I",
    reason="The second equality drops both factors 1/p. And since G is minus a divergence, what replaces H_G in 4.33 is −I, a "
    "negative matrix: with a plus sign the step climbs D.",
    functions=(_TANGENT + "fisher_product",),
)
def _():
    """The first equality holds, the second does not; −I is the Hessian of G where Child and Parent agree."""
    model = _Classifier()
    p, first = model.p(model.alpha), model.first(lambda p: p)
    fisher = model.fisher()
    parent = model.logits(model.alpha)

    def gain(a: Tensor) -> Tensor:
        return objectives.kl_gain(model.logits(a.view(2, 3)), parent)

    hessian = torch.autograd.functional.hessian(gain, model.alpha.flatten())
    expectation = einsum("sn,snij->ij", p, model.second(torch.log)) / 5
    return max(_error(-fisher, expectation), _error(-fisher, hessian)), _error(
        -einsum("sn,sni,snj->ij", p, first, first) / 5, expectation
    )


# ---- the coupled objective and its derivative (chapters 3 to 7) ----------------------------------------------------


@_entry(
    "4.42",
    "The coupled objective",
    "definition",
    "holds",
    r"\operatorname*{arg\,min}_{\alpha, w} \mathcal{L}(w, \alpha) = L + \operatorname{reg}(w), \qquad "
    r"\alpha \in \mathbb{R}^{E \times M},\; w \in \mathbb{R}^{M \times 1}",
    functions=(_RESPONSES + "Implicit",),
)
def _():
    """The inner minimum w*(α) exists, is stationary and lies below its surroundings; it moves when α does."""
    toy = toys.LinearMixture.random(3, 4, 0)
    w, jacobian = responses.Implicit(toy.regularized)(toy.alpha, toy.w)
    stationary = (toy.dL_dw(toy.alpha, w) + w).norm().item()
    least = toy.regularized(toy.alpha, w)
    below = all(toy.regularized(toy.alpha, w + 0.1 * _normal(4, seed=s)) > least for s in range(20))
    direction = _normal(3, 4, seed=30)
    moves = _along(lambda alpha: responses.Implicit(toy.regularized)(alpha, toy.w).w, toy.alpha, direction)
    return max(stationary, _error(einsum("kem,em->k", jacobian, direction), moves)) if below else float("inf")


@_entry(
    "4.43",
    "Gradient step with the coupling",
    "definition",
    "reconstructed",
    r"\tilde\alpha^{t+1} = \alpha^t - \eta_1 \Bigl( \frac{\partial L}{\partial \alpha^t} + \eta_2 \operatorname{Tr}\Bigl[ "
    r"\Bigl(\frac{\partial L}{\partial w^t}\Bigr)^{T} \frac{\partial w^t}{\partial \alpha^t} \Bigr] \Bigr)",
    functions=(
        _TRACE + "coupling",
        _RESPONSES + "Explicit",
        _RESPONSES + "Unrolled",
        _RESPONSES + "Implicit",
    ),
)
def _():
    """Direct part plus coupling is the total derivative dL/dα by autograd through w(α), for three responses."""
    errors = []
    for random in (toys.LinearMixture.random, toys.Bilinear.random):
        toy = random(3, 4, 0)
        for respond in (
            responses.Explicit(toy.phi),
            responses.Unrolled(toy.loss, 0.1),
            responses.Implicit(toy.regularized),
        ):
            w, jacobian = respond(toy.alpha, toy.w)
            alpha = toy.alpha.clone().requires_grad_()
            (total,) = torch.autograd.grad(toy.loss(alpha, respond.weights(alpha, toy.w)), alpha)
            C = trace.coupling(toy.dL_dw(toy.alpha, w), jacobian)
            errors.append(_error(toy.dL_dalpha(toy.alpha, w) + C, total))
    return max(errors)


@_entry(
    "4.44",
    "Dividing by α",
    "definition",
    "corrected",
    r"\tilde L = \Bigl(\frac{\partial L(\alpha, w)}{\partial w}\Bigr)^{T} / \alpha",
    derived=r"\tilde L = \Bigl(\frac{\partial \ell}{\partial (\alpha \circledast w)}\Bigr)^{T}: \; "
    r"\frac{\partial L}{\partial w} = \operatorname{diag}(\tilde L \alpha) \qquad\text{or}\qquad "
    r"\tilde L = \Bigl(\frac{\partial L}{\partial w}\Bigr)^{T} \alpha^{+}: \; \Bigl(\frac{\partial "
    r"L}{\partial w}\Bigr)^{T} = \tilde L \alpha",
    reason="α is E×M, not square, and has no inverse. The quotient has a meaning if L sees α and w only through their "
    "products: as a factorization where each operation is scaled by its own α (L̃ is M×E, its columns are the g̃_e of "
    "4.46), or as a right division where L depends on α w (L̃ is 1×E). Then L̃ stands left of α.",
    functions=(_TRACE + "loss_factor", _TRACE + "right_division"),
)
def _():
    """∂L/∂w = diag(L̃ α) in the mixture and (∂L/∂w)^T = L̃ α in the bilinear reading; α has no inverse."""
    toy, w, _, _, dL_dw = _mixture()
    L = trace.loss_factor(toy.delta(toy.alpha, w))
    bilinear = toys.Bilinear.random(3, 4, 0)
    row = trace.right_division(bilinear.dL_dw(bilinear.alpha, bilinear.w), bilinear.alpha)
    error = max(
        _error(torch.diag(L @ toy.alpha), dL_dw),
        _error(row @ bilinear.alpha, bilinear.dL_dw(bilinear.alpha, bilinear.w).unsqueeze(0)),
        _error(row, bilinear.delta(bilinear.alpha, bilinear.w).unsqueeze(0)),
    )
    try:
        torch.linalg.inv(toy.alpha)
    except RuntimeError:
        return error, float("inf")
    return error, 0.0


@_entry(
    "4.45",
    "The loss gradient as a trace",
    "identity",
    "corrected",
    r"\frac{\partial L(\alpha, w)}{\partial w} = \operatorname{Tr}\Bigl[\alpha \tilde L \frac{\partial "
    r"w}{\partial \alpha}\Bigr]",
    derived=r"C_{e,m} = \operatorname{Tr}\Bigl[\tilde L \alpha \operatorname{diag}\frac{\partial w}{\partial "
    r"\alpha_{e,m}}\Bigr] "
    r"= \sum_k (\tilde L \alpha)_{kk} \frac{\partial w_k}{\partial \alpha_{e,m}}",
    reason="The left side must be the coupling (∂L/∂w)(∂w/∂α), not ∂L/∂w. And the factors stand in the other order: α L̃ is "
    "E×E, (∂L/∂w)^T is 1×M. Cyclic permutation does not help: Tr[L̃ α W] = Tr[α W L̃], not Tr[α L̃ W]. The order α L̃ "
    "belongs to the layout of 4.20: with α ∈ R^{M×E}, L̃ transposed as well and ∂L/∂w a column, ∂L/∂w = α L̃ holds. But 4.46 "
    "and 4.47 set the rows of α and the columns of L̃ per edge, and there only L̃ α holds. The figure is "
    "the error where E = M.",
    functions=(_TRACE + "coupling", _TRACE + "loss_factor"),
)
def _():
    """With L̃ α the trace equals the coupling for every (e, m), in both readings, and so it does transposed; with α L̃ in
    the layout of 4.46–4.47, tried at E = M, it does not."""
    errors, wrong = [], []
    for random, E in itertools.product((toys.LinearMixture.random, toys.Bilinear.random), (3, 4)):
        toy = random(E, 4, 0)
        w, jacobian = responses.Explicit(toy.phi)(toy.alpha)
        delta, dL_dw = toy.delta(toy.alpha, w), toy.dL_dw(toy.alpha, w)
        C = trace.coupling(dL_dw, jacobian)
        L = trace.loss_factor(delta) if delta.ndim == 2 else delta.unsqueeze(0)
        column = torch.diag(toy.alpha.T @ L.T) if delta.ndim == 2 else (toy.alpha.T @ L.T).squeeze(1)
        errors.append(_error(column, dL_dw))
        for e, m in itertools.product(range(E), range(4)):
            W = torch.diag(jacobian[:, e, m]) if delta.ndim == 2 else jacobian[:, e, m].unsqueeze(1)
            errors.append(_error(torch.trace(L @ toy.alpha @ W), C[e, m]))
        if E == 4 and delta.ndim == 2:
            wrong.append(_error(torch.diag(toy.alpha @ L), dL_dw))
    return max(errors), min(wrong)


@_entry(
    "4.46",
    "Columns of L̃, slices of ∂w/∂α",
    "identity",
    "under an assumption",
    r"\tilde L = [\tilde g_1, \dots, \tilde g_E], \qquad \Bigl[\Bigl(\frac{\partial w}{\partial \alpha}\Bigr)_m\Bigr]_{e,k} = "
    r"\frac{\partial w_m}{\partial \alpha_{e,m}} \, [k = m]",
    reason="w_m must answer to column m of α alone. True by construction for w_m = φ_m(α_{:,m}); false as soon as a softmax ties "
    "the columns together, and for weights trained on the loss. The figure is the share of ‖∂w/∂α‖² outside the pattern "
    "under softmax.",
    functions=(_TRACE + "response_slices", _RESPONSES + "independence_defect"),
)
def _():
    """For an independent response the slices are its Jacobian; under softmax part of the Jacobian lies outside."""
    _, _, jacobian, _, _ = _mixture()
    slices = trace.response_slices(einsum("mem->em", jacobian))
    _, _, soft, _, _ = _mixture(softmax=True)
    outside = sum(soft[k, e, m] ** 2 for k in range(4) for e in range(3) for m in range(4) if k != m) / soft.square().sum()
    defect = torch.tensor(responses.independence_defect(soft), dtype=torch.float64)
    return max(_error(slices, jacobian), _error(defect, outside)), defect.item()


@_entry(
    "4.47",
    "α L̃",
    "identity",
    "holds",
    r"\alpha = [\alpha_1, \dots, \alpha_E]^T, \qquad (\alpha \tilde L)_{e,e'} = \alpha_e \tilde g_{e'}",
    functions=(_TRACE + "alpha_factor",),
)
def _():
    """Entry (e, e') is the inner product of row e of α and column e' of L̃."""
    alpha, L = _normal(3, 4), _normal(4, 3, seed=1)
    by_hand = torch.tensor([[sum(alpha[e, m] * L[m, f] for m in range(4)) for f in range(3)] for e in range(3)])
    return _error(trace.alpha_factor(alpha, L), by_hand.double())


@_entry(
    "4.48",
    "The product under the trace",
    "identity",
    "under an assumption",
    r"\Bigl[\alpha \tilde L \Bigl(\frac{\partial w}{\partial \alpha}\Bigr)_m\Bigr]_{e,k} = "
    r"\alpha_e \sum_{e'=1}^{E} \tilde g_{e'} \frac{\partial w_m}{\partial \alpha_{e',m}} \, [k = m], \qquad "
    r"\alpha \tilde L \frac{\partial w}{\partial \alpha} \in \mathbb{R}^{E \times M \times M}",
    derived=r"\text{the same, called the trace item of 4.45}",
    reason="The matrix product holds given 4.46 and 4.47, with the same proviso. The text calls it the trace item of 4.44; "
    "4.44 has no trace, the one meant is that of 4.43 and 4.45. The figure is the error under softmax.",
    functions=(_TRACE + "trace_tensor",),
)
def _():
    """The tensor equals the matrix product with the true Jacobian, slice by slice; under softmax it misses part of it."""
    results = []
    for softmax in (False, True):
        toy, _, jacobian, L, _ = _mixture(softmax=softmax)
        products = torch.stack([toy.alpha @ L @ jacobian[m] for m in range(4)], -1)
        results.append(_error(trace.trace_tensor(toy.alpha, L, einsum("mem->em", jacobian)), products))
    return tuple(results)


@_entry(
    "4.49",
    "The trace, edge by edge",
    "identity",
    "corrected",
    r"\operatorname{Tr}\Bigl[\alpha \tilde L \frac{\partial w}{\partial \alpha}\Bigr]_e = "
    r"\alpha_e \sum_{m=1}^{M} \sum_{e'=1}^{E} \tilde g_{e'} \frac{\partial w_m}{\partial \alpha_{e',m}}",
    derived=r"C_{e,m} = \Bigl( \sum_{e'=1}^{E} \alpha_{e',m} \tilde L_{m,e'} \Bigr) \frac{\partial w_m}{\partial \alpha_{e,m}}",
    reason="As an identity for the trace of 4.48 over its last two axes it holds. As the coupling gradient it does not: the free "
    "index e comes from α L̃, which should be contracted, and the index e' of ∂w_m/∂α_{e',m}, which should stay "
    "free, is summed.",
    functions=(_TRACE + "trace_components", _TRACE + "coupling"),
)
def _():
    """The printed sum is the trace of 4.48; it is not the exact coupling per edge, which the derived line is."""
    toy, _, jacobian, L, dL_dw = _mixture()
    dw = einsum("mem->em", jacobian)
    tensor = torch.stack([toy.alpha @ L @ jacobian[m] for m in range(4)], -1)
    printed = trace.trace_components(toy.alpha, L, dw)
    C = trace.coupling(dL_dw, jacobian)
    derived = torch.stack([torch.stack([(toy.alpha[:, m] * L[m]).sum() * dw[e, m] for m in range(4)]) for e in range(3)])
    identity = _error(printed, torch.stack([torch.trace(tensor[e]) for e in range(3)]))
    return max(identity, _error(C, derived)), _error(printed, C.sum(1))


@_entry(
    "4.50",
    "From the trace to the update",
    "identity",
    "corrected",
    r"\tilde\alpha^{t+1} = \alpha^{t+1} - \eta \begin{bmatrix} \sum_m \sum_{e'} \tilde g_{e'} "
    r"\frac{\partial w_m}{\partial \alpha_{e',m}} "
    r"\\ \vdots \end{bmatrix} \circledast \begin{bmatrix} \alpha_1 \\ \vdots \\ \alpha_E \end{bmatrix} "
    r"= \alpha^{t+1} + \eta \psi^t \circledast \alpha^t",
    derived=r"\tilde\alpha^{t+1} = \alpha^{t+1} + \eta \psi^t \circledast \alpha^t, \qquad \psi^t_{e,m} = - "
    r"C_{e,m} / \alpha^t_{e,m}",
    reason="In 4.49 the row α_e meets the column g̃_{e'} in an inner product, one number per edge; here the same bracket "
    "multiplies α element by element. Where g̃_e is a number the shapes agree, but every row of the bracket is the same "
    "number and the correction only rescales α. As a parametrization the line is sound: a full ψ = −C/α carries any coupling.",
    functions=(_TRACE + "psi_as_printed", _TRACE + "psi_as_derived", _TRACE + "update"),
)
def _():
    """With ψ = −C/α the step is α − η C exactly; with the printed ψ it is another step. Both readings."""
    errors, violations = [], []
    for toy in (toys.LinearMixture.random(3, 4, 0), toys.Bilinear.random(3, 4, 0)):
        w, jacobian = responses.Explicit(toy.phi)(toy.alpha)
        dw, delta = einsum("mem->em", jacobian), toy.delta(toy.alpha, w)
        C = einsum("k,kem->em", toy.dL_dw(toy.alpha, w), jacobian)
        L = delta.T if delta.ndim == 2 else delta.unsqueeze(0)
        bracket = sum(L[:, f] * dw[f, m] for f in range(3) for m in range(4))
        printed = trace.psi_as_printed(L, dw)
        errors.append(_error(printed, -torch.stack([bracket] * 3)))
        start = _normal(3, 4, seed=5)
        exact = trace.update(start, toy.alpha, trace.psi_as_derived(toy.alpha, C), 0.3)
        errors.append(_error(exact, start - 0.3 * C))
        violations.append(_error(trace.update(start, toy.alpha, printed, 0.3) - start, -0.3 * C))
    return max(errors), min(violations)


# ---- learning ψ (chapter 8) ----------------------------------------------------------------------------------------


@_entry(
    "4.51",
    "Learning ψ̃",
    "heuristic",
    "corrected",
    r"\tilde\psi^{t+1} = \Bigl\lvert \tilde\psi^t - \eta_{\tilde\psi} \frac{\partial L}{\partial \tilde\psi^t} \Bigr\rvert",
    derived=r"\tilde\psi^{t+1} = \tilde\psi^t - \eta_{\tilde\psi} \frac{\partial L}{\partial \tilde\psi^t}, \qquad "
    r"\frac{\partial L}{\partial \tilde\psi^t} = \eta \frac{\partial L}{\partial \tilde\alpha^{t+1}} \circledast \alpha^t",
    reason="ψ = −C/α has either sign. The absolute value keeps ψ̃ ≥ 0, so the step can only push α away from 0 and never "
    "reaches a ψ with a negative entry. The gradient is the next step's own, at no cost.",
    functions=(_BACKTRACKING + "psi_gradient",),
)
def _():
    """The gradient equals autograd through 4.50; descent finds the best ψ, with the absolute value it stays away from it."""
    alpha, start, target, eta = _normal(3, 4), _normal(3, 4, seed=1), _normal(3, 4, seed=2), 0.3
    psi = _normal(3, 4, seed=3).requires_grad_()

    def loss(psi: Tensor) -> Tensor:
        return 0.5 * (start + eta * psi * alpha - target).square().sum()

    errors = []
    for shape in ((3, 4), (3, 1), (1, 4), (1, 1)):
        shaped = psi.detach()[: shape[0], : shape[1]].clone().requires_grad_()
        (by_autograd,) = torch.autograd.grad(loss(shaped), shaped)
        gradient = (start + eta * shaped * alpha - target).detach()
        errors.append(_error(backtracking.psi_gradient(gradient, alpha, eta, shape), by_autograd))
    best, free, bound = (target - start) / (eta * alpha), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    rate = 0.5 / (eta * alpha).square()  # half of Newton's step, so that forty steps are enough
    for _ in range(40):
        free = free - rate * backtracking.psi_gradient(start + eta * free * alpha - target, alpha, eta, (3, 4))
        bound = (bound - rate * backtracking.psi_gradient(start + eta * bound * alpha - target, alpha, eta, (3, 4))).abs()
    return max(*errors, _error(free, best)), _error(bound, best)


@_entry(
    "4.52",
    "Which operations are corrected",
    "heuristic",
    "corrected",
    r"\tilde\alpha_m^{t+1} = \begin{cases} \alpha_{:,m}^{t+1} + \eta \tilde\psi^t \circledast \alpha_{:,m}^t & \text{if } "
    r"\operatorname{ranking}(R(w_m)) > \tau \\ \tilde\alpha_{:,m}^{t+1} & \text{otherwise} \end{cases}",
    derived=r"\tilde\alpha_{:,m}^{t+1} = \begin{cases} \alpha_{:,m}^{t+1} + \eta \tilde\psi_{:,m}^t \circledast "
    r"\alpha_{:,m}^t & \text{if } "
    r"\operatorname{ranking}(R(w_m)) > \tau \\ \alpha_{:,m}^{t+1} & \text{otherwise} \end{cases}",
    reason="The second branch has α̃ on both sides and so determines nothing; it must leave the step α^{t+1} as it is. And m is "
    "an operation, a column of α, not an edge: R(w_m) is one number per operation.",
    functions=(_BACKTRACKING + "backtrack", _BACKTRACKING + "ranking"),
)
def _():
    """Ranking and both branches written out; with m an edge, as the text says, the ranks do not fit the rows of α."""
    alpha, start, psi, norms = _normal(3, 5), _normal(3, 5, seed=1), _normal(3, 5, seed=2), _normal(5, seed=3).square()
    ranks = torch.tensor([1 + sum((other < r).item() for other in norms) for r in norms])
    result = backtracking.backtrack(start, alpha, psi, 0.3, backtracking.ranking(norms) > 2)
    by_hand = start.clone()
    for m in range(5):
        if ranks[m] > 2:
            by_hand[:, m] += 0.3 * psi[:, m] * alpha[:, m]
    error = max(_error(result, by_hand), _error(backtracking.ranking(norms).double(), ranks.double()))
    try:
        return error, _error(torch.where((ranks > 2).unsqueeze(1), start + 0.3 * psi * alpha, start), by_hand)
    except RuntimeError:
        return error, float("inf")


@_entry(
    "4.53",
    "Size of an operation's weights",
    "definition",
    "holds",
    r"R(w_m) = \lVert w_m \rVert_2^2, \qquad m = 1, \dots, M",
    functions=(_BACKTRACKING + "weight_norms",),
    exact=1e-6,  # the network is in single precision
)
def _():
    """In a Child, R equals the squared norm of β ∘ sign(ŵ) written out; pooling counts as 1/9, the identity as 1."""
    network = supernet.Supernet(supernet.MICRO, channels=2, layers=1, classes=3, binary=True)
    fixed = {"none": 0.0, "skip_connect": 1.0, "max_pool_3x3": 1 / 81, "avg_pool_3x3": 1 / 81}
    by_hand = []
    for name in supernet.MICRO.operations:
        total = 0.0
        for edge in network.cells[0].edges:
            kernels = [k.detach().double() for k in edge[name].parameters() if k.ndim == 4]
            rebuilt = [c.abs().mean() * (2.0 * (c >= 0) - 1) for kernel in kernels for c in kernel]
            total += fixed.get(name, 0.0) + sum(c.square().sum().item() for c in rebuilt)
        by_hand.append(total / 3)
    return _error(backtracking.weight_norms(network, "normal").double(), torch.tensor(by_hand, dtype=torch.float64))


TABLE: tuple[Equation, ...] = tuple(_entries)
