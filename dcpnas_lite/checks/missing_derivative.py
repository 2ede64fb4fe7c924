"""Chapter 3: the step with the coupling, and the derivative ∂w/∂α in it (4.43)."""

from __future__ import annotations

from functools import partial

import torch
from torch import einsum, nn

from ..derivation import responses, toys, trace
from ..method import coupling
from .problems import Case, coupling_of, deviation, symmetric
from .table import Chapter

chapter = Chapter("03-missing-derivative")


class _Toy(nn.Module):
    """A toy as the network that `one_step_coupling` expects: its output is the loss."""

    def __init__(self, toy):
        super().__init__()
        self.toy, self.alpha, self.w = toy, nn.Parameter(toy.alpha.clone()), nn.Parameter(toy.w.clone())

    def forward(self) -> torch.Tensor:
        return self.toy.loss(self.alpha, self.w)


@chapter.row(
    "4.43",
    "Gradient step with the coupling",
    "definition",
    "autograd",
    "reconstructed",
    r"\tilde\alpha^{t+1} = \alpha^t - \eta_1 \Bigl( \frac{\partial L}{\partial \alpha^t} + \eta_2 \operatorname{Tr}\Bigl[ "
    r"\Bigl(\frac{\partial L}{\partial w^t}\Bigr)^{T} \frac{\partial w^t}{\partial \alpha^t} \Bigr] \Bigr)",
    functions=(
        trace.coupling,
        responses.Explicit,
        responses.Unrolled,
        responses.Implicit,
        coupling.one_step_coupling,
    ),
)
def check_4_43(case: Case):
    """Direct part plus coupling is the total derivative dL/dα by autograd through w(α), for three responses; and the coupling
    of one weight step, as a search measures it, is that of the unrolled response."""
    errors = []
    for toy in (case.toy(), case.toy(toys.Bilinear)):
        for respond in (responses.Explicit(toy.phi), responses.Unrolled(toy.loss, 0.1), responses.Implicit(toy.regularized)):
            w, jacobian = respond(toy.alpha, toy.w)
            C = trace.coupling(toy.dL_dw(toy.alpha, w), jacobian)
            errors.append(deviation(C, coupling_of(toy, partial(respond.weights, w=toy.w))))
            alpha = toy.alpha.clone().requires_grad_()
            (total,) = torch.autograd.grad(toy.loss(alpha, respond.weights(alpha, toy.w)), alpha)
            errors.append(deviation(toy.dL_dalpha(toy.alpha, w) + C, total))
            if isinstance(respond, responses.Unrolled):
                net = _Toy(toy)
                loss = lambda call: call()  # noqa: E731
                (measured,) = coupling.one_step_coupling(net, loss, loss, [net.w], [net.alpha], respond.xi)
                errors.append(deviation(measured, C))
    return max(errors)


chapter.exercise(
    "4.43",
    "dL_dw (M), jacobian (M, E, M) -> (E, M)",
    "coupling C[e, m] = Σ_k ∂L/∂w_k ∂w_k/∂α[e, m], with jacobian[k, e, m] = ∂w_k/∂α[e, m]",
    lambda *a: trace.coupling(*a),
    {
        "transposed": lambda g, J: trace.coupling(g, J).T,
        "sum over m, not k": lambda g, J: einsum("m,kem->ek", g, J),
        "only k = m": lambda g, J: einsum("m,mem->em", g, J),
        "∂L/∂w missing": lambda g, J: J.sum(0),
        "∂L/∂w outside the sum": lambda g, J: g * J.sum(0),
        "summed over the edges": lambda g, J: trace.coupling(g, J).sum(0).expand(J.shape[1:]),
    },
)

chapter.exercise(
    "4.43 step",
    "alpha (E, M), dL_dalpha (E, M), coupling (E, M), eta1, eta2 -> (E, M)",
    "the step α − η₁ (∂L/∂α + η₂ C)",
    lambda a, d, C, n1, n2: a - n1 * (d + n2 * C),
    {
        "coupling missing": lambda a, d, C, n1, n2: a - n1 * d,
        "direct part missing": lambda a, d, C, n1, n2: a - n1 * n2 * C,
        "coupling's sign": lambda a, d, C, n1, n2: a - n1 * (d - n2 * C),
        "η₁ on the direct part only": lambda a, d, C, n1, n2: a - n1 * d - n2 * C,
        "η₂ missing": lambda a, d, C, n1, n2: a - n1 * (d + C),
        "η₁ and η₂ exchanged": lambda a, d, C, n1, n2: a - n2 * (d + n1 * C),
        "ascent": lambda a, d, C, n1, n2: a + n1 * (d + n2 * C),
    },
)

chapter.exercise(
    "4.43 implicit",
    "hessian (M, M), mixed (M, E, M) -> (M, E, M)",
    "∂w*/∂α = −(∂²L/∂w²)⁻¹ ∂²L/∂w∂α, mixed[k, e, m] = ∂²L/∂w_k∂α[e, m]",
    lambda H, B: -einsum("kj,jem->kem", torch.linalg.inv(H), B),
    {
        "Hessian not inverted": lambda H, B: -einsum("kj,jem->kem", H, B),
        "diagonal only": lambda H, B: -B / H.diagonal()[:, None, None],
        "inverse on the last axis": lambda H, B: -einsum("mj,kej->kem", torch.linalg.inv(H), B),
        "Hessian missing": lambda H, B: -B,
        "inverse element by element": lambda H, B: -einsum("kj,jem->kem", 1 / H, B),
    },
    symmetric,
)
