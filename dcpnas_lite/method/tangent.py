"""Tangent propagation (Eqs. 4.29, 4.31, 4.33, 4.36-4.41): the Child's α̂-gradient is pulled towards the Parent's.

    D(α̂) = ‖ ∂f̃^P/∂α − ∂G/∂α̂ ‖²                                        (4.31)
    ∇_α̂ (λ D) = λ H_G v,    v = ∂D/∂(∂G/∂α̂) = 2 (∂G/∂α̂ − ∂f̃^P/∂α) for the F-norm   (4.33)

H_G is the Hessian of G with respect to α̂. Four ways to multiply by it, in falling order of truth:
`hessian` (exact), `gauss_newton` (−F, the Fisher information of the Child's own output distribution, its expectation summed
over the classes), `sampled` (−F with one class drawn from that distribution for each image) and `rank_one` (−g gᵀ with the
single gradient g = ∂G/∂α̂). G is minus a divergence, so the substitutes are negative: the plus sign in the source climbs D.

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

from ..engine.distributed import ALONE, Group
from .objectives import nas_loss

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Tangent = list[Tensor]
Logits = Callable[[Sequence[Tensor]], Tensor]
_DUAL_LEVEL = threading.RLock()  # torch has one level of dual numbers, for all threads together


def tangent_direction(
    logits: Float[Tensor, "N n"], target: Int[Tensor, " N"], alphas: Sequence[Tensor]
) -> Tangent:
    """∂f̃^P/∂α = Σ_n (p_n(X)/p_n) ∂p_n/∂α = −∂L_NAS/∂α, mean over the batch (Eq. 4.29 as derived from 4.21).

    As printed, Σ_n ∂p_n/∂α, it would be zero: the p_n sum to 1.
    """
    return list(torch.autograd.grad(-nas_loss(logits, target), alphas))


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
    """(1/N) Σ_s h_s (h_sᵀ v) for one score h_s = ∇log p̂ per image (Eq. 4.36 as a sample mean)."""
    inner = sum(torch.einsum("sem,em->s", h, t) for h, t in zip(scores, v, strict=True))
    return [torch.einsum("s,sem->em", inner, h) / len(inner) for h in scores]


def tangent_gradient(
    logits: Logits,
    gain: Callable[[Tensor], Tensor],
    alphas: Sequence[Tensor],
    parent: Tangent,
    curvature: str = "sampled",
    kind: str = "F",
    images: int = 0,
    generator: torch.Generator | None = None,
    group: Group = ALONE,
) -> tuple[Tensor, Tangent, Tangent]:
    """(D, ∂G/∂α̂, ∇_α̂ D) on one batch (Eqs. 4.31, 4.33); gain maps the Child's logits to G (mean over the batch).

    curvature: "hessian", "gauss_newton", "sampled" or "rank_one" (see the module's docstring). For "sampled", `logits` must
    take an own copy of α̂ for every one of its N = `images` images, (N, E, M) per cell type; the classes are drawn with
    `generator`. BatchNorm couples the images of a batch: a score is then the derivative with respect to that image's copy,
    and the scores still sum to the batch's gradient. The scores take a second backward pass through the same graph; a forward
    and a backward pass of a quarter of the batch alone follow H_G v about as well, and are no cheaper in a small supernet.

    Where each process of a `group` has its part of the batch, the results are those of the whole batch, and alike in all.
    """
    if curvature == "sampled":
        copies = [a.detach().expand(images, *a.shape).clone().requires_grad_() for a in alphas]
        out = logits(copies)
        gradient = group.mean([c.sum(0) for c in torch.autograd.grad(gain(out), copies, retain_graph=True)])
        drawn = group.part(torch.multinomial(group.whole(out.detach().softmax(1)), 1, generator=generator).squeeze(1))
        scores = torch.autograd.grad(-nas_loss(out, drawn) * images, copies)
        slope = distance_slope(gradient, parent, kind)
        return distance(gradient, parent, kind), gradient, group.mean([-t for t in scores_product(scores, slope)])
    value = gain(logits(alphas))
    gradient = group.mean(torch.autograd.grad(value, alphas, retain_graph=curvature == "hessian"))
    slope = distance_slope(gradient, parent, kind)
    if curvature == "hessian":
        product = hessian_product(value, alphas, slope)
    elif curvature == "gauss_newton":
        product = [-t for t in fisher_product(logits, alphas, slope)]
    elif curvature == "rank_one":
        product = [-t for t in rank_one_product(gradient, slope)]
    else:
        raise ValueError(f"curvature: expected 'hessian', 'gauss_newton', 'sampled' or 'rank_one', got {curvature!r}")
    return distance(gradient, parent, kind), gradient, group.mean(product)
