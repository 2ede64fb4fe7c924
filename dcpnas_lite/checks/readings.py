"""Fairness by exhaustion: of each line that is called wrong, or right under an assumption only, every reading by program."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, einsum
from torch.autograd.functional import hessian, jacobian

from ..derivation import responses, toys, trace
from ..method import backtracking, objectives
from .exhaustion import LINES, Line, Readings, arranged, least, line, markdown, parallel, product, right, turned, verdict
from .problems import Case, deviation

__all__ = ["LINES", "Line", "least", "markdown", "right", "verdict"]

KINDS = {toys.LinearMixture: "ℓ(α ⊛ w)", toys.Bilinear: "ℓ(α w)"}


@line("4.25", "what p̂(X) is: the truth, the Parent's output, the Child's; the sign")
def read_4_25(case: Case) -> Readings:
    logits, truth, parent = case.normal(20, case.M), case.distribution(20, case.M), case.distribution(20, case.M)
    child = logits.softmax(1)
    want = torch.stack([-objectives.nas_loss(x[None], t[None]) for x, t in zip(logits, truth, strict=True)])
    others = {"truth": truth, "Parent": parent, "Child": child}
    return {
        f"{sign}Σ p̂ log p̂(X), p̂(X) the {name}'s": deviation(number * (child * q.log()).sum(1), want)
        for name, q in others.items()
        for sign, number in (("", 1), ("−", -1))
    }


class _Model:
    """A smooth classifier p(X; α): E inputs, M classes, α of six numbers; what the letter p may stand for, by name."""

    def __init__(self, case: Case):
        self.inputs, self.out = case.normal(case.E, 4, 6), case.normal(4, case.M)
        self.alpha, self.truth = case.normal(6), case.distribution(case.E, case.M)
        self.letters: dict[str, Callable[[Tensor], Tensor]] = {
            "probabilities": lambda a: self.logits(a).softmax(1),
            "logits": self.logits,
            "log-probabilities": lambda a: self.logits(a).log_softmax(1),
            "exp(logits)": lambda a: self.logits(a).exp(),
        }
        p, E, M = self.letters["probabilities"](self.alpha), case.E, case.M
        one = torch.zeros(E, M, dtype=torch.float64)
        one[:, 0] = 1
        self.means = {  # weights (E, M) of an expectation
            "the model's own": p / E, "the data's": self.truth / E, "equal classes": one * 0 + 1 / (E * M), "one class": one / E,
        }  # fmt: skip

    def logits(self, alpha: Tensor) -> Tensor:
        return torch.tanh(self.inputs @ alpha) @ self.out

    def slope(self, letter: str) -> Tensor:
        return jacobian(self.letters[letter], self.alpha)

    def second(self, letter: str) -> Tensor:
        function, shape = self.letters[letter], self.truth.shape
        flat = [hessian(lambda a, i=i: function(a).flatten()[i], self.alpha) for i in range(self.truth.numel())]
        return torch.stack(flat).view(*shape, 6, 6)


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    return einsum("sn,snij->ij", weights, values)


def _outer(slopes: Tensor) -> Tensor:
    return einsum("sni,snj->snij", slopes, slopes)


@line("4.29", "what p is: probabilities, logits, their logarithm, exp(logits); whose: the Parent's, the Child's")
def read_4_29(case: Case) -> Readings:
    parent, child = _Model(case), _Model(case)
    (want,) = torch.autograd.grad(
        objectives.nas_loss(parent.logits(alpha := parent.alpha.clone().requires_grad_()), parent.truth), alpha
    )
    return {
        f"p the {who}'s {letter}": parallel(model.slope(letter).sum((0, 1)), want)
        for who, model in (("Parent", parent), ("Child", child))
        for letter in model.letters
    }


@line("4.37", "the distribution of E: the model's own, the data's, equal classes, one class")
def read_4_37(case: Case) -> Readings:
    model = _Model(case)
    scores, second = _outer(model.slope("log-probabilities")), model.second("log-probabilities")
    return {f"E is {name}": deviation(-_mean(m, second), _mean(m, scores)) for name, m in model.means.items()}


@line("4.40", "the distribution of E, as in 4.37; p as probabilities, exp(logits)")
def read_4_40(case: Case) -> Readings:
    model = _Model(case)
    found = {}
    for letter in ("probabilities", "exp(logits)"):
        ratio = model.second(letter) / model.letters[letter](model.alpha)[..., None, None]
        for name, m in model.means.items():
            found[f"E is {name}, p {letter}"] = (_mean(m, ratio).norm() / _mean(m, ratio.abs()).norm()).item()
    return found


@line("4.41", "what p is, as in 4.29; the distribution of E")
def read_4_41(case: Case) -> Readings:
    model = _Model(case)
    found = {}
    for letter, (name, m) in itertools.product(model.letters, model.means.items()):
        slope = model.slope(letter)
        score = slope / model.letters[letter](model.alpha)[..., None]
        found[f"p {letter}, E {name}"] = parallel(_mean(m, _outer(slope)), _mean(m, _outer(score)))
    return found


@line("4.44", "w a matrix, a vector of ℓ(α ⊛ w), of ℓ(α w); α E×M or M×E; ∂L/∂w transposed or not; left, right, by entries")
def read_4_44(case: Case) -> Readings:
    mixture, bilinear, found = case.toy(), case.toy(toys.Bilinear), {}
    W = torch.diag(mixture.w).requires_grad_()
    (by_matrix,) = torch.autograd.grad(mixture.ell(mixture.alpha @ W), W)
    gradients = {
        "matrix": (mixture.alpha, by_matrix),
        KINDS[toys.LinearMixture]: (mixture.alpha, mixture.dL_dw(mixture.alpha, mixture.w).unsqueeze(1)),
        KINDS[toys.Bilinear]: (bilinear.alpha, bilinear.dL_dw(bilinear.alpha, bilinear.w).unsqueeze(1)),
    }
    for (reading, (alpha, G)), layout, transposed in itertools.product(gradients.items(), ("E×M", "M×E"), ("ᵀ", "")):
        a, gradient = alpha, G
        if layout == "M×E":
            a = alpha.T
            gradient = G.T if reading == "matrix" else G  # the products are W α then
        gradient = gradient.T if transposed else gradient
        name = f"{reading}, α {layout}, (∂L/∂w){transposed}"
        found[f"{name}, L̃ α"] = _undivided(a.T, gradient.T)
        found[f"{name}, α L̃"] = _undivided(a, gradient)
        found[f"{name}, by entries"] = _by_entries(gradient, a)
    return found


def _undivided(a: Tensor, b: Tensor) -> float:
    """What the best x leaves of b = a x."""
    return deviation(a @ (torch.linalg.pinv(a) @ b), b) if len(a) == len(b) else float("inf")


def _by_entries(gradient: Tensor, alpha: Tensor) -> float:
    """The quotient entry by entry, where the shapes broadcast, multiplied back as a matrix; the better of both orders."""
    try:
        quotient = gradient / alpha
    except RuntimeError:
        return float("inf")
    back = [p for p in (product(quotient.mT, alpha), product(alpha, quotient.mT)) if p is not None]
    if 1 in gradient.shape:
        back = [torch.diag(p).view(gradient.shape) for p in back if len(p) == gradient.numel()]
    return min((deviation(p, gradient) for p in back), default=float("inf"))


def _traces(case: Case) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """Every trace of α, L̃ and ∂w/∂α, in mixture and bilinear form, with transposes and orders; and what it could be."""
    for toy in (case.toy(), case.toy(toys.Bilinear)):
        w, J = responses.Explicit(toy.phi)(toy.alpha)
        L, dL_dw, C = toy.factor(toy.alpha, w), toy.dL_dw(toy.alpha, w), trace.coupling(toy.dL_dw(toy.alpha, w), J)
        entries = einsum("kem->emk", J)  # one ∂w/∂α_{e,m} for each entry of α
        forms = {"∂W": torch.diag_embed(entries), "∂w": entries.unsqueeze(-1), "∂wᵀ": entries.unsqueeze(-2)}
        forms |= turned("(∂w/∂α)_m", J)
        for name, out in arranged(α=turned("α", toy.alpha), L=turned("L̃", L), w=forms):
            each = "_m" not in name
            targets = {"∂L/∂w": dL_dw.expand(C.shape) if each else dL_dw, "C": C if each else C.sum(0)}
            if out is None or out.shape[-1] != out.shape[-2]:
                value = torch.zeros(0)
            else:
                value = einsum("...ii->...", out)
            yield f"{KINDS[type(toy)]}: Tr[{name}]", value, targets


def _trace_readings(left: str) -> Callable[[Case], Readings]:
    return lambda case: {name: parallel(value, targets[left]) for name, value, targets in _traces(case)}


TRACES = "w a matrix, a vector, or (∂w/∂α)_m of 4.46; ℓ(α ⊛ w) or ℓ(α w); α, L̃ and ∂w transposed or not; six orders"
read_4_45 = line("4.45", TRACES)(_trace_readings("∂L/∂w"))
line("4.45", "the same, with C in the place of ∂L/∂w", printed=False)(_trace_readings("C"))


def _responses(case: Case, **options) -> Iterator[tuple[str, toys.Toy, responses.Response]]:
    for softmax in (False, True):
        toy = toys.LinearMixture.random(case.E, case.M, case.number, softmax=softmax, **options)
        answers: dict[str, Callable[..., responses.Response]] = {
            "explicit": responses.Explicit(toy.phi),
            "one step": responses.Unrolled(toy.loss, 0.1),
            "minimum": responses.Implicit(toy.regularized),
        }
        for name, respond in answers.items():
            yield f"{name}{', softmax' if softmax else ''}", toy, respond(toy.alpha, toy.w)


@line("4.46", "w(α) explicit, one step, the minimum; with and without softmax; w shared or per edge")
def read_4_46(case: Case) -> Readings:
    return {
        f"{name}, {'per edge' if per_edge else 'shared'}": responses.independence_defect(answer.jacobian)
        for per_edge in (False, True)
        for name, _, answer in _responses(case, per_edge=per_edge)
    }


@line("4.48", "w(α) explicit, one step, the minimum; with and without softmax")
def read_4_48(case: Case) -> Readings:
    found = {}
    for name, toy, (w, J) in _responses(case):
        L, alpha = toy.factor(toy.alpha, w), toy.alpha
        found[name] = deviation(trace.trace_tensor(alpha, L, einsum("mem->em", J)), einsum("ei,if,mfk->ekm", alpha, L, J))
    return found


def _quotients(toy: toys.Toy, w: Tensor) -> dict[str, Tensor]:
    """What the division of 4.44 can return, each transposed or not: δ^T, the shortest, and in the mixture that by entries."""
    found = {"L̃": toy.factor(toy.alpha, w)}
    if isinstance(toy, toys.Bilinear):
        found["L̃ shortest"] = trace.right_division(toy.dL_dw(toy.alpha, w), toy.alpha)
    else:
        found["L̃ shortest"] = trace.matrix_factor((found["L̃"] @ toy.alpha).T, toy.alpha)
        found["L̃ by entries"] = (toy.dL_dw(toy.alpha, w) / toy.alpha / len(toy.alpha)).T
    return {turn: tensor for name, L in found.items() for turn, tensor in turned(name, L).items()}


@line("4.49", "L̃ as δᵀ, the shortest, by entries; α, L̃, ∂w/∂α transposed or not; six orders; by entries, per edge, per operation")
def read_4_49(case: Case) -> Readings:
    toy, J, _, C = case.mixture()
    L, dw, found = _quotients(toy, toy.phi(toy.alpha)), turned("∂w", einsum("mem->em", J)), {}
    for name, out in arranged(α=turned("α", toy.alpha), L=L, w=dw):
        for kept, want in (("entry by entry", C), ("per edge", C.sum(1)), ("per operation", C.sum(0))):
            forms = [] if out is None else [out, out.T] if want.ndim == 2 else [out.sum(0), out.sum(1)]
            found[f"{name}, {kept}"] = min((parallel(form, want) for form in forms), default=float("inf"))
    return found


def _partitions(of: int) -> Iterator[tuple[int, ...]]:
    """The five ways in which three indices can be the same: (0, 0, 0), (0, 0, 1), …"""
    return (p for p in itertools.product(range(of), repeat=of) if all(n <= max(p[:i], default=-1) + 1 for i, n in enumerate(p)))


@line("4.49", "every pattern of indices: which of the edges and operations of α, L̃, ∂w/∂α are the same, which one is free", False)
def read_patterns(case: Case) -> Readings:
    toy, J, L, C = case.mixture()
    factors, found = (toy.alpha, L.T, einsum("mem->em", J)), {}
    for edges, operations in itertools.product(_partitions(3), repeat=2):
        for e, m in itertools.product(sorted(set(edges)), sorted(set(operations))):
            rows = ["e" if i == e else "fgh"[i] for i in edges]
            columns = ["m" if i == m else "ijk"[i] for i in operations]
            pairs = [row + column for row, column in zip(rows, columns, strict=True)]
            name = "α_{} L̃ᵀ_{} ∂w_{}".format(*pairs)
            found[name] = parallel(einsum(f"{','.join(pairs)}->em", *factors), C)
    return found


def _corrections(case: Case) -> Iterator[tuple[bool, str, float]]:
    """Every bracket of 4.50 times α: whether both of its sums are taken, its name, its error against C."""
    for toy in (case.toy(), case.toy(toys.Bilinear)):
        w, J = responses.Explicit(toy.phi)(toy.alpha)
        C, dw = trace.coupling(toy.dL_dw(toy.alpha, w), J), einsum("mem->em", J)
        for (form, L), own, summed in itertools.product(_quotients(toy, w).items(), (True, False), (True, False)):
            fits = L.shape[1] == case.E and len(L) in (1, case.M)
            bracket = L.T.expand(case.E, -1) * (dw.sum(1, keepdim=True) if own else dw) if fits else None  # (e′, component)
            if bracket is not None and summed:
                bracket = bracket.sum(0, keepdim=True).expand(case.E, -1)
            for added, inner in itertools.product((False, True), repeat=2):
                sums = f"{'own m' if own else 'one m'}, {'Σ_e′' if summed else 'e′ = e'}, {'added up' if added else 'a vector'}"
                error = float("inf")
                if bracket is not None:
                    correction = (bracket.sum(1, keepdim=True) if added else bracket) * toy.alpha
                    error = parallel(correction.sum(1, keepdim=True).expand(C.shape) if inner else correction, C)
                yield summed and (own or added), f"{KINDS[type(toy)]}: {form}, {sums}, {'·' if inner else '⊛'}", error


@line("4.50", "ℓ(α ⊛ w) or ℓ(α w); L̃ as in 4.49; m its own or that of g̃; the bracket a vector or added up; ⊛ or inner product")
def read_4_50(case: Case) -> Readings:
    return {name: error for both, name, error in _corrections(case) if both}


@line("4.50", "the same, with one of the sums left out, or both", False)
def read_fewer_sums(case: Case) -> Readings:
    return {name: error for both, name, error in _corrections(case) if not both}


def learned(case: Case, best: Tensor, absolute: bool) -> float:
    """How far descent on ψ̃ stays from the best ψ, with or without the absolute value of 4.51."""
    alpha, psi, eta = case.normal(*best.shape), torch.zeros_like(best), 0.3
    for _ in range(40):  # half of Newton's step, so that forty steps are enough
        slope = backtracking.psi_gradient(eta * (psi - best) * alpha, alpha, eta, tuple(best.shape))
        psi = psi - 0.5 / (eta * alpha).square() * slope
        psi = psi.abs() if absolute else psi
    return deviation(psi, best)


@line("4.51", "the bars an absolute value or brackets; the best ψ of either sign or nowhere negative")
def read_4_51(case: Case) -> Readings:
    best = case.normal(case.E, case.M)
    best[0, 0] = -best[0, 0].abs()
    signs = {"either sign": best, "ψ ≥ 0": best.abs()}
    return {
        f"{'absolute value' if absolute else 'brackets'}, {name}": learned(case, psi, absolute)
        for absolute in (True, False)
        for name, psi in signs.items()
    }


@line("4.52", "otherwise: α^t, α̃ itself (nothing determined), α^{t+1}; m an operation or an edge; rank 1 the smallest or largest")
def read_4_52(case: Case) -> Readings:
    """The derived line, α^{t+1} otherwise and m an operation, is left out."""
    alpha, start, psi = (case.normal(case.E, case.M) for _ in range(3))
    corrected, found = start + 0.3 * psi * alpha, {}
    ranks = backtracking.ranking(case.normal(case.M).square().sort().values.roll(1))
    want = torch.where(ranks > case.M // 2, corrected, start)
    branches = {"α^t": alpha, "α̃": None, "α^{t+1}": start}
    for (name, branch), letter, order in itertools.product(branches.items(), ("operation", "edge"), ("smallest", "largest")):
        if branch is start and letter == "operation":
            continue
        chosen, fits = (ranks if order == "smallest" else case.M + 1 - ranks) > case.M // 2, branch is not None
        if letter == "edge":
            chosen, fits = chosen.unsqueeze(1), fits and case.E == case.M
        error = deviation(torch.where(chosen, corrected, branch), want) if fits else float("inf")
        found[f"otherwise {name}, m an {letter}, rank 1 the {order}"] = error
    return found
