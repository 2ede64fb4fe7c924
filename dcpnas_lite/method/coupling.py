"""The exact one-step coupling of a supernet (Eq. 4.43 with one unrolled weight step), and how well ψ̃ follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def one_step_coupling(
    network: nn.Module,
    weight_loss: Callable[[Callable[..., Tensor]], Tensor],
    alpha_loss: Callable[[Callable[..., Tensor]], Tensor],
    weights: Sequence[nn.Parameter],
    alphas: Sequence[nn.Parameter],
    xi: float,
) -> list[Tensor]:
    """C = (∂w'/∂α)ᵀ ∂L/∂w' with w' = w − ξ ∇_w L_w(w, α), per cell type (E, M) (Eq. 4.43; the second-order term of DARTS).

    weight_loss and alpha_loss are the losses of the weight step and of the architecture step as functions of the network
    (a callable on images). Exact: C = −ξ ∇_α [∇_w L_w(w, α) · u] with u = ∇_{w'} L(w', α) held fixed, by
    differentiating twice. In a 1-bit network "exact" is with respect to the straight-through derivative (4.35).
    """
    gradient = torch.autograd.grad(weight_loss(network), weights, create_graph=True)
    names = {id(p): name for name, p in network.named_parameters()}
    moved = {names[id(w)]: (w - xi * g).detach().requires_grad_() for w, g in zip(weights, gradient, strict=True)}
    u = torch.autograd.grad(alpha_loss(lambda *x: functional_call(network, moved, x)), list(moved.values()))
    inner = sum((g * t).sum() for g, t in zip(gradient, u, strict=True))
    return [-xi * c for c in torch.autograd.grad(inner, alphas)]


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Cosine between two lists of tensors, each taken as one vector; 0 where either is zero."""
    a, b = (torch.cat([t.detach().flatten() for t in side]) for side in (a, b))
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()
