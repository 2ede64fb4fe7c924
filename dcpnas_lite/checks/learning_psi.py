"""Chapter 10: ψ̃ learned, and where it is applied (4.51–4.53)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..derivation import trace
from ..method import backtracking
from ..network import supernet
from . import readings
from .problems import Case, deviation
from .table import Chapter

chapter = Chapter("10-learning-psi")


def _with_ranks(arguments: dict) -> dict:
    norms = arguments["norms"].square()
    return arguments | {"norms": norms, "tau": len(norms) // 2}


def _chosen(alpha_next: Tensor, alpha: Tensor, psi: Tensor, eta: float, norms: Tensor, tau: int) -> Tensor:
    return backtracking.backtrack(alpha_next, alpha, psi, eta, backtracking.ranking(norms) > tau)


@chapter.row(
    "4.51",
    "Learning ψ̃",
    "heuristic",
    "autograd",
    "under an assumption",
    r"\tilde\psi^{t+1} = \Bigl\lvert \tilde\psi^t - \eta_{\tilde\psi} \frac{\partial L}{\partial \tilde\psi^t} "
    r"\Bigr\rvert",
    derived=r"\tilde\psi^{t+1} = \tilde\psi^t - \eta_{\tilde\psi} \frac{\partial L}{\partial \tilde\psi^t}, \qquad "
    r"\frac{\partial L}{\partial \tilde\psi^t} = \eta \frac{\partial L}{\partial \tilde\alpha^{t+1}} \circledast "
    r"\alpha^t",
    reason="The absolute value is a constraint, ψ̃ ≥ 0, and a heuristic for keeping it: where the best ψ is not negative, "
    "it is found. But ψ = −C/α has either sign; with ψ̃ ≥ 0 the step can only push α away from 0. Without the "
    "constraint the line is plain descent. The bars come from RBONN (3.131, 3.135 of the source book), whose U is declared "
    "positive. The gradient is the next step's own, at no cost.",
    functions=(backtracking.psi_gradient,),
)
def check_4_51(case: Case):
    """The gradient equals autograd through 4.50; descent finds the best ψ of either sign, and so it does with the absolute
    value where the best is ≥ 0; where it has a negative entry, the absolute value stays away from it."""
    E, M, eta = case.E, case.M, 0.3
    alpha, start, target = (case.normal(E, M) for _ in range(3))

    def loss(psi: Tensor) -> Tensor:
        return 0.5 * (start + eta * psi * alpha - target).square().sum()

    errors = []
    for shape in ((E, M), (E, 1), (1, M), (1, 1)):
        shaped = case.normal(*shape).requires_grad_()
        (by_autograd,) = torch.autograd.grad(loss(shaped), shaped)
        gradient = (start + eta * shaped * alpha - target).detach()
        errors.append(deviation(backtracking.psi_gradient(gradient, alpha, eta, shape), by_autograd))

    best = case.normal(E, M)
    best[0, 0] = -best[0, 0].abs()
    found = readings.learned(case, best, False), readings.learned(case, best.abs(), True)
    return max(*errors, *found), readings.learned(case, best, True)


chapter.exercise(
    "4.51",
    "psi (E, M), gradient (E, M), eta_psi -> (E, M)",
    "as printed: |ψ̃ − η_ψ ∂L/∂ψ̃|",
    lambda p, g, n: (p - n * g).abs(),
    {
        "transposed": lambda p, g, n: (p - n * g).abs().T,
        "absolute value missing": lambda p, g, n: p - n * g,
        "absolute value before the step": lambda p, g, n: p.abs() - n * g,
        "negative parts cut": lambda p, g, n: (p - n * g).clamp(min=0),
        "ascent": lambda p, g, n: (p + n * g).abs(),
        "rate missing": lambda p, g, n: (p - g).abs(),
    },
)

chapter.exercise(
    "4.51 derived",
    "psi (E, M), gradient (E, M), eta_psi -> (E, M)",
    "ψ̃ − η_ψ ∂L/∂ψ̃, of either sign",
    lambda p, g, n: p - n * g,
    {
        "transposed": lambda p, g, n: (p - n * g).T,
        "as printed": lambda p, g, n: (p - n * g).abs(),
        "ascent": lambda p, g, n: p + n * g,
        "rate missing": lambda p, g, n: p - g,
        "gradient alone": lambda p, g, n: -n * g,
        "multiplicative": lambda p, g, n: p * (1 - n * g),
    },
)

chapter.exercise(
    "4.51 gradient",
    "gradient (E, M), alpha (E, M), eta -> (E, M)",
    "∂L/∂ψ̃ = η ∂L/∂α̃ ⊛ α^t, with gradient = ∂L/∂α̃^{t+1}",
    lambda g, a, eta: backtracking.psi_gradient(g, a, eta, tuple(a.shape)),
    {
        "transposed": lambda g, a, eta: (eta * g * a).T,
        "η missing": lambda g, a, eta: g * a,
        "α missing": lambda g, a, eta: eta * g,
        "gradient missing": lambda g, a, eta: eta * a,
        "divided by α": lambda g, a, eta: eta * g / a,
        "summed over the edges": lambda g, a, eta: (eta * g * a).sum(0).repeat(len(a), 1),
    },
)


@chapter.row(
    "4.52",
    "Which operations are corrected",
    "heuristic",
    "written out",
    "corrected",
    r"\tilde\alpha_m^{t+1} = \begin{cases} P(\alpha_{:,m}^{t+1}, \alpha_{:,m}^t) = \alpha_{:,m}^{t+1} + \eta "
    r"\tilde\psi^t \circledast \alpha_{:,m}^t & \text{if } \operatorname{ranking}(R(w_m)) > \tau \\ "
    r"\tilde\alpha_{:,m}^{t+1} & \text{otherwise} \end{cases}",
    derived=r"\tilde\alpha_{:,m}^{t+1} = \begin{cases} \alpha_{:,m}^{t+1} + \eta \tilde\psi_{:,m}^t \circledast "
    r"\alpha_{:,m}^t & \text{if } \operatorname{ranking}(R(w_m)) > \tau \\ \alpha_{:,m}^{t+1} & \text{otherwise} "
    r"\end{cases}",
    reason="The second branch has α̃ on both sides and so determines nothing; it must leave the step α^{t+1} as it is. "
    "RBONN's line (3.133 of the source book) has a 0 there, which adds nothing. And m is an operation, a column of α, not an "
    "edge: R(w_m) is one number per operation.",
    functions=(backtracking.backtrack, backtracking.ranking),
)
def check_4_52(case: Case):
    """Ranking and both branches written out. A second branch that assigns nothing leaves α^t, another result; so does m as an
    edge, as the text has it, where E = M lets its ranks fit the rows of α, with ranks from either end."""
    E, M = case.E, case.M
    alpha, start, psi = (case.normal(E, M) for _ in range(3))
    norms = case.normal(M).square().sort().values.roll(1)  # no order that is its own inverse
    ranks = torch.tensor([1 + sum((other < r).item() for other in norms) for r in norms])
    chosen, by_hand = backtracking.ranking(norms) > M // 2, start.clone()
    for m in range(M):
        if ranks[m] > M // 2:
            by_hand[:, m] += 0.3 * psi[:, m] * alpha[:, m]
    result, least = backtracking.backtrack(start, alpha, psi, 0.3, chosen), readings.least(readings.read_4_52(case))
    return max(deviation(result, by_hand), deviation(backtracking.ranking(norms).double(), ranks.double())), least


chapter.exercise(
    "4.52 derived",
    "alpha_next (E, M), alpha (E, M), psi (E, M), eta, norms (M), tau -> (E, M)",
    "the update of 4.50 in the columns whose R has rank > τ (1 the smallest), α^{t+1} in the others",
    _chosen,
    {
        "transposed": lambda n, a, p, eta, r, tau: _chosen(n, a, p, eta, r, tau).T,
        "every column": lambda n, a, p, eta, r, tau: trace.update(n, a, p, eta),
        "no column": lambda n, a, p, eta, r, tau: n.clone(),
        "smallest first": lambda n, a, p, eta, r, tau: _chosen(n, a, p, eta, -r, tau),
        "rank ≥ τ": lambda n, a, p, eta, r, tau: _chosen(n, a, p, eta, r, tau - 1),
        "R itself against τ": lambda n, a, p, eta, r, tau: torch.where(r > tau, n + eta * p * a, n),
        "others left at α^t": lambda n, a, p, eta, r, tau: torch.where(backtracking.ranking(r) > tau, n + eta * p * a, a),
        "others set to 0": lambda n, a, p, eta, r, tau: torch.where(backtracking.ranking(r) > tau, n + eta * p * a, 0.0),
        "order taken for rank": lambda n, a, p, eta, r, tau: torch.where(r.argsort(stable=True) + 1 > tau, n + eta * p * a, n),
    },
    _with_ranks,
)


@chapter.row(
    "4.53",
    "Size of an operation's weights",
    "definition",
    "written out",
    "holds",
    r"R(w_m) = \lVert w_m \rVert_2^2, \qquad m = 1, \dots, M",
    functions=(backtracking.weight_norms,),
    exact=1e-6,  # the network is in single precision
)
def check_4_53(case: Case):
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
    return deviation(backtracking.weight_norms(network, "normal").double(), torch.tensor(by_hand, dtype=torch.float64))


chapter.exercise(
    "4.53",
    "weights (M, entries) -> (M)",
    "R(w_m) = ‖w_m‖², one row of weights per operation",
    lambda w: w.square().sum(1),
    {
        "square missing": lambda w: w.norm(dim=1),
        "mean instead of sum": lambda w: w.square().mean(1),
        "over the operations": lambda w: w.square().sum(0),
        "L1": lambda w: w.abs().sum(1),
        "square of the sum": lambda w: w.sum(1).square(),
    },
)
