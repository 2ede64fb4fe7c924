"""Chapter 6: the factors under the trace and their product (4.46–4.48)."""

from __future__ import annotations

import torch
from torch import einsum

from ..derivation import responses, trace
from .problems import deviation, mixture, normal
from .table import Chapter

chapter = Chapter("06-trace")


@chapter.row(
    "4.46",
    "Columns of L̃, slices of ∂w/∂α",
    "identity",
    "under an assumption",
    r"\tilde L = [\tilde g_1, \dots, \tilde g_E], \qquad \Bigl[\Bigl(\frac{\partial w}{\partial \alpha}\Bigr)_m\Bigr]_{e,k} = "
    r"\frac{\partial w_m}{\partial \alpha_{e,m}} \, [k = m]",
    reason="w_m must answer to column m of α alone. True by construction for w_m = φ_m(α_{:,m}); false as soon as a softmax ties "
    "the columns together, and for weights trained on the loss. The figure is the share of ‖∂w/∂α‖² outside the pattern "
    "under softmax.",
    functions=(trace.response_slices, responses.independence_defect),
)
def check_4_46():
    """For an independent response the slices are its Jacobian; under softmax part of the Jacobian lies outside."""
    _, _, jacobian, _, _ = mixture()
    slices = trace.response_slices(einsum("mem->em", jacobian))
    _, _, soft, _, _ = mixture(softmax=True)
    outside = sum(soft[k, e, m] ** 2 for k in range(4) for e in range(3) for m in range(4) if k != m) / soft.square().sum()
    defect = torch.tensor(responses.independence_defect(soft), dtype=torch.float64)
    return max(deviation(slices, jacobian), deviation(defect, outside)), defect.item()


chapter.exercise(
    "4.46",
    "dw (E, M) -> (M, E, M)",
    "(∂w/∂α)_m for every m: column m is dw[:, m], 0 elsewhere",
    lambda *a: trace.response_slices(*a),
    {
        "not 0 elsewhere": lambda dw: dw.expand(dw.shape[1], *dw.shape).clone(),
        "slices last": lambda dw: trace.response_slices(dw).movedim(0, 2),
        "next column": lambda dw: trace.response_slices(dw).roll(1, 2),
        "sum over m in column m": lambda dw: trace.response_slices(dw.sum(1, keepdim=True).expand_as(dw)),
        "edges in reverse": lambda dw: trace.response_slices(dw.flip(0)),
    },
)

chapter.exercise(
    "4.46 defect",
    "jacobian (M, E, M) -> ()",
    "share of ‖∂w/∂α‖² where w_k answers to a column other than k",
    lambda J: torch.tensor(responses.independence_defect(J), dtype=J.dtype),
    {
        "share inside": lambda J: 1 - torch.tensor(responses.independence_defect(J), dtype=J.dtype),
        "not squared": lambda J: 1 - einsum("mem->em", J).abs().sum() / J.abs().sum(),
        "share of the norms": lambda J: 1 - einsum("mem->em", J).norm() / J.norm(),
        "not a share": lambda J: J.square().sum() - einsum("mem->em", J).square().sum(),
    },
)


@chapter.row(
    "4.47",
    "α L̃",
    "identity",
    "holds",
    r"\alpha = [\alpha_1, \dots, \alpha_E]^T, \qquad (\alpha \tilde L)_{e,e'} = \alpha_e \tilde g_{e'}",
    functions=(trace.alpha_factor,),
)
def check_4_47():
    """Entry (e, e') is the inner product of row e of α and column e' of L̃."""
    alpha, L = normal(3, 4), normal(4, 3, seed=1)
    by_hand = torch.tensor([[sum(alpha[e, m] * L[m, f] for m in range(4)) for f in range(3)] for e in range(3)])
    return deviation(trace.alpha_factor(alpha, L), by_hand.double())


chapter.exercise(
    "4.47",
    "alpha (E, M), factor (M, E) -> (E, E)",
    "α L̃: entry (e, e') is α_e · g̃_e'",
    lambda *a: trace.alpha_factor(*a),
    {
        "e and e' exchanged": lambda a, L: (a @ L).T,
        "L̃ α": lambda a, L: L @ a,
        "α missing": lambda a, L: L.sum(0).expand(len(a), -1).clone(),
        "L̃ missing": lambda a, L: a.sum(1, keepdim=True).expand(-1, len(a)).clone(),
        "diagonal only": lambda a, L: torch.diag(torch.diag(a @ L)),
        "element by element": lambda a, L: a * L.T,
    },
)


@chapter.row(
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
    functions=(trace.trace_tensor,),
)
def check_4_48():
    """The tensor equals the matrix product with the true Jacobian, slice by slice; under softmax it misses part of it."""
    results = []
    for softmax in (False, True):
        toy, _, jacobian, L, _ = mixture(softmax=softmax)
        products = torch.stack([toy.alpha @ L @ jacobian[m] for m in range(4)], -1)
        results.append(deviation(trace.trace_tensor(toy.alpha, L, einsum("mem->em", jacobian)), products))
    return tuple(results)


chapter.exercise(
    "4.48",
    "alpha (E, M), factor (M, E), dw (E, M) -> (E, M, M)",
    "α L̃ ∂w/∂α: slice [:, :, m] is α L̃ (∂w/∂α)_m",
    lambda *a: trace.trace_tensor(*a),
    {
        "e and e' exchanged": lambda a, L, dw: einsum("fi,ie,mfk->ekm", a, L, trace.response_slices(dw)),
        "not 0 elsewhere": lambda a, L, dw: einsum("ei,if,fm->em", a, L, dw).unsqueeze(1).repeat(1, a.shape[1], 1),
        "α missing": lambda a, L, dw: einsum("if,mfk->km", L, trace.response_slices(dw)).repeat(len(a), 1, 1),
        "L̃ missing": lambda a, L, dw: einsum("ei,mfk->ekm", a, trace.response_slices(dw)),
        "no sum over e'": lambda a, L, dw: einsum("ei,ie,mek->ekm", a, L, trace.response_slices(dw)),
        "diagonal only": lambda a, L, dw: einsum("emm->em", trace.trace_tensor(a, L, dw)),
    },
)
