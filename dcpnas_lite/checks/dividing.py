"""Chapter 4: the division by α and the trace that follows from it (4.44, 4.45)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, einsum

from ..derivation import responses, toys, trace
from . import readings
from .problems import Case, coupling_of, deviation
from .table import Chapter

chapter = Chapter("04-dividing-by-a-matrix")


def _in_the_rows_of_alpha(arguments: dict) -> dict:
    inside = torch.linalg.pinv(arguments["alpha"]) @ arguments["alpha"]
    if "dL_dW" in arguments:
        return arguments | {"dL_dW": inside @ arguments["dL_dW"]}  # (∂L/∂W)^T = L̃ α for some L̃
    return arguments | {"dL_dw": arguments["dL_dw"] @ inside}


@chapter.row(
    "4.44",
    "Dividing by α",
    "definition",
    "autograd",
    "under an assumption",
    r"\tilde L = \Bigl(\frac{\partial L(\alpha, w)}{\partial w}\Bigr)^{T} / \alpha",
    derived=r"\Bigl(\frac{\partial L}{\partial W}\Bigr)^{T} = \tilde L\,\alpha, \qquad W = \operatorname{diag}(w), \; L = "
    r"\ell(\alpha W), \; \tilde L = \Bigl(\frac{\partial \ell}{\partial (\alpha W)}\Bigr)^{T}",
    reason="It takes w for the diagonal matrix W. If L sees α and w only through their products, (∂L/∂W)^T = L̃ α in all "
    "of its M² entries: a right division, exact for every E and M. It returns δ^T = (∂ℓ/∂(α W))^T itself, one "
    "column g̃_e per edge as 4.46 has it, where E ≤ M, and another factor of the same product elsewhere. The "
    "diagonal alone is the elementwise form ∂L/∂w_m = (L̃ α)_{m,m}, the row of a loss of α w the bilinear one, "
    "(∂L/∂w)^T = L̃ α with L̃ of shape 1×E. With w as a vector there is in general no quotient: the figure is what "
    "the best L̃ leaves at E = 1.",
    functions=(trace.matrix_factor, trace.loss_factor, trace.right_division),
)
def check_4_44(case: Case):
    """With W = diag(w) the quotient exists in every size and (∂L/∂W)^T = L̃ α in all M² entries, of which ∂L/∂w is the
    diagonal; so it is for L = ℓ(α w) and the row (∂L/∂w)^T. Of the mixture's row, at E = 1, no L̃ is the quotient."""
    toy, bilinear, single = case.toy(), case.toy(toys.Bilinear), case.toy(E=1)
    W = torch.diag(toy.w).requires_grad_()
    (dL_dW,) = torch.autograd.grad(toy.ell(toy.alpha @ W), W)
    L, quotient = trace.loss_factor(toy.delta(toy.alpha, toy.w)), trace.matrix_factor(dL_dW, toy.alpha)
    row = trace.right_division(bilinear.dL_dw(bilinear.alpha, bilinear.w), bilinear.alpha)
    errors = [
        deviation(quotient @ toy.alpha, dL_dW.T),
        deviation(L @ toy.alpha, dL_dW.T),
        deviation((L @ toy.alpha).diagonal(), toy.dL_dw(toy.alpha, toy.w)),
        deviation(row @ bilinear.alpha, bilinear.dL_dw(bilinear.alpha, bilinear.w).unsqueeze(0)),
    ]
    if case.E <= case.M:  # then the rows of α are independent and the quotient is the only factor
        errors.append(deviation(quotient, L))
    gradient = single.dL_dw(single.alpha, single.w)
    best = torch.linalg.lstsq(single.alpha.T, gradient.unsqueeze(1)).solution
    return max(errors), deviation((single.alpha.T @ best).squeeze(1), gradient)


chapter.exercise(
    "4.44 derived",
    "delta (E, M) -> (M, E)",
    "L̃ of the mixture reading, delta = ∂ℓ/∂(α ⊛ w): column e is g̃_e",
    lambda *a: trace.loss_factor(*a),
    {
        "not transposed": lambda d: d.clone(),
        "edges in reverse": lambda d: d.flip(0).T,
        "reshaped, not transposed": lambda d: d.reshape(d.shape[::-1]),
        "normalised columns": lambda d: (d / d.norm(dim=1, keepdim=True)).T,
    },
)

chapter.exercise(
    "4.44 bilinear",
    "dL_dw (M), alpha (E, M) -> (1, E)",
    "L̃ of the bilinear reading: the shortest row with L̃ α = (∂L/∂w)^T",
    lambda *a: trace.right_division(*a),
    {
        "a vector": lambda g, a: trace.right_division(g, a)[0],
        "a column": lambda g, a: trace.right_division(g, a).T,
        "multiplied, not divided": lambda g, a: (a @ g)[None],
        "divided element by element": lambda g, a: (g / a).mean(1)[None],
        "sign of the smallest": lambda g, a: trace.right_division(g, a).abs(),
    },
    _in_the_rows_of_alpha,
)


chapter.exercise(
    "4.44 matrix",
    "dL_dW (M, M), alpha (E, M) -> (M, E)",
    "L̃ of the matrix reading: the shortest with L̃ α = (∂L/∂W)^T, where dL_dW[k, m] = ∂L/∂W_{k,m}",
    lambda *a: trace.matrix_factor(*a),
    {
        "transposed": lambda G, a: trace.matrix_factor(G, a).T,
        "∂L/∂W not transposed": lambda G, a: G @ torch.linalg.pinv(a),
        "multiplied, not divided": lambda G, a: G.T @ a.T,
        "the diagonal alone": lambda G, a: torch.diag(G.diagonal()) @ torch.linalg.pinv(a),
        "divided element by element": lambda G, a: (G.diagonal() / a).T / len(a),
    },
    _in_the_rows_of_alpha,
)


chapter.exercise(
    "4.44 shortest",
    "dL_dw (M), alpha (E, M) -> (M, E)",
    "the shortest L̃ of the elementwise reading: ∂L/∂w_m = (L̃ α)_{m,m}",
    lambda g, a: (a * g / a.square().sum(0)).T,
    {
        "transposed": lambda g, a: a * g / a.square().sum(0),
        "an equal share for every edge": lambda g, a: (g / a).T / len(a),
        "divided element by element": lambda g, a: (g / a).T,
        "divided by the norm, not its square": lambda g, a: (a * g / a.norm(dim=0)).T,
        "multiplied, not divided": lambda g, a: (a * g).T,
        "normalised along the edge": lambda g, a: (a * g / a.square().sum(1, keepdim=True)).T,
    },
)


@chapter.row(
    "4.45",
    "The loss gradient as a trace",
    "identity",
    "autograd",
    "corrected",
    r"\frac{\partial L(\alpha, w)}{\partial w} = \operatorname{Tr}\Bigl[\alpha \tilde L \frac{\partial w}{\partial "
    r"\alpha}\Bigr]",
    derived=r"C_{e,m} = \operatorname{Tr}\Bigl[\tilde L \alpha \frac{\partial W}{\partial \alpha_{e,m}}\Bigr] = \sum_k "
    r"(\tilde L \alpha)_{kk} \frac{\partial w_k}{\partial \alpha_{e,m}}, \qquad W = \operatorname{diag}(w)",
    reason="The left side must be the coupling (∂L/∂w)(∂w/∂α), one number for each (e, m): the right side doubles with "
    "∂w/∂α, ∂L/∂w does not. The right side holds in the layout of 4.20: with α ∈ R^{M×E} and L̃ ∈ R^{E×M}, Tr[α L̃ "
    "∂W/∂α_{m,e}] = C entry by entry, in the printed order. In the layout of 4.46 and 4.47, rows of α and columns "
    "of L̃ per edge, it is L̃ α. Cyclic permutation does not lead from one to the other: Tr[L̃ α W'] = Tr[α W' "
    "L̃], not Tr[α L̃ W']. Every later slip follows from one here: ∂W/∂α_{e,m}, an M×M matrix for one entry of α, "
    "gives way in 4.46 to (∂w/∂α)_m, an E×M matrix for one weight. Behind the product only α L̃ fits it, L̃ α would have to "
    "stand behind it.",
    functions=(trace.coupling, trace.loss_factor),
)
def check_4_45(case: Case):
    """The trace with L̃ α is the coupling for every (e, m), with w as a matrix and as a row, and so is α L̃ in the layout
    of 4.20. ∂L/∂w, the left side as printed, is no trace of α, L̃ and ∂w/∂α, in no form and no order."""
    toy, jacobian, _, C = case.mixture()
    w, edges, operations = toy.phi(toy.alpha), range(case.E), range(case.M)
    entries = list(itertools.product(edges, operations))

    def traces(product: Tensor) -> Tensor:
        return torch.stack([torch.trace(product @ torch.diag(jacobian[:, e, m])) for e, m in entries]).view(case.E, case.M)

    bilinear = case.toy(toys.Bilinear)
    v, answer = responses.Explicit(bilinear.phi)(bilinear.alpha)
    row = bilinear.delta(bilinear.alpha, v) @ bilinear.alpha
    alpha, L_derived = toy.alpha.T, trace.loss_factor(toy.delta(toy.alpha, w)).T  # the layout of 4.20: M×E and E×M
    errors = [
        deviation(traces(trace.loss_factor(toy.delta(toy.alpha, w)) @ toy.alpha), C),
        deviation(traces(alpha @ L_derived), C),
        deviation(einsum("k,kem->em", row, answer), coupling_of(bilinear, bilinear.phi)),
        deviation(trace.coupling(toy.dL_dw(toy.alpha, w), jacobian), C),
    ]
    return max(errors), readings.least(readings.read_4_45(case))


chapter.exercise(
    "4.45 derived",
    "alpha (E, M), factor (M, E), jacobian (M, E, M) -> (E, M)",
    "C[e, m] = Tr[L̃ α diag ∂w/∂α[e, m]]",
    lambda a, L, J: trace.coupling((L @ a).diagonal(), J),
    {
        "transposed": lambda a, L, J: trace.coupling((L @ a).diagonal(), J).T,
        "α L̃, as printed": lambda a, L, J: einsum("ei,ie,kem->em", a, L, J),
        "all of L̃ α, not its diagonal": lambda a, L, J: trace.coupling((L @ a).sum(0), J),
        "only k = m": lambda a, L, J: einsum("m,mem->em", (L @ a).diagonal(), J),
        "α missing": lambda a, L, J: trace.coupling(L.sum(1), J),
        "L̃ missing": lambda a, L, J: trace.coupling(a.sum(0), J),
    },
)

chapter.exercise(
    "4.45 matrix",
    "alpha (E, M), factor (M, E), dW (M, M, E, M) -> (E, M)",
    "C[e, m] = Tr[L̃ α ∂W/∂α[e, m]] for any matrix W, with dW[k, l, e, m] = ∂W_{k,l}/∂α[e, m]",
    lambda a, L, dW: einsum("kf,fl,lkem->em", L, a, dW),
    {
        "transposed": lambda a, L, dW: einsum("kf,fl,lkem->me", L, a, dW),
        "∂W/∂α transposed": lambda a, L, dW: einsum("kf,fl,klem->em", L, a, dW),
        "its diagonal only": lambda a, L, dW: einsum("kf,fk,kkem->em", L, a, dW),
        "traces multiplied, not the factors": lambda a, L, dW: (L @ a).trace() * einsum("kkem->em", dW),
        "α L̃, as printed": lambda a, L, dW: (a @ L).trace() * einsum("lkem->em", dW),
        "α missing": lambda a, L, dW: einsum("kf,lkem->em", L, dW),
        "L̃ missing": lambda a, L, dW: einsum("fl,lkem->em", a, dW),
    },
)
