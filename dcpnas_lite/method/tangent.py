"""Tangent propagation (Eqs. 4.29, 4.31, 4.33, 4.36-4.41): the Child's α̂-gradient is pulled towards the Parent's.

    D(α̂) = ‖ ∂f̃^P/∂α − ∂G/∂α̂ ‖²                                        (4.31)
    ∇_α̂ (λ D) = λ H_G v,    v = ∂D/∂(∂G/∂α̂) = 2 (∂G/∂α̂ − ∂f̃^P/∂α) for the F-norm   (4.33)

H_G is the Hessian of G with respect to α̂. Four ways to multiply by it, in falling order of truth:
`hessian` (exact), `gauss_newton` (−F, the Fisher information of the Child's own output distribution, its expectation summed
over the classes), `sampled` (one class drawn from that distribution for each image, and for each image a copy of α̂ of its own)
and `rank_one` (−g gᵀ with the single gradient g = ∂G/∂α̂). G is minus a divergence, so the substitutes are negative. The
sentence after 4.41 read literally replaces H_G by the outer products without that minus, which climbs D; `printed` does so.

`sampled` estimates −F where the images of a batch do not see each other. In a supernet they do, through BatchNorm. With
h_st = ∂log p̂(image t)/∂(copy s of α̂), F = (1/N) Σ_t E[(Σ_s h_st)(Σ_s h_st)ᵀ], but `sampled` has the mean −(1/N) Σ_t Σ_s
E[h_st h_stᵀ]. The products of different copies are missing, and no batch is large enough to make up for them: along
searches it is about three times as long as −F v, which acts as a larger λ, with a cosine of 0.8 (chapter 9).

Tangents are lists with one (E, M) tensor per cell type, in the order of `Supernet.alphas()`. The network enters as a function
logits(alphas) of such a list, everything else held fixed: `lambda alphas: child(x, alphas)`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from .objectives import nas_loss

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Tangent = list[Tensor]
Logits = Callable[[Sequence[Tensor]], Tensor]
_DUAL_LEVEL = threading.RLock()  # torch has one level of dual numbers, for all threads together


def tangent_direction(
    logits: Float[Tensor, "N classes"], target: Int[Tensor, " N"], alphas: Sequence[Tensor], printed: bool = False
) -> Tangent:
    """∂f̃^P/∂α = Σ_n (p_n(X)/p_n) ∂p_n/∂α = −∂L_NAS/∂α, mean over the batch (Eq. 4.29 as derived from 4.21).

    printed: the line as it stands, Σ_n ∂p_n/∂α, which is zero: the p_n sum to 1.
    """
    value = logits.softmax(1).sum(1).mean() if printed else -nas_loss(logits, target)
    return list(torch.autograd.grad(value, alphas))


def distance(child: Sequence[Tensor], parent: Sequence[Tensor], kind: str = "F") -> Float[Tensor, ""]:
    """D between two tangents, over all cell types together (Eq. 4.31); parent is ∂f̃^P/∂α, child is ∂G/∂α̂.

    kind: "F" squared Frobenius norm of the difference, "L1" sum of absolute differences, "cosine" 1 − cosine.
    """
    a = torch.cat([t.flatten() for t in child])
    b = torch.cat([t.flatten() for t in parent]).detach()
    if a.shape != b.shape:
        raise ValueError(f"parent: expected {a.numel()} entries as in child, got {b.numel()}")
    if kind == "F":
        return (a - b).square().sum()
    if kind == "L1":
        return (a - b).abs().sum()
    if kind == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(a, b, dim=0)
    raise ValueError(f"distance: expected 'F', 'L1' or 'cosine', got {kind!r}")


def distance_slope(child: Sequence[Tensor], parent: Sequence[Tensor], kind: str = "F") -> Tangent:
    """v = ∂D/∂(∂G/∂α̂), which H_G multiplies in Eq. 4.33: 2 (∂G/∂α̂ − ∂f̃^P/∂α) for the F-norm."""
    leaves = [t.detach().requires_grad_() for t in child]
    return list(torch.autograd.grad(distance(leaves, parent, kind), leaves))


def hessian_product(gain: Tensor, alphas: Sequence[Tensor], v: Tangent) -> Tangent:
    """H_G v exactly, by differentiating the gradient of G again (double backward)."""
    gradient = torch.autograd.grad(gain, alphas, create_graph=True)
    return list(torch.autograd.grad(gradient, alphas, v))


def fisher_product(logits: Logits, alphas: Sequence[Tensor], v: Tangent) -> Tangent:
    """F v with the Fisher information F = E_{x ∈ batch} E_{n ~ p̂(x)} [∇log p̂_n ∇log p̂_nᵀ] (Eqs. 4.36-4.37).

    The expectation under the Child's own distribution is summed exactly over the classes, as
    F v = Jᵀ (diag(p̂) − p̂ p̂ᵀ) J v / N with the Jacobian J of the logits: J v by forward-mode differentiation, Jᵀ by backward.
    """
    with _DUAL_LEVEL, forward_ad.dual_level():
        out, tangent = forward_ad.unpack_dual(logits([forward_ad.make_dual(a, t) for a, t in zip(alphas, v, strict=True)]))
    p, tangent = out.detach().softmax(1), tangent.detach()
    cotangent = p * (tangent - (p * tangent).sum(1, keepdim=True)) / len(p)
    return list(torch.autograd.grad(out, alphas, cotangent))


def rank_one_product(gradient: Tangent, v: Tangent) -> Tangent:
    """g (gᵀ v), the outer product of one batch gradient g = ∂G/∂α̂ in place of the Fisher information (Eq. 4.41)."""
    inner = sum((g * t).sum() for g, t in zip(gradient, v, strict=True))
    return [inner * g for g in gradient]


def scores_product(scores: Sequence[Float[Tensor, "N E M"]], v: Tangent) -> Tangent:
    """(1/N) Σ_s h_s (h_sᵀ v) for one score h_s = ∇log p̂ per image (Eq. 4.36 as a sample mean, where no image sees another)."""
    inner = sum(torch.einsum("sem,em->s", h, t) for h, t in zip(scores, v, strict=True))
    return [torch.einsum("s,sem->em", inner, h) / len(inner) for h in scores]


def curvature_product(
    kind: str,
    logits: Logits,
    gain: Callable[[Tensor], Tensor],
    alphas: Sequence[Tensor],
    images: int = 0,
    draw: Callable[[Float[Tensor, "N classes"]], Int[Tensor, " N"]] | None = None,
    printed: bool = False,
) -> tuple[Tensor, Tangent, Callable[[Tangent], Tangent]]:
    """(G, ∂G/∂α̂, the function v ↦ H_G v) on one batch (Eqs. 4.33, 4.36-4.41); gain maps the Child's logits to G.

    kind: "hessian", "gauss_newton", "sampled" or "rank_one" (see the module's docstring); ValueError for any other. The function
    can be called once. For "sampled", `logits` must take an own copy of α̂ for every one of its N = `images` images, (N, E, M)
    per cell type, and `draw` maps the Child's distributions to one class for each. A score is the derivative of the whole batch's
    log-likelihood with respect to that image's copy; under BatchNorm that is not the image's own score (see the module's
    docstring), though the scores still sum to the batch's gradient. They take a second backward pass through the same graph.
    """
    sign = 1.0 if printed else -1.0
    if kind == "sampled":
        if draw is None:
            raise ValueError("draw: expected a function that draws a class for each image for 'sampled', got None")
        copies = [a.detach().expand(images, *a.shape).clone().requires_grad_() for a in alphas]
        out = logits(copies)
        value = gain(out)
        gradient = [c.sum(0) for c in torch.autograd.grad(value, copies, retain_graph=True)]

        def product(v: Tangent, draw=draw) -> Tangent:
            drawn = draw(out.detach().softmax(1))
            scores = torch.autograd.grad(-nas_loss(out, drawn) * images, copies)
            return [sign * t for t in scores_product(scores, v)]

        return value, gradient, product
    if kind not in ("hessian", "gauss_newton", "rank_one"):
        raise ValueError(f"curvature: expected 'hessian', 'gauss_newton', 'sampled' or 'rank_one', got {kind!r}")
    value = gain(logits(alphas))
    gradient = list(torch.autograd.grad(value, alphas, retain_graph=kind == "hessian"))
    if kind == "hessian":
        return value, gradient, lambda v: hessian_product(value, alphas, v)
    if kind == "gauss_newton":
        return value, gradient, lambda v: [sign * t for t in fisher_product(logits, alphas, v)]
    return value, gradient, lambda v: [sign * t for t in rank_one_product(gradient, v)]


def tangent_gradient(
    logits: Logits,
    gain: Callable[[Tensor], Tensor],
    alphas: Sequence[Tensor],
    parent: Tangent,
    curvature: str = "hessian",
    kind: str = "F",
    images: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tangent, Tangent]:
    """(D, ∂G/∂α̂, ∇_α̂ D) on one batch (Eqs. 4.31, 4.33), H_G by `curvature_product`; classes are drawn with `generator`."""
    draw = lambda p: torch.multinomial(p, 1, generator=generator).squeeze(1)  # noqa: E731
    _, gradient, product = curvature_product(curvature, logits, gain, alphas, images, draw)
    return distance(gradient, parent, kind), gradient, product(distance_slope(gradient, parent, kind))


def loss_gradient(gradient: Tangent, distance_gradient: Tangent, lam: float) -> Tangent:
    """∇_α̂ L_DCP-NAS = −∂G/∂α̂ + λ ∇_α̂ D (Eq. 4.33); L_R does not depend on α̂."""
    return [-g + lam * t for g, t in zip(gradient, distance_gradient, strict=True)]
