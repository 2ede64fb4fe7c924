"""The exact one-step coupling of a supernet (Eq. 4.43 with one unrolled weight step), and how well ψ̃ follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

CLIP = 5.0  # the norm to which the gradient of all weights is clipped before a step of the optimizer
Moves = Callable[[Sequence[Tensor]], list[Tensor]]  # gradients of all weights → what is subtracted from each


def one_step_coupling(
    network: nn.Module,
    weight_loss: Callable[[Callable[..., Tensor]], Tensor],
    alpha_loss: Callable[[Callable[..., Tensor]], Tensor],
    weights: Sequence[nn.Parameter],
    alphas: Sequence[nn.Parameter],
    xi: float | Moves,
) -> list[Tensor]:
    """C = (∂w'/∂α)ᵀ ∂L/∂w' with w' = w − ξ ∇_w L_w(w, α), per cell type (E, M) (Eq. 4.43; the second-order term of DARTS).

    weight_loss and alpha_loss are the losses of the weight step and of the architecture step as functions of the network
    (a callable on images). Exact: C = −ξ ∇_α [∇_w L_w(w, α) · u] with u = ∇_{w'} L(w', α) held fixed, by
    differentiating twice. In a 1-bit network "exact" is with respect to the straight-through derivative (4.35).
    xi: ξ, or what an optimizer subtracts from the weights as a differentiable function of the gradients, see `adam_moves`.
    """
    moves: Moves = xi if callable(xi) else lambda gradient: [xi * g for g in gradient]
    move = moves(torch.autograd.grad(weight_loss(network), weights, create_graph=True))
    names = {id(p): name for name, p in network.named_parameters()}
    moved = {names[id(w)]: (w - m).detach().requires_grad_() for w, m in zip(weights, move, strict=True)}
    u = torch.autograd.grad(alpha_loss(lambda *x: functional_call(network, moved, x)), list(moved.values()))
    inner = sum((m * t).sum() for m, t in zip(move, u, strict=True))
    return [-c for c in torch.autograd.grad(inner, alphas)]


def adam_moves(optimizer: torch.optim.Adam) -> Moves:
    """What the next step of Adam subtracts from its weights, as a differentiable function of their gradients.

    The gradients are clipped to the norm `CLIP` together, as `torch.nn.utils.clip_grad_norm_` does. The optimizer has one group
    of weights and is left as it is (Kingma and Ba, ICLR 2015, Algorithm 1). ValueError for one before its first step, with weight
    decay or AMSGrad.
    """
    (group,) = optimizer.param_groups
    (beta1, beta2), state = group["betas"], [optimizer.state.get(w) for w in group["params"]]
    if not all(state) or group["weight_decay"] or group["amsgrad"]:
        raise ValueError("optimizer: expected Adam after a step, without weight decay and AMSGrad")

    def moves(gradient: Sequence[Tensor]) -> list[Tensor]:
        scale, found = (CLIP / (torch.cat([g.flatten() for g in gradient]).norm() + 1e-6)).clamp(max=1), []
        for g, s in zip(gradient, state, strict=True):
            g, n = scale * g, s["step"].item() + 1
            m = (beta1 * s["exp_avg"] + (1 - beta1) * g) / (1 - beta1**n)
            v = (beta2 * s["exp_avg_sq"] + (1 - beta2) * g.square()) / (1 - beta2**n)
            found.append(group["lr"] * m / (v.clamp(min=1e-36).sqrt() + group["eps"]))  # the slope of √ at 0 is infinite
        return found

    return moves


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Cosine between two lists of tensors, each taken as one vector; 0 where either is zero."""
    a, b = (torch.cat([t.detach().flatten() for t in side]) for side in (a, b))
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()
