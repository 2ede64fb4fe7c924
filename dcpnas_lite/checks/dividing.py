"""Chapter 5: the division by α and the trace that follows from it (4.44, 4.45)."""

from __future__ import annotations

import itertools

import torch
from torch import einsum

from ..derivation import responses, toys, trace
from .problems import deviation, mixture
from .table import Chapter

chapter = Chapter("05-dividing-by-a-matrix")


def _in_the_rows_of_alpha(arguments: dict) -> dict:
    inside = torch.linalg.pinv(arguments["alpha"]) @ arguments["alpha"]
    if "dL_dW" in arguments:
        return arguments | {"dL_dW": inside @ arguments["dL_dW"]}  # (∂L/∂W)^T = L̃ α for some L̃
    return arguments | {"dL_dw": arguments["dL_dw"] @ inside}


@chapter.row(
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
    functions=(trace.loss_factor, trace.right_division),
)
def check_4_44():
    """∂L/∂w = diag(L̃ α) in the mixture and (∂L/∂w)^T = L̃ α in the bilinear reading; α has no inverse."""
    toy, w, _, _, dL_dw = mixture()
    L = trace.loss_factor(toy.delta(toy.alpha, w))
    bilinear = toys.Bilinear.random(3, 4, 0)
    row = trace.right_division(bilinear.dL_dw(bilinear.alpha, bilinear.w), bilinear.alpha)
    error = max(
        deviation(torch.diag(L @ toy.alpha), dL_dw),
        deviation(row @ bilinear.alpha, bilinear.dL_dw(bilinear.alpha, bilinear.w).unsqueeze(0)),
        deviation(row, bilinear.delta(bilinear.alpha, bilinear.w).unsqueeze(0)),
    )
    try:
        torch.linalg.inv(toy.alpha)
    except RuntimeError:
        return error, float("inf")
    return error, 0.0


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
        "the diagonal alone": lambda G, a: torch.diag(torch.diag(G)) @ torch.linalg.pinv(a),
        "divided element by element": lambda G, a: (torch.diag(G) / a).T / len(a),
    },
    _in_the_rows_of_alpha,
)


@chapter.row(
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
    functions=(trace.coupling, trace.loss_factor),
)
def check_4_45():
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
        errors.append(deviation(column, dL_dw))
        for e, m in itertools.product(range(E), range(4)):
            W = torch.diag(jacobian[:, e, m]) if delta.ndim == 2 else jacobian[:, e, m].unsqueeze(1)
            errors.append(deviation(torch.trace(L @ toy.alpha @ W), C[e, m]))
        if E == 4 and delta.ndim == 2:
            wrong.append(deviation(torch.diag(toy.alpha @ L), dL_dw))
    return max(errors), min(wrong)


chapter.exercise(
    "4.45 derived",
    "alpha (E, M), factor (M, E), jacobian (M, E, M) -> (E, M)",
    "C[e, m] = Tr[L̃ α diag ∂w/∂α[e, m]]",
    lambda a, L, J: trace.coupling(torch.diag(L @ a), J),
    {
        "transposed": lambda a, L, J: trace.coupling(torch.diag(L @ a), J).T,
        "α L̃, as printed": lambda a, L, J: einsum("ei,ie,kem->em", a, L, J),
        "all of L̃ α, not its diagonal": lambda a, L, J: trace.coupling((L @ a).sum(0), J),
        "only k = m": lambda a, L, J: einsum("m,mem->em", torch.diag(L @ a), J),
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
