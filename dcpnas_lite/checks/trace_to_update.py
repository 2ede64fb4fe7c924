"""Chapter 6: from the trace to the update of α (4.49, 4.50)."""

from __future__ import annotations

import torch
from torch import Tensor, einsum

from ..derivation import responses, toys, trace
from . import readings
from .problems import Case, coupling_of, deviation
from .table import Chapter

chapter = Chapter("06-from-trace-to-update")


def _derived_trace(alpha: Tensor, factor: Tensor, dw: Tensor) -> Tensor:
    return trace.coupling((factor @ alpha).diagonal(), trace.response_slices(dw))


@chapter.row(
    "4.49",
    "The trace, edge by edge",
    "identity",
    "autograd",
    "corrected",
    r"\operatorname{Tr}\Bigl[\alpha \tilde L \frac{\partial w}{\partial \alpha}\Bigr]_e = \alpha_e \sum_{m=1}^{M} "
    r"\sum_{e'=1}^{E} \tilde g_{e'} \frac{\partial w_m}{\partial \alpha_{e',m}}",
    derived=r"C_{e,m} = \Bigl( \sum_{e'=1}^{E} \alpha_{e',m} \tilde L_{m,e'} \Bigr) \frac{\partial w_m}{\partial "
    r"\alpha_{e,m}}",
    reason="As an identity for the trace of 4.48 over its last two axes it holds. As the coupling gradient it does not: "
    "the free index e comes from α L̃, which should be contracted, and the index e' of ∂w_m/∂α_{e',m}, which "
    "should stay free, is summed. Both follow from the derivative of w_m by the matrix α in the place of that of "
    "the matrix W by one entry of α (4.45). The line that it follows (RBONN, 3.129 of the source book) is a sum of C: here "
    "each of its factors is transposed, and their order is not reversed.",
    functions=(trace.trace_components, trace.coupling),
)
def check_4_49(case: Case):
    """The printed sum is the trace of 4.48; it is not the exact coupling per edge, which the derived line is. Nor is any
    product of α, L̃ and ∂w/∂α, each transposed or not, in any order, by entries, edges or operations, up to a factor."""
    toy, jacobian, L, C = case.mixture()
    dw, dL_dw = einsum("mem->em", jacobian), toy.dL_dw(toy.alpha, toy.phi(toy.alpha))
    traces = torch.stack([sum((toy.alpha @ L @ jacobian[m])[e, m] for m in range(case.M)) for e in range(case.E)])
    printed = trace.trace_components(toy.alpha, L, dw)
    derived = [[(toy.alpha[:, m] * L[m]).sum() * dw[e, m] for m in range(case.M)] for e in range(case.E)]
    errors = [
        deviation(printed, traces),
        deviation(torch.tensor(derived, dtype=torch.float64), C),
        deviation(trace.coupling(dL_dw, jacobian), C),
    ]
    return max(errors), readings.least(readings.read_4_49(case))


chapter.exercise(
    "4.49",
    "alpha (E, M), factor (M, E), dw (E, M) -> (E)",
    "as printed: α_e Σ_m Σ_e' g̃_e' ∂w_m/∂α[e', m]",
    lambda *a: trace.trace_components(*a),
    {
        "e and e' exchanged": lambda a, L, dw: einsum("fi,if,em->e", a, L, dw),
        "no sum over e'": lambda a, L, dw: einsum("ei,ie,em->e", a, L, dw),
        "α summed over its edges": lambda a, L, dw: einsum("ei,if,fm->f", a, L, dw),
        "α, g̃ and w share m": lambda a, L, dw: einsum("em,mf,fm->e", a, L, dw),
        "α missing": lambda a, L, dw: einsum("if,em->e", L, dw),
        "∂w/∂α missing": lambda a, L, dw: (a @ L).sum(1),
        "mean over m": lambda a, L, dw: trace.trace_components(a, L, dw) / a.shape[1],
        "kept per operation": lambda a, L, dw: a * einsum("if,fm->i", L, dw),
        "the coupling per edge": lambda a, L, dw: _derived_trace(a, L, dw).sum(1),
    },
)

chapter.exercise(
    "4.49 derived",
    "alpha (E, M), factor (M, E), dw (E, M) -> (E, M)",
    "the coupling C[e, m] = (Σ_e' α[e', m] L̃[m, e']) ∂w_m/∂α[e, m]",
    _derived_trace,
    {
        "transposed": lambda a, L, dw: _derived_trace(a, L, dw).T,
        "as printed, in every column": lambda a, L, dw: trace.trace_components(a, L, dw)[:, None] * torch.ones_like(a),
        "the diagonal of α L̃, not of L̃ α": lambda a, L, dw: (a @ L).diagonal()[:, None] * dw,
        "the free index as printed": lambda a, L, dw: a * L.T * dw.sum(0),
        "no sum over e'": lambda a, L, dw: a * L.T * dw,
        "α missing": lambda a, L, dw: L.sum(1) * dw,
        "L̃ missing": lambda a, L, dw: a.sum(0) * dw,
        "∂w/∂α missing": lambda a, L, dw: (L @ a).diagonal().repeat(len(a), 1),
        "summed over m": lambda a, L, dw: (L @ a).diagonal().sum() * dw,
    },
)


@chapter.row(
    "4.50",
    "From the trace to the update",
    "identity",
    "autograd",
    "corrected",
    r"\tilde\alpha^{t+1} = \alpha^{t+1} - \eta \begin{bmatrix} \sum_m \sum_{e'} \tilde g_{e'} "
    r"\frac{\partial w_m}{\partial \alpha_{e',m}} "
    r"\\ \vdots \end{bmatrix} \circledast \begin{bmatrix} \alpha_1 \\ \vdots \\ \alpha_E \end{bmatrix} "
    r"= \alpha^{t+1} + \eta \psi^t \circledast \alpha^t",
    derived=r"\tilde\alpha^{t+1} = \alpha^{t+1} + \eta \psi^t \circledast \alpha^t, \qquad \psi^t_{e,m} = - "
    r"C_{e,m} / \alpha^t_{e,m}",
    reason="In 4.49 the row α_e meets the column g̃_{e'} in an inner product, one number per edge; here the same bracket "
    "multiplies α element by element. Where g̃_e is a number the shapes agree, but every row of the bracket is the same "
    "number and the correction only rescales α. As a parametrization the line is sound: a full ψ = −C/α carries any coupling. "
    "(That ψ is the printed bracket if 4.44 divides entry by entry and neither sum is taken: then α cancels.)",
    functions=(trace.psi_as_printed, trace.psi_as_derived, trace.update),
)
def check_4_50(case: Case):
    """With ψ = −C/α the step is α − η C exactly. With the printed ψ it is another, in both readings, and so it is with every
    other bracket that the sums, the layout of L̃ and the product with α allow, up to a factor."""
    errors, start = [], case.normal(case.E, case.M)
    for toy in (case.toy(), case.toy(toys.Bilinear)):
        w, jacobian = responses.Explicit(toy.phi)(toy.alpha)
        dw, delta, C = einsum("mem->em", jacobian), toy.delta(toy.alpha, w), coupling_of(toy, toy.phi)
        L = delta.T if delta.ndim == 2 else delta.unsqueeze(0)
        bracket = sum(L[:, f] * dw[f, m] for f in range(case.E) for m in range(case.M))
        errors.append(deviation(trace.psi_as_printed(L, dw), -torch.stack([bracket] * case.E)))
        exact = trace.update(start, toy.alpha, trace.psi_as_derived(toy.alpha, C), 0.3)
        errors.append(deviation(exact, start - 0.3 * C))
    return max(errors), readings.least(readings.read_4_50(case))


chapter.exercise(
    "4.50",
    "factor (M, E), dw (E, M) -> (E, M)",
    "ψ as printed: −Σ_m Σ_e' g̃_e' ∂w_m/∂α[e', m] in every row",
    lambda *a: trace.psi_as_printed(*a),
    {
        "transposed": lambda L, dw: trace.psi_as_printed(L, dw).T,
        "one row": lambda L, dw: trace.psi_as_printed(L, dw)[:1],
        "no sum over m": lambda L, dw: -einsum("me,em->m", L, dw).repeat(len(dw), 1),
        "no sum over e'": lambda L, dw: -(L.T * dw.sum(1, keepdim=True)),
        "e' summed apart": lambda L, dw: -(L.sum(1) * dw.sum()).repeat(len(dw), 1),
        "components of g̃ summed": lambda L, dw: -einsum("if,fm->", L, dw).expand(dw.shape).clone(),
        "∂w/∂α missing": lambda L, dw: -L.sum(1).repeat(len(dw), 1),
        "L̃ missing": lambda L, dw: -dw.sum(0).repeat(len(dw), 1),
    },
)

chapter.exercise(
    "4.50 derived",
    "alpha (E, M), coupling (E, M) -> (E, M)",
    "ψ = −C / α",
    lambda *a: trace.psi_as_derived(*a),
    {
        "transposed": lambda a, C: trace.psi_as_derived(a, C).T,
        "multiplied, not divided": lambda a, C: -C * a,
        "upside down": lambda a, C: -a / C,
        "magnitude": lambda a, C: (C / a).abs(),
        "the best per edge": lambda a, C: (-(C * a).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True)).expand_as(a),
        "α missing": lambda a, C: -C,
    },
)

chapter.exercise(
    "4.50 update",
    "alpha_next (E, M), alpha (E, M), psi (E, M), eta -> (E, M)",
    "α^{t+1} + η ψ ⊛ α^t",
    lambda *a: trace.update(*a),
    {
        "transposed": lambda n, a, p, eta: trace.update(n, a, p, eta).T,
        "η missing": lambda n, a, p, eta: n + p * a,
        "α missing": lambda n, a, p, eta: n + eta * p,
        "ψ missing": lambda n, a, p, eta: n + eta * a,
        "α^{t+1} in the product": lambda n, a, p, eta: n + eta * p * n,
        "starts from α^t": lambda n, a, p, eta: a + eta * p * a,
        "minus": lambda n, a, p, eta: n - eta * p * a,
        "correction alone": lambda n, a, p, eta: eta * p * a,
        "inner product for ⊛": lambda n, a, p, eta: n + eta * (p * a).sum(1, keepdim=True),
    },
)

chapter.exercise(
    "4.50 per edge",
    "alpha (E, M), coupling (E, M) -> (E, 1)",
    "the best ψ with one number per edge: least squares of C ≈ −ψ ⊛ α",
    lambda a, C: -(C * a).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True),
    {
        "per operation": lambda a, C: -(C * a).sum(0, keepdim=True) / (a * a).sum(0, keepdim=True),
        "mean of the quotients": lambda a, C: -(C / a).mean(1, keepdim=True),
        "quotient of the means": lambda a, C: -C.mean(1, keepdim=True) / a.mean(1, keepdim=True),
        "divided by the norm, not its square": lambda a, C: -(C * a).sum(1, keepdim=True) / a.norm(dim=1, keepdim=True),
        "divided by ‖C‖²": lambda a, C: -(C * a).sum(1, keepdim=True) / (C * C).sum(1, keepdim=True),
        "a vector": lambda a, C: -(C * a).sum(1) / (a * a).sum(1),
    },
)
